"""Train any cell with a learner's own functions from a file, such as ``lstm_forward`` and ``lstm_backward``.

Only the sequence is computed by the learner's functions. The parameters, the single steps (which write captions) and
the checkpoints are those of our cell. So a checkpoint is an ordinary one, and gives the same captions everywhere.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cells import CELLS, RecurrentCell
from ..cells.autograd import HandWritten
from ..errors import InputError, RunFailed
from ..model.captioner import CaptioningRNN
from .calling import kind_of, to_kind
from .checking import check_file, describe, is_unwritten, load_file


def find_cell(file: Path) -> str:
    """The name of the only cell whose forward is written in a file. Raises: InputError if it has none or several."""
    module = _import(file)
    found = [cell for cell in CELLS.values() if _function(module, f"{cell.prefix}_forward")]
    if not found:
        wanted = ", ".join(f"{cell.prefix}_forward" for cell in CELLS.values())
        raise InputError(f"{file} has none of the functions {wanted}: write one of them, and its backward")
    if len(found) > 1:
        names = [cell.name for cell in found]
        raise InputError(f"{file} has several cells, {', '.join(names)}: choose one, such as --cell {file}:{names[0]}")
    return found[0].name


def check_own_cell(file: Path, cell: str, timeout: float = 60) -> None:
    """Check the functions that :func:`use_own_cell` will call. Raises: InputError with the checker's sentence."""
    prefix = CELLS[cell].prefix
    _, backward = _functions(file, CELLS[cell])
    names = [f"{prefix}_forward"] + ([f"{prefix}_backward"] if backward else [])
    outcomes = {}
    for name, outcome, message in check_file(file, timeout, names, "" if backward else names[0]):
        outcomes[name] = outcome
        if outcome != "right":
            raise InputError(f"{file}: {name}: {message or 'is not written yet'}; --unchecked trains with it anyway")
    unchecked = [name for name in names if name not in outcomes]
    if unchecked:
        raise InputError(f"{file}: {', '.join(unchecked)} could not be checked; --unchecked trains with it anyway")


def use_own_cell(captioner: CaptioningRNN, file: Path) -> None:
    """From now on, the captioner's cell computes sequences with the functions in a file, in numpy or torch.

    If the file has no backward, autograd differentiates a forward in torch.
    Raises: InputError that names the missing functions.
    """
    cell_class = CELLS[captioner.cell_type]
    with_functions: Any = _with_functions(cell_class, file, *_functions(file, cell_class))
    with torch.random.fork_rng():  # the run draws the same random numbers as with our cell
        cell = with_functions(captioner.wordvec_dim, captioner.hidden_dim)
    cell.load_state_dict(captioner.cell.state_dict())
    captioner.cell = cell.to(captioner.feature_mean.device)


def _with_functions(
    cell_class: type[RecurrentCell], file: Path, forward: Callable, backward: Callable | None
) -> type[RecurrentCell]:
    kind = kind_of(forward)

    def call(function: Callable, *arguments: Any) -> Any:
        try:
            with torch.enable_grad():  # a backward may use autograd, too
                return function(*arguments)
        except (Exception, SystemExit) as error:  # whatever the learner's code raises
            raise RunFailed(f"{file}: {function.__name__} raised {describe(error, file)}") from error

    def as_tensor(value: Any, shape: torch.Size, name: str) -> Tensor:
        found = getattr(value, "shape", None)
        if found is None or tuple(found) != tuple(shape):
            wrong = f"shape {tuple(found)}" if found is not None else f"type {type(value).__name__}"
            raise RunFailed(f"{file}: {name} has {wrong}, wanted shape {tuple(shape)}")
        return torch.as_tensor(value)

    def forward_pass(*tensors: Tensor) -> tuple[Tensor, Any]:
        x, image = tensors[:2]
        returned = call(forward, *[to_kind(tensor.detach().cpu(), kind) for tensor in tensors])
        h, cache = _split(returned)
        shape = torch.Size([*x.shape[:2], image.shape[1]])  # (N, T, H)
        return as_tensor(h, shape, "h").detach().to(x), (cache, tensors)

    def backward_pass(dh: Tensor, cache: tuple) -> tuple[Tensor, ...]:
        assert backward is not None
        own_cache, tensors = cache
        gradients = call(backward, to_kind(dh.detach().cpu(), kind), own_cache)
        if not isinstance(gradients, tuple | list) or len(gradients) != len(tensors):
            raise RunFailed(f"{file}: {backward.__name__} must return {len(tensors)} gradients")
        return tuple(
            as_tensor(gradient, tensor.shape, f"gradient {k + 1} of {backward.__name__}").detach().to(tensor)
            for k, (gradient, tensor) in enumerate(zip(gradients, tensors))
        )

    class CellWithFunctions(cell_class):  # type: ignore[misc, valid-type]
        """A cell that computes its sequence with a learner's functions, in float32."""

        def forward(self, x: Tensor, image: Tensor) -> Tensor:
            tensors = [tensor.to(self.Wx.dtype) for tensor in (x, image, *self.parameters())]
            if backward is not None:
                h = HandWritten.apply(forward_pass, backward_pass, *tensors)
            else:
                with torch.autocast(x.device.type, enabled=False):
                    h, _ = _split(forward(*tensors))
            return h.transpose(0, 1).contiguous().transpose(0, 1)  # in our memory layout: dropout draws in that order

    return CellWithFunctions


def _split(returned):
    """h and the cache (or None) of what a forward returned."""
    return returned if isinstance(returned, tuple | list) and len(returned) == 2 else (returned, None)


def _functions(file, cell):
    """The learner's forward and backward of a cell's sequence; backward is None if autograd can replace it."""
    module = _import(file)
    names = f"{cell.prefix}_forward", f"{cell.prefix}_backward"
    forward, backward = (_function(module, name) for name in names)
    missing = [names[0]] if forward is None else []
    missing += [names[1]] if backward is None and (forward is None or kind_of(forward) == "numpy") else []
    if missing:
        raise InputError(f"{file} must define {' and '.join(missing)} to train the {cell.name}")
    return forward, backward


def _function(module, name):
    function = getattr(module, name, None)
    return function if callable(function) and not is_unwritten(function) else None


def _import(file):
    if not file.is_file():
        raise InputError(f"--cell {file}: this is neither a file nor a cell; the cells are {', '.join(CELLS)}")
    return _import_once(file, file.stat().st_mtime_ns)


@functools.cache
def _import_once(file, _):
    try:
        return load_file(file)
    except (Exception, SystemExit) as error:  # whatever the learner's code raises
        raise InputError(f"{file} can't be imported: {describe(error, file)}") from error
