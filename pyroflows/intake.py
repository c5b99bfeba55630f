"""Data, contexts and weights, whatever they come as, made into rows, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyroflows.datasets import frame_to_table, is_frame
from pyroflows.distributions import Flow
from pyroflows.rows import AnyRows, Rows, first_batch

__all__ = ["as_context", "as_rows", "check_data", "grey_levels_of"]


def as_rows(
    data: Any,
    context: Any = None,
    grey_levels: int | None = None,
    weights: Any = None,
    names: Sequence[str] | None = None,
) -> AnyRows:
    """Tensors, arrays, frames and datasets as `Rows`; a loader as it is.

    A table of integers without `grey_levels` is one of reals: grey levels are those of pixels.

    Args:
        data: The data.
        context: Each datum's context, for data that are not a dataset.
        grey_levels: Number of grey levels of integer data.
        weights: `(N,)` weights; rows of weight 0 are left out.
        names: Names of the columns of a table; of a frame these are taken, in this order, by default all.

    Raises:
        ValueError: The data are something else, or a weight is negative, not finite or missing.
    """
    if is_frame(data):
        data, names = frame_to_table(data, columns=names)
    elif isinstance(data, np.ndarray):
        data = _as_tensor(data, "data")
    context = as_context(context)
    if isinstance(data, Tensor):
        if data.dtype in _UNSIGNED:
            # By NumPy, which can tell whether one is too large.
            data = _as_tensor(data.cpu().numpy(), "data").to(_UNSIGNED[data.dtype])
        is_integer_table = data.dim() == 2 and not (data.is_floating_point() or data.is_complex())
        if is_integer_table and grey_levels is None and data.dtype != torch.bool:
            data = _as_reals(data)
        rows = Rows(data, context, names=None if names is None else tuple(names))
        return rows if weights is None else _weighted(rows, weights)
    if context is not None:
        raise ValueError(
            "context= goes with a tensor or array of data: a Dataset gives each datum with its own"
        )
    if isinstance(data, DataLoader):
        if weights is not None:
            raise ValueError("weights= goes with data that have a number of rows, got a DataLoader")
        return data
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return Rows(data) if weights is None else _weighted(Rows(data), weights)
    raise ValueError(
        "expected data as a tensor, an array, a pandas or polars frame, a Dataset with a length or a "
        f"DataLoader, got {type(data)}"
    )


# PyTorch can hardly compute with these.
_UNSIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def _as_reals(table: Tensor) -> Tensor:
    """A table of integers in double precision."""
    reals = table.double()
    if not torch.equal(reals.to(table.dtype), table):
        raise ValueError(
            "expected integers that float64 holds exactly, up to 2**53, got larger ones: subtract a number "
            "from each column"
        )
    return reals


def as_context(context: Any) -> Any:
    """Contexts as a tensor of reals."""
    if is_frame(context):
        context, _ = frame_to_table(context, where="the context")
    elif context is not None and not isinstance(context, Tensor):
        context = _as_tensor(np.asarray(context), "a context")
    if isinstance(context, Tensor) and not (context.is_floating_point() or context.is_complex()):
        context = context.to(torch.get_default_dtype())
    return context


def _as_tensor(array: np.ndarray, what: str) -> Tensor:
    """An array of numbers of any kind, byte order and layout; memory is shared where that is possible."""
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ValueError(f"expected {what} without missing values, got a masked array: fill or drop them")
        array = array.data
    if array.dtype.kind not in "fiubc":
        raise ValueError(
            f"expected {what} of numbers, got an array of dtype {array.dtype}: convert it by `astype(float)`"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"expected {what} below 2**63, got {array.max()}: subtract a number")
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(array) if min(array.strides, default=0) < 0 else array)


def _weighted(rows: Rows, weights: Any) -> Rows:
    """The rows with weights of mean 1; rows of weight 0 are left out."""
    if not isinstance(weights, Tensor):
        weights = _as_tensor(np.asanyarray(weights), "weights")
    if weights.is_complex():
        raise ValueError(f"expected weights of reals, got {weights.dtype}")
    weights = weights.detach().cpu().double()
    if weights.shape != (len(rows),):
        raise ValueError(
            f"expected weights of shape ({len(rows)},), one for each datum, got {tuple(weights.shape)}"
        )
    bad = (~(weights.isfinite() & (weights >= 0))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"expected weights that are finite and not negative, got {weights[bad[0]].item()} in row {bad[0]}"
        )
    kept = weights.nonzero().flatten()
    if not len(kept):
        raise ValueError("expected weights of which some are positive, got zeros alone")
    rows = rows.part(kept)
    # The sum of large weights could overflow.
    weights = weights[kept] / weights.max()
    rows.weights = (weights / weights.mean()).to(torch.get_default_dtype())
    return rows


def grey_levels_of(data: Any) -> int | None:
    """The number of grey levels of images whose dtype tells it: 65,536 of 16 bits; otherwise `None`."""
    is_image = isinstance(data, np.ndarray | Tensor) and data.ndim > 2
    if not is_image:
        return None
    # An array may have another byte order.
    is_wide = data.dtype == torch.uint16 if isinstance(data, Tensor) else data.dtype.str[1:] == "u2"
    return 2**16 if is_wide else None


def check_data(
    flow: Flow, rows: AnyRows, grey_levels: int | None, noise: Flow | None, at_least: int = 1
) -> int | None:
    """Check the data, and give the number of grey levels if they are integers.

    The first batch of a `Dataset` or `DataLoader` is checked.

    Raises:
        ValueError: The data do not suit the flow, are not finite, or are too few.
    """
    if isinstance(rows, Rows) and len(rows) < at_least:
        raise ValueError(f"expected at least {at_least} data, got {len(rows)}")
    if isinstance(rows, Rows) and isinstance(rows.data, Tensor):
        data, context = rows.data, rows.context
    else:
        data, context, _ = first_batch(rows, 1, seed=0)
    if data.is_complex() or data.dtype == torch.bool:
        raise ValueError(f"expected data of reals or integers, got {data.dtype}")
    if data.layout != torch.strided:
        raise ValueError(f"expected dense data, got {data.layout}: convert them by `to_dense()`")
    event_shape = tuple(flow.transform.event_shape)
    if data.dim() != 1 + len(event_shape) or tuple(data.shape[1:]) != event_shape:
        raise ValueError(
            f"expected data of shape (N, {', '.join(map(str, event_shape))}), got {tuple(data.shape)}"
        )
    _check_context(flow.transform.context_shape, context, len(data))
    if data.is_floating_point():
        if grey_levels is not None or noise is not None:
            raise ValueError(f"grey_levels and noise are for integer data, got {data.dtype}")
        _check_finite(data, rows.names if isinstance(rows, Rows) else None)
        return None
    grey_levels = 256 if grey_levels is None else grey_levels
    if not isinstance(grey_levels, int) or grey_levels < 2:
        raise ValueError(f"expected grey_levels as a whole number of at least 2, got {grey_levels!r}")
    low, high = int(data.min()), int(data.max())
    if low < 0 or high >= grey_levels:
        raise ValueError(f"expected integers 0 to {grey_levels - 1}, got {low} to {high}: set grey_levels")
    return grey_levels


def _check_finite(data: Tensor, names: tuple[str, ...] | None) -> None:
    bad = (~data.isfinite()).nonzero()
    if len(bad):
        row, *place = bad[0].tolist()
        where = f"element {tuple(place)}"
        if len(place) == 1:
            where = f"column {place[0] if names is None else repr(names[place[0]])}"
        raise ValueError(
            f"expected finite data, got {data[tuple(bad[0])].item()} in {where}, row {row}: leave such "
            "rows or columns out, or fill them in"
        )


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
