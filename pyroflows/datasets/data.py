"""What a data set holds: its parts, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Data", "check_parts"]

# Bits of the images that a tensor of this type holds.
_BITS = {torch.uint8: 8, torch.int32: 16}


@dataclass(frozen=True)
class Data:
    """Training and held-out data.

    Attributes:
        train: `(N, *event_shape)`: integer images `(N, C, H, W)`, `uint8` or (16 bits) `int32`, or reals.
        test: Held-out data of the same kind, or `None`.
        grey_levels: Number of grey levels of integer data, or `None` for reals.
        train_labels: `(N,)` int64, the classes of the training data as indices into `classes`, or `None`.
        test_labels: Those of the held-out data.
        skipped: Files that could not be read and were left out.
        names: Names of a table's columns, or `None`.
        classes: Names of the classes, or `None`.
        files: The files of a folder's training images, in their order, or `None`.
        test_files: Those of the held-out images.
    """

    train: Tensor
    test: Tensor | None
    grey_levels: int | None
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    skipped: tuple[Path, ...] = ()
    names: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    files: tuple[Path, ...] | None = None
    test_files: tuple[Path, ...] | None = None

    def crop(self, height: int, width: int) -> Data:
        """Cut images evenly on all sides to a size.

        Args:
            height: Height of what is kept.
            width: Its width.

        Raises:
            ValueError: The data are no images, or are smaller.

        Example:
            >>> from pyroflows.datasets import load
            >>> load("digits").crop(6, 4).train.shape
            torch.Size([1500, 1, 6, 4])
        """
        if self.train.dim() != 4:
            raise ValueError(f"expected images (N, C, H, W) to crop, got data of {tuple(self.train.shape)}")
        own_height, own_width = self.train.shape[-2:]
        if not (1 <= height <= own_height and 1 <= width <= own_width):
            raise ValueError(
                f"expected a size of 1x1 to {own_height}x{own_width} (height x width) to crop to, "
                f"got {height}x{width}"
            )
        top, left = (own_height - height) // 2, (own_width - width) // 2

        def cut(images: Tensor) -> Tensor:
            return images[..., top : top + height, left : left + width].contiguous()

        return replace(self, train=cut(self.train), test=None if self.test is None else cut(self.test))


def check_parts(train: Tensor, test: Tensor, where: str) -> None:
    """Refuse a test part that is not of the training part's shape and kind."""
    if test.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"expected training and test data in {where} to be of one shape, "
            f"got {tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
        )
    if test.dtype != train.dtype:
        raise ValueError(
            f"expected training and test images in {where} to be of as many bits, got "
            f"{_BITS[train.dtype]} and {_BITS[test.dtype]}: convert one of them"
        )
