"""What is wrong with the columns of a table, and columns whose values stand on a grid."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Grid", "check_table", "column_numbers"]

# Columns that differ by less than this, in units of their spread, are the same: float32 rounds by 1e-7.
_SAME = 1e-5
# An eigenvalue of the correlations below this is 0, up to rounding.
_SINGULAR = 1e-10
# The square of a larger value could overflow, and of a smaller difference underflow.
_LARGEST = 1e150
# What is further out than this, in units of the bulk, is not looked at closely.
_FAR = 30.0
# Beyond this every float32 is a whole number.
_WHOLE = 2.0**24


def column_numbers(
    columns: Sequence[int | str], size: int, names: Sequence[str] | None = None
) -> tuple[int, ...]:
    """The numbers of columns that are given by number or by name.

    Raises:
        ValueError: There is no such column.
    """
    numbers = {str(name): i for i, name in enumerate(names or ())}
    found = []
    for column in columns:
        if str(column) in numbers:
            found.append(numbers[str(column)])
        elif re.fullmatch(r"-?\d+", str(column)) and -size <= int(column) < size:
            found.append(int(column) % size)
        else:
            there = f"a column of 0 to {size - 1}" if names is None else f"one of the columns {list(names)}"
            raise ValueError(f"expected {there}, got {column!r}")
    return tuple(found)


def check_table(
    table: Tensor,
    names: Sequence[str] | None = None,
    *,
    gridded: Sequence[int] = (),
    stacklevel: int = 2,
) -> None:
    """Refuse columns that have no density, and warn of those that are fitted as reals.

    Args:
        table: `(N, D)`, finite.
        names: Names of the columns; by default their numbers.
        gridded: Numbers of the columns that are dequantized, of which no warning is needed.
        stacklevel: Where a warning points to, as that of `warnings.warn`.

    Raises:
        ValueError: A column is constant, or two are the same up to a shift and a scale.
    """
    table = table.detach().cpu().double()
    far = (table.abs().amax(0) > _LARGEST).nonzero().flatten().tolist()
    if far:
        raise ValueError(
            f"expected values up to {_LARGEST:g}, got larger ones in {_called(far, names)}: divide them"
        )
    near = ((table.amax(0) - table.amin(0)) < 1 / _LARGEST) & (table != table[0]).any(0)
    if near.any():
        close = near.nonzero().flatten().tolist()
        raise ValueError(
            f"expected values that differ by more than {1 / _LARGEST:g}, got {_called(close, names)}: "
            "multiply them"
        )
    constant = (table == table[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"expected columns that vary, got {_called(constant, names)} with one value in all rows, "
            "which has no density: leave it out"
        )
    # In units of the bulk: beside single far rows all columns would look alike.
    standard = (table - _quantile(table, 0.5)) / _bulk(table)
    correlation = torch.atleast_2d(standard.clamp(-_FAR, _FAR).T.corrcoef())
    # With two rows all columns are alike.
    alike = (correlation.abs().triu(1) > 0.999).nonzero().tolist() if len(table) > 2 else []
    same = [(i, j) for i, j in alike if _are_same(standard[:, i], standard[:, j])]
    if same:
        pairs = "; ".join(_called(pair, names) for pair in same)
        raise ValueError(
            f"expected columns that differ, got {pairs}, which are the same up to a shift and a scale and "
            "have no joint density: leave one of them out"
        )
    if len(table) > table.shape[1]:
        values, vectors = torch.linalg.eigh(correlation)
        if values[0] < _SINGULAR:
            involved = (vectors[:, 0].abs() > 0.05).nonzero().flatten().tolist()
            warnings.warn(
                f"each of {_called(involved, names)} follows from the others, so there is no joint density: "
                "leave one of them out",
                stacklevel=stacklevel,
            )
    whole = ((table == table.round()) & (table.abs() < _WHOLE)).all(0).nonzero().flatten().tolist()
    whole = [column for column in whole if column not in gridded]
    if whole:
        warnings.warn(
            f"whole numbers in {_called(whole, names)} are fitted as reals: dequantize a column if its "
            "few values matter, as a flow may put spikes at them",
            stacklevel=stacklevel,
        )


def _bulk(table: Tensor) -> Tensor:
    """The spread of each column, about its median, that single far rows do not change."""
    spread = _quantile((table - _quantile(table, 0.5)).abs(), 0.75)
    return torch.where(spread > 0, spread, table.std(0, correction=0))


def _quantile(table: Tensor, part: float) -> Tensor:
    # PyTorch's takes no more than 16 million values.
    return torch.from_numpy(np.quantile(table.numpy(), part, axis=0))


def _are_same(x: Tensor, y: Tensor) -> bool:
    tolerance = _SAME * (1 + x.abs())
    return any(bool(((x - sign * y).abs() < tolerance).all()) for sign in (1, -1))


def _called(columns: Sequence[int], names: Sequence[str] | None) -> str:
    word = "column" if len(columns) == 1 else "columns"
    return f"{word} " + ", ".join(str(i) if names is None else f"{names[i]!r}" for i in columns)


def _common_step(column: Tensor) -> float:
    """The largest number of which all differences are multiples, up to rounding; 0 if there is none."""
    values = column.double().unique()
    if len(values) == 1:
        return 1.0
    # A frame may hold in double precision what was rounded to a float32.
    dtype = torch.float32 if torch.equal(values.float().double(), values) else torch.float64
    rounding = 100 * torch.finfo(dtype).eps * values.abs().max().item()
    if torch.equal(values, values.round()):
        rounding = 0.01
    differences = values.diff()
    while True:
        step = differences.min()
        rest = (differences - step * (differences / step).round()).abs()
        if not (rest > rounding).any():
            break
        differences = torch.cat([step[None], rest[rest > rounding]])
    return step.item() if step > 10 * rounding else 0.0


@dataclass(frozen=True)
class Grid:
    """The grid on which the values of some columns stand, such as whole numbers or steps of 0.5.

    Attributes:
        step: `(D,)`, the distance between neighbouring values; 0 for a column of reals.
        origin: `(D,)`, one of the values.
    """

    step: Tensor
    origin: Tensor

    @classmethod
    def of(cls, table: Tensor, columns: Sequence[int], names: Sequence[str] | None = None) -> Grid:
        """The grid of some columns: a step is the largest of which all differences are multiples.

        Raises:
            ValueError: The values of a column have no common step.
        """
        step = torch.zeros(table.shape[1], dtype=torch.float64)
        for column in columns:
            step[column] = _common_step(table[:, column])
            if not step[column] > 0:
                raise ValueError(
                    f"expected values with a common step, such as whole numbers, in a column to dequantize, "
                    f"got reals in {_called([column], names)}: do not dequantize it"
                )
        return cls(step, table.double().amin(0))

    def blur(self, x: Tensor) -> Tensor:
        """Add uniform noise of a step's width, centred."""
        return x + self.step.to(x) * (torch.rand_like(x) - 0.5)

    def offsets(self, n: int) -> Tensor:
        """Points that fill a step of the grid evenly, `(n, D)`, for the mean over the noise.

        They are Sobol's. For 16 of them the log density of 68 penguins differed from that of 4,096 by up to
        0.002 nats, and its mean by 0.00003.
        """
        points = torch.quasirandom.SobolEngine(len(self.step), scramble=True, seed=0).draw(n)
        return self.step * (points.double() - 0.5)

    def round(self, x: Tensor) -> Tensor:
        """The nearest values of the grid; what is not finite stays so."""
        step, origin = self.step.to(x), self.origin.to(x)
        on_grid = torch.where(step > 0, step, 1.0)
        return torch.where(step > 0, ((x - origin) / on_grid).round() * on_grid + origin, x)
