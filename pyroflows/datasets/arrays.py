"""Images, tables and labels in NumPy's files `.npy` and `.npz`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyroflows.datasets.choice import choose, listed
from pyroflows.datasets.data import Data, check_parts
from pyroflows.datasets.labels import check_labels, index_labels
from pyroflows.datasets.values import first_rounded

__all__ = ["GREY_LEVELS", "load_arrays"]

# The number of values of a pixel of 8 and of 16 bits.
GREY_LEVELS = {torch.uint8: 256, torch.int32: 65_536}


# The names of the labels of each array.
_LABELS = {"x": ("y_train", "y"), "x_train": ("y_train", "y"), "x_test": ("y_test",)}


def load_arrays(
    path: Path, columns: Sequence[str | int] | None = None, key: str | None = None, classes: bool = False
) -> Data:
    """The arrays of a file; no code in it is run."""
    with _opened(path) as arrays:
        train_name, test_name = _names(arrays, key, path)
        train, names = _as_data(_member(arrays, train_name, path), f"{train_name} in {path}", columns)
        test = None
        if test_name is not None:
            test, _ = _as_data(_member(arrays, test_name, path), f"{test_name} in {path}", columns)
            if train.dim() == test.dim() == 2 and train.dtype != test.dtype:
                train, test = train.double(), test.double()
            check_parts(train, test, str(path))
        labels = index_labels(
            partial(_labels, arrays, _LABELS.get(train_name, ("y",)), len(train), path),
            None if test is None else partial(_labels, arrays, ("y_test",), len(test), path),
            str(path),
            required=classes,
        )
    return Data(
        train,
        test,
        GREY_LEVELS.get(train.dtype),
        labels.train,
        labels.test,
        names=names,
        classes=labels.classes,
    )


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    with _readable(str(path)):
        loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        yield {"x": loaded}
    else:
        with loaded:
            yield loaded


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Name the file or array in what is said of a fault."""
    try:
        yield
    # A damaged file can make its parser raise anything.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        # NumPy's own advice would run code that the file holds.
        if "Object arrays" in reason:
            reason = "it holds Python objects: save it as an array of numbers, np.asarray(x, dtype=float)"
        elif "pickle" in reason:
            reason = "np.save or np.savez did not write it"
        raise ValueError(
            f"expected a .npz or .npy file of arrays, got {where}, which can't be read: {reason}"
        ) from None


def _names(arrays: Mapping[str, np.ndarray], key: str | None, path: Path) -> tuple[str, str | None]:
    """The names of the training and the test data."""
    there = f"got {listed(list(arrays)) or 'no arrays'}"
    if key is not None:
        if key not in arrays:
            raise ValueError(
                f"expected the name of an array in {path} as key, got {key!r}: {there[4:]} is there"
            )
        return key, None
    train = next((name for name in ("x_train", "x") if name in arrays), None)
    if train is None:
        raise ValueError(
            f"expected an array 'x', or 'x_train' and 'x_test', in {path}, {there}: "
            "choose an array by key (--key on the command line)"
        )
    return train, "x_test" if "x_test" in arrays else None


def _member(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    with _readable(f"{name} in {path}"):
        array = arrays[name]
    # A zip file may hold other files beside arrays.
    if not isinstance(array, np.ndarray):
        raise ValueError(f"expected an array that np.savez wrote as {name} in {path}, got another file")
    return array


def _as_data(
    array: np.ndarray, where: str, columns: Sequence[str | int] | None
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Images as `(N, C, H, W)` integers, tables as `(N, D)` reals, and the names of chosen columns."""
    _check_kind(array, where)
    if array.ndim == 1:
        raise ValueError(
            f"expected a table (N, D) or images as {where}, got an array of shape {array.shape}: "
            "reshape one column to (N, 1), x[:, None]"
        )
    if not array.size:
        raise ValueError(f"expected at least one datum as {where}, got an array of shape {array.shape}")
    if array.ndim == 2:
        return _as_table(array, where, columns)
    if columns is not None:
        raise ValueError(f"columns are those of a table, got columns={columns!r} for images, {where}")
    return _as_images(array, where), None


def _check_kind(array: np.ndarray, where: str) -> None:
    if array.dtype.kind in "iuf":
        return
    kind, advice = str(array.dtype), "convert it to numbers"
    if array.dtype.names:
        kind = f"a structured array with the fields {listed(array.dtype.names)}"
        advice = "stack its fields to a table, np.stack([x[name] for name in x.dtype.names], -1)"
    elif array.dtype.kind == "b":
        advice = "convert it to 0 and 1, x.astype(np.uint8)"
    elif array.dtype.kind == "c":
        advice = "stack its parts, such as np.concatenate([x.real, x.imag], -1)"
    raise ValueError(f"expected an array of integers or reals as {where}, got {kind}: {advice}")


def _as_table(
    array: np.ndarray, where: str, columns: Sequence[str | int] | None
) -> tuple[Tensor, tuple[str, ...] | None]:
    chosen = choose(columns, [str(i) for i in range(array.shape[1])], where)
    values = array if columns is None else array[:, chosen]
    # Wide integers and reals keep their digits until a flow has centred and scaled them.
    narrow = array.dtype.kind == "f" and array.dtype.itemsize == 4
    with np.errstate(over="ignore"):
        table = torch.from_numpy(values.astype(np.float32 if narrow else np.float64))
    bad = (~table.isfinite()).nonzero().tolist()
    if bad:
        row, column = bad[0]
        raise ValueError(
            f"expected finite numbers as {where}, got {values[row, column]} in column {chosen[column]}, "
            f"row {row}: leave such rows or columns out, or fill them in"
        )
    rounded = first_rounded(values)
    if rounded is not None:
        row, column = rounded
        raise ValueError(
            f"expected numbers that float64 holds exactly as {where}, got {values[row, column]} in column "
            f"{chosen[column]}, row {row}, which it would round: subtract a number from the column"
        )
    return table, None if columns is None else tuple(map(str, chosen))


def _as_images(array: np.ndarray, where: str) -> Tensor:
    is_integer = array.dtype.kind == "u" and array.dtype.itemsize <= 2
    if not is_integer or array.ndim not in (3, 4):
        advice = (
            "convert it to uint8 (reals from 0 to 1: (255 * x).round().astype(np.uint8)) or uint16"
            if array.ndim in (3, 4)
            else "reshape it"
        )
        raise ValueError(
            "expected uint8 images or uint16 images (N, H, W), (N, H, W, C) or (N, C, H, W), or a table "
            f"(N, D), as {where}, got {array.dtype} of shape {array.shape}: {advice}"
        )
    # Torch can do little with integers of 16 bits without a sign.
    images = torch.from_numpy(array.astype(np.uint8 if array.dtype.itemsize == 1 else np.int32))
    if images.dim() == 3:
        return images[:, None]
    # The channels are the smaller of the two dimensions in which they can be.
    return images.movedim(-1, 1).contiguous() if images.shape[-1] < images.shape[1] else images


def _labels(arrays: Mapping[str, np.ndarray], names: Sequence[str], expected: int, path: Path) -> np.ndarray:
    name = next((name for name in names if name in arrays), None)
    if name is None:
        raise ValueError(
            f"expected the classes of the data in {path}, as an array 'y', or 'y_train' and 'y_test', of "
            f"integers or strings, got {listed(list(arrays))}"
        )
    return check_labels(_member(arrays, name, path), expected, f"{name} in {path}")
