"""Training on several processes, started by torchrun: who is who, and what they tell each other.

Without torchrun there is one process, and every function here does the plain thing.
"""

import os
import warnings
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError

LAUNCHED = dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined(device):
    """Join the other processes that torchrun has started, for as long as the block runs.

    Args: device, "cpu", "cuda" or another. Yields: this process's own, such as "cuda:1".
    """
    if not LAUNCHED:
        yield device
        return
    backend = "gloo"
    if device.startswith("cuda"):
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"this machine has {torch.cuda.device_count()} GPUs: --nproc-per-node can't be more")
        device, backend = f"cuda:{local_rank}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(minutes=10))
    yield device
    dist.destroy_process_group()  # not after an error: it would wait for the others


def count():
    """How many processes train together."""
    return dist.get_world_size() if LAUNCHED and dist.is_initialized() else 1


def rank():
    """This process's number, from 0 on."""
    return dist.get_rank() if LAUNCHED and dist.is_initialized() else 0


def is_first_here():
    """Whether this process is the first on its machine; files that it alone writes are seen by the others there."""
    return not LAUNCHED or int(os.environ["LOCAL_RANK"]) == 0


def parallel(module):
    """The module, wrapped so that all processes take the mean of their gradients (DistributedDataParallel)."""
    if count() == 1:
        return module
    # without this flag the gradients are put into another order after the first step, and more than two
    # numbers add up to another sum in another order: a resumed run would differ from one that was not stopped
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    return DistributedDataParallel(module, find_unused_parameters=True)


def take_from_first(module):
    """Give all processes the parameters and buffers that the first one has."""
    if count() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def seed_apart(seed):
    """Seed all processes but the first with other numbers: each drops out other elements, and draws other words."""
    if rank() > 0:
        torch.manual_seed((seed + rank() * 0x9E3779B1) % 2**32)  # a CPU's generator takes no more than 32 bits


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
    """What ``make()`` returns in the first process, for all of them; the others don't call it. An InputError
    that it raises is raised in all of them."""
    if count() == 1:
        return make()
    values = [None, None]
    if rank() == 0:
        try:
            values[0] = make()
        except InputError as error:
            values[1] = str(error)
    dist.broadcast_object_list(values)
    if values[1] is not None:
        raise InputError(values[1])
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
    return count() > 1 and any(word in text for word in ("gloo", "nccl", "connection", "timed out"))
