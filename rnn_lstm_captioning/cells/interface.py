"""What the rest of the project knows of a recurrent cell: nothing outside this package asks which cell it has."""

from torch import Tensor, nn


class RecurrentCell(nn.Module):
    """The interface of all cells. A new cell is a file with a subclass, and one line in ``cells/__init__.py``.

    The captioner gives every cell ``image``, the projected features: the mean over the grid (N, H), or with
    ``uses_grid`` the whole grid (N, H, grid_h, grid_w). A state is a tuple of tensors (N, H), the hidden state h
    first; the searches copy and reorder its rows without knowing what it holds.

    Attributes: name, in checkpoints and on the command line; title, for people; prefix, of the plain functions:
        ``<prefix>_forward(x, image, *parameters) -> h, cache`` and ``<prefix>_backward(dh, cache)``, the parameters
        in the order in which the module registers them; uses_grid, whether the cell reads the whole grid.
    """

    name: str
    title: str
    prefix: str
    uses_grid = False

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
        """The values of one step that the figures draw: name -> (N, H); a name with "gate" is drawn from 0 to 1."""
        return {}
