"""Numeric gradients, to check a backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor


def rel_error(x: Tensor, y: Tensor, eps: float = 1e-10) -> float:
    """The largest difference of two tensors, divided by the largest sum of their magnitudes; a float."""
    top = (x - y).abs().max()
    return (top / (x.abs() + y.abs()).max().clamp(min=eps)).item()


@torch.no_grad()
def compute_numeric_gradient(
    f: Callable[[Tensor], Tensor], x: Tensor, dLdf: Tensor | None = None, h: float = 1e-7
) -> Tensor:
    """The gradient of a loss by central differences, (L(x + h) - L(x - h)) / 2h for each element.

    Args: f, a function of one tensor; x, a tensor of any shape (use float64); dLdf, the
        upstream gradient, with the shape of f(x) (None: ones); h, the step.
    Returns: a tensor of x's shape and dtype.
    """
    x = x.clone(memory_format=torch.contiguous_format)
    flat = x.view(-1)  # the same memory
    gradient = torch.empty_like(x)
    for index in range(len(flat)):
        kept = flat[index].item()
        flat[index] = kept + h
        above = f(x).clone()  # f may return x itself
        flat[index] = kept - h
        below = f(x).clone()
        flat[index] = kept
        change = (above - below) if dLdf is None else (above - below) * dLdf
        gradient.view(-1)[index] = change.sum() / (2 * h)
    return gradient
