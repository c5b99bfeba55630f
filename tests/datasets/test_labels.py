"""Classes: of arrays, of folders and of the digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyroflows.datasets import load

_X = np.zeros((4, 2, 2), np.uint8)


def test_the_digits_have_classes() -> None:
    data = load("digits", classes=True)
    assert data.classes == tuple("0123456789")
    assert data.train_labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "indices", "classes"),
    [
        (np.array([0, 1, 2, 1]), [0, 1, 2, 1], ("0", "1", "2")),
        (np.array([7, -3, 7, 100], np.int8), [1, 0, 1, 2], ("-3", "7", "100")),
        (np.array(["dog", "cat", "dog", "emu"]), [1, 0, 1, 2], ("cat", "dog", "emu")),
        (np.array([b"dog", b"cat", b"dog", b"emu"]), [1, 0, 1, 2], ("cat", "dog", "emu")),
        (np.array([[True], [False], [True], [True]]), [1, 0, 1, 1], ("False", "True")),
    ],
)
def test_labels_of_arrays(tmp_path: Path, labels: np.ndarray, indices: list[int], classes) -> None:
    np.savez(tmp_path / "x.npz", x_train=_X, x_test=_X[:2], y_train=labels, y_test=labels[1:3])
    data = load(tmp_path / "x.npz", classes=True)
    assert (data.train_labels.tolist(), data.classes) == (indices, classes)
    assert data.test_labels.tolist() == indices[1:3]
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": _X}, "an array 'y', or 'y_train' and 'y_test', of integers or strings, got 'x'"),
        ({"x": _X, "y": np.arange(3)}, r"expected 4 labels y in .*, got an array of shape \(3,\)"),
        ({"x": _X, "y": np.eye(4, dtype=int)}, r"got an array of shape \(4, 4\)"),
        ({"x": _X, "y": np.arange(4.0)}, "integers or strings as the labels y in .*, got float64"),
        ({"x": _X, "y": np.array(["a", 1, 2, 3], object)}, "holds Python objects"),
        ({"x_train": _X, "x_test": _X, "y_train": np.arange(4)}, "expected the classes"),
        (
            {"x_train": _X, "x_test": _X[:1], "y_train": np.arange(4), "y_test": np.array([9])},
            r"test labels in .* to be among the training classes \('0', '1', '2', '3'\), got '9'",
        ),
        (
            {"x_train": _X, "x_test": _X[:1], "y_train": np.arange(4), "y_test": np.array(["cat"])},
            "got 'cat'",
        ),
    ],
)
def test_labels_that_are_none(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "x.npz", classes=True)
    assert load(tmp_path / "x.npz").test_labels is None


def _fill(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), i).save(folder / name)


def test_class_folders(tmp_path: Path) -> None:
    _fill(tmp_path, "dogs/a.png", "cats/b.png", "cats/sub/a.png")
    (tmp_path / "cats" / "bad.png").write_text("no image")
    data = load(tmp_path, classes=True, skip_bad=True)
    assert (data.classes, data.train_labels.tolist()) == (("cats", "dogs"), [0, 0, 1])
    assert data.train[:, 0, 0, 0].tolist() == [1, 2, 0]


def test_class_folders_in_parts(tmp_path: Path) -> None:
    _fill(tmp_path, "train/cats/a.png", "train/dogs/b.png", "test/dogs/c.png")
    data = load(tmp_path, classes=True)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1], [1])
    _fill(tmp_path, "test/emus/c.png")
    with pytest.raises(ValueError, match=r"training classes \('cats', 'dogs'\), got 'emus'"):
        load(tmp_path, classes=True)


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    _fill(tmp_path, "cats/a.png")
    assert load(tmp_path, classes=True).classes == ("cats",)
    _fill(tmp_path, "dogs/a.png", "z.png")
    with pytest.raises(ValueError, match=r"a subfolder of its class, got .*z.png beside them"):
        load(tmp_path, classes=True)
    assert load(tmp_path).train_labels is None


def test_other_data_have_no_classes(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    np.save(tmp_path / "x.npy", _X)
    for name in ("moons", tmp_path / "x.csv"):
        with pytest.raises(ValueError, match=r"or a folder of folders, got classes|a column 'class' or 'y'"):
            load(name, classes=True)
    with pytest.raises(ValueError, match="an array 'y'"):
        load(tmp_path / "x.npy", classes=True)
