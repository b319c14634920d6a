"""Which earlier word and which region of the image made a word probable? Three answers, to be compared.

- The attention weights: where the cell looked, if it has attention.
- Occlusion: replace a region, or an earlier word, by something that says nothing, and measure the log-probability
  again. The value is how much it falls (Zeiler and Fergus 2014).
- Gradient: the same change to first order, without measuring again: the gradient of the log-probability times the
  difference that occlusion would make (Simonyan, Vedaldi and Zisserman 2014; "gradient times input", with a
  baseline). The gradients come from the hand-written backward passes.

"Something that says nothing" is, for a region, the mean over the image's grid; for a word, the mean of all word
vectors. Positive values speak for the word, negative ones against it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.vocabulary import END, START
from ..errors import InputError
from ..model.captioner import CaptioningRNN, evaluating
from ..model.decoding import allowed


@dataclass
class Explanation:
    """Of a caption with T words (``<END>`` is the last one). Row t of every tensor belongs to word t.

    Attributes: words; log_probs (T,) in nats; attention (T, grid_h, grid_w), or None; region_gradient and
        region_occlusion (T, grid_h, grid_w); word_gradient and word_occlusion (T, T): column j is the j-th word that
        the captioner read, and column 0 is ``<START>``. A later word has no influence, so its value is 0.
    """

    words: list[str]
    log_probs: Tensor
    attention: Tensor | None
    region_gradient: Tensor
    region_occlusion: Tensor
    word_gradient: Tensor
    word_occlusion: Tensor


def explain(model: CaptioningRNN, features: Tensor, words: Sequence[str]) -> Explanation:
    """Explain each word of a caption, and its end.

    Args: features (1, C, grid_h, grid_w); words, those of the caption, without ``<START>`` and ``<END>``.
    Raises: InputError for a word that is not in the vocabulary; ValueError for features of another shape.
    """
    if features.dim() != 4 or len(features) != 1:
        raise ValueError(f"features has shape {tuple(features.shape)}, wanted (1, C, grid_h, grid_w)")
    unknown = [word for word in words if word not in model.word_to_idx]
    if unknown:
        raise InputError(f"{unknown[0]!r} is not in the captioner's vocabulary")
    read = torch.tensor([START, *(model.word_to_idx[word] for word in words)], device=features.device)
    targets = torch.tensor([*read[1:].tolist(), END], device=features.device)
    features = features.to(model.feature_mean.dtype)
    with evaluating(model):
        x, empty = model.word_embedding(read), model.word_embedding.W_embed.mean(0)  # (T, D), (D,)
        blank = features.mean((2, 3), keepdim=True)
        log_probs = _log_probs(model, x[None], features, targets)[0]
        region_gradient, word_gradient = _gradients(model, x, x - empty, features, features - blank, targets)
        region_occlusion, word_occlusion = _occlusions(model, x, empty, features, blank, targets, log_probs)
        return Explanation(
            words=[model.idx_to_word[word] for word in targets.tolist()],
            log_probs=log_probs,
            attention=_attention(model, features, read),
            region_gradient=region_gradient,
            region_occlusion=region_occlusion,
            word_gradient=word_gradient,
            word_occlusion=word_occlusion,
        )


def _log_probs(model, x, features, targets):
    """Word vectors x (N, T, D), features (N or 1, C, grid_h, grid_w) -> the log-probability of each target (N, T)."""
    image = model.project_features(features)
    scores = model.vocabulary_projection(model.read(x, image.expand(len(x), *image.shape[1:])))  # (N, T, V)
    rows = targets.expand(len(x), -1).unsqueeze(2)
    return (scores.gather(2, rows) - allowed(scores.clone()).logsumexp(2, keepdim=True)).squeeze(2)


def walk(
    model: CaptioningRNN, features: Tensor, read: Tensor
) -> Iterator[tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor | None]]:
    """Read words one by one: yields of each step the word vector x (1, D), the state before it, what the cell reads of
    the image, and attn_weights (1, grid_h, grid_w) or None. Args: features (1, C, grid_h, grid_w); read int64 (T,)."""
    state, image = model.start(features)
    for word in read:
        before = state
        _, state, weights = model.step(word[None], before, image)
        yield model.word_embedding(word[None]), before, image, weights


def _attention(model, features, read):
    found = [weights for *_, weights in walk(model, features, read) if weights is not None]
    return torch.cat(found) if found else None


def _gradients(model, x, x_change, features, change, targets):
    """Row t of a batch of T copies is asked for word t alone, so one backward pass explains all words."""
    T = len(targets)
    with torch.enable_grad():
        copies_x = x.expand(T, *x.shape).clone().requires_grad_()  # (T, T, D)
        copies = features.expand(T, *features.shape[1:]).clone().requires_grad_()  # (T, C, grid_h, grid_w)
        wanted = _log_probs(model, copies_x, copies, targets).diagonal().sum()
        dx, dfeatures = torch.autograd.grad(wanted, [copies_x, copies])
    return (dfeatures * change).sum(1), (dx * x_change).sum(2)


def _occlusions(model, x, empty, features, blank, targets, log_probs):
    """A batch with one region replaced in each row, and a batch with one word replaced in each row."""
    T, (G, (grid_h, grid_w)) = len(targets), (features[0, 0].numel(), features.shape[2:])
    here = torch.eye(G, dtype=torch.bool, device=features.device).view(G, 1, grid_h, grid_w)
    without_region = torch.where(here, blank, features)  # (G, C, grid_h, grid_w)
    of_regions = log_probs - _log_probs(model, x.expand(G, *x.shape), without_region, targets)  # (G, T)
    here = torch.eye(T, dtype=torch.bool, device=features.device).unsqueeze(2)
    of_words = log_probs - _log_probs(model, torch.where(here, empty, x), features, targets)  # (T read, T)
    return of_regions.T.unflatten(1, (grid_h, grid_w)), of_words.T.tril()
