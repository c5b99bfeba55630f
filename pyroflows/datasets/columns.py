"""Columns of values of any kind as a table of numbers, and which columns can be chosen instead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyroflows.datasets.choice import choose
from pyroflows.datasets.values import Column, Fault, to_numbers

__all__ = ["columns_to_table"]

# A longer list of columns that could be chosen is not shown.
_SUGGESTED = 10


def columns_to_table(
    columns: Sequence[Column], chosen: Sequence[str | int] | None, where: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Put columns together to a table.

    Args:
        columns: All columns.
        chosen: Names or numbers of those that are wanted; `None`: all.
        where: What the columns are of, for messages.

    Returns:
        The table, `(N, D)` float64, and the names of its columns.

    Raises:
        ValueError: A wanted column has no name or another's, or holds anything else than finite numbers.
    """
    if not columns or not len(columns[0].values):
        what = "columns" if not columns else "rows below the names of the columns"
        raise ValueError(f"expected a table of numbers in {where}, got no {what}: give it at least one row")
    wanted = [columns[i] for i in choose(chosen, [column.name for column in columns], where)]
    try:
        numbers = [_checked(column, wanted) for column in wanted]
    except Fault:
        raise ValueError(_message(wanted, columns, where)) from None
    return torch.from_numpy(np.stack(numbers, 1)), tuple(column.name for column in wanted)


def _checked(column: Column, others: Sequence[Column]) -> np.ndarray:
    """The numbers of a column that has a name of its own."""
    if not column.name.strip():
        raise Fault("a name", "none", "give it a name, as it may be a saved index")
    alike = [other.position for other in others if other.name == column.name]
    if len(alike) > 1:
        places = " and ".join(map(str, alike))
        raise Fault("a name of its own", f"the same for columns {places}", "rename one of them")
    return to_numbers(column)


def _faults(columns: Sequence[Column]) -> dict[int, Fault]:
    """What is wrong with columns, by their positions."""
    faults = {}
    for column in columns:
        try:
            _checked(column, columns)
        except Fault as fault:
            faults[column.position] = fault
    return faults


def _message(wanted: Sequence[Column], columns: Sequence[Column], where: str) -> str:
    """What is wrong with the first of the wanted columns, what to do, and which columns can be chosen."""
    faults, all_faults = _faults(wanted), _faults(columns)
    usable = [column.name for column in columns if column.position not in all_faults]
    if not usable and all(fault.expected == "numbers" for fault in all_faults.values()):
        told = "; ".join(
            f"{_called(column)} holds {all_faults[column.position].got}" for column in columns[:3]
        )
        return f"expected at least one column of numbers in {where}, got none: {told}"
    column = next(column for column in wanted if column.position in faults)
    fault = faults[column.position]
    advice = list(fault.advice)
    if usable:
        shown = f": {', '.join(map(repr, usable))}" if len(usable) <= _SUGGESTED else ""
        advice.append(f"choose other columns (--columns on the command line){shown}")
    told = ", or ".join(advice)
    others = dict.fromkeys(_called(other) for other in wanted if other.position in faults)
    others.pop(_called(column))
    more = f" (and faults in {', '.join([*others][:_SUGGESTED])})" if others else ""
    return f"expected {fault.expected} in {_called(column)} of {where}, got {fault.got}{more}: {told}"


def _called(column: Column) -> str:
    return f"column {column.name!r}" if column.name.strip() else f"column {column.position}"
