"""The values of a column as finite numbers, and what is said of other values."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["Column", "Fault", "first_rounded", "to_numbers"]

# Numbers that a decimal comma or a separator of thousands keeps from being read.
_LOCAL_NUMBER = re.compile(r"[+-]?\d+([.,' \u00a0\u202f]\d+)+")


@dataclass(frozen=True)
class Column:
    """A column of a table as it was read.

    Attributes:
        name: Its name; empty if it has none.
        position: Its number in the table, from 0.
        values: `(N,)` values of any kind.
        missing: `(N,)`, which of them are missing.
        is_categorical: Whether the values are the names of categories.
    """

    name: str
    position: int
    values: np.ndarray
    missing: np.ndarray
    is_categorical: bool = False


class Fault(Exception):
    """Why a column can't be used: what was expected, what came, and what can be done."""

    def __init__(self, expected: str, got: str, *advice: str) -> None:
        super().__init__(got)
        self.expected, self.got, self.advice = expected, got, advice


def to_numbers(column: Column) -> np.ndarray:
    """The values as finite float64.

    Raises:
        Fault: They are no numbers, or some are missing, not finite, or rounded by float64.
    """
    values = column.values
    if column.is_categorical:
        raise Fault("numbers", f"categories, such as {_first(column)}", "put numbers in their place")
    if values.ndim > 1:
        raise Fault("numbers", "nested values", "make a column of each part")
    if values.dtype.kind in "OUST":
        _check_objects(column)
    elif values.dtype.kind not in "iuf":
        raise _not_numbers(values.dtype.kind, _first(column))
    missing = column.missing | _is_nan(values, column.missing)
    if missing.any():
        raise Fault(
            "no missing values",
            f"{int(missing.sum())}, the first in row {int(missing.argmax())}",
            "fill them in",
            "leave such rows out",
        )
    return _finite(values)


def _finite(values: np.ndarray) -> np.ndarray:
    """Numbers, none of which is missing, as float64."""
    rounded = first_rounded(values)
    if values.dtype == object:
        numbers = np.array([_as_float(value) for value in values])
        # An integer of many digits is one that float64 would round.
        whole = [isinstance(value, int) and not _is_kept(value) for value in values]
        rounded = (whole.index(True),) if any(whole) else None
    else:
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float64)
    if rounded is not None:
        raise Fault(
            "numbers that float64 holds exactly",
            f"{values[rounded]} in row {rounded[0]}, which it would round",
            "subtract a number from the column",
        )
    infinite = np.isinf(numbers)
    if infinite.any():
        row = int(infinite.argmax())
        raise Fault(
            "finite numbers",
            f"{values[row]} in row {row} ({int(infinite.sum())} in all)",
            "put a number in its place",
            "leave such rows out",
        )
    return numbers


def _is_nan(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    if values.dtype != object:
        return np.isnan(values)
    # Only a NaN differs from itself. Some marks of missing values can't be compared.
    return np.array([not gone and value != value for value, gone in zip(values, missing, strict=True)])


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_kept(value: int) -> bool:
    number = _as_float(value)
    return math.isinf(number) or int(number) == value


def _first(column: Column) -> str:
    """The first value that is there, and its row."""
    row = int((~column.missing).argmax())
    return f"{str(column.values[row])!r} in row {row}"


def _check_objects(column: Column) -> None:
    """Refuse Python values that are no numbers."""
    present = np.flatnonzero(~column.missing)
    wrong = [row for row in present if not _is_number(column.values[row])]
    if not wrong:
        return
    texts = [row for row in wrong if isinstance(column.values[row], str | bytes)]
    # Among the words of a column that was read from a file the numbers are text too.
    row = next((row for row in texts if not _reads_as_number(column.values[row])), wrong[0])
    value = column.values[row]
    if isinstance(value, str | bytes):
        advice = "put numbers in its place"
        if _reads_as_number(value):
            advice = "convert the text to numbers"
        elif _LOCAL_NUMBER.fullmatch(str(value).strip()):
            advice = "write numbers with a decimal point and without separators of thousands"
        raise Fault("numbers", f"the text {_short(value)} in row {row}", advice)
    raise _not_numbers(_kind(value), f"{_short(str(value))} in row {row}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def _reads_as_number(text: str | bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(text: str | bytes) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."


def _kind(value: Any) -> str:
    """NumPy's letter for the kind of a Python value."""
    kinds = {
        "b": (bool, np.bool_),
        "c": (complex,),
        "M": (datetime.date, datetime.time, np.datetime64),
        "m": (datetime.timedelta, np.timedelta64),
    }
    return next((kind for kind, types in kinds.items() if isinstance(value, types)), "O")


def _not_numbers(kind: str, shown: str) -> Fault:
    what, advice = {
        "b": ("booleans", "convert them to the numbers 0 and 1"),
        "c": ("complex numbers", "make columns of the real and the imaginary part"),
        "M": ("dates or times", "convert them to numbers, such as seconds since the first"),
        "m": ("durations", "convert them to numbers, such as seconds"),
    }.get(kind, ("other values than numbers", "convert them to columns of numbers"))
    return Fault("numbers", f"{what}, such as {shown}", advice)


def first_rounded(values: np.ndarray) -> tuple[int, ...] | None:
    """The place of the first integer that float64 does not hold exactly."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return None
    large = np.argwhere((values > 2**53) | (values < -(2**53)))
    return next((tuple(i) for i in large.tolist() if int(float(values[tuple(i)])) != values[tuple(i)]), None)
