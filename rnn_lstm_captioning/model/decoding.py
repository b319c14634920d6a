"""From an image's features to words, one step at a time, in the same way for every cell.

A captioner has two methods: ``start(features) -> state, image`` and ``step(words, state, image) -> scores (N, V),
state, attn_weights or None``. The state is a tuple of tensors and the image is a tensor; the first dimension of all of
them is the batch, so rows can be dropped, copied or reordered. The state changes with every word. The image does not
change; a cell may read it again at every step.

A caption is a sequence of words that ends with ``<END>``, or is cut at the maximum length. Its probability is the
product of the probabilities of its words, each given the words before it. Words that are not allowed (``<NULL>``,
``<START>``, and ``<UNK>`` unless ``allow_unk``) are left out of the softmax. Every search takes a ``beginning``: the
indices of the words that the caption must start with, whatever their probability. With ``no_repeats``, no search
writes "a man rides a bike on a bike", and with ``no_bad_endings`` none stops after "a man in a"; the probability of
what it writes instead is still the captioner's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.vocabulary import END, NULL, SPECIAL_TOKENS, START, UNK
from ..errors import InputError
from .settings import BEAM, LENGTH_PENALTY

State = tuple[Tensor, ...]


class Captioner(Protocol):
    """What the searches need of a captioner."""

    @property
    def written_once(self) -> Tensor:
        """bool (V,): the words that a caption has once at most; only ``no_repeats`` reads it."""

    @property
    def never_last(self) -> Tensor:
        """bool (V,): the words with which no caption ends; only ``no_bad_endings`` reads it."""

    def start(self, features: Tensor) -> tuple[State, Tensor]: ...

    def step(self, words: Tensor, state: State, image: Tensor) -> tuple[Tensor, State, Tensor | None]: ...


@dataclass(frozen=True)
class Decoding:
    """How captions are written: sampling if one of temperature, top_k and top_p is given, else beam search.

    Args:
        max_length: the largest number of words in a caption.
        beam: how many partial captions are kept for each image (1: greedy search, the default here; the scripts use
            :meth:`recommended`).
        length_penalty: captions are ranked by log_prob / length ** length_penalty; the length counts ``<END>``. 0 ranks
            by probability, which favours short captions; 1 ranks by the mean log-probability of the words.
        temperature: above 0; below 1, probable words become even more probable.
        top_k: draw from the k most probable words only.
        top_p: draw from the fewest words that together have this probability (nucleus sampling: Holtzman et al. 2020).
        allow_unk: captions may contain ``<UNK>``.
        no_repeats: a caption has a word once at most, except those that captions often have twice, such as "a" (see
            :attr:`CaptioningRNN.written_once`).
        no_bad_endings: a caption never ends with a word such as "a" or "of" (see :attr:`CaptioningRNN.never_last`).
    Raises: InputError (a ValueError) for a value out of range, or a beam together with sampling.
    """

    max_length: int = 15
    beam: int = 1
    length_penalty: float = 0.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    allow_unk: bool = False
    no_repeats: bool = False
    no_bad_endings: bool = False

    def __post_init__(self) -> None:
        counts = {"max_length": self.max_length, "beam": self.beam}
        for name, value in counts.items() if self.top_k is None else (counts | {"top_k": self.top_k}).items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value}, wanted an int of at least 1")
        for name, value in counts.items():
            if value > 1000:
                raise InputError(f"{name} is {value}, wanted at most 1000")
        if not -10 <= self.length_penalty <= 10:
            raise InputError(f"length_penalty is {self.length_penalty}, wanted from -10 to 10")
        object.__setattr__(self, "length_penalty", float(self.length_penalty))
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}, wanted above 0 and finite")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, wanted in (0, 1]")
        if self.samples and self.beam > 1:
            raise InputError("beam can't be combined with temperature, top_k or top_p: choose beam search or sampling")

    @classmethod
    def recommended(cls, **values: Any) -> "Decoding":
        """The values that are given and not None; for the others, those that write the best captions (docs/results.md):
        no repeats, no bad endings, and a beam of 5 and a length penalty of 1, unless words are drawn at random."""
        given: dict[str, Any] = {"no_repeats": True, "no_bad_endings": True}
        given |= {name: value for name, value in values.items() if value is not None}
        if given.keys() & {"temperature", "top_k", "top_p"}:
            return cls(**given)
        defaults: dict[str, Any] = {"beam": BEAM, "length_penalty": LENGTH_PENALTY}
        return cls(**defaults | given)

    @property
    def samples(self) -> bool:
        """Whether words are drawn at random."""
        return (self.temperature, self.top_k, self.top_p) != (None, None, None)

    @property
    def forbids(self) -> bool:
        """Whether some words are left out that a captioner could choose."""
        return self.no_repeats or self.no_bad_endings


class Decoded(NamedTuple):
    """What the searches return, for N images and at most L words."""

    captions: Tensor  # int64 (N, L), everything after <END> is <NULL>
    log_probs: Tensor  # (N,), natural logarithms
    attn_weights: Tensor | None  # (N, L, grid_h, grid_w), zero after the end; None without attention


def decode(
    captioner: Captioner,
    features: Tensor,
    decoding: Decoding | None = None,
    beginning: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Decoded:
    """Write captions as the settings say, for features (N, C, grid_h, grid_w)."""
    decoding = decoding or Decoding()
    if decoding.samples:
        return sampling_search(captioner, features, decoding, beginning, generator)
    return beam_search(captioner, features, decoding, beginning)


def greedy_search(
    captioner: Captioner,
    features: Tensor,
    max_length: int = 15,
    allow_unk: bool = False,
    beginning: Sequence[int] = (),
) -> Decoded:
    """Choose the most probable word at every step, for features (N, C, grid_h, grid_w)."""
    return _search(captioner, features, Decoding(max_length, allow_unk=allow_unk), beginning, _most_probable)


def sampling_search(
    captioner: Captioner,
    features: Tensor,
    decoding: Decoding,
    beginning: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Decoded:
    """Draw every word at random, with its probability, for features (N, C, grid_h, grid_w).

    Args: generator, the source of randomness. Returns: :class:`Decoded`; its log_probs are those of the model, at
        temperature 1.
    """
    temperature = max(1.0 if decoding.temperature is None else decoding.temperature, 1e-30)  # in float32, 1e-300 is 0

    def draw(scores: Tensor) -> Tensor:
        probs = torch.softmax((scores - scores.amax(1, keepdim=True)) / temperature, dim=1)
        if decoding.top_k is None and decoding.top_p is None:
            return torch.multinomial(probs, 1, generator=generator).squeeze(1)
        probs, words = probs.sort(dim=1, descending=True)
        if decoding.top_k is not None:
            probs[:, decoding.top_k :] = 0
        if decoding.top_p is not None:
            too_many = probs.cumsum(dim=1) - probs >= decoding.top_p
            too_many[:, 0] = False  # the most probable word always stays
            probs[too_many] = 0
        return words.gather(1, torch.multinomial(probs, 1, generator=generator)).squeeze(1)

    return _search(captioner, features, decoding, beginning, draw)


@torch.no_grad()
def beam_search(captioner: Captioner, features: Tensor, decoding: Decoding, beginning: Sequence[int] = ()) -> Decoded:
    """At every step, keep the ``beam`` best partial captions of each image; return the best caption.

    The greedy caption is always a candidate, so the result never ranks below it. Beam 1 is greedy search.
    Args: features (N, C, grid_h, grid_w).
    """
    L, K, length_penalty = decoding.max_length, decoding.beam, decoding.length_penalty
    greedy = _search(captioner, features, decoding, beginning, _most_probable)
    if K == 1:
        return greedy
    N, device = len(features), features.device
    state, image = captioner.start(features)
    repeated = torch.arange(N, device=device).repeat_interleave(K)
    state, image = _rows(state, repeated), image[repeated]
    captions = torch.full((N, K, L), NULL, device=device)
    log_probs = greedy.log_probs.new_full((N, K), -torch.inf)
    log_probs[:, 0] = 0  # at first there is one partial caption, the empty one
    lengths = captions.new_zeros(N, K)
    ended = torch.zeros(N, K, dtype=torch.bool, device=device)
    words, index, attn_weights = captions.new_full((N, K), START), torch.arange(N, device=device).unsqueeze(1), None
    for t in range(L):
        scores, state, weights = next_scores(captioner, words.flatten(), state, image, decoding.allow_unk)
        step_log_probs = torch.log_softmax(scores, dim=1).unflatten(0, (N, K))
        if t < len(beginning):
            others = torch.arange(scores.shape[1], device=device) != beginning[t]
            step_log_probs = step_log_probs.masked_fill(others, -torch.inf)
        elif decoding.forbids:
            step_log_probs = step_log_probs.masked_fill(forbidden(captioner, captions[:, :, :t], decoding), -torch.inf)
        # an ended caption is only padded with <NULL>, which does not change its probability
        step_log_probs = step_log_probs.masked_fill(ended.unsqueeze(2), -torch.inf)
        step_log_probs[..., NULL].masked_fill_(ended, 0)
        total = log_probs.unsqueeze(2) + step_log_probs  # (N, K, V)
        lengths = lengths + ~ended
        rank = total / lengths.unsqueeze(2) ** length_penalty
        best = rank.flatten(1).topk(K, dim=1).indices  # (N, K)
        source, words = best // total.shape[2], best % total.shape[2]
        log_probs = total.flatten(1).gather(1, best)
        captions, lengths, ended = captions[index, source], lengths[index, source], ended[index, source]
        captions[:, :, t] = words
        rows = (index * K + source).flatten()
        state = _rows(state, rows)
        if weights is not None:
            if attn_weights is None:
                attn_weights = weights.new_zeros(N, K, L, *weights.shape[1:])
            attn_weights = attn_weights[index, source]
            still_written = (~ended)[..., None, None]
            attn_weights[:, :, t] = weights[rows].unflatten(0, (N, K)) * still_written
        ended = ended | (words == END)
        if ended.all():
            break
    first = (log_probs / lengths**length_penalty).argmax(dim=1)  # (N,)
    chosen = index[:, 0], first
    found = Decoded(captions[chosen], log_probs[chosen], None if attn_weights is None else attn_weights[chosen])
    found_rank = found.log_probs / lengths[chosen] ** length_penalty
    greedy_rank = greedy.log_probs / (greedy.captions != NULL).sum(1) ** length_penalty
    better = found_rank > greedy_rank  # (N,)

    def choose(a, b):
        return None if a is None else torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b)

    return Decoded(*map(choose, found, greedy))


@torch.no_grad()
def _search(
    captioner: Captioner,
    features: Tensor,
    decoding: Decoding,
    beginning: Sequence[int],
    choose: Callable[[Tensor], Tensor],
) -> Decoded:
    """One caption for each image, word by word; ``choose`` maps scores (n, V) to words (n,)."""
    max_length, allow_unk = decoding.max_length, decoding.allow_unk
    if len(beginning) > max_length:
        raise ValueError(f"the beginning has {len(beginning)} words, wanted at most max_length, {max_length}")
    if NULL in beginning or START in beginning or END in beginning[:-1] or (UNK in beginning and not allow_unk):
        raise ValueError("the beginning contains a word that is not allowed there")
    N, device = len(features), features.device
    captions = torch.full((N, max_length), NULL, device=device)
    log_probs: Tensor | None = None
    attn_weights: Tensor | None = None
    state, image = captioner.start(features)
    words = captions.new_full((N,), START)
    alive = torch.arange(N, device=device)  # the captions that have not ended; only these are computed
    for t in range(max_length):
        scores, state, weights = next_scores(captioner, words, state, image, allow_unk)
        if t < len(beginning):
            words = torch.full_like(words, beginning[t])
        elif decoding.forbids:
            words = choose(scores.masked_fill(forbidden(captioner, captions[alive, :t], decoding), -torch.inf))
        else:
            words = choose(scores)
        captions[alive, t] = words
        if log_probs is None:
            log_probs = scores.new_zeros(N)
        log_probs = log_probs.index_add(
            0, alive, scores.gather(1, words.unsqueeze(1)).squeeze(1) - scores.logsumexp(dim=1)
        )
        if weights is not None:
            if attn_weights is None:
                attn_weights = weights.new_zeros(N, max_length, *weights.shape[1:])
            attn_weights[alive, t] = weights
        unfinished = words != END
        if not unfinished.any():
            break
        if not unfinished.all():
            alive, words = alive[unfinished], words[unfinished]
            state, image = _rows(state, unfinished), image[unfinished]
    assert log_probs is not None  # there was at least one step
    return Decoded(captions, log_probs, attn_weights)


def next_scores(
    captioner: Captioner, words: Tensor, state: State, image: Tensor, allow_unk: bool
) -> tuple[Tensor, State, Tensor | None]:
    """One step: the scores (n, V) of the next word, -inf if it is not allowed; the next state; attn_weights."""
    scores, state, weights = captioner.step(words, state, image)
    return allowed(scores, allow_unk), state, weights


def allowed(scores: Tensor, allow_unk: bool = False) -> Tensor:
    """Scores (..., V), with -inf for words that are not allowed in a caption, in place; 16-bit ones become float32."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    scores[..., [NULL, START] if allow_unk else [NULL, START, UNK]] = -torch.inf
    return scores


def forbidden(captioner: Captioner, written: Tensor, decoding: Decoding) -> Tensor:
    """The words that a search may not write after those that are written, int64 (..., t) -> bool (..., V)."""
    once, never_last = captioner.written_once, captioner.never_last
    *rows, t = written.shape
    found = torch.zeros(*rows, len(once), dtype=torch.bool, device=written.device)
    if decoding.no_repeats:
        found = found.scatter_(-1, written, True) & once
    if decoding.no_bad_endings:
        if t == decoding.max_length - 1:  # the last word
            found = found | never_last
        if t:  # a caption may not end now if its newest word is never last; it must, if no other word is left
            nothing_left = found[..., len(SPECIAL_TOKENS) :].all(-1)
            found[..., END] = never_last[written[..., -1]] & ~nothing_left
    return found


def _most_probable(scores):
    return scores.argmax(dim=1)


def _rows(tensors: State, rows: Tensor) -> State:
    return tuple(tensor[rows] for tensor in tensors)
