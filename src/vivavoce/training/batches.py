"""Batches by step number, prepared ahead by worker processes, and moved to the device."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vivavoce.training.task import Task


class _Shares(Dataset):
    """`task.batch` as a map from (step, share) to a batch."""

    def __init__(self, task: Task, world: int):
        self.task, self.world = task, world

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.task.batch(key[0], key[1], self.world)


class _Order:
    """Steps from `start` without end, `accumulate` shares each."""

    def __init__(self, start: int, rank: int, accumulate: int):
        self.start, self.rank, self.accumulate = start, rank, accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step = self.start
        while True:
            for part in range(self.accumulate):
                yield step, self.rank * self.accumulate + part
            step += 1


def batches(task: Task, start: int, rank: int, world: int, accumulate: int, workers: int) -> Iterator[Any]:
    """Batches from step `start`: `accumulate` shares of each step's `world * accumulate`, in order.

    So two processes, or one that accumulates twice, see the same shares.
    """
    loader = DataLoader(
        _Shares(task, world * accumulate),
        batch_size=None,
        sampler=_Order(start, rank, accumulate),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its own: the loader must not draw from the training's randomness
    )
    return iter(loader)


def to_device(batch: Any, device: torch.device) -> Any:
    """The same tree with its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[to_device(value, device) for value in batch])
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **fields)
    return batch
