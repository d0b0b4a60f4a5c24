"""Several processes by torchrun: rank, world size, and a group that is closed on the way out."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stages.runtime.errors import BadInput


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`; `device` is the one it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def stops_at(self, step: int, asked: bool) -> bool:
        """Whether all processes leave after this step, as one was `asked` to. They tell each other without waiting.

        The first that is asked names the step that follows: as every update joins their gradients, none is past it.
        """
        if self.size == 1:
            return asked
        store = dist.distributed_c10d._get_default_store()
        if asked:
            store.compare_set("stop", "", str(step + 1))
        return store.check(["stop"]) and step >= int(store.get("stop"))

    def any(self, flag: bool) -> bool:
        """True when any process says so."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())


LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets, all of it


def launched() -> tuple[int, int]:
    """(rank, number of processes) as torchrun says; (0, 1) where it did not start this process.

    A RANK or WORLD_SIZE alone is some other program's, such as a batch system's.
    """
    if not all(os.environ.get(name) for name in LAUNCHED):
        return 0, 1
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        raise BadInput("RANK and WORLD_SIZE are no numbers: unset them, or start with torchrun") from None


def require_one_process(what: str) -> None:
    """Raise BadInput when torchrun started several processes for what works in one."""
    if launched()[1] > 1:
        raise BadInput(f"{what} works in one process: start it without torchrun")


def is_first_process() -> bool:
    """Whether this is the process that speaks and writes: alone, or the first that torchrun started."""
    return launched()[0] == 0


def gathered(values: Tensor) -> Tensor:
    """The values (N, ...) of every process as one (W·N, ...), without gradient; alone these values."""
    if not dist.is_initialized():
        return values.detach()
    every = values.new_empty(dist.get_world_size() * len(values), *values.shape[1:])
    dist.all_gather_into_tensor(every, values.detach().contiguous())
    return every


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees: every update asks for the same big tensors again, and pages that come
    anew from the system cost a CPU a tenth of an update. Nothing happens where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # malloc.h
        for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            ctypes.CDLL(None).mallopt(parameter, value)


@contextmanager
def world(device: str) -> Iterator[World]:
    """Join the process group torchrun announces (nccl on CUDA, gloo on CPU); alone without one."""
    rank, size = launched()
    if device == "cuda":
        local = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if size > 1 else 0)
        torch.cuda.set_device(local)
    else:
        local = torch.device("cpu")
        keep_freed_memory()
    if size > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield World(rank, size, local)
    finally:
        if size > 1:
            dist.destroy_process_group()
