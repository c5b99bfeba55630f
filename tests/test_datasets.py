"""Data by name and from files, and what is said of files that are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pyroflows.datasets import load


def test_digits_are_the_agreed_split() -> None:
    data = load("digits")
    train, test = train_test_split(load_digits().images, test_size=297, random_state=0)
    assert data.grey_levels == 17
    assert data.train.dtype == torch.uint8
    assert np.array_equal(data.train[:, 0].numpy(), train)
    assert np.array_equal(data.test[:, 0].numpy(), test)

    _, test_labels = train_test_split(load_digits().target, test_size=297, random_state=0)
    assert np.array_equal(data.test_labels.numpy(), test_labels)
    assert data.train_labels.shape == (1500,)


@pytest.mark.parametrize("name", ["moons", "checkerboard", "eight_gaussians"])
def test_densities_in_the_plane(name: str) -> None:
    data = load(name)
    assert (data.train.shape, data.test.shape, data.grey_levels) == ((2000, 2), (1000, 2), None)
    # Both parts are of one density, so their means differ by five standard errors at most.
    assert (data.train.mean(0) - data.test.mean(0)).abs().max() < 5 * data.train.std(0).max() / 1000**0.5


def test_checkerboard_is_dark_on_one_colour() -> None:
    squares = ((load("checkerboard").train + 4) / 2).floor()
    assert ((squares >= 0) & (squares <= 3)).all()
    assert (squares.sum(-1) % 2 == 0).all()
    assert len(squares.unique(dim=0)) == 8


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8, 6), (5, 1, 8, 6)),
        ((5, 8, 6, 3), (5, 3, 8, 6)),
        ((5, 3, 8, 6), (5, 3, 8, 6)),
        ((5, 8, 8, 1), (5, 1, 8, 8)),
    ],
)
def test_image_layouts(tmp_path: Path, shape, expected) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    data = load(tmp_path / "x.npy")
    assert tuple(data.train.shape) == expected
    assert data.test is None
    assert data.grey_levels == 256
    channels_last = data.train.movedim(1, -1).numpy()
    want = images.reshape(channels_last.shape) if shape != expected else np.moveaxis(images, 1, -1)
    assert np.array_equal(channels_last, want)


def test_keras_names_and_labels(tmp_path: Path) -> None:
    x = np.zeros((4, 2, 2), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x, x_test=x[:1], y_train=np.zeros(4), y_test=np.array(["a"], object))
    data = load(tmp_path / "x.npz")
    assert (len(data.train), len(data.test)) == (4, 1)
    assert (data.train_labels, data.test_labels) == (None, None)  # neither integers nor readable
    y = np.arange(4, dtype=np.uint8)[:, None]
    np.savez(tmp_path / "x.npz", x_train=x, x_test=x[:1], y_train=y, y_test=y[:1])
    data = load(tmp_path / "x.npz")
    assert data.train_labels.tolist() == [0, 1, 2, 3]
    assert data.test_labels.tolist() == [0]
    np.savez(tmp_path / "x.npz", x=x, y=y[:3])
    assert load(tmp_path / "x.npz").train_labels is None


def test_tables(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(6).reshape(3, 2))
    data = load(str(tmp_path / "x.npz"))
    assert data.grey_levels is None
    assert torch.equal(data.train, torch.arange(6.0).reshape(3, 2))


def _bad_files(folder: Path) -> dict[str, str]:
    (folder / "text.npz").write_text("not an archive")
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(folder / "names.npz", images=np.zeros((2, 4, 4), np.uint8))
    np.save(folder / "floats.npy", np.zeros((2, 4, 4)))
    np.save(folder / "none.npy", np.zeros((0, 4, 4), np.uint8))
    np.save(folder / "nan.npy", np.array([[0.0, 1.0], [np.nan, 2.0]]))
    np.savez(folder / "two.npz", x_train=np.zeros((2, 4, 4), np.uint8), x_test=np.zeros((2, 5, 4), np.uint8))
    return {
        "text.npz": "can't be read",
        "empty.npy": "can't be read",
        "objects.npy": "can't be read",
        "names.npz": "expected an array 'x', or 'x_train'",
        "floats.npy": "expected uint8 images",
        "none.npy": "at least one datum",
        "nan.npy": "got nan in column 0, row 1",
        "two.npz": "of one shape",
        "missing.npz": "no such file",
    }


def _pictures(folder: Path, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    folder.mkdir(parents=True)
    arrays = [
        np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8) for i, shape in enumerate(shapes)
    ]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")
    return arrays


def test_a_folder_of_images(tmp_path: Path) -> None:
    grey = _pictures(tmp_path / "grey", (6, 4), (6, 4))
    data = load(tmp_path / "grey")
    assert (data.test, data.grey_levels, data.train.dtype) == (None, 256, torch.uint8)
    assert np.array_equal(data.train[:, 0].numpy(), np.stack(grey))
    colour = _pictures(tmp_path / "mixed" / "sub", (6, 4, 3), (6, 4))
    mixed = load(str(tmp_path / "mixed")).train
    assert mixed.shape == (2, 3, 6, 4)
    assert np.array_equal(mixed[0].movedim(0, -1).numpy(), colour[0])
    assert all(np.array_equal(channel.numpy(), colour[1]) for channel in mixed[1])
    Image.fromarray(grey[0]).save(tmp_path / "grey" / "z.jpg")
    assert len(load(tmp_path / "grey").train) == 3


def test_a_folder_with_a_test_part(tmp_path: Path) -> None:
    _pictures(tmp_path / "train", (4, 4), (4, 4))
    _pictures(tmp_path / "test", (4, 4))
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (2, 1)


def test_bad_images_are_named_or_left_out(tmp_path: Path) -> None:
    _pictures(tmp_path / "x", (4, 4), (4, 4), (4, 6))
    with pytest.raises(ValueError, match=r"2.png, or skip_bad: it is of 6x4 pixels, those before it of 4x4"):
        load(tmp_path / "x")
    (tmp_path / "x" / "2.png").write_bytes((tmp_path / "x" / "1.png").read_bytes()[:50])
    (tmp_path / "x" / "3.jpeg").write_text("no image")
    with pytest.raises(ValueError, match=r"expected a readable image as .*2.png"):
        load(tmp_path / "x")
    data = load(tmp_path / "x", skip_bad=True)
    assert len(data.train) == 2
    assert [file.name for file in data.skipped] == ["2.png", "3.jpeg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"PNG or JPEG images in .*empty, got none"):
        load(tmp_path / "empty")


def test_bad_files(tmp_path: Path) -> None:
    for name, message in _bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
