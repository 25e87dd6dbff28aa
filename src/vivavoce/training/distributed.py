"""Data-parallel training under `torchrun`: gradients averaged by hand, so that what is exchanged can be read here.

    torchrun --nproc-per-node 2 -m -- vivavoce train RECIPE --run DIR

Each process works on its share of the batch that one alone would have (see `Task.batch`).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 8 * 2**20  # numbers per exchange: large enough to fill a network, small enough not to double the memory


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Every method does nothing when it is alone."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls, device: str = "cpu") -> "Ranks":
        """From torchrun's environment; joins the group on first use."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            if device.startswith("cuda"):  # each process has a card of its own
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), world)

    @property
    def first(self) -> bool:
        return self.rank == 0

    @torch.no_grad()
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks."""
        self._exchange(tensors, dist.all_reduce)

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""
        self._exchange(list(tensors), lambda flat: dist.broadcast(flat, 0))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over ranks; a parameter that had one on any rank has one on all."""
        if self.world == 1:
            return
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
        self.sum([has])
        used = [p for p, count in zip(parameters, has.tolist()) if count]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum([p.grad for p in used if p.grad is not None])

    def agree(self, *values: float) -> tuple[float, ...]:
        """Rank 0's values, everywhere: time and signals differ between processes."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            shared = shared.cuda()
        dist.broadcast(shared, 0)
        return tuple(shared.tolist())

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank."""
        if self.world == 1:
            return flag
        shared = torch.tensor([float(flag)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(shared)
        return bool(shared.item())

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def _exchange(self, tensors: Sequence[Tensor], operation) -> None:
        if self.world == 1 or not tensors:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for members in kinds.values():
            bucket: list[Tensor] = []
            for tensor in members:
                bucket.append(tensor)
                if sum(t.numel() for t in bucket) >= BUCKET:
                    _flat(bucket, operation)
                    bucket = []
            if bucket:
                _flat(bucket, operation)


def _flat(tensors: list[Tensor], operation) -> None:
    """Apply an in-place collective to several tensors as one."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
    operation(flat)
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()
