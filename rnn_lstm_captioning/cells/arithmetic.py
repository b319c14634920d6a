"""Faster versions of PyTorch's functions, with the same values: the matrix product and tanh in float32
on a CPU, and the gradients of tanh and sigmoid with fewer passes over memory.

On a CPU, PyTorch computes float32 products and tanh with MKL, which is slow on AMD processors.
PyTorch also contains oneDNN, which is fast on all processors. But autograd can't differentiate oneDNN's
product, so it is used only where autograd does not record: inside the modules, whose backward passes
are written by hand.
"""

import torch
from torch import Tensor

_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """c + a @ b, for a (M, K), b (K, P) and c (M, P) or (P,)."""
    if _onednn is None or not _fast_path(a):
        return torch.addmm(c, a, b)
    if c.dim() == 1:  # oneDNN ignores the strides of a bias: it must be contiguous
        return _onednn.default(a, b.T, c.contiguous(), "none", [], "")
    return _onednn.binary(a, c, b.T, None, "add")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, for a (M, K) and b (K, P)."""
    if _onednn is None or not _fast_path(a):
        return a @ b
    return _onednn.default(a, b.T, None, "none", [], "")


def tanh(x: Tensor) -> Tensor:
    """tanh(x), element by element."""
    if not _fast_path(x) or x.numel() < 2**15:  # for a small tensor, three operations take longer
        return torch.tanh(x)
    return torch.sub(1, torch.sigmoid(-2 * x), alpha=2)  # tanh(x) = 1 - 2 sigmoid(-2x), exact to 1e-7


def tanh_gradient(dy: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """dy * (1 - y^2), the gradient through y = tanh(a); out may be dy."""
    out = torch.empty_like(dy) if out is None else out
    return torch.ops.aten.tanh_backward.grad_input(dy, y, grad_input=out)


def sigmoid_gradient(dy: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """dy * y * (1 - y), the gradient through y = sigmoid(a); out may be dy."""
    return torch.ops.aten.sigmoid_backward.grad_input(dy, y, grad_input=out)


def _fast_path(x):
    # the compiler and the tracer can't follow calls of oneDNN; the compiler chooses its own products
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
