"""All that other code knows about a recurrent cell: nothing outside this package asks which cell it has."""

import functools
from collections.abc import Callable

from torch import Tensor, nn

from .autograd import HandWritten


class RecurrentCell(nn.Module):
    """The interface of all cells. A new cell is a subclass in its own file; ``cells/__init__.py`` registers it.

    The captioner gives every cell ``image``, the projected features: (N, H), their mean over the grid, or, if
    ``uses_grid``, (N, H, grid_h, grid_w), the whole grid. A state is a tuple of tensors (N, H); the first one is the
    hidden state h. The searches copy and reorder the rows of a state without knowing what it holds.

    Attributes: name, in checkpoints and on the command line; title, for people; prefix, of the names of the functions
        ``<prefix>_forward(x, image, *parameters) -> h, cache`` and ``<prefix>_backward(dh, cache)``, which take the
        parameters in the order in which the module registers them; uses_grid, whether the cell reads the whole grid;
        compiled, whether these two functions run as ``torch.compile`` translates them.
    """

    name: str
    title: str
    prefix: str
    uses_grid = False
    compiled = False

    def by_hand(self, forward: Callable, backward: Callable, *tensors: Tensor) -> Tensor:
        """``forward(*tensors)[0]``, whose gradients come from ``backward``; see :class:`HandWritten`."""
        if self.compiled:
            forward, backward = _compile(forward), _compile(backward)
        return HandWritten.apply(forward, backward, *tensors)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """x (N, T, D), image -> h (N, T, H)."""
        raise NotImplementedError

    def start(self, image: Tensor) -> tuple[Tensor, ...]:
        """The state before the first word."""
        raise NotImplementedError

    def step(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """x (N, D), a state, image -> the next state, and attn_weights (N, grid_h, grid_w) or None."""
        raise NotImplementedError

    def gates(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> dict[str, Tensor]:
        """The values of one step that the figures draw: name -> (N, H); with "gate" in the name, from 0 to 1."""
        return {}


@functools.cache
def _compile(function):
    """The function, compiled anew for each number of time steps, never run as Python in parts."""
    import torch._dynamo  # it takes seconds to import

    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)  # 8: too few lengths
    return torch.compile(function, fullgraph=True)
