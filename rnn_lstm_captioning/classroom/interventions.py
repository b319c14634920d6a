"""Break a running captioner, and see what each part is for: a gate held at a value, a memory erased, another picture.

:class:`Intervened` is a captioner with the two methods that every search uses, so it works with greedy search, beam
search and sampling, and for every cell. The cell's own code stays as it is:

- A gate is held by its weights: with the gate's columns of all matrices at zero and its bias at b, it is sigmoid(b).
- The cell reads another grid than the image's: the mean everywhere (attention becomes uniform), or one region
  everywhere (attention is fixed on it); or from a word on, another image.
- A state is replaced by zeros before a word.

The number of words that were read is one more tensor of the state, so that searches can reorder it with the others.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..cells import RecurrentCell
from ..errors import InputError
from ..model.captioner import CaptioningRNN

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Intervention:
    """What to change.

    Args:
        gates: name of a gate (see :func:`gate_names`), or (name, unit) for one unit -> the value at which it is held,
            from 0 to 1.
        erase: (place in the state, t): the tensor at this place of the state is set to 0 before word t is written,
            counting from 1; place 0 is the hidden state, place 1 the LSTM's cell state.
        attention: "uniform", or (row, column): the region at which the cell looks all the time.
        other: features (1, C, grid_h, grid_w) of another image, read from word ``other_from`` on.
        other_from: a number of a word, from 1; 1 exchanges what the cell reads but not the first state.
        start: features (1, C, grid_h, grid_w) of the image from which the first state comes.
    """

    gates: Mapping[str | tuple[str, int], float] = field(default_factory=dict)
    erase: tuple[int, int] | None = None
    attention: str | tuple[int, int] | None = None
    other: Tensor | None = None
    other_from: int = 1
    start: Tensor | None = None


def gate_names(model: CaptioningRNN) -> list[str]:
    """The gates of a captioner's cell that can be held, in the order of its weights' columns."""
    cell, D, H = model.cell, model.wordvec_dim, model.hidden_dim
    image = torch.zeros(1, H, 1, 1) if cell.uses_grid else torch.zeros(1, H)
    image = image.to(model.feature_mean)
    with torch.no_grad():
        values = cell.gates(image.new_zeros(1, D), cell.start(image), image)
    return [name for name in values if "gate" in name]


class Intervened:
    """A captioner under an intervention. It has what the searches need, and nothing else.

    Raises: InputError for a gate, a unit, a region or a state that the captioner does not have.
    """

    def __init__(self, model: CaptioningRNN, intervention: Intervention) -> None:
        self.intervention, self.model = intervention, copy.copy(model)
        if intervention.gates:  # the copy has a cell of its own, and shares everything else
            self.model._modules = {**model._modules, "cell": _with_held_gates(model, intervention.gates)}
        if intervention.attention is not None and not model.cell.uses_grid:
            raise InputError(f"the cell {model.cell_type} has no attention that could be changed")
        self.written_once, self.never_last = model.written_once, model.never_last

    def start(self, features: Tensor) -> tuple[State, Tensor]:
        """features (N, C, grid_h, grid_w) -> the state, and what the cell reads; see :class:`CaptioningRNN`."""
        model, change, N = self.model, self.intervention, len(features)
        first = features if change.start is None else change.start.to(features).expand(N, *change.start.shape[1:])
        state, _ = model.start(first)
        if change.erase and not 0 <= change.erase[0] < len(state):
            raise InputError(f"the cell {model.cell_type} has {len(state)} states, and {change.erase[0]} is not one")
        image = self._seen(model.project_features(features))
        if change.other is not None:  # both, side by side
            other = self._seen(model.project_features(change.other.to(features)))
            image = torch.cat([image, other.expand(N, *other.shape[1:])], dim=1)
        return (*state, features.new_zeros(N, 1)), image

    def step(self, words: Tensor, state: State, image: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """words int64 (N,) -> scores (N, V), the next state, attn_weights (N, grid_h, grid_w) or None."""
        model, change, (*parts, count) = self.model, self.intervention, state
        number = int(count[0]) + 1  # of the word that is written now; the same in all rows
        if change.other is not None:
            image = image.chunk(2, dim=1)[int(number >= change.other_from)]
        if change.erase and number == change.erase[1]:
            parts[change.erase[0]] = torch.zeros_like(parts[change.erase[0]])
        new, attn_weights = model.cell.step(model.word_embedding(words), tuple(parts), image)
        if isinstance(change.attention, tuple) and attn_weights is not None:  # the grid is the same everywhere
            attn_weights = torch.zeros_like(attn_weights)
            attn_weights[:, change.attention[0], change.attention[1]] = 1
        return model.vocabulary_projection(new[0]), (*new, count + 1), attn_weights

    def _seen(self, image):
        """What the cell reads of an image: its grid, changed if the attention is."""
        where = self.intervention.attention
        if where == "uniform":
            return image.mean((2, 3), keepdim=True).expand_as(image)
        if isinstance(where, tuple):
            grid_h, grid_w = image.shape[2:]
            if not (0 <= where[0] < grid_h and 0 <= where[1] < grid_w):
                raise InputError(f"there is no region {where}: the grid has {grid_h} rows and {grid_w} columns")
            return image[:, :, where[0], where[1], None, None].expand_as(image)
        return image


def _with_held_gates(model: CaptioningRNN, gates: Mapping) -> RecurrentCell:
    """A copy of the cell whose named gates have a fixed value."""
    names, H = gate_names(model), model.hidden_dim
    cell = copy.deepcopy(model.cell)
    for key, value in gates.items():
        name, unit = key if isinstance(key, tuple) else (key, None)
        matching = [known for known in names if known == name or known.split()[0] == name]
        if len(matching) != 1:
            raise InputError(f"the cell {model.cell_type} has no {name!r}; its gates are {', '.join(names) or 'none'}")
        if not 0 <= value <= 1:
            raise InputError(f"a gate is between 0 and 1, and {value} is not")
        if unit is not None and not 0 <= unit < H:
            raise InputError(f"there is no unit {unit}: the cell has {H}, from 0 to {H - 1}")
        first = names.index(matching[0]) * H
        columns = slice(first, first + H) if unit is None else slice(first + unit, first + unit + 1)
        bias = 40.0 if value == 1 else -40.0 if value == 0 else math.log(value / (1 - value))  # sigmoid's inverse
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter[..., columns] = bias if parameter.dim() == 1 else 0
    return cell
