"""Classes as indices into their names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = ["Labels", "check_labels", "index_labels"]


@dataclass(frozen=True)
class Labels:
    """`Data`'s `train_labels`, `test_labels` and `classes`."""

    train: Tensor | None = None
    test: Tensor | None = None
    classes: tuple[str, ...] | None = None


def index_labels(
    train: Callable[[], np.ndarray],
    test: Callable[[], np.ndarray] | None,
    where: str,
    *,
    required: bool,
) -> Labels:
    """The classes of the data as indices.

    Args:
        train: Gives the training data's labels, or raises `ValueError` if they have none.
        test: Gives the test data's labels; `None` without test data.
        where: What the labels are of, for messages.
        required: Whether labels that are missing or wrong are an error; otherwise they are left out.
    """
    labels = Labels()
    with nullcontext() if required else suppress(ValueError):
        values, indices = np.unique(train(), return_inverse=True)
        labels = Labels(train=torch.tensor(indices), classes=tuple(map(str, values)))
        if test is not None:
            labels = replace(labels, test=_indices(test(), values, where))
    return labels


def check_labels(array: np.ndarray, expected: int, where: str) -> np.ndarray:
    """Labels `(N,)` or `(N, 1)`, integers or strings, as `(N,)`."""
    if array.dtype.kind not in "iubUS":
        raise ValueError(
            f"expected integers or strings as the labels {where}, got {array.dtype}: convert them to integers"
        )
    if array.shape not in ((expected,), (expected, 1)):
        raise ValueError(
            f"expected {expected:,} labels {where}, one of each datum, got an array of shape {array.shape}"
        )
    labels = array.reshape(-1)
    return np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels


def _indices(labels: np.ndarray, values: np.ndarray, where: str) -> Tensor:
    """Where labels stand among the sorted values."""
    new = np.setdiff1d(labels, values)
    if len(new):
        known = ", ".join(repr(str(value)) for value in values[:10])
        raise ValueError(
            f"expected the test labels in {where} to be among the training classes ({known}"
            f"{', ...' if len(values) > 10 else ''}), got {str(new[0])!r}"
        )
    return torch.tensor(np.searchsorted(values, labels))
