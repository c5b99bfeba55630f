"""What is wrong with the columns of a table, and columns whose values stand on a grid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid", "check_table"]

# Two columns with a correlation closer to 1 than this differ by rounding alone: that of float32 values makes
# differences of 1e-7 standard deviations, and 1 - correlation is half of their square.
_SAME = 1e-12


def check_table(table: Tensor, names: Sequence[str] | None = None, *, gridded: Sequence[int] = ()) -> None:
    """Refuse columns that have no density, and warn of those that are fitted as reals.

    Args:
        table: `(N, D)`, finite.
        names: Names of the columns; by default their numbers.
        gridded: Numbers of the columns that are dequantized, of which no warning is needed.

    Raises:
        ValueError: A column is constant, or two are the same up to a shift and a scale.
    """
    table = table.detach().double()
    constant = [i for i in range(table.shape[1]) if bool((table[:, i] == table[0, i]).all())]
    if constant:
        raise ValueError(
            f"expected columns that vary, got {_called(constant, names)} with one value in all rows, "
            "which has no density: leave it out"
        )
    standard = (table - table.mean(0)) / table.std(0, correction=0)
    correlation = (standard.T @ standard / len(table)).abs()
    # With two rows all columns are alike.
    same = (correlation.triu(1) > 1 - _SAME).nonzero().tolist() if len(table) > 2 else []
    if same:
        pairs = "; ".join(_called(pair, names) for pair in same)
        raise ValueError(
            f"expected columns that differ, got {pairs}, which are the same up to a shift and a scale and "
            "have no joint density: leave one of them out"
        )
    whole = [i for i in range(table.shape[1]) if bool((table[:, i] == table[:, i].round()).all())]
    whole = [i for i in whole if i not in gridded]
    if whole:
        warnings.warn(
            f"whole numbers in {_called(whole, names)} are fitted as reals: dequantize a column if its "
            "few values matter, as a flow may put spikes at them",
            stacklevel=3,
        )


def _called(columns: Sequence[int], names: Sequence[str] | None) -> str:
    word = "column" if len(columns) == 1 else "columns"
    return f"{word} " + ", ".join(str(i) if names is None else f"{names[i]!r}" for i in columns)


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
    def of(cls, table: Tensor, columns: Sequence[int]) -> Grid:
        """The grid of some columns: a step is the smallest difference between two values.

        Raises:
            ValueError: There is no such column.
        """
        step = torch.zeros(table.shape[1], dtype=torch.float64)
        for column in columns:
            if not -table.shape[1] <= column < table.shape[1]:
                raise ValueError(
                    f"expected a column of 0 to {table.shape[1] - 1} to dequantize, got {column}"
                )
            values = table[:, column].double().unique()
            step[column] = values.diff().min() if len(values) > 1 else 1.0
        return cls(step, table.double().amin(0))

    def blur(self, x: Tensor) -> Tensor:
        """Add uniform noise of a step's width, centred."""
        return x + self.step.to(x) * (torch.rand_like(x) - 0.5)

    def round(self, x: Tensor) -> Tensor:
        """The nearest values of the grid; what is not finite stays so."""
        step, origin = self.step.to(x), self.origin.to(x)
        on_grid = torch.where(step > 0, step, 1.0)
        return torch.where(step > 0, ((x - origin) / on_grid).round() * on_grid + origin, x)
