"""In which order each process of a fit sees the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from pyroflows.rows import AnyRows

__all__ = ["Batches", "SeededLoader", "batches"]


class Batches(Sampler[list[int]]):
    """Each epoch's batches of indices: a function of seed and epoch alone, shared out among the processes.

    Two processes with batches of B see, step by step, what one sees with batches of 2B.

    Args:
        n: Number of data.
        batch_size: Data in a batch of each process.
        seed: Seed of the order.
        epoch: Gives the epoch that begins.
        shuffle: Whether each epoch has an order of its own, and whole batches alone.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, epoch
        self.shuffle, self.rank, self.world_size = shuffle, rank, world_size

    def __len__(self) -> int:
        together = self.batch_size * self.world_size
        # Every step of a fit sees a whole batch, unless there is not even one.
        return self.n // together if self.shuffle and self.n >= together else math.ceil(self.n / together)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.n)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
            order = torch.randperm(self.n, generator=generator)
        for step in range(len(self)):
            together = order[step * self.batch_size * self.world_size :][: self.batch_size * self.world_size]
            own = together.tensor_split(self.world_size)[self.rank]
            if len(own):
                yield own.tolist()


class SeededLoader:
    """A loader of the user's own, whose random order is a function of a seed when its epoch begins."""

    def __init__(self, loader: DataLoader[Any], seed: Callable[[], int]) -> None:
        self.loader, self.seed = loader, seed

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        torch.manual_seed(self.seed())
        yield from self.loader


def batches(rows: AnyRows, batch_size: int, **options: Any) -> DataLoader[Any]:
    """A loader of batches of the rows; options are those of `Batches`."""
    if isinstance(rows, DataLoader):
        return rows
    return DataLoader(rows, sampler=Batches(len(rows), batch_size, **options), batch_size=None)
