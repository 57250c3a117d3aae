"""Train one model with several processes, each on its share of every batch.

``torchrun`` or ``accelerate launch`` starts the processes. They use ``torch.distributed`` directly, without a wrapped
model such as DistributedDataParallel, for two reasons. The variance of the Gaussian likelihood must be averaged over
all processes between the forward and the backward pass. And encoder and decoder are called separately, which wrappers
that hook into ``forward`` do not support.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from vaekit.errors import UsageError, VaekitError


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among those that train together. The default is a single process."""

    rank: int = 0
    size: int = 1
    beside: int = 1
    """The number of processes on this machine, including this one."""

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes files."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """Return this process's rows of a batch.

        Raises UsageError unless the batch divides into equal shares of at least two images.
        """
        if batch % self.size or batch // self.size < 2:
            raise UsageError(
                f"a batch of {batch} cannot be shared equally by {self.size} processes with at least two images each: "
                "choose another --batch-size"
            )
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, without a gradient."""
        if self.size == 1:
            return tensor
        shared = tensor.detach().clone()
        distributed.all_reduce(shared)
        return shared / self.size

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one dtype and device by their means over the processes."""
        if self.size == 1:  # checked first, because every training step calls this
            return
        tensors = list(tensors)
        if not tensors:
            return
        means = self.mean(torch.cat([tensor.detach().flatten() for tensor in tensors]))
        for tensor, mean in zip(tensors, torch.split(means, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(mean.view(tensor.shape))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether ``flag`` is true in any process. Waits for the device."""
        if self.size == 1:
            return flag
        count = torch.tensor(float(flag), device=device)
        distributed.all_reduce(count)
        return bool(count > 0)

    def from_first(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Return the first process's numbers, as many as this one's. Waits for the device."""
        shared = torch.tensor(numbers, dtype=torch.float64, device=device)
        if self.size > 1:
            distributed.broadcast(shared, 0)
        return shared.tolist()

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_process_group(device: str) -> Iterator[tuple[ProcessGroup, str]]:
    """Join the group of processes; yield the group and this process's device.

    ``device`` is the kind of device, such as ``cuda``; the yielded device may have a number. Raises VaekitError if the
    processes cannot connect.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        yield ProcessGroup(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError) as error:
        raise VaekitError(f"could not form a process group of {size}: {error}") from error
    try:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size(), beside), device
    finally:
        distributed.destroy_process_group()
