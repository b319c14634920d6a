"""How the cost of a training step grows with the batch, the length, the hidden size and the vocabulary.

    python -m benchmarks.growth           # writes docs/images/growth.png

One step is the LSTM and the projected loss, forward and backward, in float32. In theory it takes
3 * 2 * N T * ((D + H) 4H + H V) floating-point operations, and the memory is 4 bytes times the sum of these terms:

- N T (2D + 15H), for the word vectors, the states and the gates, with their gradients
- the gradients of the parameters; those of the projection count twice
- four times the scores of one chunk

The scores are never in memory all at once, so V matters only for the gradients of the projection.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from rnn_lstm_captioning import LSTM
from rnn_lstm_captioning.cells.layers import Affine
from rnn_lstm_captioning.cells.losses import CHUNK, ROWS, projected_softmax_loss

from .cells import peak_memory

BASE = {"N": 64, "T": 16, "H": 256, "V": 2000}
GROWTH = {"N": [16, 64, 256, 1024], "T": [8, 16, 32, 64], "H": [128, 256, 512, 1024], "V": [1000, 4000, 16000, 64000]}
D = 256


def measure(N, T, H, V):
    """Returns: the median ms of a step, and the MB that it needs in addition to what was in use before."""
    cell, projection = LSTM(D, H), Affine(H, V)
    x, h0, y = torch.randn(N, T, D, requires_grad=True), torch.zeros(N, H), torch.randint(V, (N, T))

    def step():
        for parameter in (x, *cell.parameters(), *projection.parameters()):
            parameter.grad = None
        projected_softmax_loss(cell(x, h0), y, projection.W, projection.b).backward()

    small = LSTM(8, 8)  # starts the threads and the libraries, whose memory does not belong to the step
    small(torch.randn(2, 2, 8), torch.zeros(2, 8)).sum().backward()
    before = peak_memory()
    step()
    memory = peak_memory() - before
    times, end = [], time.perf_counter() + 2
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), memory


def theory(N, T, H, V):
    """Returns: GFLOP and MB of a step."""
    floats = N * T * (2 * D + 15 * H) + (D + H + 1) * 4 * H + 2 * (H + 1) * V + 4 * min(N * T * V, max(CHUNK, ROWS * V))
    return 6e-9 * N * T * ((D + H) * 4 * H + H * V), 4 * floats / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=4, type=int, metavar=("N", "T", "H", "V"), help="measure this size only")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/images/growth.png")
    args = parser.parse_args()
    if args.one:
        print(*measure(*args.one))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D = {D}; unless varied: {BASE}")
    print("| varied | N, T, H, V | GFLOP | ms | GFLOP/s | MB, theory | MB, measured |\n|" + "---|" * 7)
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(2, 4)
    for column, (letter, values) in enumerate(GROWTH.items()):
        rows = []
        for value in values:
            size = list((BASE | {letter: value}).values())
            # in a process of its own, to measure its peak memory
            command = [sys.executable, "-m", "benchmarks.growth", "--one", *map(str, size)]
            ms, memory = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
            gflop, megabytes = theory(*size)
            rows.append((ms, memory, gflop, megabytes))
            print(
                f"| {letter} | {', '.join(map(str, size))} | {gflop:.2f} | {ms:.1f} | {1e3 * gflop / ms:.0f} "
                f"| {megabytes:.0f} | {memory:.0f} |",
                flush=True,
            )
        ms, memory, gflop, megabytes = zip(*rows)
        scaled = [g * ms[-1] / gflop[-1] for g in gflop]  # the slope of the theory, through the last measured point
        for row, (measured, expected, label) in enumerate(((ms, scaled, "ms per step"), (memory, megabytes, "MB"))):
            axis = axes[row][column]
            axis.loglog(values, measured, marker="o", label="measured")
            axis.loglog(values, expected, linestyle="--", color="0.5", label="theory")
            axis.set_xticks(values, map(str, values))
            axis.set_yticks(measured, [f"{value:.0f}" for value in measured])
            axis.minorticks_off()
            axis.set_xlabel(letter)
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
