"""Training on several processes, started by torchrun: who is who, and what they tell each other.

Without torchrun there is one process, and every function here does the plain thing.
"""

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def joined(device):
    """Join the other processes that torchrun has started, for as long as the block runs.

    Args: device, "cpu", "cuda" or another. Yields: this process's own, such as "cuda:1".
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(minutes=10)
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def count():
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """This process's number, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first_here():
    """Whether this process is the first on its machine; files that it alone writes are seen by the others there."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 if dist.is_torchelastic_launched() else True


def parallel(module):
    """The module, wrapped so that all processes take the mean of their gradients (DistributedDataParallel)."""
    return DistributedDataParallel(module) if count() > 1 else module


def share(rows):
    """This process's part of a tensor's rows; the parts are disjoint, and differ by at most one row."""
    return rows.tensor_split(count())[rank()]


def gather(value):
    """Every process's value, in a list that all of them get."""
    if count() == 1:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values


def any_of(flag):
    """Whether the flag is true in one of the processes; all of them get the same answer."""
    if count() == 1:
        return flag
    flag = torch.tensor(int(flag))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def from_first(make):
    """What ``make()`` returns in the first process, for all of them; the others don't call it."""
    if count() == 1:
        return make()
    values = [make() if rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]


def stack(part):
    """Every process's tensor of one shape and dtype, one after the other along the first dimension."""
    if count() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(count())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def say(*words):
    """Print, in the first process only."""
    if rank() == 0:
        print(*words, flush=True)


def is_about_others(error):
    """Whether a RuntimeError says that another process can't be reached any more."""
    text = str(error).lower()
    return dist.is_torchelastic_launched() and any(word in text for word in ("gloo", "nccl", "connection", "timed out"))
