"""From a picture's features to words, one step at a time, for every cell alike.

A captioner offers two methods: ``begin(features) -> state, image`` and ``advance(words, state, image)
-> scores (N, V), state, attn_weights or None``. State and image are tuples of tensors whose first
dimension is the batch, so that rows can be dropped, copied or reordered without knowing the cell. The
state changes with every word; the image is what the cell looks at again, and stays.

A caption is a sequence of words that ends with ``<END>``, or is cut at the maximum length. Its
probability is the product of its words' probabilities, each given the words before it, after the
words that may not be written (``<NULL>``, ``<START>``, and ``<UNK>`` unless asked for) are ruled out.
Every search takes a ``beginning``: the indices of words that are written whatever their probability,
before the search goes on.
"""

import math
from typing import NamedTuple

import torch

from .vocabulary import END, NULL, START, UNK


class Decoded(NamedTuple):
    """What the searches return, for N pictures and at most L words."""

    captions: torch.Tensor  # int64 (N, L), everything after <END> is <NULL>
    log_probs: torch.Tensor  # (N,), natural logarithms
    attn_weights: torch.Tensor | None  # (N, L, grid_h, grid_w), zero after the end; None without attention


def greedy_search(captioner, features, max_length=15, allow_unk=False, beginning=()):
    """The most probable word at every step.

    Args: features (N, C, grid_h, grid_w). Returns: :class:`Decoded`.
    """
    return _search(captioner, features, max_length, allow_unk, beginning, lambda scores: scores.argmax(dim=1))


def sampling_search(
    captioner, features, max_length=15, temperature=1.0, top_k=None, top_p=None, generator=None, allow_unk=False,
    beginning=(),
):  # fmt: skip
    """Every word drawn at random, by its probability.

    Args: features (N, C, grid_h, grid_w); temperature, above 0: below 1 the probable words become more
        probable; top_k, draw from the k most probable words only; top_p, from the fewest words that
        together have this probability (nucleus sampling: Holtzman et al. 2020); generator, the source
        of randomness.
    Returns: :class:`Decoded`; its log_probs are those of the model, at temperature 1.
    Raises: ValueError for a temperature, top_k or top_p out of range.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, wanted above 0 and finite")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, wanted at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, wanted in (0, 1]")

    def draw(scores):
        probs = torch.softmax((scores - scores.amax(1, keepdim=True)) / temperature, dim=1)
        if top_k is None and top_p is None:
            return torch.multinomial(probs, 1, generator=generator).squeeze(1)
        probs, words = probs.sort(dim=1, descending=True)
        if top_k is not None:
            probs[:, top_k:] = 0
        if top_p is not None:
            probs[probs.cumsum(dim=1) - probs >= top_p] = 0  # the most probable word always stays
        return words.gather(1, torch.multinomial(probs, 1, generator=generator)).squeeze(1)

    return _search(captioner, features, max_length, allow_unk, beginning, draw)


@torch.no_grad()
def beam_search(captioner, features, max_length=15, beam=5, length_penalty=0.0, allow_unk=False, beginning=()):
    """The best caption that is found by following the ``beam`` best beginnings of each picture.

    Captions are ranked by log_prob / length ** length_penalty, the length counting ``<END>``: at 0 by
    their probability, which favours short ones; at 1 by the mean over their words. The greedy caption
    is always a candidate, so the result never ranks below it. Beam 1 is the greedy search.

    Args: features (N, C, grid_h, grid_w). Returns: :class:`Decoded`.
    """
    if beam < 1:
        raise ValueError(f"beam is {beam}, wanted at least 1")
    greedy = greedy_search(captioner, features, max_length, allow_unk, beginning)
    if beam == 1:
        return greedy
    N, K, L, device = len(features), beam, max_length, features.device
    state, image = (
        _rows(part, torch.arange(N, device=device).repeat_interleave(K)) for part in captioner.begin(features)
    )
    captions = torch.full((N, K, L), NULL, device=device)
    log_probs = greedy.log_probs.new_full((N, K), -torch.inf)
    log_probs[:, 0] = 0  # there is one beginning, the empty one; the others are not there yet
    lengths = captions.new_zeros(N, K)
    ended = torch.zeros(N, K, dtype=torch.bool, device=device)
    words, picture, attn_weights = captions.new_full((N, K), START), torch.arange(N, device=device).unsqueeze(1), None
    for t in range(L):
        scores, state, weights = next_scores(captioner, words.flatten(), state, image, allow_unk)
        step_log_probs = torch.log_softmax(scores, dim=1).unflatten(0, (N, K))
        if t < len(beginning):
            others = torch.arange(scores.shape[1], device=device) != beginning[t]
            step_log_probs = step_log_probs.masked_fill(others, -torch.inf)
        # an ended caption goes on with <NULL> only, for nothing
        step_log_probs = step_log_probs.masked_fill(ended.unsqueeze(2), -torch.inf)
        step_log_probs[..., NULL].masked_fill_(ended, 0)
        total = log_probs.unsqueeze(2) + step_log_probs  # (N, K, V)
        lengths = lengths + ~ended
        rank = total / lengths.unsqueeze(2) ** length_penalty
        best = rank.flatten(1).topk(K, dim=1).indices  # (N, K)
        source, words = best // total.shape[2], best % total.shape[2]
        log_probs = total.flatten(1).gather(1, best)
        captions, lengths, ended = captions[picture, source], lengths[picture, source], ended[picture, source]
        captions[:, :, t] = words
        rows = (picture * K + source).flatten()
        state = _rows(state, rows)
        if weights is not None:
            if attn_weights is None:
                attn_weights = weights.new_zeros(N, K, L, *weights.shape[1:])
            attn_weights = attn_weights[picture, source]
            still_written = (~ended)[..., None, None]
            attn_weights[:, :, t] = weights[rows].unflatten(0, (N, K)) * still_written
        ended = ended | (words == END)
        if ended.all():
            break
    first = (log_probs / lengths**length_penalty).argmax(dim=1)  # (N,)
    found = [None if x is None else x[picture[:, 0], first] for x in (captions, log_probs, attn_weights)]
    found_rank = found[1] / lengths[picture[:, 0], first] ** length_penalty
    greedy_rank = greedy.log_probs / (greedy.captions != NULL).sum(1) ** length_penalty
    better = found_rank > greedy_rank  # (N,)

    def choose(a, b):
        return None if a is None else torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b)

    return Decoded(*map(choose, found, greedy))


@torch.no_grad()
def _search(captioner, features, max_length, allow_unk, beginning, choose):
    """One caption per picture, word by word; ``choose`` maps scores (n, V) to words (n,)."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}, wanted at least 1")
    if len(beginning) > max_length:
        raise ValueError(f"the beginning has {len(beginning)} words, wanted at most max_length, {max_length}")
    if NULL in beginning or START in beginning or END in beginning[:-1] or (UNK in beginning and not allow_unk):
        raise ValueError("the beginning has a word that may not stand there")
    N, device = len(features), features.device
    captions = torch.full((N, max_length), NULL, device=device)
    log_probs, attn_weights = None, None
    state, image = captioner.begin(features)
    words = captions.new_full((N,), START)
    alive = torch.arange(N, device=device)  # the rows that have not ended; only they are computed
    for t in range(max_length):
        scores, state, weights = next_scores(captioner, words, state, image, allow_unk)
        words = choose(scores) if t >= len(beginning) else torch.full_like(words, beginning[t])
        captions[alive, t] = words
        if log_probs is None:
            log_probs = scores.new_zeros(N)
        log_probs[alive] += scores.gather(1, words.unsqueeze(1)).squeeze(1) - scores.logsumexp(dim=1)
        if weights is not None:
            if attn_weights is None:
                attn_weights = weights.new_zeros(N, max_length, *weights.shape[1:])
            attn_weights[alive, t] = weights
        going_on = words != END
        if not going_on.any():
            break
        if not going_on.all():
            alive, words = alive[going_on], words[going_on]
            state, image = _rows(state, going_on), _rows(image, going_on)
    return Decoded(captions, log_probs, attn_weights)


def next_scores(captioner, words, state, image, allow_unk):
    """The scores (n, V) of the words that may come next, the next state, attn_weights."""
    scores, state, weights = captioner.advance(words, state, image)
    return allowed(scores, allow_unk), state, weights


def allowed(scores, allow_unk=False):
    """Scores (..., V), those of words that may not be written set to -inf; 16-bit ones in float32."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    scores[..., [NULL, START] if allow_unk else [NULL, START, UNK]] = -torch.inf
    return scores


def _rows(tensors, rows):
    return tuple(tensor[rows] for tensor in tensors)


def decode(
    captioner, features, max_length=15, beam=1, length_penalty=0.0, temperature=None, top_k=None, top_p=None,
    generator=None, allow_unk=False, beginning=(),
):  # fmt: skip
    """The search that the settings ask for: sampling if one of temperature, top_k and top_p is given,
    else beam search (greedy search at beam 1). Returns: :class:`Decoded`."""
    if (temperature, top_k, top_p) == (None, None, None):
        return beam_search(captioner, features, max_length, beam, length_penalty, allow_unk, beginning)
    temperature = 1.0 if temperature is None else temperature
    return sampling_search(
        captioner, features, max_length, temperature, top_k, top_p, generator, allow_unk, beginning
    )  # fmt: skip
