"""Data that have a name: the digits, and three densities in the plane."""

from __future__ import annotations

import numpy as np
import torch

from pyroflows._extras import needs_fit_extra
from pyroflows.datasets.data import Data

__all__ = ["NAMES", "load_named"]


def load_named(name: str) -> Data:
    """The data of one of the `NAMES`."""
    if name == "digits":
        return _digits()
    points = torch.tensor(_PLANE[name](3000), dtype=torch.get_default_dtype())
    return Data(points[:2000], points[2000:], grey_levels=None)


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
    return Data(
        train,
        test,
        17,
        torch.tensor(train_labels),
        torch.tensor(test_labels),
        classes=tuple(map(str, digits.target_names)),
    )


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

NAMES = ("digits", *_PLANE)
