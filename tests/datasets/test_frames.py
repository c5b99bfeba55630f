"""Data frames of pandas and polars, and what is said of columns that hold no finite numbers."""

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from pyroflows.datasets import frame_to_table, is_frame

_MAKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "pandas": pd.DataFrame,
    "nullable": lambda columns: pd.DataFrame(columns).convert_dtypes(),
    "arrow": lambda columns: pd.DataFrame(columns).convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda columns: pl.DataFrame(columns, strict=False),
}
_any_frame = pytest.mark.parametrize("make", _MAKERS.values(), ids=_MAKERS)


def _match(frame: Any, message: str, columns: Any = None) -> None:
    with pytest.raises(ValueError, match=message) as error:
        frame_to_table(frame, columns)
    assert "\n" not in str(error.value)


def test_frames_are_recognised() -> None:
    class Subclass(pd.DataFrame):
        pass

    assert all(map(is_frame, (pd.DataFrame(), pl.DataFrame(), Subclass())))
    others = (
        None,
        [1.0],
        torch.zeros(2),
        np.zeros(2),
        pd.Series([1]),
        pl.Series([1]),
        pl.LazyFrame(),
        pa.table({}),
    )
    assert not any(map(is_frame, others))
    with pytest.raises(ValueError, match=r"as the data, got LazyFrame: a LazyFrame becomes one by collect"):
        frame_to_table(pl.LazyFrame(), where="the data")


@_any_frame
def test_a_table_in_the_order_of_the_columns(make: Callable[[dict[str, Any]], Any]) -> None:
    frame = make({"a": [1, 2], "b": ["x", "y"], "c": [0.1, -3e300]})
    table, names = frame_to_table(frame, ["c", "a"])
    assert (names, table.dtype, table.is_contiguous()) == (("c", "a"), torch.float64, True)
    assert table.tolist() == [[0.1, 1], [-3e300, 2]]
    assert torch.equal(frame_to_table(frame, (2, "a"))[0], table)
    assert frame_to_table(frame, [np.int64(0)])[1] == ("a",)


_DATE = datetime.datetime(2020, 1, 2)
_FAULTS: dict[str, tuple[list[Any], str]] = {
    "text": ([1.0, "many", 3.0], "numbers in column 'b' of the frame, got the text 'many' in row 1"),
    "words": (["x", None, "y"], "got the text 'x' in row 0: put numbers in its place"),
    "thousands": (
        ["1", "1,234.5", "2"],
        "'1,234.5' in row 1: write numbers with a decimal point and without",
    ),
    "decimal_comma": (["1,5", "2", "2"], "'1,5' in row 0: write numbers with a decimal point"),
    "number_text": (["1.5", "2", "3"], "'1.5' in row 0: convert the text to numbers"),
    "dates": (
        [_DATE, _DATE, _DATE],
        "dates or times, such as '2020-01-02.* in row 0: convert them to numbers",
    ),
    "days": ([None, _DATE.date(), None], "dates or times, such as '2020-01-02.* in row 1"),
    "times": ([_DATE.time()] * 3, "dates or times, such as '00:00"),
    "durations": ([datetime.timedelta(1)] * 3, "durations, such as .* in row 0: convert them"),
    "booleans": (
        [True, False, True],
        "booleans, such as 'True' in row 0: convert them to the numbers 0 and 1",
    ),
    "missing_booleans": ([None, False, True], "booleans, such as 'False' in row 1"),
    "nested": ([[1], [2], [3]], "got (nested values|other values than numbers)"),
    "missing": (
        [1.0, None, None],
        "no missing values in column 'b' of the frame, got 2, the first in row 1: fill",
    ),
    "missing_integers": ([1, None, 2], "got 1, the first in row 1"),
    "nan": ([1.0, 2.0, float("nan")], "got 1, the first in row 2"),
    "infinite": ([1.0, float("-inf"), float("inf")], r"finite numbers in .*, got -inf in row 1 \(2 in all\)"),
    "rounded": (
        [1, 2**53 + 1, 3],
        "exactly in column 'b' of the frame, got 9007199254740993 in row 1, which",
    ),
    "all_missing": ([None, None, None], "got 3, the first in row 0"),
}


@_any_frame
@pytest.mark.parametrize("fault", _FAULTS)
def test_columns_that_can_not_be_used(make: Callable[[dict[str, Any]], Any], fault: str) -> None:
    values, message = _FAULTS[fault]
    if fault == "text" and make is _MAKERS["polars"]:
        values = ["1.0", "many", "3.0"]
    frame = make({"a": [1.0, 2.0, 3.0], "b": values, "c": [4, 5, 6]})
    _match(frame, message)
    for columns in (None, ["b"], ["c", "b"]):
        _match(frame, r"or choose other columns \(--columns on the command line\): 'a', 'c'$", columns)
    assert frame_to_table(frame, ["a", "c"])[0].tolist() == [[1, 4], [2, 5], [3, 6]]


_OTHERS = {
    "pandas_categories": (pd.Series([1, 2], dtype="category"), "categories, such as '1' in row 0"),
    "arrow_categories": (
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([1, 2]).dictionary_encode())),
        "categories, such as '1'",
    ),
    "polars_categories": (pl.Series(["x", "y"], dtype=pl.Categorical), "categories, such as 'x'"),
    "polars_enum": (pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"])), "categories, such as 'x'"),
    "complex": (pd.Series([1j, 2]), "complex numbers, such as '1j'"),
    "periods": (pd.Series(pd.period_range("2020", periods=2)), "other values than numbers"),
    "time_zone": (pd.Series(pd.date_range("2020", periods=2, tz="UTC")), "dates or times"),
    "structs": (pl.Series([{"a": 1}, {"a": 2}]), "nested values"),
    "arrays": (pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)), "nested values"),
    "bytes": (pd.Series([b"x", b"y"]), "the text b'x'"),
    "long_integers": (pl.Series([2**100 + 1, 1], dtype=pl.Int128), "would round"),
    "object_na": (pd.Series([1, pd.NA], dtype=object), "got 1, the first in row 1"),
    "decimal_nan": (pd.Series([Decimal("NaN"), Decimal(1)]), "missing values"),
    "huge": (pd.Series([10**400, 1]), "finite numbers"),
    "longdouble": (pd.Series(np.array(["1e4000", "1"], np.longdouble)), "finite numbers"),
}


@pytest.mark.parametrize("name", _OTHERS)
def test_types_of_one_library(name: str) -> None:
    series, message = _OTHERS[name]
    frame = pl.DataFrame({"b": series}) if isinstance(series, pl.Series) else pd.DataFrame({"b": series})
    _match(frame, f"in column 'b' of the frame, got .*{message}|{message}")


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([Decimal("1"), Decimal("2.5")]),
        pd.Series([1, 2.5], dtype=object),
        pd.Series([1, 2.5], dtype="Sparse[float]"),
        pd.Series([1, 2.5], dtype=np.float16),
        pd.Series([Decimal("1"), Decimal("2.5")], dtype=pd.ArrowDtype(pa.decimal128(4, 2))),
        pl.Series([Decimal("1"), Decimal("2.5")]),
        pl.Series([1, 2.5], dtype=pl.Float32),
    ],
)
def test_every_kind_of_number(series: Any) -> None:
    frame = pl.DataFrame({"b": series}) if isinstance(series, pl.Series) else pd.DataFrame({"b": series})
    assert frame_to_table(frame)[0].tolist() == [[1], [2.5]]


def test_polars_long_integers() -> None:
    assert frame_to_table(pl.DataFrame({"a": pl.Series([2**70, 1], dtype=pl.Int128)}))[0].tolist() == [
        [2.0**70],
        [1],
    ]


def test_no_column_of_numbers() -> None:
    frame = pl.DataFrame({"a": ["x"], "b": [True]})
    _match(
        frame,
        "at least one column of numbers in the frame, got none: column 'a' holds the text 'x' in row 0; c",
    )
    _match(pd.DataFrame(), "got no columns")
    _match(pd.DataFrame(index=[1, 2]), "got no columns")
    _match(pl.DataFrame({"a": []}), "no rows below the names of the columns")


def test_columns_without_a_name_of_their_own() -> None:
    frame = pd.DataFrame([[0, 1, 2, 3]], columns=["Unnamed: 0", "a", "b", "a"])
    _match(frame, "a name in column 0 of the frame, got none .*: give it a name, .*: 'b'$")
    _match(frame, "a name of its own in column 'a' of the frame, got the same for columns 1 and 3", [1, 2, 3])
    _match(frame, "the name of columns 1 and 3: choose it by its number", ["a"])
    assert frame_to_table(frame, [3, "b"])[0].tolist() == [[3, 2]]
    assert frame_to_table(frame, [3, "b"])[1] == ("a", "b")
    for name in (None, float("nan"), "", " "):
        _match(pd.DataFrame({name: [1]}), "a name in column 0")


def test_columns_that_are_not_there() -> None:
    frame = pl.DataFrame({" a ": [1], "B": [2]})
    assert frame_to_table(frame, ["a"])[1] == (" a ",)
    _match(frame, r"\(capitals matter\), got 'b': there are ' a ', 'B'$", ["b"])
    _match(frame, "a column of 0 to 1 of the frame", [2])
    _match(frame, "at most once in columns, got 'a' twice", [" a ", "a"])
    _match(frame, "a list of the names of columns", [])
    _match(frame, "a list of the names of columns", "B")
    _match(frame, "got True", [True])
    _match(frame, "got ''", [""])
    wide = pl.DataFrame({f"c{i}": [i] for i in range(30)})
    _match(wide, r"'c19', \.\.\.$", ["x"])
    _match(wide.with_columns(pl.lit("x").alias("c0")), r"\(--columns on the command line\)$")


def test_numbers_as_names() -> None:
    frame = pd.DataFrame(np.arange(6.0).reshape(2, 3))
    assert frame_to_table(frame, [2, "0"])[1] == ("2", "0")
    renamed = frame.set_axis([1, 2, 3], axis=1)
    assert frame_to_table(renamed, ["1"])[0].tolist() == [[0], [3]]
    _match(renamed, "got the number 1, which is the name of column 0: give the name as text, '1'", [1])


def test_rows_are_counted_from_0_whatever_the_index() -> None:
    _match(pd.DataFrame({"a": [1, None]}, index=["x", "y"]), "the first in row 1")
