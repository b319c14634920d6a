"""The cells, compared with PyTorch's: a training step (forward and backward) and inference.

    python -m benchmarks.cells            # add --device cuda, --threads 1, --seconds 1, ...

RNN, LSTM and GRU are compared with nn.RNN, nn.LSTM and nn.GRU. The attention LSTM is compared with "textbook", a loop
as in course code: every step computes its own input projection and attention, and autograd computes the gradients. A
cell that has no counterpart in torch.nn is not measured.
Both sides run in one process, interleaved (A B A B ...). A row gives the median of each side, and the median and the
quartiles of their ratio. Below 1, ours is faster. "Peak" is the share of the machine's own matrix-product speed in this
precision that each side's products reach. A side that can't run on this machine is marked with a dash.
"""

import argparse
import math
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from rnn_lstm_captioning import AttentionLSTM
from rnn_lstm_captioning.cells import CELLS, arithmetic
from rnn_lstm_captioning.training.precision import autocast, bf16_speed

SIZES = [(256, 16, 256, 512), (64, 16, 256, 512), (32, 16, 128, 128), (1, 16, 256, 512)]
GRID = 4


class TextbookAttentionLSTM(AttentionLSTM):
    """The same weights in a plain loop; autograd computes the backward pass."""

    def forward(self, x, A):
        N, H = A.shape[:2]
        A_flat = A.flatten(2)  # (N, H, G)
        prev_h = prev_c = A.mean(dim=(2, 3))
        hs = []
        for t in range(x.shape[1]):
            scores = torch.bmm(prev_h.unsqueeze(1), A_flat) / H**0.5  # (N, 1, G)
            weights = torch.softmax(scores, dim=2)
            attn = torch.bmm(A_flat, weights.transpose(1, 2)).squeeze(2)  # (N, H)
            a = x[:, t] @ self.Wx + prev_h @ self.Wh + attn @ self.Wattn + self.b
            i, f, o = torch.sigmoid(a[:, :H]), torch.sigmoid(a[:, H : 2 * H]), torch.sigmoid(a[:, 2 * H : 3 * H])
            prev_c = f * prev_c + i * torch.tanh(a[:, 3 * H :])
            prev_h = o * torch.tanh(prev_c)
            hs.append(prev_h)
        return torch.stack(hs, dim=1)


def pairs(N, T, D, H, device, compiled):
    """Returns: a dict, name -> (our function, their function). Both functions return h (N, T, H)."""
    x = torch.randn(N, T, D, device=device, requires_grad=True)
    h0 = torch.randn(N, H, device=device, requires_grad=True)
    A = torch.randn(N, H, GRID, GRID, device=device, requires_grad=True)
    c0 = torch.zeros(1, N, H, device=device)
    textbook = TextbookAttentionLSTM(D, H).to(device)
    found = {}
    for cell in CELLS.values():
        ours, layer = cell(D, H).to(device), getattr(nn, cell.__name__, None)
        ours.compiled = compiled
        if cell.uses_grid:
            found["attention"] = partial(ours, x, A), partial(textbook, x, A)
        elif layer is not None:
            theirs, start = layer(D, H, batch_first=True).to(device), h0[None]
            start = (start, c0) if len(ours.start(h0)) > 1 else start
            found[cell.__name__] = partial(ours, x, h0), partial(_first, theirs, x, start)
    return found


def _first(layer, x, start):
    return layer(x, start)[0]


def train_step(forward, dh, context):
    with context():
        h = forward()
    h.backward(dh.to(h.dtype))


def infer(forward, dh, context):
    with torch.no_grad(), context():
        forward()


def compare(ours, theirs, seconds, synchronize):
    """Run both for some seconds, interleaved. Returns: the times of each, two lists."""
    times = ([], [])
    for _ in range(3):
        ours(), theirs()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for run, kept in zip((ours, theirs), times):
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            kept.append(time.perf_counter() - start)
    return times


def can_run(run):
    """Whether a side runs here: a CPU without instructions for bf16 has no LSTM of PyTorch's in bf16."""
    try:
        run()
    except RuntimeError:
        return False
    return True


def peak_speed(dtype, device, synchronize, size=1024):
    """The fastest matrix product of twenty with each of the machine's libraries, in operations per second."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = math.inf
    for product in (torch.matmul, arithmetic.matmul) * 20:  # the second one is oneDNN's, in float32 on a CPU
        synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            product(a, a)
        synchronize()
        best = min(best, time.perf_counter() - start)
        if best > 1:
            break
    return 2 * size**3 / best


def operations(name, task, N, T, D, H):
    """The operations of a cell's matrix products; the backward pass has twice those of the forward pass."""
    gates = {"RNN": 1, "GRU": 3}.get(name, 4) * H
    products = D * gates + H * gates
    if name == "attention":
        products += H * gates + 2 * H * GRID**2
    return 2 * N * T * products * (3 if task == "train" else 1)


def has_bf16(device):
    """Whether bf16 is worth measuring: a CPU without instructions for it takes up to 240 times as long as in fp32."""
    return device != "cpu" or bf16_speed("cpu") >= 0.3


def machine(device):
    """One line about the machine: what the figures depend on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    bf16 = f"bf16 product {bf16_speed('cpu'):.2g} times as fast as fp32"
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {bf16}"


def ratio_and_quartiles(a, b):
    """The median of a / b, and its lower and upper quartile. Args: a, b, lists of times, measured interleaved."""
    low, middle, high = statistics.quantiles([x / y for x, y in zip(a, b)], n=4)
    return middle, low, high


def peak_memory():
    """The peak memory of this process in MB (Linux only; getrusage would include the parent process)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3, help="time for each row (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile our cells first")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads; {machine(args.device)}\n")
    titles = "cell | task | precision | N, T, D, H | ours (ms) | theirs (ms) | ratio | quartiles | ours / peak"
    print(f"| {titles} | theirs / peak |\n|" + "---|" * 10)
    for precision in ("fp32", "bf16"):
        context = partial(autocast, args.device, precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if precision == "bf16" and not has_bf16(args.device):
            print("| all | all | bf16 | all | - | - | - | this processor has no instructions for bf16 | - | - |")
            continue
        peak = peak_speed(dtype, args.device, synchronize)
        for size in SIZES:
            torch.manual_seed(0)
            dh = torch.randn(size[0], size[1], size[3], device=args.device)
            for name, (ours, theirs) in pairs(*size, args.device, args.compile).items():
                for task, step in (("train", train_step), ("infer", infer)):
                    if not can_run(lambda: step(theirs, dh, context)):  # noqa: B023
                        print(f"| {name} | {task} | {precision} | {', '.join(map(str, size))} |" + " - |" * 6)
                        continue
                    a, b = compare(
                        lambda: step(ours, dh, context),  # noqa: B023, called before the next iteration
                        lambda: step(theirs, dh, context),  # noqa: B023
                        args.seconds,
                        synchronize,
                    )
                    middle, low, high = ratio_and_quartiles(a, b)
                    medians = [statistics.median(t) for t in (a, b)]
                    ms = [f"{1e3 * seconds:.2f}" for seconds in medians]
                    shares = [f"{operations(name, task, *size) / seconds / peak:.2f}" for seconds in medians]
                    print(
                        f"| {name} | {task} | {precision} | {', '.join(map(str, size))} "
                        f"| {ms[0]} | {ms[1]} | {middle:.2f} | {low:.2f}-{high:.2f} | {' | '.join(shares)} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
