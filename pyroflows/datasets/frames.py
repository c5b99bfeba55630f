"""Data frames of pandas and polars as tables; neither is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from pyroflows.datasets.columns import columns_to_table
from pyroflows.datasets.values import Column

__all__ = ["frame_to_table", "is_frame"]

# What pandas calls a column of a file that has no name there.
_NAMELESS = re.compile(r"Unnamed: \d+")
# How the types of categories are called in pandas, pyarrow and polars.
_CATEGORICAL = re.compile(r"category|dictionary<.*|Categorical.*|Enum.*", re.DOTALL)


def is_frame(value: object) -> bool:
    """Whether a value is a DataFrame of pandas or polars.

    Args:
        value: Anything.

    Example:
        >>> import pandas
        >>> is_frame(pandas.DataFrame({"a": [1.0]})), is_frame([1.0])
        (True, False)
    """
    kinds = {(base.__module__.partition(".")[0], base.__name__) for base in type(value).__mro__}
    return bool(kinds & {("pandas", "DataFrame"), ("polars", "DataFrame")})


def frame_to_table(
    frame: Any, columns: Sequence[str | int] | None = None, where: str = "the frame"
) -> tuple[Tensor, tuple[str, ...]]:
    """Turn a DataFrame of pandas or polars into a table.

    The index of a pandas frame is not part of the table. Rows are counted from 0 in messages.

    Args:
        frame: The frame.
        columns: Names or numbers (from 0) of the columns, in the order that is wanted; by default all.
        where: What the frame is, for messages.

    Returns:
        The table, `(N, D)` float64, and the names of its columns.

    Raises:
        ValueError: It is no such frame, there is no such column, or a column is not of finite numbers.

    Example:
        >>> import polars
        >>> table, names = frame_to_table(polars.DataFrame({"a": [1, 2], "b": ["x", "y"]}), ["a"])
        >>> table.tolist(), names
        ([[1.0], [2.0]], ('a',))
    """
    if not is_frame(frame):
        raise ValueError(
            f"expected a DataFrame of pandas or polars as {where}, got {type(frame).__name__}: "
            "a LazyFrame becomes one by collect(), a Series by to_frame()"
        )
    _check_positions(columns, list(frame.columns), where)
    return columns_to_table(_columns(frame), columns, where)


def _columns(frame: Any) -> list[Column]:
    pick = frame.to_series if hasattr(frame, "to_series") else lambda i: frame.iloc[:, i]
    return [_column(_name(label), i, pick(i)) for i, label in enumerate(frame.columns)]


def _column(name: str, position: int, series: Any) -> Column:
    kind = str(series.dtype)
    missing = series.isna() if hasattr(series, "isna") else series.is_null()
    # NumPy has no integers of 128 bits; Python's have no limit.
    values = np.array(series.to_list(), object) if kind.endswith("Int128") else series.to_numpy()
    return Column(name, position, values, missing.to_numpy(), bool(_CATEGORICAL.fullmatch(kind)))


def _name(label: Any) -> str:
    # Only a NaN, pandas' missing name, differs from itself.
    missing = label is None or (isinstance(label, float) and label != label)
    name = "" if missing else str(label)
    return "" if _NAMELESS.fullmatch(name) else name


def _check_positions(chosen: Sequence[str | int] | None, labels: Sequence[Any], where: str) -> None:
    """Refuse a number that could be a column's name or its position."""
    names = [label if isinstance(label, Integral) else None for label in labels]
    for column in chosen or ():
        if isinstance(column, Integral) and column in names and names.index(column) != column:
            raise ValueError(
                f"expected names of columns of {where} as columns, got the number {column}, which is the "
                f"name of column {names.index(column)}: give the name as text, {str(column)!r}"
            )
