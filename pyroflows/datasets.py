"""Data to fit: two that scikit-learn brings, and arrays in files."""

from __future__ import annotations

import zipfile
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
    """

    train: Tensor
    test: Tensor | None
    levels: int | None


def load(name: str | Path) -> Data:
    """Load data by name or from a file.

    * `"digits"`: scikit-learn's 1,797 images of digits, 8x8, 17 grey levels; 297 are held out.
    * `"moons"`: 2,000 points of scikit-learn's two moons; 1,000 more are held out.
    * `.npz` with `x`, or `x_train` and `x_test`; `.npy`.

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
    if name == "moons":
        return _moons()
    path = Path(name)
    if not path.exists():
        raise ValueError(
            f"expected 'digits', 'moons' or a .npz or .npy file, got {str(path)!r}: no such file"
        )
    arrays = _read(path)
    tensors = {key: _as_data(array, path, key) for key, array in arrays.items()}
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
    return Data(train, test, levels=None if train.is_floating_point() else 256)


def _digits() -> Data:
    with needs_fit_extra("the digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    # Not the last rows: those are other writers'.
    train, test = train_test_split(load_digits().images, test_size=297, random_state=0)
    train, test = (torch.tensor(images.astype(np.uint8))[:, None] for images in (train, test))
    return Data(train, test, levels=17)


def _moons() -> Data:
    with needs_fit_extra("the moons"):
        from sklearn.datasets import make_moons
    points, _ = make_moons(3000, noise=0.1, random_state=0)
    points = torch.tensor(points, dtype=torch.get_default_dtype())
    return Data(points[:2000], points[2000:], levels=None)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, those of labels left out; no code in it is run."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files if key in ("x", "x_train", "x_test")}
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
