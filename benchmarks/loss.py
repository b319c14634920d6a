"""Vocabulary projection and loss: ours (without unscored rows, in chunks), compared with the plain form.

    python -m benchmarks.loss

V = 10,000, 11 of 16 words scored, forward and backward. The times are measured interleaved in one process. The peak
memory is what a process of its own needs in addition to what it used before.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from rnn_lstm_captioning.cells.losses import projected_softmax_loss

from .cells import peak_memory

N, T, H, V, SCORED = 256, 16, 512, 10_000, 11


def make(name, N=N, V=V):
    torch.manual_seed(0)
    h = torch.randn(N, T, H, requires_grad=True)
    W = (torch.randn(H, V) / H**0.5).requires_grad_()
    b = torch.zeros(V, requires_grad=True)
    y = torch.randint(1, V, (N, T))
    y[:, SCORED:] = 0

    def ours():
        projected_softmax_loss(h, y, W, b, ignore_index=0).backward()

    def plain():
        scores = h @ W + b
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=0, reduction="sum") / N
        loss.backward()

    return {"ours": ours, "plain": plain}[name]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory-of", choices=["ours", "plain"])
    args = parser.parse_args()
    if args.memory_of:
        make(args.memory_of, N=2, V=50)()  # loads the code of the libraries, which would count as memory of the step
        run = make(args.memory_of)
        before = peak_memory()
        run()
        print(peak_memory() - before)
        return
    runs, times, memory = {}, {"ours": [], "plain": []}, {}
    for name in times:
        runs[name] = make(name)
        command = [sys.executable, "-m", "benchmarks.loss", "--memory-of", name]
        peaks = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
        memory[name] = statistics.median(peaks)
    for turn in range(args.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["ours"], times["plain"])]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, N {N}, T {T}, H {H}, V {V}, {SCORED} scored")
    for name in times:
        print(f"{name}: {1e3 * statistics.median(times[name]):.0f} ms, peak {memory[name]:.0f} MB")
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"time ratio {middle:.2f} ({low:.2f}-{high:.2f}), memory ratio {memory['ours'] / memory['plain']:.2f}")


if __name__ == "__main__":
    main()
