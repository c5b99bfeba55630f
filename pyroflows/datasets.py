"""Data to fit: digits, three densities in the plane, and arrays in files."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyroflows._extras import needs_fit_extra

__all__ = ["Data", "load"]


@dataclass(frozen=True)
class Data:
    """Training and held-out data.

    Attributes:
        train: `(N, *event_shape)`: `uint8` images `(N, C, H, W)`, or reals.
        test: Held-out data of the same kind, or `None`.
        levels: Number of grey levels of integer data, or `None` for reals.
        train_labels: `(N,)` integers, the classes of the training data, or `None`.
        test_labels: Those of the held-out data.
    """

    train: Tensor
    test: Tensor | None
    levels: int | None
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


def load(name: str | Path) -> Data:
    """Load data by name or from a file.

    * `"digits"`: scikit-learn's 1,797 images of digits, 8x8, 17 grey levels, with labels; 297 are held out.
    * `"moons"`, `"checkerboard"`, `"eight_gaussians"`: 2,000 points in the plane; 1,000 more are held out.
    * `.npz` with `x`, or `x_train` and `x_test`, and integer labels `y`, or `y_train` and `y_test`, if
      there are any; `.npy`.

    Images are `uint8` of shape `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`; tables are of shape `(N, D)`.

    Raises:
        ValueError: There is no such data or file, or it is not of that kind.

    Example:
        >>> digits = load("digits")
        >>> digits.train.shape, digits.test.shape, digits.levels
        (torch.Size([1500, 1, 8, 8]), torch.Size([297, 1, 8, 8]), 17)
    """
    if name == "digits":
        return _digits()
    if name in _PLANE:
        points = torch.tensor(_PLANE[str(name)](3000), dtype=torch.get_default_dtype())
        return Data(points[:2000], points[2000:], levels=None)
    path = Path(name)
    if not path.exists():
        names = ", ".join(map(repr, ["digits", *_PLANE]))
        raise ValueError(f"expected {names} or a .npz or .npy file, got {str(path)!r}: no such file")
    arrays = _read(path)
    tensors = {key: _as_data(array, path, key) for key, array in arrays.items() if key.startswith("x")}
    train, test = tensors.get("x_train", tensors.get("x")), tensors.get("x_test")
    if train is None:
        raise ValueError(
            f"expected an array 'x', or 'x_train' and 'x_test', in {path}, got {sorted(tensors)}"
        )
    if test is not None and test.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"expected x_train and x_test in {path} to be of one shape, "
            f"got {tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
        )
    levels = None if train.is_floating_point() else 256
    train_labels = _as_labels(arrays.get("y_train", arrays.get("y")), len(train))
    test_labels = None if test is None else _as_labels(arrays.get("y_test"), len(test))
    return Data(train, test, levels, train_labels, test_labels)


def _digits() -> Data:
    with needs_fit_extra("the digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    digits = load_digits()
    # Not the last rows: those are other writers'.
    *images, train_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=297, random_state=0
    )
    train, test = (torch.tensor(part.astype(np.uint8))[:, None] for part in images)
    return Data(train, test, 17, torch.tensor(train_labels), torch.tensor(test_labels))


def _moons(n: int) -> np.ndarray:
    with needs_fit_extra("the moons"):
        from sklearn.datasets import make_moons
    return make_moons(n, noise=0.1, random_state=0)[0]


def _checkerboard(n: int) -> np.ndarray:
    """Uniform on the eight dark squares of a 4x4 board on [-4, 4] x [-4, 4]."""
    generator = np.random.default_rng(0)
    column, pair = generator.integers(0, 4, n), generator.integers(0, 2, n)
    squares = np.stack([column, 2 * pair + column % 2], -1)
    return 2 * (squares + generator.random((n, 2))) - 4


def _eight_gaussians(n: int) -> np.ndarray:
    """Normals of standard deviation 0.2, their means on a circle of radius 2."""
    generator = np.random.default_rng(0)
    angle = generator.integers(0, 8, n) * np.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], -1) + 0.2 * generator.normal(size=(n, 2))


_PLANE = {"moons": _moons, "checkerboard": _checkerboard, "eight_gaussians": _eight_gaussians}


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; no code in it is run."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files if key in ("x", "x_train", "x_test")}
            for key in {"y", "y_train", "y_test"} & set(loaded.files):
                # Python objects, which are not read, are no labels.
                with suppress(ValueError):
                    arrays[key] = loaded[key]
            return arrays
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"expected a .npz or .npy file of arrays, got {path}, which can't be read: {error}"
        ) from None


def _as_data(array: np.ndarray, path: Path, key: str) -> Tensor:
    """Images as `(N, C, H, W)` uint8, tables as `(N, D)` reals."""
    where = f"{key} in {path}"
    if not len(array):
        raise ValueError(f"expected at least one datum as {where}, got an array of shape {array.shape}")
    if array.ndim == 2 and array.dtype.kind in "fiu":
        table = torch.tensor(array, dtype=torch.get_default_dtype())
        bad = (~table.isfinite()).any(1).nonzero()
        if len(bad):
            raise ValueError(
                f"expected finite numbers as {where}, got one that is not in row {bad[0].item()}"
            )
        return table
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"expected uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), or a table (N, D), as {where}, "
            f"got {array.dtype} of shape {array.shape}"
        )
    images = torch.tensor(array)
    if images.dim() == 3:
        return images[:, None]
    # The channels are the smaller of the two dimensions in which they can be.
    return images.movedim(-1, 1).contiguous() if images.shape[-1] < images.shape[1] else images


def _as_labels(array: np.ndarray | None, expected: int) -> Tensor | None:
    """Classes as `(N,)` integers; `None` for what a `y` may be besides."""
    if array is None or array.dtype.kind not in "iu" or array.size != expected:
        return None
    return torch.tensor(array.reshape(-1).astype(np.int64))
