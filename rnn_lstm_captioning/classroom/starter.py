"""The starter file: all functions that the checker knows, to be filled in."""

import re
from pathlib import Path

from ..cells import CELLS
from ..errors import InputError
from ..storage import replacing
from .mistakes import GATES
from .plain_cells import FORWARDS, ORDER

STARTER = '''"""My own cells. Fill in any of the functions, in numpy or torch, and run
python -m rnn_lstm_captioning check {name}

Shapes: N batch, T time steps, D word-vector size, H hidden size, V vocabulary. Weights are (in, out): x @ Wx.
The gates are side by side, in these orders: {gates}. cache is whatever your backward needs from
the forward.
"""

import numpy as np  # use numpy or torch
import torch

'''


def write_starter(path: Path) -> None:
    """Write a file with all functions, to be filled in. Raises: InputError if it exists, or its folder does not."""
    if path.exists():
        raise InputError(f"{path} exists already; --new does not overwrite it")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    orders = (f"{CELLS[cell].title} {', '.join(gates.lower())}" for cell, gates in GATES.items())
    name = str(path) if re.fullmatch(r"[\w./ -]+", str(path)) else "FILE"  # the text is Python
    text = STARTER.format(name=name, gates="; ".join(orders))
    for name in ORDER:
        arguments, results = FORWARDS[name.replace("backward", "forward")]
        pairs = [part.split() for part in arguments.split("  ")]
        shapes = ", ".join(f"{argument} ({shape.replace(',', ', ')})" for argument, shape in pairs)
        if "backward" in name:
            taken = [f"d{result}" for result in results.split()] + ["cache"]
            returned = ", ".join(f"d{argument}" for argument, _ in pairs)
            doc = f"Returns: {returned}, each has the shape of its argument."
        else:
            taken = [argument for argument, _ in pairs] + ["ignore_index=None"] * (name == "temporal_softmax_loss")
            cache = ", cache" if "forward" in name else ""
            doc = f"{shapes}. Returns: {', '.join(results.split())}{cache}."
        text += f'\ndef {name}({", ".join(taken)}):\n    """{doc}"""\n    raise NotImplementedError\n\n'
    with replacing(path) as unfinished:
        unfinished.write_text(text.rstrip() + "\n", encoding="utf-8")
