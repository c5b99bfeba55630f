"""Data as rows: each with its context and weight, by batches of indices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from pyroflows.distributions import Flow

__all__ = ["AnyRows", "Batch", "Rows", "as_batch", "device_of", "fingerprint", "first_batch", "in_batches"]


class Batch(NamedTuple):
    """Data with what belongs to each of them.

    Attributes:
        data: `(N, *event_shape)`.
        context: `(N, *context_shape)`, or `None`.
        weights: `(N,)`, of mean 1 over all rows, or `None` if all are 1.
    """

    data: Tensor
    context: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        return self.each(lambda part: part.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The parts that there are, changed."""
        data, *others = self
        return Batch(change(data), *(None if part is None else change(part) for part in others))


def as_batch(batch: Any) -> Batch:
    """What a loader gives, data alone or with their contexts, as a `Batch`."""
    if isinstance(batch, Batch):
        return batch
    parts = batch if isinstance(batch, list | tuple) else [batch]
    if len(parts) > 2:
        raise ValueError(
            "expected data alone, or with their contexts, from a Dataset or DataLoader, got "
            f"{len(parts)} parts"
        )
    return Batch(*parts)


class Rows(Dataset[Batch]):
    """Data, with their contexts and weights if there are some, by many indices at a time.

    Args:
        data: `(N, *event_shape)`, or a dataset of data, each alone or with its context.
        context: `(N, *context_shape)`; none for a dataset.
        weights: `(N,)`.
        names: Names of the columns of a table.
    """

    def __init__(
        self,
        data: Tensor | Dataset[Any],
        context: Tensor | None = None,
        weights: Tensor | None = None,
        names: tuple[str, ...] | None = None,
    ) -> None:
        self.data, self.context, self.weights, self.names = data, context, weights, names

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, indices: list[int] | Tensor) -> Batch:
        weights = None if self.weights is None else self.weights[indices]
        if isinstance(self.data, Tensor):
            context = None if self.context is None else self.context[indices]
            return Batch(self.data[indices], context, weights)
        data = as_batch(default_collate([self.data[int(i)] for i in indices]))
        return data._replace(weights=weights)

    def part(self, indices: Tensor) -> Rows:
        """Some of the rows."""
        if isinstance(self.data, Tensor):
            return Rows(*self[indices], self.names)
        weights = None if self.weights is None else self.weights[indices]
        return Rows(Subset(self.data, indices.tolist()), weights=weights)


AnyRows = Rows | DataLoader[Any]


def fingerprint(rows: AnyRows) -> str:
    """What tells data from others: a hash of tensors, the number of other data."""
    if isinstance(rows, Rows) and isinstance(rows.data, Tensor):
        digest = hashlib.sha256()
        for part in (rows.data, rows.context, rows.weights):
            if part is not None:
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
    try:
        return str(len(rows))
    except TypeError:
        return "unknown"


def first_batch(rows: AnyRows, n: int, seed: int) -> Batch:
    """Up to `n` of the rows at random, or a loader's first batch."""
    if isinstance(rows, DataLoader):
        return as_batch(next(iter(rows)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:n]]


def in_batches(rows: AnyRows, size: int) -> Iterator[Batch]:
    """All rows in their order, or the batches of a loader."""
    if isinstance(rows, DataLoader):
        yield from map(as_batch, rows)
        return
    for indices in torch.arange(len(rows)).split(size):
        yield rows[indices]


def device_of(flow: Flow) -> torch.device:
    """The device of a flow's parameters."""
    return next(flow.parameters()).device
