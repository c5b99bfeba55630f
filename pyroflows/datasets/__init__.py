"""Data to fit: digits, densities in the plane, arrays and tables in files, and folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyroflows.datasets.arrays import load_arrays
from pyroflows.datasets.data import Data
from pyroflows.datasets.frames import frame_to_table, is_frame
from pyroflows.datasets.images import load_folder
from pyroflows.datasets.named import NAMES, load_named
from pyroflows.datasets.table_files import load_csv, load_parquet

__all__ = ["Data", "frame_to_table", "has_names", "is_frame", "load"]

_ARRAYS = (".npz", ".npy")
_CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_PARQUET = (".parquet",)


def load(
    name: str | Path,
    *,
    columns: Sequence[str | int] | None = None,
    key: str | None = None,
    drop_alpha: bool = False,
    skip_bad: bool = False,
    classes: bool = False,
) -> Data:
    """Load data by name or from a file.

    * `"digits"`: scikit-learn's 1,797 images of digits, 8x8, 17 grey levels, with labels; 297 are held out.
    * `"moons"`, `"checkerboard"`, `"eight_gaussians"`: 2,000 points in the plane; 1,000 more are held out.
    * `.csv`, `.tsv` (also `.csv.gz` and `.tsv.gz`) and `.parquet`: tables, the columns of which have names.
      The delimiter of a CSV file is a comma, semicolon, tab or `|`.
    * `.npz` with `x`, or `x_train` and `x_test`, and labels `y`, or `y_train` and `y_test`, integers or
      strings, if there are any; `.npy`.
    * A folder of PNG and JPEG images, of one size, with its subfolders; or with the subfolders `train` and
      `test`. Hidden files are left out.

    Images in arrays are `uint8` or `uint16` of shape `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`; tables
    are of shape `(N, D)`.

    Args:
        name: A name, a file or a folder.
        columns: The columns of a table that are wanted, in their order: names, or numbers from 0.
        key: The array of a `.npz` that is taken as `x`.
        drop_alpha: Leave out the transparency of a folder's images.
        skip_bad: Leave out images of a folder that can't be read or are of another size, and say which.
        classes: Whether the data must have classes: the digits' own, `y` in an `.npz`, the subfolders of a
            folder of images, or the column `class` or `y` of a table in a file, which is then no part of it.

    Raises:
        ValueError: There is no such data or file, or it is not of that kind, or holds anything that would be
            lost or can't be fitted; an option is given that is for another kind of data.
        ImportError: A package that reads such a file is not installed.

    Example:
        >>> digits = load("digits")
        >>> digits.train.shape, digits.test.shape, digits.grey_levels
        (torch.Size([1500, 1, 8, 8]), torch.Size([297, 1, 8, 8]), 17)
    """
    if name in NAMES:
        options = {"columns": columns, "key": key, "drop_alpha": drop_alpha, "skip_bad": skip_bad}
        _check_options(str(name), **options, classes=classes and name != "digits")
        return load_named(str(name))
    path = _existing(name)
    ending = _ending(path)
    if path.is_dir():
        _check_options(f"the folder {path}", columns=columns, key=key)
        return load_folder(path, skip_bad, drop_alpha, classes)
    _check_options(str(path), drop_alpha=drop_alpha, skip_bad=skip_bad)
    if ending in _ARRAYS:
        _check_options(str(path), key=key if ending == ".npy" else None)
        return load_arrays(path, columns, key, classes)
    _check_options(str(path), key=key)
    return (load_parquet if ending in _PARQUET else load_csv)(path, columns, classes)


def has_names(name: str | Path) -> bool:
    """Whether a file is of a kind whose columns have names.

    Args:
        name: A name, a file or a folder, as `load` takes it.

    Example:
        >>> has_names("heights.csv"), has_names("digits")
        (True, False)
    """
    return _ending(Path(name)) in _CSV + _PARQUET


def _existing(name: str | Path) -> Path:
    path = Path(name)
    try:
        path = path.expanduser()
        # An empty name would be the current folder.
        found = name != "" and path.exists()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"expected {_known()}, got {str(path)!r}: {error}") from None
    if not found:
        reason = f"a broken link to {path.readlink()}" if path.is_symlink() else "no such file"
        raise ValueError(f"expected {_known()}, got {str(path)!r}: {reason}")
    if not path.is_dir() and _ending(path) not in _ARRAYS + _CSV + _PARQUET:
        raise ValueError(f"expected {_known()}, got {path}: files of this ending are not read")
    return path


def _known() -> str:
    names, endings = ", ".join(map(repr, NAMES)), ", ".join(_ARRAYS + _CSV + _PARQUET)
    return f"{names}, a file ({endings}) or a folder of PNG or JPEG images"


def _ending(path: Path) -> str:
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    return "".join(endings) if endings[-1:] == [".gz"] else "".join(endings[-1:])


# What each option is for.
_PURPOSES = {
    "columns": "tables in .csv, .tsv, .parquet, .npz or .npy files",
    "key": ".npz files",
    "drop_alpha": "folders of images",
    "skip_bad": "folders of images",
    "classes": "the digits, tables with a column 'class' or 'y', a .npz with 'y', or a folder of folders",
}


def _check_options(what: str, **options: object) -> None:
    """Refuse options that are for another kind of data."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{option} is for {_PURPOSES[option]}, got {option}={value!r} for {what}")
