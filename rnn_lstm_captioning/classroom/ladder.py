"""The ladder: a folder of exercises in the order of the pages, from tanh to the LSTM with attention."""

from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..storage import write_text
from .plain_cells import SEQUENCES
from .starter import starter_text


class Rung(NamedTuple):
    """One exercise: its name, what to do, a hint, the page, and the functions to fill in."""

    name: str
    task: str
    hint: str
    page: str
    functions: tuple[str, ...]


def _both(*names):
    return tuple(f"{name}_{way}" for name in names for way in ("forward", "backward"))


LADDER = [
    Rung(
        "tanh",
        "y = tanh(a). The derivative of tanh is 1 - tanh(a)^2.",
        "Keep y: the backward needs no a.",
        "rnn.md",
        _both("tanh"),
    ),
    Rung(
        "sigmoid",
        "y = 1 / (1 + exp(-a)). Its derivative is y (1 - y).",
        "Keep y: the backward needs no a.",
        "lstm.md",
        _both("sigmoid"),
    ),
    Rung(
        "softmax",
        "y_k = exp(a_k) / sum over j of exp(a_j), for each row.",
        "da = y * (dy - sum over k of y_k dy_k): each y depends on all a of its row.",
        "attention.md",
        _both("softmax"),
    ),
    Rung(
        "affine",
        "y = x W + b.",
        "dx = dy W^T, dW = x^T dy, db = the sum of dy over the rows: no other order fits the shapes.",
        "rnn.md",
        _both("affine"),
    ),
    Rung(
        "rnn_step",
        "h_t = tanh(x_t Wx + h_{t-1} Wh + b), RNN-1 to RNN-9.",
        "An affine map of x, another one of h, and a tanh: you have written all of them.",
        "rnn.md",
        _both("rnn_step"),
    ),
    Rung(
        "rnn",
        "The same step for t = 1 ... T, and backwards from T to 1, RNN-10.",
        "h_t is used twice, by the loss and by step t + 1, so its gradient has two parts.",
        "rnn.md",
        _both("rnn"),
    ),
    Rung(
        "loss",
        "-log softmax(x)[y], summed over time, averaged over the N captions; LOSS-1 and LOSS-2.",
        "Subtract the largest score of a row first; positions with y == ignore_index add nothing.",
        "loss.md",
        ("temporal_softmax_loss",),
    ),
    Rung(
        "lstm_step",
        "c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t), LSTM-1 to LSTM-16.",
        "c_t gets a gradient from step t + 1 and another one through h_t.",
        "lstm.md",
        _both("lstm_step"),
    ),
    Rung(
        "lstm",
        "The LSTM's step over time; c_0 = 0. LSTM-17.",
        "Two gradients travel back: of h and of c.",
        "lstm.md",
        _both("lstm"),
    ),
    Rung(
        "gru_step",
        "n = tanh(p_n + r * u_n), h_t = (1 - z) * n + z * h_{t-1}, GRU-1 to GRU-15.",
        "h_{t-1} is used twice: in the product with Wh, and directly.",
        "gru.md",
        _both("gru_step"),
    ),
    Rung("gru", "The GRU's step over time. GRU-16.", "It is the RNN's loop.", "gru.md", _both("gru")),
    Rung(
        "attention",
        "Scores h . A_k / sqrt(H), a softmax over the regions, the weighted mean of the A_k; ATT-2 to ATT-4.",
        "Flatten the grid to G regions first, and bring the weights back to (grid_h, grid_w).",
        "attention.md",
        ("dot_product_attention",),
    ),
    Rung(
        "attention_step",
        "The LSTM's step with one product more: a = x Wx + h Wh + attn Wattn + b.",
        "dattn = da Wattn^T; everything else is the LSTM's.",
        "attention.md",
        _both("attention_step"),
    ),
    Rung(
        "attention_lstm",
        "Attend with h_{t-1}, then step; h_0 = c_0 = the mean of A over the grid. ATT-17 to ATT-28.",
        "h_{t-1} was the query too; and A gets gradients through the weights, the scores and the start.",
        "attention.md",
        _both("attention"),
    ),
]


def needed_of(folder: Path) -> dict[str, tuple[str, ...]]:
    """The files of a ladder, and the functions that each must have; empty if the folder holds no ladder."""
    wanted = {f"{number:02}_{rung.name}.py": rung.functions for number, rung in enumerate(LADDER, 1)}
    return wanted if any((folder / name).exists() for name in wanted) else {}


def write_ladder(folder: Path) -> list[Path]:
    """Write one file for each exercise into a new folder. Raises: InputError if the folder holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, rung in enumerate(LADDER, 1):
        path = folder / f"{number:02}_{rung.name}.py"
        intro = f"Exercise {number}, {rung.name.replace('_', ' ')}. {rung.task}\n"
        intro += f"\nHint: {rung.hint}\nPage: docs/{rung.page}"
        if SEQUENCES & set(rung.functions):
            intro += "\nCopy the functions of the exercises before that you need into this file, and call them."
        write_text(path, starter_text(rung.functions, intro, folder))
        paths.append(path)
    return paths
