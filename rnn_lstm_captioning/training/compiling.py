"""``torch.compile`` for a cell: the functions of its sequence, as they stand, become faster code for a small model."""

import time

import torch
from torch import Tensor

from ..errors import InputError
from ..model.captioner import CaptioningRNN
from .precision import autocast


def compile_cell(captioner: CaptioningRNN, captions: Tensor, precision: str = "fp32") -> float:
    """Compile the cell of a captioner, and run its first training step on random features, without updating anything.

    A sequence is compiled once for each number of time steps: the first batch with another length waits, too.
    Args: captions int64 (N, L), a batch as the run will have it; precision, that of the run.
    Returns: the seconds of that step. Raises: InputError if this machine can't compile.
    """
    cell, device = captioner.cell, captioner.feature_mean.device
    T = captions.shape[1] - 1 + (captioner.image_input == "first-token")
    dtype = captioner.feature_mean.dtype
    image_shape = (len(captions), captioner.hidden_dim, *((4, 4) if cell.uses_grid else ()))
    cell.compiled = True
    start = time.monotonic()
    try:
        with torch.random.fork_rng(), autocast(device, precision):
            x = torch.randn(len(captions), T, captioner.wordvec_dim, device=device, dtype=dtype, requires_grad=True)
            h = cell(x, torch.randn(image_shape, device=device, dtype=dtype, requires_grad=True))
        torch.autograd.grad(h.sum(), [x, *cell.parameters()])
    except Exception as error:  # the compiler's own errors have no common class
        cell.compiled = False
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--compile can't be used here: {reason} (on a CPU it needs a C++ compiler such as g++); leave it out"
        ) from error
    return time.monotonic() - start
