"""Data for a fit, whatever they come as, and in which order each process sees them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from pyroflows.distributions import Flow

Data = Tensor | np.ndarray | Dataset[Any] | DataLoader[Any]

__all__ = [
    "Batches",
    "Data",
    "Rows",
    "SeededLoader",
    "as_list",
    "as_rows",
    "batches",
    "check_data",
    "fingerprint",
    "first_batch",
]


class Rows(Dataset[list[Tensor]]):
    """Data, and their contexts if there are some, by a batch of indices at a time."""

    def __init__(self, data: Tensor | Dataset[Any], context: Tensor | None = None) -> None:
        self.data = data
        self.context = context

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, indices: list[int] | Tensor) -> list[Tensor]:
        if isinstance(self.data, Tensor):
            return [self.data[indices]] + ([] if self.context is None else [self.context[indices]])
        return as_list(default_collate([self.data[int(i)] for i in indices]))

    def part(self, indices: Tensor) -> Rows:
        """Some of the rows."""
        if isinstance(self.data, Tensor):
            return Rows(self.data[indices], None if self.context is None else self.context[indices])
        return Rows(Subset(self.data, indices.tolist()))


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


def as_rows(
    data: Any, context: Tensor | np.ndarray | None = None, grey_levels: int | None = None
) -> Rows | DataLoader[Any]:
    """Tensors, arrays and datasets as `Rows`; a loader as it is.

    A table of integers without `grey_levels` is one of reals: levels are those of pixels.

    Raises:
        ValueError: The data are something else.
    """
    if isinstance(data, np.ndarray):
        data = torch.as_tensor(data)
    if isinstance(context, np.ndarray):
        context = torch.as_tensor(context)
    if isinstance(context, Tensor) and not (context.is_floating_point() or context.is_complex()):
        context = context.to(torch.get_default_dtype())
    if isinstance(data, Tensor):
        is_integer_table = data.dim() == 2 and not (data.is_floating_point() or data.is_complex())
        return Rows(data.double() if is_integer_table and grey_levels is None else data, context)
    if context is not None:
        raise ValueError(
            "context= goes with a tensor or array of data: a Dataset gives each datum with its own"
        )
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return Rows(data)
    raise ValueError(
        f"expected data as a tensor, an array, a Dataset with a length or a DataLoader, got {type(data)}"
    )


def fingerprint(rows: Rows | DataLoader[Any]) -> str:
    """What tells data from others: a hash of tensors, the number of other data."""
    if isinstance(rows, Rows) and isinstance(rows.data, Tensor):
        digest = hashlib.sha256()
        for part in (rows.data, rows.context):
            if part is not None:
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
    try:
        return str(len(rows))
    except TypeError:
        return "unknown"


def batches(rows: Rows | DataLoader[Any], batch_size: int, **options: Any) -> DataLoader[Any]:
    """A loader of batches of the rows; options are those of `Batches`."""
    if isinstance(rows, DataLoader):
        return rows
    return DataLoader(rows, sampler=Batches(len(rows), batch_size, **options), batch_size=None)


def first_batch(rows: Rows | DataLoader[Any], n: int, seed: int) -> list[Tensor]:
    """Up to `n` of the rows at random, or a loader's first batch."""
    if isinstance(rows, DataLoader):
        return as_list(next(iter(rows)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:n]]


def device_of(flow: Flow) -> torch.device:
    """Where a flow's parameters are."""
    return next(flow.parameters()).device


def as_list(batch: Any) -> list[Tensor]:
    """A batch of data, alone or with contexts, as a list."""
    return list(batch) if isinstance(batch, list | tuple) else [batch]


def check_data(
    flow: Flow,
    rows: Rows | DataLoader[Any],
    grey_levels: int | None,
    noise: Flow | None,
    at_least: int = 1,
) -> int | None:
    """Check the data, and give the number of grey levels if they are integers.

    The first batch of a `Dataset` or `DataLoader` is checked.
    """
    if isinstance(rows, Rows) and len(rows) < at_least:
        raise ValueError(f"expected at least {at_least} data, got {len(rows)}")
    if isinstance(rows, Rows) and isinstance(rows.data, Tensor):
        data, context = rows.data, rows.context
    else:
        data, *given = first_batch(rows, 1, seed=0)
        context = given[0] if given else None
    if data.is_complex() or data.dtype == torch.bool:
        raise ValueError(f"expected data of reals or integers, got {data.dtype}")
    event_shape = tuple(flow.transform.event_shape)
    if data.dim() != 1 + len(event_shape) or tuple(data.shape[1:]) != event_shape:
        raise ValueError(
            f"expected data of shape (N, {', '.join(map(str, event_shape))}), got {tuple(data.shape)}"
        )
    _check_context(flow.transform.context_shape, context, len(data))
    if data.is_floating_point():
        if grey_levels is not None or noise is not None:
            raise ValueError(f"grey_levels and noise are for integer data, got {data.dtype}")
        bad = (~data.isfinite()).nonzero()
        if len(bad):
            row, *place = bad[0].tolist()
            where = f"column {place[0]}" if len(place) == 1 else f"element {tuple(place)}"
            raise ValueError(
                f"expected finite data, got {data[tuple(bad[0])].item()} in {where}, row {row}: leave such "
                "rows or columns out, or fill them in"
            )
        return None
    grey_levels = 256 if grey_levels is None else grey_levels
    low, high = int(data.min()), int(data.max())
    if low < 0 or high >= grey_levels:
        raise ValueError(f"expected integers 0 to {grey_levels - 1}, got {low} to {high}: set grey_levels")
    return grey_levels


def _check_context(expected: tuple[int, ...] | None, context: Tensor | None, n: int) -> None:
    if expected is None:
        if context is not None:
            raise ValueError("this flow takes no context: its transform was made without a context_dim")
        return
    if context is None or context.shape != (n, *expected):
        raise ValueError(
            f"expected a context of shape {(n, *expected)}, one of each datum, "
            f"got {None if context is None else tuple(context.shape)}"
        )
    bad = (~context.isfinite()).nonzero().tolist()
    if bad:
        row, *place = bad[0]
        raise ValueError(
            f"expected finite contexts, got {context[tuple(bad[0])].item()} in element {tuple(place)}, "
            f"row {row}"
        )
