"""Data to fit: digits, three densities in the plane, arrays in files, and folders of images."""

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
        grey_levels: Number of grey levels of integer data, or `None` for reals.
        train_labels: `(N,)` integers, the classes of the training data, or `None`.
        test_labels: Those of the held-out data.
        skipped: Files that could not be read and were left out.
    """

    train: Tensor
    test: Tensor | None
    grey_levels: int | None
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    skipped: tuple[Path, ...] = ()


def load(name: str | Path, *, skip_bad: bool = False) -> Data:
    """Load data by name or from a file.

    * `"digits"`: scikit-learn's 1,797 images of digits, 8x8, 17 grey levels, with labels; 297 are held out.
    * `"moons"`, `"checkerboard"`, `"eight_gaussians"`: 2,000 points in the plane; 1,000 more are held out.
    * `.npz` with `x`, or `x_train` and `x_test`, and integer labels `y`, or `y_train` and `y_test`, if
      there are any; `.npy`.

    * A folder of PNG and JPEG images, of one size, with its subfolders; or with the subfolders `train` and
      `test`.

    Images are `uint8` of shape `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`; tables are of shape `(N, D)`.

    Args:
        name: A name, a file or a folder.
        skip_bad: Leave out images of a folder that can't be read or are of another size, and say which.

    Raises:
        ValueError: There is no such data or file, or it is not of that kind.

    Example:
        >>> digits = load("digits")
        >>> digits.train.shape, digits.test.shape, digits.grey_levels
        (torch.Size([1500, 1, 8, 8]), torch.Size([297, 1, 8, 8]), 17)
    """
    if name == "digits":
        return _digits()
    if name in _PLANE:
        points = torch.tensor(_PLANE[str(name)](3000), dtype=torch.get_default_dtype())
        return Data(points[:2000], points[2000:], grey_levels=None)
    path = Path(name)
    if not path.exists():
        names = ", ".join(map(repr, ["digits", *_PLANE]))
        raise ValueError(
            f"expected {names}, a .npz or .npy file or a folder of images, got {str(path)!r}: no such file"
        )
    if path.is_dir():
        return _folder(path, skip_bad)
    arrays = _read(path)
    tensors = {key: _as_data(array, path, key) for key, array in arrays.items() if key.startswith("x")}
    train, test = tensors.get("x_train", tensors.get("x")), tensors.get("x_test")
    if train is None:
        raise ValueError(
            f"expected an array 'x', or 'x_train' and 'x_test', in {path}, got {sorted(tensors)}"
        )
    if test is not None:
        _check_shapes(train, test, path)
    grey_levels = None if train.is_floating_point() else 256
    train_labels = _as_labels(arrays.get("y_train", arrays.get("y")), len(train))
    test_labels = None if test is None else _as_labels(arrays.get("y_test"), len(test))
    return Data(train, test, grey_levels, train_labels, test_labels)


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


def _folder(path: Path, skip_bad: bool) -> Data:
    if (path / "train").is_dir() and (path / "test").is_dir():
        train, skipped = _images(path / "train", skip_bad)
        test, also_skipped = _images(path / "test", skip_bad)
        _check_shapes(train, test, path)
        return Data(train, test, 256, skipped=skipped + also_skipped)
    train, skipped = _images(path, skip_bad)
    return Data(train, None, 256, skipped=skipped)


def _images(folder: Path, skip_bad: bool) -> tuple[Tensor, tuple[Path, ...]]:
    """The images of a folder, `(N, C, H, W)` uint8 in the order of their names, and those left out."""
    with needs_fit_extra("images"):
        from PIL import Image
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    images: list[np.ndarray] = []
    skipped: list[Path] = []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
            if images and pixels.shape[:2] != images[0].shape[:2]:
                raise ValueError(f"it is of {_size(pixels)} pixels, those before it of {_size(images[0])}")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if not skip_bad:
                raise ValueError(f"expected a readable image as {file}, or skip_bad: {error}") from None
            skipped.append(file)
        else:
            images.append(pixels)
    if not images:
        raise ValueError(f"expected PNG or JPEG images in {folder}, got none that can be read")
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.stack(3 * [image], -1) for image in images]
    stacked = torch.from_numpy(np.stack(images))
    return (stacked.movedim(-1, 1) if stacked.dim() == 4 else stacked[:, None]).contiguous(), tuple(skipped)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _check_shapes(train: Tensor, test: Tensor, path: Path) -> None:
    if test.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"expected training and test data in {path} to be of one shape, "
            f"got {tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
        )


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
        # Wide integers and reals keep their digits until a flow has centred and scaled them.
        table = torch.tensor(array, dtype=torch.float32 if array.dtype == np.float32 else torch.float64)
        bad = (~table.isfinite()).nonzero().tolist()
        if bad:
            row, column = bad[0]
            raise ValueError(
                f"expected finite numbers as {where}, got {array[row, column]} in column {column}, row {row}"
                ": leave such rows or columns out, or fill them in"
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
