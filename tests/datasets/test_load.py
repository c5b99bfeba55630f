"""What a name or path stands for, and options that are for other data."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pyroflows.datasets import load


@pytest.mark.parametrize("name", ["x.txt", "x.xlsx", "x.pt", "x.jpg", "x", "x.csv.zip", "x.gz"])
def test_other_endings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1")
    with pytest.raises(ValueError, match=r"'digits', .*.npz, .npy, .csv, .*parquet.* endin"):
        load(tmp_path / name)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "x.csv").symlink_to(tmp_path / "y.csv")
    with pytest.raises(ValueError, match=r"x.csv': a broken link to .*y.csv"):
        load(tmp_path / "x.csv")
    for name in ("nothing", "x\0.csv", "~nobody_of_this_name/x.csv", 300 * "x" + ".csv", ""):
        with pytest.raises(ValueError, match="expected"):
            load(name)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.csv").write_text("a\n1\n")
    assert load("~/x.csv").train.tolist() == load(Path("~/x.csv")).train.tolist() == [[1]]


@pytest.mark.parametrize("options", [{"columns": ["0"]}, {"key": "x"}])
def test_options_that_are_for_files(tmp_path: Path, options: dict[str, object]) -> None:
    for name in ("digits", "moons", tmp_path):
        with pytest.raises(ValueError, match="files, got"):
            load(name, **options)


@pytest.mark.parametrize(("ending", "package"), [("csv", "pandas"), ("parquet", "pyarrow")])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"x.{ending}").write_text("a\n1\n")
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'pyroflows\[tables\]'"):
        load(tmp_path / f"x.{ending}")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    (tmp_path / "x.csv").write_text("a\n1\n")
    (tmp_path / "x.parquet").write_text("")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    for ending in ("npy", "csv"):
        with pytest.raises(ValueError, match=r"can't be read: .*Permission denied"):
            load(tmp_path / f"x.{ending}")
