"""Faster versions of PyTorch's functions, with the same values: the matrix product and tanh in float32
on a CPU, and the gradients of tanh and sigmoid with fewer passes over memory.

On a CPU, PyTorch computes float32 products and tanh with MKL, which is slow on AMD processors.
PyTorch also contains oneDNN, which is fast on all processors. But autograd can't differentiate oneDNN's
product, so it is used only where autograd does not record: inside the modules, whose backward passes
are written by hand.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # before torch 2.7, nobody knows: False


def addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """c + a @ b, for a (M, K), b (K, P) and c (M, P) or (P,)."""
    if not _onednn_is_faster(a):
        return torch.addmm(c, a, b)
    return torch.ops.rnn_lstm_captioning.addmm(c, a, b) if torch.compiler.is_compiling() else _addmm(c, a, b)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, for a (M, K) and b (K, P)."""
    if not _onednn_is_faster(a):
        return a @ b
    return torch.ops.rnn_lstm_captioning.matmul(a, b) if torch.compiler.is_compiling() else _matmul(a, b)


def _addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if c.dim() == 1:  # oneDNN ignores the strides of a bias: it must be contiguous
        return _onednn.default(a, b.T, c.contiguous(), "none", [], "")
    return _onednn.binary(a, c, b.T, None, "add")


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return _onednn.default(a, b.T, None, "none", [], "")


# the compiler can't look into oneDNN's products: for it, each is an operation with a name and a shape
for _function in (_addmm, _matmul):
    _operation = torch.library.custom_op(f"rnn_lstm_captioning::{_function.__name__[1:]}", _function, mutates_args=())
    _operation.register_fake(lambda *factors: factors[-2].new_empty(factors[-2].shape[0], factors[-1].shape[1]))


def tanh(x: Tensor) -> Tensor:
    """tanh(x), element by element."""
    if torch.compiler.is_compiling() or not _fast_path(x) or x.numel() < 2**15:  # three operations are slow on few
        return torch.tanh(x)
    return torch.sub(1, torch.sigmoid(-2 * x), alpha=2)  # tanh(x) = 1 - 2 sigmoid(-2x), exact to 1e-7


def tanh_gradient(dy: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """dy * (1 - y^2), the gradient through y = tanh(a); out may be dy."""
    if torch.compiler.is_compiling():
        return _written(dy * (1 - y * y), out)
    out = torch.empty_like(dy) if out is None else out
    return torch.ops.aten.tanh_backward.grad_input(dy, y, grad_input=out)


def sigmoid_gradient(dy: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """dy * y * (1 - y), the gradient through y = sigmoid(a); out may be dy."""
    if torch.compiler.is_compiling():
        return _written(dy * y * (1 - y), out)
    return torch.ops.aten.sigmoid_backward.grad_input(dy, y, grad_input=out)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a * b, written into out."""
    return _written(a * b, out) if torch.compiler.is_compiling() else torch.mul(a, b, out=out)


def _written(value, out):
    """The value, copied into out if there is one: the compiler refuses out= for a part of a tensor."""
    return value if out is None else out.copy_(value)


def empty_blocks(like: Tensor, T: int, *shape: int) -> Sequence[Tensor]:
    """T tensors of a shape, to be filled; they lie one after the other in memory. (For the compiler they are separate:
    it would take each write into one of them as a new version of all.)"""
    if torch.compiler.is_compiling():
        return [like.new_empty(shape) for _ in range(T)]
    return like.new_empty(T, *shape).unbind()


def joined(blocks: Sequence[Tensor]) -> Tensor:
    """The rows of all :func:`empty_blocks`, one below the other: T tensors (N, M) -> (T * N, M), without a copy."""
    if torch.compiler.is_compiling():
        return torch.cat(list(blocks))
    first = blocks[0]
    return first.as_strided((len(blocks) * len(first), *first.shape[1:]), first.stride())


def _onednn_is_faster(a):
    return _onednn is not None and len(a) > 2 and _fast_path(a)  # with one or two rows, MKL is as fast or faster


def _fast_path(x):
    if torch.jit.is_tracing() or _is_exporting():  # what others load must know PyTorch's operations only
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
