"""How sure a captioner is of a caption, and whether an image is like those that it was trained on.

A network is usually more certain than it should be, so its probabilities are calibrated: on the validation split, we
measure how much of its captions people said too, and fit a curve to that (Platt, "Probabilistic Outputs for Support
Vector Machines", 1999; Guo et al., "On Calibration of Modern Neural Networks", 2017).

An image of a new kind is far from the training images in the space of the CNN's features. There, a Gaussian is fitted
to the training images: probabilistic principal component analysis (Tipping and Bishop 1999); compare Lee et al., "A
Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018). The features are scaled to length 1 first:
an image of a kind that the CNN does not know has weak features, close to the mean of all images.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ..data.vocabulary import tokenize
from ..errors import InputError
from ..model.checkpoint import Checkpoint

MOST_AXES = 64
FAMILIAR = 0.98  # of the validation images
IMAGES = 5000  # at most so many are measured


@dataclass(frozen=True)
class Confidence:
    """What was measured once, on the training and the validation split; it is stored with the captioner.

    Args: slope and offset (), of the calibration; mean (C,), axes (k, C), variances (k,) and noise (), of the Gaussian
        of the training images' :func:`directions`; limit (), the distance beyond which an image is not familiar. All
        are float32.
    """

    slope: Tensor
    offset: Tensor
    mean: Tensor
    axes: Tensor
    variances: Tensor
    noise: Tensor
    limit: Tensor

    def share(self, log_prob: float, num_words: int) -> float:
        """How much of a caption people would say too, from 0 to 1: the expected :func:`agreement`.

        Args: log_prob, of the caption, in nats; num_words, without ``<END>``.
        """
        return torch.sigmoid(self.slope * per_word(log_prob, num_words) + self.offset).item()

    def distance(self, features: Tensor) -> Tensor:
        """How far images are from the training images: features (N, C, grid_h, grid_w) -> (N,), in standard deviations
        per dimension."""
        centred = directions(features).to(self.mean.device) - self.mean  # (N, C)
        along = centred @ self.axes.T  # (N, k)
        rest = (centred.square().sum(1) - along.square().sum(1)).clamp(min=0)  # (N,)
        squared = (along.square() / self.variances).sum(1) + rest / self.noise
        return (squared / centred.shape[1]).sqrt()

    def familiar(self, features: Tensor) -> Tensor:
        """Whether images are like the training images: features (N, C, grid_h, grid_w) -> bool (N,)."""
        return self.distance(features) <= self.limit

    def tensors(self) -> dict[str, Tensor]:
        """All values by name, to store them: ``Confidence(**tensors)`` is the same again."""
        return dict(vars(self))


def restore_confidence(checkpoint: Checkpoint, path: str | Path) -> Confidence | None:
    """The confidence of an exported model; None if it has none. Raises: InputError if it does not fit the model."""
    if not checkpoint.confidence:
        return None
    C = len(checkpoint.weights["feature_mean"])
    k = len(checkpoint.confidence.get("variances", ()))
    wanted = {field.name: () for field in fields(Confidence)} | {"mean": (C,), "axes": (k, C), "variances": (k,)}
    if {name: tuple(tensor.shape) for name, tensor in checkpoint.confidence.items()} != wanted:
        raise InputError(f"{path} is damaged: its confidence does not fit its weights")
    return Confidence(**checkpoint.confidence)


def directions(features: Tensor) -> Tensor:
    """Features (N, C, grid_h, grid_w) -> their mean over the grid, scaled to length 1 (N, C)."""
    return torch.nn.functional.normalize(features.float().mean((2, 3)), dim=1)


def per_word(log_prob: float, num_words: int) -> float:
    """The mean log-probability of the words of a caption; ``<END>`` counts as a word."""
    return log_prob / (num_words + 1)


def agreement(captions: Sequence[Sequence[str]], references: Sequence[list[str]]) -> list[float]:
    """How much of each caption is in at least one human caption of its image, from 0 to 1.

    Every word weighs as much as it says: log(N / n) if it is in the references of n of the N images, as in CIDEr, so
    that "a" counts for next to nothing. A caption without any weight has 0.
    """
    said = [{word for text in texts for word in tokenize(text)} for texts in references]
    counts = Counter(word for words in said for word in words)
    found = []
    for words, known in zip(captions, said):
        weights = {word: math.log(len(said) / max(1, counts[word])) for word in words}
        total = sum(weights[word] for word in words)
        found.append(sum(weights[word] for word in words if word in known) / total if total else 0.0)
    return found


def fit_calibration(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The slope and the offset for which sigmoid(slope * score + offset) predicts the targets best.

    Args: scores (N,); targets (N,), from 0 to 1. Newton's method on the cross-entropy, in float64.
    """
    inputs = torch.stack([scores.double(), torch.ones(len(scores), dtype=torch.float64)], dim=1)  # (N, 2)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (p - targets) + 1e-6 * weights
        hessian = (inputs * (p * (1 - p)).unsqueeze(1)).T @ inputs + 1e-6 * torch.eye(2, dtype=torch.float64)
        weights = weights - torch.linalg.solve(hessian, gradient)
    return weights[0].float(), weights[1].float()


def measure_confidence(
    train_features: Tensor,
    val_features: Tensor,
    captions: Sequence[Sequence[str]],
    log_probs: Sequence[float],
    references: Sequence[list[str]],
) -> Confidence:
    """Measure a captioner on its data.

    Args: train_features (M, C, grid_h, grid_w); val_features (N, C, grid_h, grid_w); captions, of the validation
        images, N lists of words; log_probs, N numbers; references, N lists of texts.
    """
    scores = torch.tensor([per_word(*pair) for pair in zip(log_probs, map(len, captions))])
    slope, offset = fit_calibration(scores, torch.tensor(agreement(captions, references), dtype=torch.float64))
    pooled = directions(train_features[:: 1 + len(train_features) // IMAGES])  # (M, C)
    mean = pooled.mean(0)
    k = max(1, min(MOST_AXES, len(pooled) // 4, pooled.shape[1] - 1))  # of few images, most directions are noise
    _, singular, rows = torch.linalg.svd(pooled - mean, full_matrices=False)
    variances = singular.square() / len(pooled)
    # the noise is the mean variance of all other directions
    noise = (variances[k:].sum() / (pooled.shape[1] - k)).clamp(min=1e-12)
    axes = rows[:k].contiguous()
    found = Confidence(slope, offset, mean, axes, variances[:k].clamp(min=1e-12), noise, torch.tensor(math.inf))
    limit = found.distance(val_features[:: 1 + len(val_features) // IMAGES]).quantile(FAMILIAR)
    return Confidence(**found.tensors() | {"limit": limit})
