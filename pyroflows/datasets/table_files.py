"""Tables in CSV and Parquet files, read by pandas."""

from __future__ import annotations

import csv
import gzip
import io
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from pyroflows._extras import needs_extra
from pyroflows.datasets.data import Data
from pyroflows.datasets.frames import frame_to_table
from pyroflows.datasets.labels import check_labels, index_labels

__all__ = ["load_csv", "load_parquet"]

_DELIMITERS = "\t;|,"
# Names of a column of classes.
_LABELS = ("class", "y")


def load_csv(path: Path, columns: Sequence[str | int] | None = None, classes: bool = False) -> Data:
    """The table of a CSV file, the first line of which names the columns."""
    return _as_data(_read_csv(path), path, columns, classes)


def load_parquet(path: Path, columns: Sequence[str | int] | None = None, classes: bool = False) -> Data:
    """The table of a Parquet file."""
    with needs_extra("a Parquet file", "tables"):
        import pandas  # noqa: F401
        import pyarrow
        import pyarrow.parquet
    try:
        # Not through pandas, which refuses columns of one name in a message of its own.
        frame = pyarrow.parquet.ParquetFile(path).read().to_pandas()
    # Damaged metadata can make pyarrow raise anything.
    except Exception as error:
        raise _unreadable("a Parquet file", path, error) from None
    # An index with names was a column for whoever wrote the file.
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    return _as_data(frame, path, columns, classes)


def _as_data(frame: Any, path: Path, columns: Sequence[str | int] | None, classes: bool) -> Data:
    """The table of a frame, and the classes in one of its columns if they are wanted."""
    if not classes:
        table, names = frame_to_table(frame, columns, str(path))
        return Data(table, None, None, names=names)
    column = next((name for name in _LABELS if name in frame.columns), None)
    if column is None:
        raise ValueError(
            f"expected a column {' or '.join(map(repr, _LABELS))} of classes in {path}, got none: name it so"
        )
    values = frame[column]
    if values.isna().any():
        row = int(values.isna().to_numpy().argmax())
        raise ValueError(
            f"expected a class in each row of column {column!r} of {path}, got none in row {row}"
        )
    array = values.to_numpy()
    array = array.astype(str) if array.dtype.kind == "O" else array
    where = f"in column {column!r} of {path}"
    labels = index_labels(lambda: check_labels(array, len(frame), where), None, str(path), required=True)
    table, names = frame_to_table(frame.drop(columns=column), columns, str(path))
    return Data(table, None, None, labels.train, names=names, classes=labels.classes)


def _read_csv(path: Path) -> Any:
    with needs_extra("a CSV file", "tables"):
        import pandas
    with _readable(path), _opened(path) as text:
        header, delimiter = _header(text, path)
        with warnings.catch_warnings():
            # The warning tells of a first row that is too long.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            try:
                frame = pandas.read_csv(
                    text,
                    sep=delimiter,
                    header=None,
                    names=range(len(header)),
                    index_col=False,
                    skipinitialspace=True,
                    low_memory=False,
                    **_float_precision(pandas.__version__),
                )
            except (pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
                _check_lengths(path, len(header), delimiter)
                raise _unreadable("a CSV file", path, error) from None
        # A row that is too short ends in missing values.
        if frame.iloc[:, -1].isna().any():
            _check_lengths(path, len(header), delimiter)
    frame.columns = header
    return frame


def _float_precision(version: str) -> dict[str, str]:
    """What makes pandas read each float as it was written; from 3.1 on it does so by itself."""
    major, minor = version.split(".")[:2]
    return {"float_precision": "round_trip"} if (int(major), int(minor)) < (3, 1) else {}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file in what is said of a fault."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8 text as {path}, got the byte 0x{error.object[error.start]:02x}: "
            "save the file in the encoding UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise _unreadable("a CSV file", path, error) from None


def _unreadable(kind: str, path: Path, error: Exception) -> ValueError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"expected {kind}, got {path}, which can't be read: {lines[0]}")


def _opened(path: Path) -> TextIO:
    # A mark of the byte order is no part of the first name.
    if path.suffix.lower() == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _header(text: TextIO, path: Path) -> tuple[list[str], str]:
    """The names of the columns, and what stands between them; the rest of the text is left."""
    line = next((line for line in text if line.strip()), None)
    if line is None:
        raise ValueError(
            f"expected names of columns and rows of numbers in {path}, got an empty file: "
            "write the names in its first line"
        )
    # A name in quotes may go on in the next line.
    while line.count('"') % 2:
        following = text.readline()
        if not following:
            raise ValueError(
                f"expected names of columns in the first line of {path}, got a quote that does not end"
            )
        line += following
    if "\0" in line:
        raise ValueError(
            f"expected UTF-8 text as {path}, got zero bytes: save the file in the encoding UTF-8"
        )
    # If two fit, the ending decides, and then a comma.
    tab_first = ".tsv" in path.name.lower()
    delimiters = sorted(_DELIMITERS, key=lambda delimiter: delimiter == "\t", reverse=tab_first)
    headers = {delimiter: next(_records(io.StringIO(line), delimiter)) for delimiter in delimiters}
    row = _first_row(path, after=line.count("\n"))
    agree = [each for each in delimiters if 1 < len(headers[each]) == len(next(_records([row], each), []))]
    # Commas are common inside names and numbers, the others hardly ever.
    delimiter = min(agree, key=_DELIMITERS.index) if agree else max(headers, key=lambda d: len(headers[d]))
    # A number in quotes is meant as a name.
    _check_header([name for name in headers[delimiter] if f'"{name}"' not in line], path)
    return headers[delimiter], delimiter


def _first_row(path: Path, after: int) -> str:
    """The line that follows the header, which ends after so many lines that are not blank."""
    with _opened(path) as text:
        lines = (line for line in text if line.strip())
        return next(islice(lines, max(after, 1), None), "")


def _records(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _check_header(header: Sequence[str], path: Path) -> None:
    """Refuse a first line of numbers, or with a number such as 5.1, which is hardly a name."""
    numbers = [name for name in header if _is_number(name)]
    named = [name for name in header if name.strip()]
    fractions = [name for name in numbers if not name.strip().isdecimal()]
    if numbers and (len(numbers) == len(named) or fractions):
        shown = (fractions or numbers)[0]
        raise ValueError(
            f"expected the names of the columns in the first line of {path}, got the number {shown!r}: "
            "add a first line with a name for each column"
        )


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name.replace(",", "")))
    except ValueError:
        return False


def _check_lengths(path: Path, expected: int, delimiter: str) -> None:
    """Refuse a row that has more or less values than there are columns."""
    with _opened(path) as text:
        # Blank lines are no rows.
        records = (
            record for record in _records(text, delimiter) if "".join(record).strip() or len(record) > 1
        )
        next(records)
        for row, record in enumerate(records):
            # A delimiter at the end of each row is harmless.
            if not expected <= len(record) <= expected + (record[-1] == ""):
                raise ValueError(
                    f"expected {expected} values in each row of {path}, got {len(record)} in row {row}: put "
                    f"in what is missing there, or quotes around a value that holds {delimiter!r}"
                )
