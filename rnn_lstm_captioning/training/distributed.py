"""Training with several processes, started by torchrun: ranks, and the communication between them.

Without torchrun there is one process, rank 0 of a world of size 1, and nothing is communicated.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..errors import InputError

LAUNCHED = dist.is_available() and dist.is_torchelastic_launched()
T = TypeVar("T")


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Connect this process with the others that torchrun started, inside the block.

    Args: device, "cpu", "cuda" or another. Yields: the device of this process, such as "cuda:1".
    """
    if not LAUNCHED:
        yield device
        return
    backend = "gloo"
    if device.startswith("cuda"):
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"--nproc-per-node must be at most {torch.cuda.device_count()}, the number of GPUs")
        device, backend = f"cuda:{local_rank}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    except (ValueError, KeyError) as error:
        raise InputError(
            f"the variables that torchrun sets are not valid: {error}; start with torchrun, or unset them"
        ) from error
    yield device
    dist.destroy_process_group()  # not after an error: it would wait for the other processes


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if LAUNCHED and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if LAUNCHED and dist.is_initialized() else 0


def is_local_rank_0() -> bool:
    """Whether this process is the first one on its machine; only this one writes files that all of them read."""
    return not LAUNCHED or int(os.environ["LOCAL_RANK"]) == 0


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes.

    All gradients are sent as one message: the order of the additions is always the same, also in a resumed run.
    """
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    for gradient, part in zip(gradients, message.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view(gradient.shape))


def broadcast_parameters(module: nn.Module) -> None:
    """Give all processes the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def seed_per_rank(seed: int) -> None:
    """Give every rank except 0 a seed of its own, so that each has its own dropout and its own samples."""
    if rank() > 0:
        torch.manual_seed((seed + rank() * 0x9E3779B1) % 2**32)  # the generator of a CPU takes 32 bits


def shard(rows: Tensor) -> Tensor:
    """This process's part of a tensor's rows; the parts are disjoint, and their lengths differ by at most one."""
    return rows.tensor_split(world_size())[rank()]


def all_gather(value: T) -> list[T]:
    """The values of all processes, by rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_gather_rows(part: Tensor) -> Tensor:
    """The tensors of all processes, all of one shape and dtype, joined along the first dimension."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def any_rank(flag: bool) -> bool:
    """Whether the flag is true in at least one process; all of them get the same answer."""
    if world_size() == 1:
        return flag
    message = torch.tensor(int(flag))
    dist.all_reduce(message, dist.ReduceOp.MAX)
    return bool(message)


def from_rank_0(make: Callable[[], T]) -> T:
    """Call ``make()`` in rank 0 alone, and return its result in every process. An InputError in rank 0 is raised in
    all of them."""
    if world_size() == 1:
        return make()
    values: list = [None, None]
    if rank() == 0:
        try:
            values[0] = make()
        except InputError as error:
            values[1] = str(error)
    dist.broadcast_object_list(values)
    if values[1] is not None:
        raise everywhere(InputError(values[1]))
    return values[0]


def everywhere(error: InputError) -> InputError:
    """The error, marked as one that every process raises: only one of them prints it."""
    error.in_all_processes = True
    return error


def is_connection_error(error: RuntimeError) -> bool:
    """Whether an error says that another process can no longer be reached."""
    text = str(error).lower()
    return world_size() > 1 and any(word in text for word in ("gloo", "nccl", "connection", "timed out"))
