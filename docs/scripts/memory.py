"""Which cell remembers? "Repeat the first symbol": read one of eight symbols, then noise, and name the first symbol.

    python -m docs.scripts.memory             # writes docs/images/memory.png; about a minute

Every cell gets the same number of training steps for each length, with Adam and the gradient's norm clipped at 1. The
figure shows the share of right answers on new sequences; a blind guess has one eighth.
"""

import argparse
import time

import torch
from matplotlib.figure import Figure
from torch import nn

from rnn_lstm_captioning import WordEmbedding, temporal_softmax_loss
from rnn_lstm_captioning.cells import CELLS
from rnn_lstm_captioning.cells.layers import Affine

from .drawing import IMAGES

SYMBOLS, NOISE, D, H, N = 8, 4, 16, 64, 64
READERS = [("RNN", "rnn", None), ("GRU", "gru", None), ("LSTM", "lstm", None), ("LSTM, forget bias 3", "lstm", 3.0)]


class Reader(nn.Module):
    """A symbol per step -> scores of the symbols after the last step: word vectors, a cell, an affine map."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.vectors = WordEmbedding(SYMBOLS + NOISE, D)
        self.cell = CELLS[cell](D, H)
        self.scores = Affine(H, SYMBOLS)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """symbols int64 (N, T) -> scores (N, 1, SYMBOLS)."""
        h = self.cell(self.vectors(symbols), torch.zeros(len(symbols), H))
        return self.scores(h[:, -1:])


def sequences(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns: symbols int64 (count, length), the first one of eight and then noise; answers int64 (count, 1)."""
    symbols = torch.randint(SYMBOLS, SYMBOLS + NOISE, (count, length))
    symbols[:, 0] = torch.randint(SYMBOLS, (count,))
    return symbols, symbols[:, :1].clone()


def accuracy(cell: str, length: int, steps: int, forget_bias: float | None = None) -> float:
    """Train a new reader, and return its share of right answers on 1,000 new sequences."""
    torch.manual_seed(0)
    model = Reader(cell)
    if forget_bias is not None:
        model.cell.b.data[H : 2 * H] = forget_bias
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        symbols, answers = sequences(N, length)
        optimizer.zero_grad()
        temporal_softmax_loss(model(symbols), answers).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    symbols, answers = sequences(1000, length)
    with torch.no_grad():
        return (model(symbols).argmax(2) == answers).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps for each cell and length (%(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[5, 10, 20, 40, 80])
    args = parser.parse_args()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="steps to remember", ylabel="right answers", ylim=(0, 1.03), xscale="log")
    start = time.perf_counter()
    for name, cell, bias in READERS:
        shares = [accuracy(cell, length, args.steps, bias) for length in args.lengths]
        axes.plot(args.lengths, shares, "o-", label=name)
        print(f"{name}: {', '.join(f'T = {t}: {s:.0%}' for t, s in zip(args.lengths, shares))}", flush=True)
    axes.axhline(1 / SYMBOLS, linestyle=":", color="gray", label="a blind guess")
    axes.set_xticks(args.lengths, [str(length) for length in args.lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(IMAGES / "memory.png", dpi=110)
    print(f"wrote docs/images/memory.png after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
