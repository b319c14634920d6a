"""Starter files: functions that the checker knows, to be filled in."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..cells import CELLS
from ..errors import InputError
from ..storage import write_text
from .mistakes import GATES
from .plain_cells import FORWARDS, ORDER

SHAPES = (
    "Shapes: N batch, T time steps, D word-vector size, H hidden size, V vocabulary. Weights are (in, out): x @ Wx. "
    "cache is whatever your backward needs from the forward."
)


def write_starter(path: Path) -> None:
    """Write a file with all functions, to be filled in. Raises: InputError if it exists, or its folder does not."""
    if path.exists():
        raise InputError(f"{path} exists already; --new does not overwrite it")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    write_text(path, starter_text(ORDER, "My own cells. Fill in any of the functions, in numpy or torch.", path))


def starter_text(names: Sequence[str], intro: str, path: Path) -> str:
    """The text of a file with these functions. Args: path, that the reader shall check."""
    orders = "; ".join(f"{CELLS[cell].title} {', '.join(gates.lower())}" for cell, gates in GATES.items())
    shown = str(path) if re.fullmatch(r"[\w./ -]+", str(path)) else "FILE"  # the text is Python
    paragraphs = [*intro.split("\n"), "", f"To check it: python -m rnn_lstm_captioning check {shown}", "", SHAPES]
    if any(name.startswith((*GATES, "attention_")) for name in names):
        paragraphs.append(f"The gates are side by side, in these orders: {orders}.")
    lines = "\n".join(textwrap.fill(paragraph, 100) for paragraph in paragraphs)
    text = f'"""{lines}\n"""\n\nimport numpy as np  # use numpy or torch\nimport torch\n\n'
    for name in names:
        arguments, results = FORWARDS[name.replace("backward", "forward")]
        pairs = [part.split() for part in arguments.split("  ")]
        shapes = ", ".join(f"{argument} ({shape.replace(',', ', ')})" for argument, shape in pairs)
        if "backward" in name:
            taken = [f"d{result}" for result in results.split()] + ["cache"]
            returned = ", ".join(f"d{argument}" for argument, _ in pairs)
            shape = "each has" if "," in returned else "with"
            doc = f"Returns: {returned}, {shape} the shape of its argument."
        else:
            taken = [argument for argument, _ in pairs] + ["ignore_index=None"] * (name == "temporal_softmax_loss")
            cache = ", cache" if "forward" in name else ""
            doc = f"{shapes}. Returns: {', '.join(results.split())}{cache}."
        text += f'\ndef {name}({", ".join(taken)}):\n    """{doc}"""\n    raise NotImplementedError\n\n'
    return text.rstrip() + "\n"
