"""Folders of images, with classes as subfolders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyroflows.datasets.arrays import GREY_LEVELS
from pyroflows.datasets.data import Data, check_parts
from pyroflows.datasets.labels import index_labels
from pyroflows.datasets.pixels import decode, to_pixels

__all__ = ["load_folder"]

_PARTS = ("train", "test")
# Endings of images that are not read.
_OTHERS = (".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class _Part:
    folder: Path
    images: Tensor
    files: tuple[Path, ...]
    skipped: tuple[Path, ...]


def load_folder(path: Path, skip_bad: bool = False, drop_alpha: bool = False, classes: bool = False) -> Data:
    """The images of a folder, or of its subfolders `train` and `test`, in the order of their names."""
    has_parts = (path / "train").is_dir() and (path / "test").is_dir()
    train = _read(path / "train" if has_parts else path, skip_bad, drop_alpha)
    test = _read(path / "test", skip_bad, drop_alpha) if has_parts else None
    if test is not None:
        check_parts(train.images, test.images, str(path))
        beside = [file for file in _image_files(path) if file.relative_to(path).parts[0] not in _PARTS]
        if beside:
            raise ValueError(
                f"expected the images of {path} in its subfolders train and test alone, got {beside[0]}: "
                "move it into one of them"
            )
    _warn_of_equal_channels(train.images, path)
    labels = index_labels(
        partial(_classes, train),
        None if test is None else partial(_classes, test),
        str(path),
        required=classes,
    )
    return Data(
        train.images,
        None if test is None else test.images,
        GREY_LEVELS[train.images.dtype],
        labels.train,
        labels.test,
        skipped=train.skipped + (() if test is None else test.skipped),
        classes=labels.classes,
        files=train.files,
        test_files=None if test is None else test.files,
    )


def _classes(part: _Part) -> np.ndarray:
    """The subfolder of each image."""
    places = [file.relative_to(part.folder).parts for file in part.files]
    for file, place in zip(part.files, places, strict=True):
        if len(place) == 1:
            raise ValueError(
                f"expected every image in {part.folder} in a subfolder of its class, got {file} beside them"
            )
    return np.array([place[0] for place in places])


def _read(folder: Path, skip_bad: bool, drop_alpha: bool) -> _Part:
    images: list[np.ndarray] = []
    files: list[Path] = []
    skipped: list[Path] = []
    for file in _image_files(folder):
        try:
            image = decode(file)
            if images and image.size != _size(images[0]):
                raise ValueError(
                    f"it is of {_called(image.size)} pixels, those before it of {_called(_size(images[0]))}"
                )
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"expected a readable image as {file}, or skip_bad: {error}") from None
            skipped.append(file)
            continue
        pixels = to_pixels(image, file, drop_alpha)
        if images and pixels.dtype != images[0].dtype:
            raise ValueError(
                f"expected images of {8 * images[0].itemsize} bits, as {files[0]} is, got {file} of "
                f"{8 * pixels.itemsize} bits: convert one of them"
            )
        images.append(pixels)
        files.append(file)
    if not images:
        raise ValueError(f"expected PNG or JPEG images in {folder}, got none that can be read")
    return _Part(folder, _stacked(images), tuple(files), tuple(skipped))


def _image_files(folder: Path) -> list[Path]:
    """Images in a folder and its subfolders; hidden ones, as notebooks' copies, are no data."""
    files = [file for file in _walk(folder) if not file.name.startswith(".")]
    others = [file for file in files if file.suffix.lower() in _OTHERS]
    if others:
        warnings.warn(
            f"{len(others)} images in {folder} are left out, as they are neither PNG nor JPEG, such as "
            f"{others[0]}: convert them",
            stacklevel=5,
        )
    return sorted(file for file in files if file.suffix.lower() in (".png", ".jpg", ".jpeg"))


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, those behind links too."""
    seen = set()
    for path, names, files in os.walk(folder, followlinks=True):
        # A link may lead back.
        real = os.path.realpath(path)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(path) / name for name in files)


def _stacked(images: Sequence[np.ndarray]) -> Tensor:
    """`(N, C, H, W)`; grey images among colour ones get three equal channels."""
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.stack(3 * [image], -1) for image in images]
    stacked = np.stack(images)
    # Torch can do little with integers of 16 bits without a sign.
    tensor = torch.from_numpy(stacked if stacked.dtype == np.uint8 else stacked.astype(np.int32))
    return (tensor.movedim(-1, 1) if tensor.dim() == 4 else tensor[:, None]).contiguous()


def _warn_of_equal_channels(images: Tensor, path: Path) -> None:
    if images.shape[1] == 3 and bool((images == images[:, :1]).all()):
        warnings.warn(
            f"the three channels of all images in {path} are equal, so they have no joint density: convert "
            "them to grey images",
            stacklevel=4,
        )


def _size(pixels: np.ndarray) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[0]


def _called(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
