"""Which elements pass through a coupling unchanged, and which are changed given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Size, Tensor, nn

__all__ = ["PARTITIONS", "Partition", "Positions", "get_partition"]

_Part = TypeVar("_Part")


class Partition(nn.Module):
    """Splits an event into what passes and what changes, and merges the two again.

    Args:
        event_shape: The event's shape.
        swap: Exchange the two parts.

    `passes_shape` is the event shape of what the conditioner sees, `changes_shape` that of what the
    element-wise map is applied to.
    """

    passes_shape: Size
    changes_shape: Size

    def __init__(self, event_shape: tuple[int, ...], swap: bool = False) -> None:
        super().__init__()
        self.event_shape, self.swap = Size(event_shape), swap
        self.event_dim = len(event_shape)

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        """What passes and what changes."""
        raise NotImplementedError

    def merge(self, passes: Tensor, changed: Tensor) -> Tensor:
        """The event with its changed part."""
        raise NotImplementedError

    def changing(self, ladj: Tensor) -> Tensor:
        """The ladj of each element of what `split` gives as changing, 0 where that in fact passes."""
        return ladj


class Halves(Partition):
    """The first half of the features (or channels) passes, the second changes."""

    def __init__(self, event_shape: tuple[int, ...], swap: bool = False) -> None:
        super().__init__(event_shape, swap)
        size, rest = event_shape[0], event_shape[1:]
        if self.event_dim == 3 and size < 2:
            raise ValueError(
                f"halves of an image's channels need at least 2 channels, got shape {tuple(event_shape)}: "
                "squeeze it first, or use the partition 'checkerboard'"
            )
        self.sizes = [size // 2, size - size // 2]
        self.passes_shape, self.changes_shape = (Size((n, *rest)) for n in _ordered(self.sizes, swap))

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        first, second = event.split(self.sizes, -self.event_dim)
        return (second, first) if self.swap else (first, second)

    def merge(self, passes: Tensor, changed: Tensor) -> Tensor:
        parts = [changed, passes] if self.swap else [passes, changed]
        return torch.cat(parts, -self.event_dim)


class Alternate(Partition):
    """The elements of a vector at odd positions pass, those at even positions change."""

    order: Tensor

    def __init__(self, event_shape: tuple[int, ...], swap: bool = False) -> None:
        super().__init__(event_shape, swap)
        (size,) = event_shape
        self.offsets = _ordered([1, 0], swap)
        positions = [torch.arange(size)[offset::2] for offset in self.offsets]
        self.register_buffer("order", torch.cat(positions).argsort(), persistent=False)
        self.passes_shape, self.changes_shape = (Size((len(p),)) for p in positions)

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        passes, changes = (event[..., offset::2] for offset in self.offsets)
        return passes, changes

    def merge(self, passes: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([passes, changed], -1).index_select(-1, self.order)


class Positions(Partition):
    """The elements of a vector at given positions pass, the others change.

    Args:
        event_shape: `(D,)`.
        positions: Those of what passes, each at most once.
        swap: Exchange the two parts.

    Raises:
        ValueError: The event is not a vector, or it has no such positions.

    Example:
        >>> Positions((4,), [0, 3]).split(torch.arange(4.0))
        (tensor([0., 3.]), tensor([1., 2.]))
    """

    of_passes: Tensor
    of_changes: Tensor
    order: Tensor

    def __init__(self, event_shape: tuple[int, ...], positions: Sequence[int], swap: bool = False) -> None:
        super().__init__(event_shape, swap)
        self.positions = tuple(positions)
        size = self.event_shape.numel()
        if (
            self.event_dim != 1
            or len(set(positions)) < len(positions)
            or not set(positions) <= {*range(size)}
        ):
            raise ValueError(
                f"Positions expected an event of shape (D,) and some of 0 to D - 1, each once, got "
                f"{tuple(event_shape)} and {list(positions)}"
            )
        others = [position for position in range(size) if position not in self.positions]
        parts = _ordered([[*self.positions], others], swap)
        self.passes_shape, self.changes_shape = (Size((len(part),)) for part in parts)
        for name, part in zip(("of_passes", "of_changes"), parts, strict=True):
            self.register_buffer(name, torch.tensor(part, dtype=torch.long), persistent=False)
        self.register_buffer("order", torch.tensor(parts[0] + parts[1]).argsort(), persistent=False)

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        return event.index_select(-1, self.of_passes), event.index_select(-1, self.of_changes)

    def merge(self, passes: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([passes, changed], -1).index_select(-1, self.order)


class Checkerboard(Partition):
    """The pixels whose row and column add to an odd number pass (the rest reads 0), the others change."""

    mask: Tensor

    def __init__(self, event_shape: tuple[int, ...], swap: bool = False) -> None:
        super().__init__(event_shape, swap)
        _, height, width = event_shape
        odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 1
        self.register_buffer("mask", ~odd if swap else odd, persistent=False)
        self.passes_shape = self.changes_shape = self.event_shape

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        return event.masked_fill(~self.mask, 0), event

    def merge(self, passes: Tensor, changed: Tensor) -> Tensor:
        return torch.where(self.mask, passes, changed)

    def changing(self, ladj: Tensor) -> Tensor:
        return ladj.masked_fill(self.mask, 0)


class Nothing(Partition):
    """Nothing passes, all channels change: what the conditioner gives is learned, or the context's."""

    def __init__(self, event_shape: tuple[int, ...], swap: bool = False) -> None:
        super().__init__(event_shape, swap)
        self.passes_shape, self.changes_shape = Size((0, *event_shape[1:])), self.event_shape

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        return event.narrow(-self.event_dim, 0, 0), event

    def merge(self, passes: Tensor, changed: Tensor) -> Tensor:
        return changed


def _ordered(pair: list[_Part], swap: bool) -> list[_Part]:
    return pair[::-1] if swap else pair


# The kinds, and the number of dimensions of the events that each can split.
PARTITIONS: dict[str, tuple[type[Partition], tuple[int, ...]]] = {
    "halves": (Halves, (1, 3)),
    "channels": (Halves, (3,)),
    "alternate": (Alternate, (1,)),
    "checkerboard": (Checkerboard, (3,)),
    "nothing": (Nothing, (1, 3)),
}


def get_partition(partition: str | Partition, event_shape: Size, swap: bool = False) -> Partition:
    """The partition of that name of events of that shape, or the partition itself."""
    if isinstance(partition, Partition):
        return partition
    if partition not in PARTITIONS:
        raise ValueError(f"expected a Partition or one of {sorted(PARTITIONS)}, got {partition!r}")
    kind, event_dims = PARTITIONS[partition]
    if len(event_shape) not in event_dims:
        expected = " or ".join("(D,)" if n == 1 else "(C, H, W)" for n in event_dims)
        raise ValueError(
            f"the partition {partition!r} expected an event of shape {expected}, got {tuple(event_shape)}"
        )
    return kind(event_shape, swap)
