"""CSV and Parquet files, and what is said of files that hold no table."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pyroflows.datasets import load

_tables = st_numpy.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    elements={"allow_nan": False, "allow_infinity": False},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(_tables)
def test_tables_are_read_as_they_were_written(tmp_path: Path, table: np.ndarray) -> None:
    frame = pd.DataFrame(table, columns=[f"c{i}" for i in range(table.shape[1])])
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_csv(tmp_path / "x.tsv.gz", index=False, sep="\t")
    frame.to_parquet(tmp_path / "x.parquet")
    pl.DataFrame(frame.to_dict("list")).write_csv(tmp_path / "polars.csv")
    for name in ("x.csv", "x.tsv.gz", "x.parquet", "polars.csv"):
        data = load(tmp_path / name)
        assert np.array_equal(data.train.numpy(), table)
        assert data.names == tuple(frame.columns)
        assert (data.test, data.grey_levels, data.train_labels) == (None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n3,4\n",
        "a;b\n1;2\n3;4",
        "a\tb\r\n1\t2\r\n3\t4\r\n",
        "a|b\r1|2\r3|4\r",
        "\ufeffa,b\n1,2\n3,4\n",
        '"a","b"\n"1","2"\n"3","4"\n',
        "\n\na, b\n1, 2\n\n3, 4\n\n",
        "a,b\n1,2,\n3,4,\n",
        "a,b\n+1,2.0\n3e0, 4",
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "X.TSV", "x.csv.gz", "X.Csv.GZ"])
def test_every_way_to_write_a_csv_file(tmp_path: Path, name: str, text: str) -> None:
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    data = load(str(tmp_path / name))
    assert (data.names, data.train.tolist()) == (("a", "b"), [[1, 2], [3, 4]])


def test_names_that_hold_delimiters(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"a, 1";"b\nc";"d"";"\n1;2;3\n')
    assert load(tmp_path / "x.csv").names == ("a, 1", "b\nc", 'd";')
    (tmp_path / "x.tsv").write_text("a, 1\tb\n1\t2\n")
    assert load(tmp_path / "x.tsv").names == ("a, 1", "b")
    (tmp_path / "x.csv").write_text("a b\n1\n")
    assert load(tmp_path / "x.csv", columns=["a b "]).names == ("a b",)


_CSV_FAULTS = {
    "empty": ("", "got an empty file: write the names in its first line"),
    "blank": ("\n \n", "got an empty file"),
    "header_only": ("a,b\n", "got no rows below the names"),
    "no_header": ("1,2\n3,4\n", "the names of the columns in the first line of .*, got the number '1': add"),
    "no_header_comma": ("1,5;2,5\n1,5;2,5\n", "in the first line"),
    "numbered": (",0,1\n0,5,6\n", "in the first line"),
    "no_header_text": ("5.1,3.5,setosa\n1,2,setosa\n", "got the number '5.1'"),
    "duplicate": (
        "a,b,a\n1,2,3\n",
        "a name of its own in column 'a' of .*, got the same for columns 0 and 2: .*'b'$",
    ),
    "saved_index": (",a,b\n0,1,2\n", "a name in column 0 of .*it may be a saved index.*: 'a', 'b'$"),
    "text": ("a,b\n1,2\n2,few\n", "numbers in column 'b' of .*x.csv, got the text 'few' in row 1: .*: 'a'$"),
    "dates": ("a,b\n1,2020-01-02\n", "the text '2020-01-02' in row 0"),
    "booleans": ("a,b\n1,True\n2,False\n", "booleans, such as 'True'"),
    "missing_booleans": ("a,b\n1,\n2,False\n", "booleans, such as 'False' in row 1"),
    "complex": ("a,b\n1,1+2j\n", r"the text '1\+2j'"),
    "missing": (
        "a,b\n1,2\nNA,2\nnull,3\n",
        "no missing values in column 'a' of .*, got 2, the first in row 1",
    ),
    "none": ("a,b\n1,None\n2,NaN\n", "got 2, the first in row 0"),
    "infinite": ("a,b\n1,inf\n", "got inf in row 0"),
    "too_large": ("a,b\n1,1e999\n", "got inf in row 0"),
    "rounded": ("a,b\n1,9007199254740993\n", "9007199254740993 in row 0, which it would round"),
    "long": ("a,b\n1,99999999999999999999999999\n", "which it would round"),
    "thousands": ('a,b\n1,"1,234"\n', "'1,234' in row 0: write numbers with a decimal point and without"),
    "decimal_comma": ("a;b\n1;2,5\n", "'2,5' in row 0: write numbers with a decimal point"),
    "short_row": ("a,b\n1,2\n\n3\n", "2 values in each row of .*, got 1 in row 1"),
    "long_row": ("a,b\n1,2\n3,4,5\n", "got 3 in row 1: put in what is missing there, or quotes around"),
    "long_first_row": ("a,b\n1,2,3\n", "got 3 in row 0"),
    "long_rows": ("a,b\n1,2,3\n4,5,6\n", "got 3 in row 0"),
    "quote": ('a,b\n1,"2\n', "got x|can't be read|text"),
    "quote_in_header": ('a,"b\n1,2\n', "a quote that does not end"),
}


@pytest.mark.parametrize("name", _CSV_FAULTS)
def test_csv_files_that_hold_no_table(tmp_path: Path, name: str) -> None:
    text, message = _CSV_FAULTS[name]
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "x.csv")
    told = str(error.value)
    assert "x.csv" in told
    assert "\n" not in told
    assert "pickle" not in told


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("text", ["é,b\n1,2\n", "a,b\n1,2\n" * 5000 + "é,1\n"])
def test_another_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode(encoding))
    with pytest.raises(
        ValueError, match=r"expected UTF-8 text as .*x.csv, .* save the file in the encoding UTF-8"
    ):
        load(tmp_path / "x.csv")


def test_damaged_files(tmp_path: Path) -> None:
    content = gzip.compress(b"a,b\n" + 10_000 * b"1,2\n")
    damaged = {
        "text.csv.gz": b"a\n1\n",
        "short.csv.gz": content[: len(content) // 2],
        "bad.csv.gz": content[:20] + b"\xff\xff\xff" + content[23:],
        "empty.parquet": b"",
        "text.parquet": b"a,b\n1,2\n" * 10,
    }
    pd.DataFrame({"a": np.arange(1000.0)}).to_parquet(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    damaged |= {"short.parquet": whole[:500], "bad.parquet": whole[:4] + 200 * b"\xff" + whole[204:]}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"got .*{name}, which can't be read") as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": [0.5, None], "d": [3, 4]})
    frame.to_csv(tmp_path / "x.csv")
    frame.to_parquet(tmp_path / "x.parquet")
    for name in ("x.csv", "x.parquet"):
        data = load(tmp_path / name, columns=["d", "a"])
        assert (data.names, data.train.tolist()) == (("d", "a"), [[3, 1], [4, 2]])
        with pytest.raises(ValueError, match=r"got 'A': there are 'a', 'b', 'c', 'd'$"):
            load(tmp_path / name, columns=["A"])
    assert load(tmp_path / "x.csv", columns=[1]).names == ("a",)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"a": [1], "b": [[1]]}), "in column 'b' of .*x.parquet, got other values than numbers"),
        (pl.DataFrame({"a": [1], "b": [None]}), "missing values in column 'b'"),
        (pl.DataFrame({"a": [1], "b": [True]}), "booleans"),
        (pl.DataFrame({"a": [1], "b": ["x"]}, schema_overrides={"b": pl.Categorical}), "categories|the text"),
        (pl.DataFrame({"a": [1, 2], "b": [None, 2]}), "got 1, the first in row 0"),
        (pl.DataFrame({"a": [], "b": []}, schema={"a": pl.Float64, "b": pl.Float64}), "no rows"),
    ],
)
def test_parquet_files_that_hold_no_table(tmp_path: Path, frame: Any, message: str) -> None:
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "x.parquet")


def test_the_saved_index_of_a_parquet_file_is_no_column(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1.0, 2.0]}, index=["x", "y"]).to_parquet(tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet").names == ("a",)


@pytest.mark.filterwarnings("ignore:The 'float_precision'")
@pytest.mark.parametrize("version", ["2.2.3", "3.1.0", "10.0.1+local"])
def test_every_pandas_reads_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(pd, "__version__", version)
    values = np.random.default_rng(0).normal(size=1000)
    (tmp_path / "x.csv").write_text("a\n" + "\n".join(map(repr, values.tolist())))
    assert load(tmp_path / "x.csv").train[:, 0].tolist() == values.tolist()


@pytest.mark.parametrize(
    "text",
    [
        '"h, cm";"w, kg"\n1;2\n',
        "a,x\tb,y\n1\t2\n",
        "a;b\n1;2\n",
        '"a;b",c\n1,2\n',
        "a|b\n\n1|2\n",
        "a,b\n1,2\n",
    ],
)
def test_the_delimiter_is_the_one_that_the_rows_have(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    assert load(tmp_path / "x.csv").train.tolist() == [[1.0, 2.0]]


def test_numbers_in_quotes_are_names(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"0","1"\n1,2\n')
    assert load(tmp_path / "x.csv").names == ("0", "1")


def test_an_index_with_a_name_is_a_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [7, 8], "a": [1.0, 2.0]})
    frame.set_index("id").to_parquet(tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet").names == ("id", "a")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_column_of_classes(ending: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "class": ["x", "y", "x"]})
    path = tmp_path / f"x{ending}"
    frame.to_csv(path, index=False) if ending == ".csv" else frame.to_parquet(path)
    data = load(path, classes=True)
    assert (data.names, data.classes, data.train_labels.tolist()) == (("a",), ("x", "y"), [0, 1, 0])
    frame["class"] = ["x", None, "y"]
    frame.to_csv(path, index=False) if ending == ".csv" else frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"a class in each row of column 'class' of .*, got none in row 1"):
        load(path, classes=True)


def test_all_faults_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b,c\n1,x,\n2,y,3\n")
    with pytest.raises(ValueError, match=r"column 'b' of .* \(and faults in column 'c'\): .*: 'a'$"):
        load(tmp_path / "x.csv")
