"""Let PyTorch's autograd use forward and backward passes that are written by hand."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def first_derivative_only(backward: Callable) -> Callable:
    """A decorator for the backward of a ``torch.autograd.Function``: it refuses to take the gradient of a gradient,
    which would be zero, without an error."""

    @functools.wraps(backward)
    def checked(ctx, *gradients: Tensor) -> object:
        if torch.is_grad_enabled():  # create_graph=True enables it
            raise RuntimeError(
                "a backward pass that was written by hand has no derivative: leave out create_graph=True"
            )
        return backward(ctx, *gradients)

    return checked


class HandWritten(torch.autograd.Function):
    """``HandWritten.apply(forward, backward, *tensors)`` is ``forward(*tensors)[0]`` as one node of autograd's graph.

    ``forward(*tensors)`` returns a tensor and a cache; ``backward(gradient, cache)`` returns one gradient for each
    of the tensors, in the same order. As with PyTorch's own functions, it is an error to change a tensor in place
    between the two passes. It is also an error to take the gradient of a gradient, which is not written here.
    """

    @staticmethod
    def forward(ctx, forward: Callable, backward: Callable, *tensors: Tensor) -> Tensor:
        result, ctx.cache = forward(*tensors)
        ctx.backward_by_hand = backward
        ctx.save_for_backward(*tensors)
        if not torch.compiler.is_compiling() and result._is_view():  # a result that is a view can't be changed in place
            storage = result.untyped_storage()
            result = result.new_empty(0).set_(storage, result.storage_offset(), result.size(), result.stride())
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx, gradient: Tensor) -> tuple:
        ctx.saved_tensors  # noqa: B018, autograd checks that the tensors are unchanged when they are read
        return None, None, *ctx.backward_by_hand(gradient, ctx.cache)


def at_autocast_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, cast to the dtype of the active ``torch.autocast``; unchanged if there is none.

    Autocast does not reach the backward pass of :class:`HandWritten`, so a module casts the tensors itself.
    """
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return tensors  # the checks of the function that gets them say which one is wrong
    device = tensors[0].device.type
    try:
        enabled = torch.is_autocast_enabled(device)
    except RuntimeError:  # this kind of device has no autocast
        enabled = False
    if not enabled or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)
