"""Which elements pass through a coupling unchanged, and which are changed given them."""

from __future__ import annotations

import torch
from torch import Size, Tensor, nn

__all__ = ["PARTITIONS", "Partition", "get_partition"]


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


def _ordered(pair: list[int], swap: bool) -> list[int]:
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
