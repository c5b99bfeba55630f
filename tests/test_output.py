"""What is written is read again as it was, and nothing that was there is lost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pyroflows import Flow, Run, glow, realnvp
from pyroflows.datasets import load
from pyroflows.output import SAMPLES, SCORES, check_output, write_rows, write_samples

NAMES = ("height", "a, b", 'with "quotes"')


def _table_run(dtype: torch.dtype = torch.float32, **options) -> Run:
    torch.manual_seed(0)
    flow = Flow(realnvp(3, **options)).to(dtype)
    flow.standardize().fit_to(torch.tensor([[1e-7, 0.1, 1e6], [3e-7, 0.7, 3e6]]))
    return Run(flow.eval(), names=NAMES)


def _image_run(channels: int, grey_levels: int | None, **options) -> Run:
    torch.manual_seed(0)
    flow = Flow(glow((channels, 4, 6), levels=1, steps=1, hidden_channels=8, **options))
    return Run(flow.eval(), grey_levels)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".npy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_is_read_as_it_was(ending: str, dtype: torch.dtype, tmp_path: Path) -> None:
    run, path = _table_run(dtype), tmp_path / f"rows{ending}"
    samples = write_samples(run, path, 50)
    data = load(path)
    assert data.names == (None if ending == ".npy" else NAMES)
    assert torch.equal(data.train.double(), samples.double())
    torch.testing.assert_close(run.log_prob(data.train), run.log_prob(samples), atol=1e-5, rtol=0)


def test_a_table_without_names(tmp_path: Path) -> None:
    write_samples(Run(Flow(realnvp(2)).eval()), tmp_path / "rows.csv", 3)
    assert list(pd.read_csv(tmp_path / "rows.csv")) == ["column_0", "column_1"]


@pytest.mark.parametrize(("channels", "grey_levels"), [(1, 17), (1, 256), (3, 256), (1, 2**16)])
def test_images_are_read_as_they_were(channels: int, grey_levels: int, tmp_path: Path) -> None:
    """As an array, and as a folder of PNG files."""
    run = _image_run(channels, grey_levels)
    for path in (tmp_path / "images.npy", tmp_path / "images"):
        samples = write_samples(run, path, 12)
        data = load(path)
        assert torch.equal(data.train.long(), samples.long())
        assert data.grey_levels == (2**16 if grey_levels > 256 else 256)
        torch.testing.assert_close(run.log_prob(data.train), run.log_prob(samples), atol=1e-5, rtol=0)


def test_classes_are_folders_and_a_column(tmp_path: Path) -> None:
    run = _image_run(1, 256, context_dim=2)
    run = Run(run.flow, 256, classes=("cat", "dog"))
    samples = write_samples(run, tmp_path / "images", 7)
    data = load(tmp_path / "images", classes=True)
    # In the order in which they were drawn, so the noise of each is the same too.
    labels = run.labels_of(7)
    torch.testing.assert_close(
        run.log_prob(data.train, labels=labels), run.log_prob(samples, labels=labels), atol=1e-5, rtol=0
    )
    assert data.classes == ("cat", "dog")
    assert data.train_labels.bincount().tolist() == [4, 3]
    write_samples(run, tmp_path / "dogs", 3, label="dog")
    assert [path.name for path in (tmp_path / "dogs").iterdir()] == ["dog"]
    table = Run(Flow(realnvp(2, context_dim=2)).eval(), classes=("cat", "dog"))
    write_samples(table, tmp_path / "rows.csv", 3)
    assert pd.read_csv(tmp_path / "rows.csv")["class"].tolist() == ["cat", "cat", "dog"]


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_pictures(ending: str, tmp_path: Path) -> None:
    for name, run in (("table", _table_run()), ("images", _image_run(1, 17))):
        write_samples(run, tmp_path / f"{name}{ending}", 5)
        assert (tmp_path / f"{name}{ending}").stat().st_size > 1000


BAD = [
    (lambda: _image_run(1, 17), "rows.csv", "samples of a table to write to .*rows.csv, got images"),
    (_table_run, "folder", r"to write PNG files to .*folder, got \(3,\) of real values: write a .npy file"),
    (lambda: _image_run(1, None), "folder", "of real values"),
    (lambda: _image_run(3, 2**16), "folder", "of 65536 values"),
    (lambda: _image_run(2, 256), "folder", "of 256 values"),
]


@pytest.mark.parametrize(("run", "name", "message"), BAD)
def test_what_does_not_suit(run, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_samples(run(), tmp_path / name, 3)
    assert list(tmp_path.iterdir()) == []


def test_integers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    run = _image_run(1, 256)
    for parameter in run.flow.parameters():
        parameter.data.fill_(torch.nan)
    for name in ("images", "images.npy"):
        with pytest.raises(FloatingPointError, match="are not finite"):
            write_samples(run, tmp_path / name, 3)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    file, folder, empty = tmp_path / "x.csv", tmp_path / "full", tmp_path / "empty"
    file.write_text("kept")
    folder.mkdir()
    (folder / "kept").touch()
    empty.mkdir()
    check_output(empty, SAMPLES, overwrite=False)
    check_output(file, SAMPLES, overwrite=True)
    with pytest.raises(ValueError, match="is there already: choose another --output"):
        check_output(file, SCORES, overwrite=False)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="a new file or an empty folder"):
            check_output(folder, SAMPLES, overwrite=overwrite)
    with pytest.raises(ValueError, match=r"ends in one of \['.csv', '.parquet', '.npy'\]"):
        check_output(tmp_path / "x.txt", SCORES, overwrite=False)
    with pytest.raises(ValueError, match="none, which is not there"):
        check_output(tmp_path / "none" / "x.csv", SCORES, overwrite=False)
    write_samples(_image_run(1, 256), empty, 2)
    assert sorted(path.name for path in empty.iterdir()) == ["0.png", "1.png"]
    assert Image.open(empty / "0.png").size == (6, 4)


@given(st.lists(st.floats(width=64), min_size=1, max_size=5))
def test_any_real_is_written_exactly(tmp_path_factory, values: list[float]) -> None:
    """Those that are not finite as what they are."""
    folder = tmp_path_factory.mktemp("rows")
    for ending in (".csv", ".parquet"):
        write_rows({"row": range(len(values)), "x": np.array(values)}, folder / f"x{ending}")
    again = pd.read_csv(folder / "x.csv", float_precision="round_trip" if pd.__version__ < "3.1" else None)
    for frame in (again, pd.read_parquet(folder / "x.parquet")):
        np.testing.assert_array_equal(frame["x"].to_numpy(), np.array(values))
    text = (folder / "x.csv").read_text()
    assert text.count("nan") == int(np.isnan(values).sum())


def test_rows_go_to_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows({"row": range(2), "log_prob": torch.tensor([-1.5, -torch.inf])}, None)
    assert capsys.readouterr().out == "row,log_prob\n0,-1.5\n1,-inf\n"


@pytest.mark.parametrize("name", ["..", "../outside", "/tmp/outside", "a/b", "", ".hidden", "train", "nul\0"])
def test_a_class_is_no_path(name: str, tmp_path: Path) -> None:
    """Class names come from files that others wrote."""
    run = Run(_image_run(1, 256, context_dim=2).flow, 256, classes=(name, "dog"))
    (tmp_path / "0.png").write_text("kept")
    with pytest.raises(ValueError, match="expected classes that can be the names of folders"):
        write_samples(run, tmp_path / "images", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]
    write_samples(run, tmp_path / "dogs", 2, label="dog")


def test_a_link_stays_one_and_is_no_free_name(tmp_path: Path) -> None:
    link, file = tmp_path / "link.csv", tmp_path / "file.csv"
    link.symlink_to(file)
    with pytest.raises(ValueError, match="is there already"):
        check_output(link, SAMPLES, overwrite=False)
    write_samples(_table_run(), link, 3)
    assert link.is_symlink()
    assert len(pd.read_csv(file)) == 3


@pytest.mark.parametrize("name", ["x" * 300 + ".csv", "x" * 300])
def test_a_name_that_is_too_long(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not write to"):
        check_output(tmp_path / name, SAMPLES, overwrite=False)


@pytest.mark.parametrize("names", [("0", "1", "2"), ("5.1", "b", "c"), ("a;b;c;d", "e,f", "g|h")])
def test_names_that_look_like_something_else(names: tuple[str, ...], tmp_path: Path) -> None:
    run = Run(_table_run().flow, names=names)
    write_samples(run, tmp_path / "rows.csv", 4)
    assert load(tmp_path / "rows.csv").names == names


def test_a_column_can_not_have_the_name_of_the_classes(tmp_path: Path) -> None:
    run = Run(Flow(realnvp(2, context_dim=2)).eval(), names=("a", "class"), classes=("cat", "dog"))
    with pytest.raises(ValueError, match="expected no column 'class' in a table with classes"):
        write_samples(run, tmp_path / "rows.csv", 3)
    write_samples(run, tmp_path / "rows.npy", 3)
