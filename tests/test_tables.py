"""Columns without a density are refused, and a grid is found, blurred and rounded to."""

import warnings

import pytest
import torch

from pyroflows import Flow, fit, glow
from pyroflows.tables import Grid, _common_step, check_table, column_numbers


def _table(*columns: torch.Tensor) -> torch.Tensor:
    return torch.stack(columns, -1)


X, Y, Z = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double().unbind(0)

BAD = [
    (_table(X, torch.full_like(X, 0.1)), "column 1 with one value in all rows"),
    (_table(torch.zeros_like(X), X, torch.ones_like(X)), "columns 0, 2 with one value in all rows"),
    (_table(X, Y, X), "columns 0, 2, which are the same up to a shift and a scale"),
    (_table(X, Y, 32 - 1.8 * Y), "columns 1, 2, which are the same"),
    (_table(X, (9 / 5 * X + 32).float().double()), "columns 0, 1, which are the same"),
    (_table(1e-7 * X, 1e6 * X, Y), "columns 0, 1, which are the same"),
]


@pytest.mark.parametrize(("table", "message"), BAD)
def test_columns_without_a_density(table: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_table(table)
    with pytest.raises(ValueError, match=message):
        fit(Flow(glow(table.shape[1])), table, max_epochs=1, progress_bar=False)


def test_names_in_the_message() -> None:
    with pytest.raises(ValueError, match="columns 'length', 'size'"):
        check_table(_table(X, Y, X), ["length", "mass", "size"])


def test_columns_that_are_close_or_few_are_taken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_table(_table(X, X + 1e-4 * Y))
        check_table(_table(X, 1e-7 * Y, 1e6 * Z)[:2])


def test_single_far_rows_do_not_make_columns_the_same() -> None:
    table = torch.cat([_table(X, Y, Z), torch.full((1, 3), 1e8).double()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_table(table)
    with pytest.raises(ValueError, match="columns 0, 2, which are the same"):
        check_table(torch.cat([_table(X, Y, 3 - X), torch.full((1, 3), 1e8).double()])[:-1])


def test_columns_that_follow_from_others() -> None:
    with pytest.warns(UserWarning, match="each of columns 0, 1, 3 follows from the others"):
        check_table(_table(X, Y, Z, X + 2 * Y))
    shares = torch.rand(50, 4).double()
    with pytest.warns(UserWarning, match="each of columns 0, 1, 2, 3 follows from the others"):
        check_table(100 * shares / shares.sum(-1, keepdim=True))


def test_whole_numbers_are_warned_of_once() -> None:
    table = _table((5 * X).round(), Y, (9 * Z).round())
    with pytest.warns(UserWarning, match="whole numbers in columns 0, 2 are fitted as reals") as caught:
        check_table(table)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="whole numbers in column 2 are"):
        check_table(table, gridded=[0])
    with warnings.catch_warnings():
        # Every float that large is whole.
        warnings.simplefilter("error")
        check_table(1e30 * _table(X, Y))


def test_a_grid() -> None:
    table = _table((X * 2).round() / 2 + 0.25, Y)
    grid = Grid.of(table, [0])
    assert grid.step.tolist() == [0.5, 0.0]
    blurred = grid.blur(table)
    assert torch.equal(blurred[:, 1], table[:, 1])
    assert 0.05 < (blurred - table)[:, 0].abs().mean() < 0.2
    torch.testing.assert_close(grid.round(blurred), table)
    assert grid.round(torch.tensor([[torch.nan, torch.inf]])).isfinite().sum() == 0
    with pytest.raises(ValueError, match=r"values with a common step, .* got reals in column 'y'"):
        Grid.of(table, [1], ["x", "y"])


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.0, 2.0, 5.0, 9.0], 1.0),  # no two are one apart
        ([3e6, 3e6 + 6, 3e6 + 15], 3.0),
        ([0.1, 0.3, 0.7, 12.5], 0.2),
        ([2.5, 2.5], 1.0),
        ([0.0, 1.0, 2**0.5], 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_common_step(values: list[float], step: float, dtype: torch.dtype) -> None:
    """In single precision, kept in double, too."""
    for column in (torch.tensor(values, dtype=dtype), torch.tensor(values, dtype=dtype).double()):
        assert _common_step(column) == pytest.approx(step, rel=1e-4)


def test_columns_by_number_and_by_name() -> None:
    assert column_numbers([1, "0", -1], 3) == (1, 0, 2)
    assert column_numbers(["b", 0], 2, ["a", "b"]) == (1, 0)
    # A name comes first.
    assert column_numbers(["0"], 2, ["1", "0"]) == (1,)
    with pytest.raises(ValueError, match="a column of 0 to 1, got 2"):
        column_numbers([2], 2)
    with pytest.raises(ValueError, match=r"one of the columns \['a', 'b'\], got 'c'"):
        column_numbers(["c"], 2, ["a", "b"])


def test_a_column_that_is_dequantized_has_no_spikes() -> None:
    """Coins: as reals their density could grow without limit; blurred it is bounded by that of the coin."""
    torch.manual_seed(0)
    coins = torch.randint(0, 2, (400, 1)).double()
    table = torch.cat([coins, torch.randn(400, 1).double()], 1)
    result = fit(Flow(glow(2)), table, max_epochs=40, dequantize=[0], progress_bar=False)
    entropy = torch.tensor(2.0).log().item()
    normal = 0.5 * torch.tensor(2 * torch.pi * torch.e).log().item()
    # The standard error of 40 normals' log density is 0.11.
    assert result.val_score > entropy + normal - 0.4
    assert result.grid.step.tolist() == [1.0, 0.0]
