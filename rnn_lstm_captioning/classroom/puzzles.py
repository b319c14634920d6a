"""Puzzles: a right solution in which one line was changed. The learner finds it, and the checker judges the answer."""

import re
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..storage import write_text
from .calling import calls
from .checking import load_file

SOLUTION = Path(__file__).with_name("solution.py")


class Puzzle(NamedTuple):
    """A function of the solution, the text in it that was replaced, what it became, and what is wrong now."""

    function: str
    right: str
    wrong: str
    answer: str


PUZZLES = [
    Puzzle("tanh_backward", "(1 - y**2)", "(1 - np.tanh(y)**2)", "y already is tanh(a), so the derivative is 1 - y^2"),
    Puzzle("sigmoid_backward", "y * (1 - y)", "(1 - y)", "the derivative of the sigmoid is y * (1 - y)"),
    Puzzle("affine_backward", "dy.sum(axis=0)", "dy.mean(axis=0)", "db is summed over the batch, not averaged"),
    Puzzle("rnn_step_forward", "np.tanh(a)", "np.tanh(a - b) + b", "the bias belongs inside tanh"),
    Puzzle("rnn_step_backward", "prev_h.T.dot(da)", "next_h.T.dot(da)", "dWh needs the state before the step"),
    Puzzle("rnn_step_backward", "(1 - next_h**2)", "(1 - next_h) ** 2", "the derivative of tanh is 1 - h^2"),
    Puzzle("rnn_forward", "x[:, t], prev_h,", "x[:, t], h[:, t - 1],", "at t = 0 the state is h0, not h[:, -1]"),
    Puzzle("rnn_backward", "dh[:, t] + dprev_h", "dh[:, t]", "h_t is used by step t + 1 too: its gradient is missing"),
    Puzzle("rnn_backward", "dWh += dWh_t", "dWh = dWh_t", "the weights' gradients are added up over the steps"),
    Puzzle(
        "lstm_step_forward", "next_h = o * np.tanh(next_c)", "next_h = o * next_c", "tanh is missing on the cell state"
    ),
    Puzzle(
        "lstm_step_forward",
        "f = sigmoid(a[:, H : 2 * H])\n    o = sigmoid(a[:, 2 * H : 3 * H])",
        "o = sigmoid(a[:, H : 2 * H])\n    f = sigmoid(a[:, 2 * H : 3 * H])",
        "the gates' order is i, f, o, g",
    ),
    Puzzle("lstm_step_backward", "dnext_h * o * ", "dnext_h * ", "the output gate is missing in dc"),
    Puzzle(
        "lstm_step_backward",
        "dprev_c = dc * f",
        "dprev_c = dnext_c * f",
        "dc has two parts: the one through h is missing",
    ),
    Puzzle(
        "lstm_backward",
        "dh[:, t] + dprev_h, dprev_c,",
        "dh[:, t] + dprev_h, dprev_h,",
        "the step gets the gradient of h where that of the cell state belongs",
    ),
    Puzzle(
        "gru_step_forward",
        "(1 - z) * n + z * prev_h",
        "z * n + (1 - z) * prev_h",
        "z keeps the state: z and 1 - z are swapped",
    ),
    Puzzle("gru_step_backward", "da_n * r])", "da_n])", "r multiplies h Wh, so du_n = da_n * r"),
    Puzzle("dot_product_attention", " / np.sqrt(H)", " / H", "the scores are divided by sqrt(H)"),
    Puzzle(
        "attention_backward", " - (w * dw).sum(axis=1, keepdims=True)", "", "the softmax's derivative is incomplete"
    ),
    Puzzle(
        "temporal_softmax_loss", "losses.sum() / N", "losses.mean()", "it is summed over time, and averaged over N only"
    ),
]


def write_puzzle(number: int, folder: Path = Path()) -> Path:
    """Write ``puzzle_NUMBER.py``, and return its path. Raises: InputError if there is none, or the file exists."""
    puzzle = find_puzzle(number)
    path = folder / f"puzzle_{number:02}.py"
    if path.exists():
        raise InputError(f"{path} exists already; --puzzle {number} --answer judges it")
    text = f'"""Puzzle {number}: one line of this file is wrong. Find it and correct it, then run\n'
    text += f'python -m rnn_lstm_captioning check --puzzle {number} --answer\n"""\n\nimport numpy as np\n'
    for name in _needed(puzzle.function):
        source = source_of(name)
        if name == puzzle.function:
            if puzzle.right not in source:
                raise ValueError(f"puzzle {number}: the solution has no {puzzle.right}")
            source = source.replace(puzzle.right, puzzle.wrong)
        text += f"\n\n{source}"
    write_text(path, text)
    return path


def find_puzzle(number: int) -> Puzzle:
    """Raises: InputError if there is no puzzle with this number."""
    if not 1 <= number <= len(PUZZLES):
        raise InputError(f"there is no puzzle {number}; the puzzles are 1 to {len(PUZZLES)}")
    return PUZZLES[number - 1]


def source_of(name: str) -> str:
    """The text of a function of the solution."""
    text = SOLUTION.read_text(encoding="utf-8")
    found = re.search(rf"^def {name}\(.*?(?=^def |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[0].rstrip() + "\n"


def _needed(name):
    """A function, its forward, and what they call, in the order of the solution."""
    module = load_file(SOLUTION)
    every = re.findall(r"^def (\w+)\(", SOLUTION.read_text(encoding="utf-8"), re.MULTILINE)
    wanted, waiting = set(), [name]
    while waiting:
        other = waiting.pop()
        if other in every and other not in wanted:
            wanted.add(other)
            # both ways, so that the answer can be tried
            waiting += [other.replace("backward", "forward"), *calls(getattr(module, other), every)]
            waiting += [other.replace("forward", "backward")] if other == name else []
    return [other for other in every if other in wanted]
