"""The precision in which a loss or features are computed, and which one is faster on this machine."""

import functools
import time
from contextlib import AbstractContextManager

import torch

WORTH = 1.3  # bf16 must be so much faster before it is chosen
SMALL = 64 * 256  # the elements of a batch's hidden states: below that, casts cost more than bf16 gains


def autocast(device: str | torch.device, precision: str) -> AbstractContextManager:
    """The context for a computation on a device in "fp32" or "bf16"."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def choose_precision(asked: str, device: str, batch_size: int, hidden_dim: int) -> tuple[str, str]:
    """What "auto", "fp32" or "bf16" becomes on a device: "fp32" or "bf16", and the reason, or "" if there is none.

    The reason for "bf16" that was asked for is a warning: it is slower than fp32 here.
    """
    if asked == "fp32" or torch.device(device).type not in ("cpu", "cuda"):
        return ("bf16", "") if asked == "bf16" else ("fp32", "")
    if asked == "auto" and batch_size * hidden_dim < SMALL:
        return "fp32", "the model is small"
    ratio = bf16_speed(device)
    faster = f"{ratio:.1f} times as fast as" if ratio >= 1 else f"{1 / ratio:.0f} times slower than"
    reason = f"here a matrix product in bf16 is {faster} in fp32"
    if asked == "bf16":
        return "bf16", "" if ratio > 0.9 else reason
    return ("bf16" if ratio > WORTH else "fp32"), reason


@functools.cache
def bf16_speed(device: str) -> float:
    """How many times as fast a matrix product is in bf16 as in fp32: the best of seven each, in turn.

    A CPU without instructions for bf16 can take two hundred times as long, so a small product comes first.
    """
    for rows, columns in ((64, 512), (128, 1024), (256, 2048)):
        x, W = torch.ones(rows, columns // 4, device=device), torch.ones(columns // 4, columns, device=device)
        factors = {dtype: (x.to(dtype), W.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
        seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in factors}
        for _ in range(7):
            for dtype, (a, b) in factors.items():
                start = time.perf_counter()
                (a @ b)[0, 0].item()  # waits until a GPU has finished
                seconds[dtype].append(time.perf_counter() - start)
        ratio = min(seconds[torch.float32]) / min(seconds[torch.bfloat16])  # other programs only add to them
        if ratio < 0.3:
            break
    return ratio
