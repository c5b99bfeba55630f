"""Arrays in files: images, tables and labels, and what is said of other arrays."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pyroflows.datasets import load


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


def test_bad_files(tmp_path: Path) -> None:
    for name, message in _bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", ">f4", "f8", ">f8", "g", *(f"{k}{n}" for k in "iu" for n in "1248")]
)
def test_a_table_keeps_its_numbers(tmp_path: Path, dtype: str) -> None:
    array = np.array([[1, 2], [3, 5]], dtype)
    np.save(tmp_path / "X.NPY", array)
    (tmp_path / "X.NPY.npy").rename(tmp_path / "X.NPY")
    table = load(tmp_path / "X.NPY").train
    assert table.dtype == (torch.float32 if "f4" in dtype else torch.float64)
    assert table.tolist() == [[1, 2], [3, 5]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st_numpy.arrays(
        st.sampled_from([np.float32, np.float64, np.int32]),
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_tables_are_read_as_they_were_written(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", x=array)
    assert np.array_equal(load(tmp_path / "x.npz").train.numpy(), array)


@pytest.mark.parametrize("layout", [(3, 4, 5), (3, 4, 5, 3), (3, 1, 4, 5)])
def test_images_of_16_bits(tmp_path: Path, layout: tuple[int, ...]) -> None:
    images = np.arange(np.prod(layout), dtype=">u2").reshape(layout) * 300
    np.save(tmp_path / "x.npy", images)
    data = load(tmp_path / "x.npy")
    assert (data.grey_levels, data.train.dtype, data.train.dim()) == (65_536, torch.int32, 4)
    assert sorted(data.train.flatten().tolist()) == sorted(images.ravel().tolist())


_TABLE = np.arange(6.0).reshape(3, 2)
_STRUCTURED = np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])
_FAULTS = {
    "scalar": (np.array(1.0), r"or a table .N, D., as x in .* of shape \(\): reshape it"),
    "vector": (np.arange(3.0), "reshape one column to .N, 1."),
    "no_columns": (np.zeros((3, 0)), "at least one datum"),
    "booleans": (np.ones((2, 2), bool), "got bool: convert it to 0 and 1"),
    "complex": (np.ones((2, 2), complex), "got complex128: stack its parts"),
    "structured": (_STRUCTURED, "fields 'a', 'b': stack its fields to a table"),
    "text": (np.array([["a"]]), "got <U1: convert it to numbers"),
    "dates": (np.array([["2020-01-01"]], "M8[D]"), "convert it to numbers"),
    "infinite": (np.array([[0, np.inf]]), "got inf in column 1, row 0"),
    "too_large": (np.array([[np.longdouble("1e4000")]]), "finite numbers"),
    "int64_images": (np.zeros((2, 4, 4), np.int64), "convert it to uint8 .* or uint16"),
    "rounded": (np.array([[1, 2**53 + 1]]), "got 9007199254740993 in column 1, row 0, which it would round"),
    "uint64_rounded": (np.array([[2**64 - 1]], np.uint64), "would round"),
    "five": (np.zeros((1, 1, 1, 1, 1), np.uint8), "uint8 of shape .1, 1, 1, 1, 1.: reshape it"),
}


@pytest.mark.parametrize("name", _FAULTS)
def test_arrays_that_are_no_data(tmp_path: Path, name: str) -> None:
    array, message = _FAULTS[name]
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "x.npy")


def test_large_integers_that_float64_holds_are_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[2**53 + 2, -(2**63)]]))
    assert load(tmp_path / "x.npy").train.tolist() == [[2.0**53 + 2, -(2.0**63)]]


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1.0]))
    for name, reason in (
        ("objects.npy", "holds Python objects: save it as an array of numbers"),
        ("objects.npz", "holds Python objects: save it as an array of numbers"),
        ("pickled.npy", "np.save or np.savez did not write it"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            load(tmp_path / name)
        assert "allow_pickle" not in str(error.value)


def test_damaged_and_foreign_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=_TABLE)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[data.index(_TABLE.tobytes())] ^= 255
    (tmp_path / "damaged.npz").write_bytes(data)
    (tmp_path / "short.npz").write_bytes(data[: len(data) // 2])
    np.savez(tmp_path / "empty.npz")
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("x", "text")
    for name, message in (
        ("damaged.npz", "got x in .*damaged.npz, which can't be read"),
        ("short.npz", "can't be read"),
        ("empty.npz", "got no arrays"),
        ("foreign.npz", "an array that np.savez wrote as x"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)


def test_an_array_is_chosen_by_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=_TABLE, b=_TABLE + 1)
    assert load(tmp_path / "x.npz", key="b").train.tolist() == (_TABLE + 1).tolist()
    with pytest.raises(ValueError, match=r"got 'a', 'b': choose an array by key \(--key"):
        load(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="as key, got 'c': 'a', 'b'"):
        load(tmp_path / "x.npz", key="c")
    np.save(tmp_path / "x.npy", _TABLE)
    with pytest.raises(ValueError, match=r"key is for .npz files"):
        load(tmp_path / "x.npy", key="a")


def test_columns_are_chosen_by_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=_TABLE, x_test=_TABLE.astype(np.float32)[:2])
    data = load(tmp_path / "x.npz", columns=["1"])
    assert (data.train.tolist(), data.test.tolist(), data.names) == ([[1], [3], [5]], [[1], [3]], ("1",))
    assert data.train.dtype == data.test.dtype == torch.float64
    assert load(tmp_path / "x.npz", columns=[1, 0]).train.tolist() == _TABLE[:, ::-1].tolist()
    for columns, message in (
        ([2], "a column of 0 to 1"),
        ([-1], "a column of 0 to 1"),
        (["a"], "got 'a': there are '0', '1'"),
        ([0, "0"], "at most once"),
        ([], "a list of the names"),
        ("01", "a list of the names"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "x.npz", columns=columns)
    np.save(tmp_path / "nan.npy", np.array([[0, np.nan, 1]]))
    assert load(tmp_path / "nan.npy", columns=[2, 0]).train.tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="got nan in column 1, row 0"):
        load(tmp_path / "nan.npy", columns=[2, 1])
    np.save(tmp_path / "images.npy", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="columns are those of a table"):
        load(tmp_path / "images.npy", columns=[0])


def test_parts_of_different_bits_are_refused(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, x_test=images.astype(np.uint16))
    with pytest.raises(ValueError, match="as many bits, got 8 and 16"):
        load(tmp_path / "x.npz")


def test_the_labels_are_those_of_the_array(tmp_path: Path) -> None:
    labels = np.arange(4) % 2
    np.savez(tmp_path / "x.npz", x_train=_TABLE, y_train=labels, x_test=_TABLE[:2], y_test=labels[1:3])
    data = load(tmp_path / "x.npz", key="x_test", classes=True)
    assert data.train_labels.tolist() == [1, 0]
