"""The precision in which a loss or features are computed."""

from contextlib import AbstractContextManager

import torch


def autocast(device: str | torch.device, precision: str) -> AbstractContextManager:
    """The context for a computation on a device in "fp32" or "bf16"."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
