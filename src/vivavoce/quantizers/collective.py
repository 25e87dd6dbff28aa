"""Sums and gathers over the processes of a data-parallel training; without one, the identity."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together (1 outside torch.distributed)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(tensor: Tensor) -> Tensor:
    """Sum of every process's `tensor`, the same in all of them."""
    if world_size() > 1:
        tensor = tensor.contiguous().clone()
        dist.all_reduce(tensor)
    return tensor


def gathered(rows: Tensor) -> Tensor:
    """Rows [N_i, D] of all processes in the order of their ranks: [sum N_i, D]. N_i may differ, also be 0."""
    count = world_size()
    if count == 1:
        return rows
    mine = torch.tensor([rows.shape[0]], device=rows.device)
    sizes = [torch.zeros_like(mine) for _ in range(count)]
    dist.all_gather(sizes, mine)
    most = max(int(size) for size in sizes)
    padded = torch.cat([rows, rows.new_zeros(most - rows.shape[0], rows.shape[1])]).contiguous()
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes)])
