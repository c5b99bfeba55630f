"""Samples and scores as files, of the kind that the ending tells."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroflows._extras import needs_extra, needs_fit_extra
from pyroflows.runs import Run
from pyroflows.state import write_file

with needs_fit_extra("pictures"):
    from pyroflows.plotting import PICTURES, plot_samples

__all__ = ["SAMPLES", "SCORES", "check_output", "write_rows", "write_samples"]


_TABLES: dict[str, Callable[[Any, Any], None]] = {
    ".csv": lambda frame, file: frame.to_csv(file, index=False, na_rep="nan", quoting=_quoting(list(frame))),
    ".parquet": lambda frame, file: frame.to_parquet(file, index=False),
}
# Endings of scores and of samples; a folder has none.
SCORES = (*_TABLES, ".npy")
SAMPLES = (*SCORES, *PICTURES, "")


def write_samples(
    run: Run, path: Path, n: int, temperature: float = 1.0, *, label: str | None = None
) -> Tensor:
    """Draw samples and write them to a file: a table, an array or a picture, or to a folder of PNG images.

    Args:
        run: The run.
        path: `.csv`, `.parquet`, `.npy`, a picture's ending such as `.png`, or none for a folder.
        n: Number of samples.
        temperature: The base's scale is multiplied by this.
        label: The class of the samples; by default about as many of each.

    Returns:
        The samples.

    Raises:
        ValueError: The ending is unknown or does not suit the data, or the file can't be written.
        FloatingPointError: A sample that should be of integers is not finite; nothing is written.
    """
    ending = path.suffix.lower()
    if ending in PICTURES:
        samples = run.draw(n, temperature, label=label)
        plot_samples(samples, path, grey_levels=run.grey_levels, names=run.names)
        return samples
    _check_suits(run, path)
    samples = run.sample(n, temperature, label=label)
    each = None
    if run.classes is not None:
        each = run.labels_of(n) if label is None else [label] * n
    if not ending:
        _write_images(samples, path, run.grey_levels or 256, each)
    elif ending == ".npy":
        write_file(path, _saved(_as_array(samples, run.grey_levels)))
    else:
        names = run.names or [f"column_{i}" for i in range(samples.shape[1])]
        columns: dict[str, Any] = dict(zip(names, samples.T, strict=True))
        write_rows(columns if each is None else {**columns, "class": each}, path)
    return samples


def write_rows(columns: dict[str, Any], path: Path | None) -> None:
    """Write columns of one length as a `.csv` or `.parquet` file, or as the array of the last as `.npy`.

    Reals are written so that they are the same when they are read again; those that are not finite are `nan`,
    `inf` and `-inf`.

    Args:
        columns: The values of each column.
        path: The file; by default the screen, as CSV.
    """
    ending = ".csv" if path is None else path.suffix.lower()
    arrays = {name: _exact(values) for name, values in columns.items()}
    if ending == ".npy":
        content = _saved(list(arrays.values())[-1])
    else:
        with needs_extra(f"a {ending} file", "tables"):
            import pandas
        table = BytesIO()
        _TABLES[ending](pandas.DataFrame(arrays), table)
        content = table.getvalue()
    if path is None:
        sys.stdout.write(content.decode())
    else:
        write_file(path, content)


def check_output(path: Path, endings: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a file that can't be written, before any work is done for it.

    Args:
        path: The file.
        endings: The endings that are possible; an empty one stands for a folder.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        ValueError: The ending is another, the folder is missing, or something is there.
    """
    try:
        is_there = path.exists() or path.is_symlink()
    except OSError as error:
        raise ValueError(f"could not write to {path}: {error.strerror}") from None
    if path.suffix.lower() not in endings:
        known = [ending or "none (a folder)" for ending in endings]
        raise ValueError(f"expected a file that ends in one of {known}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"expected a folder to write {path.name} to, got {path.parent}, which is not there")
    if path.is_dir():
        if path.suffix or any(path.iterdir()):
            raise ValueError(f"expected a new file or an empty folder to write to, got the folder {path}")
    elif is_there and (not path.suffix or not overwrite):
        raise ValueError(f"{path} is there already: choose another --output, or replace it by --overwrite")


def _check_suits(run: Run, path: Path) -> None:
    """Refuse to write images as tables, tables as images, and what a PNG image can't hold."""
    event_shape = tuple(run.flow.transform.event_shape)
    ending = path.suffix.lower()
    if ending in _TABLES and len(event_shape) != 1:
        raise ValueError(
            f"expected samples of a table to write to {path}, got images of {event_shape}: write a .npy "
            "file, a picture, or a folder of PNG files"
        )
    if ending in _TABLES and run.classes is not None and "class" in (run.names or ()):
        raise ValueError(
            "expected no column 'class' in a table with classes: rename it, or write a .npy file"
        )
    if ending:
        return
    channels = event_shape[0] if len(event_shape) == 3 else 0
    most = {1: 2**16, 3: 2**8}.get(channels, 0)
    if run.grey_levels is None or run.grey_levels > most:
        raise ValueError(
            f"expected integer images of one channel and up to 16 bits, or three of 8, to write PNG files to "
            f"{path}, got {event_shape} of {run.grey_levels or 'real'} values: write a .npy file"
        )


def _write_images(images: Tensor, folder: Path, grey_levels: int, classes: Sequence[str] | None) -> None:
    """PNG files, numbered, in a subfolder for each class; the folder is there only once it is whole."""
    from PIL import Image

    arrays = _as_array(images, grey_levels)
    bad = next((name for name in classes or () if not _is_folder_name(name)), None)
    if bad is not None:
        raise ValueError(
            f"expected classes that can be the names of folders, got {bad!r}: write a .npy file, or other "
            "classes by --class"
        )
    temporary = None
    try:
        temporary = Path(mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        for i, array in enumerate(arrays):
            inside = temporary if classes is None else temporary / classes[i]
            inside.mkdir(exist_ok=True)
            pixels = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
            Image.fromarray(np.ascontiguousarray(pixels)).save(inside / f"{i:0{len(str(len(arrays)))}}.png")
        # As any new folder: a temporary one is its owner's alone.
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, folder)
    except OSError as error:
        raise ValueError(
            f"could not write {len(arrays)} images to {folder}: {error.strerror or error}"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_folder_name(name: str) -> bool:
    """Whether a folder of this name in another is read again as a class, and lies in it."""
    return bool(name) and not set(name) & set("/\\\0") and name[0] != "." and name not in ("train", "test")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _saved(array: np.ndarray) -> bytes:
    """The contents of a `.npy` file."""
    content = BytesIO()
    np.save(content, array)
    return content.getvalue()


def _quoting(names: Sequence[str]) -> int:
    """Whether text is in quotes: names that are numbers would else be taken for a row."""
    return csv.QUOTE_NONNUMERIC if any(_looks_like_a_number(name) for name in names) else csv.QUOTE_MINIMAL


def _looks_like_a_number(name: str) -> bool:
    return bool(name) and not set(name) - set("0123456789.,+-eE ")


def _as_array(samples: Tensor, grey_levels: int | None) -> np.ndarray:
    """Integers in the type in which they are read again as images."""
    array = samples.cpu().numpy()
    if grey_levels is None or grey_levels > 2**16:
        return array
    return array.astype(np.uint8 if grey_levels <= 2**8 else np.uint16)


def _exact(values: Any) -> np.ndarray:
    """A column as an array, its reals in double precision: so a float32 is read again as it was."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array.astype(np.float64) if array.dtype.kind == "f" else array
