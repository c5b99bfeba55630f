"""The whole round by the command line, for each kind of data that people have."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyroflows import Run
from pyroflows.datasets import load
from pyroflows.transforms import AffineMap, Coupling, SplineMap
from tests.conftest import Call

N = 120


def _table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    height = generator.normal(170, 10, N)
    return pd.DataFrame(
        {
            "name": [f"person {i}" for i in range(N)],
            "height": height,
            "weight": height / 2 + generator.normal(0, 5, N),
            "children": generator.integers(0, 4, N),
        }
    )


def _log_densities(path: Path) -> np.ndarray:
    return pd.read_csv(path, float_precision=None)["log_prob"].to_numpy()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_with_a_header(ending: str, call: Call, tmp_path: Path) -> None:
    """A text column is named, and left out; scores and samples have the names of the others."""
    frame, data, run = _table(), tmp_path / f"people{ending}", tmp_path / "run"
    frame.to_csv(data, index=False) if ending == ".csv" else frame.to_parquet(data)
    error = call("fit", data, "--out", run, status=2)
    assert "expected numbers in column 'name'" in error
    assert str(data) in error
    assert "--columns" in error
    options = ("--columns", "height,weight", "--columns", "children", "--dequantize", "children")
    call("fit", data, *options, "--out", run, "--max-epochs", 3)
    loaded = Run.load(run)
    assert loaded.names == ("height", "weight", "children")
    svg = tmp_path / "samples.svg"
    call("sample", run, "-o", svg)
    call("score", run, data, "--per-row", "-o", tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert list(table) == ["row", "log_prob"]
    want = loaded.log_prob(frame)
    np.testing.assert_allclose(table["log_prob"], want, atol=1e-5)
    assert float(call("score", run, data).split()[0]) == pytest.approx(-want.mean().item(), abs=1e-4)
    rows = tmp_path / f"rows{ending}"
    assert "wrote 40 samples" in call("sample", run, "-n", 40, "-o", rows)
    drawn = pd.read_csv(rows) if ending == ".csv" else pd.read_parquet(rows)
    assert list(drawn) == ["height", "weight", "children"]
    assert (drawn["children"] == drawn["children"].round()).all()
    call("score", run, rows, "--per-row", "-o", tmp_path / "again.csv")
    torch.manual_seed(0)
    np.testing.assert_allclose(
        _log_densities(tmp_path / "again.csv"), loaded.log_prob(loaded.sample(40)), atol=1e-5
    )


def test_the_pictures_have_the_names_of_the_columns(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyroflows import plotting

    texts: list[str] = []

    def look(figure, path) -> None:
        texts.extend(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))

    monkeypatch.setattr(plotting, "_save", look)
    frame = _table()[["height", "weight"]].rename(columns={"weight": "weight in $"})
    frame.to_csv(tmp_path / "people.csv", index=False)
    call("fit", tmp_path / "people.csv", "--out", tmp_path / "run", "--max-epochs", 1)
    for name in ("height", r"weight in \$", "density", "data"):
        assert name in texts


def test_an_array(call: Call, tmp_path: Path) -> None:
    data, run = tmp_path / "x.npy", tmp_path / "run"
    np.save(data, _table()[["height", "weight", "children"]].to_numpy().astype(np.float32))
    call("fit", data, "--columns", "0,1", "--out", run, "--max-epochs", 2)
    call("sample", run, "-n", 30, "-o", tmp_path / "rows.npy")
    call("score", run, data, "--columns", "0,1", "--per-row", "-o", tmp_path / "scores.npy")
    loaded = Run.load(run)
    np.testing.assert_allclose(
        np.load(tmp_path / "scores.npy"), loaded.log_prob(np.load(data)[:, :2]), atol=1e-5
    )
    assert np.load(tmp_path / "rows.npy").shape == (30, 2)


def test_a_member_of_an_archive(call: Call, tmp_path: Path) -> None:
    data = tmp_path / "x.npz"
    np.savez(data, first=np.random.default_rng(0).normal(size=(50, 2)), second=np.zeros(3))
    error = call("fit", data, "--out", tmp_path / "run", status=2)
    for part in (str(data), "first", "second", "--key"):
        assert part in error
    call("fit", data, "--key", "first", "--out", tmp_path / "run", "--max-epochs", 1)
    assert "nats" in call("score", tmp_path / "run", data, "--key", "first")


def _save_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def test_images_of_16_bits(call: Call, tmp_path: Path) -> None:
    """Their size must be cut, too."""
    images = np.random.default_rng(0).integers(0, 2**16, (40, 9, 13), dtype=np.uint16)
    data, run = tmp_path / "images", tmp_path / "run"
    _save_images(data, images)
    options = ("--out", run, "--max-epochs", 1, "--steps", 1, "--hidden-channels", 8, "--batch-size", 16)
    error = call("fit", data, *options, status=2)
    assert "cut it to 8x12 (--crop on the command line)" in error
    call("fit", data, *options, "--crop")
    loaded = Run.load(run)
    assert loaded.grey_levels == 2**16
    assert loaded.flow.transform.event_shape == (1, 8, 12)
    assert "got (40, 1, 9, 13)" in call("score", run, data, status=2)
    call("score", run, data, "--crop", "--per-row", "-o", tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert table["file"].tolist() == [str(data / f"{i:03d}.png") for i in range(40)]
    want = loaded.log_prob(torch.tensor(images[:, None, :8, :12].astype(int)))
    np.testing.assert_allclose(table["log_prob"], want, rtol=1e-6)
    call("sample", run, "-n", 12, "-o", tmp_path / "drawn")
    assert load(tmp_path / "drawn").grey_levels == 2**16
    again = float(call("score", run, tmp_path / "drawn").split()[0])
    torch.manual_seed(0)
    drawn = loaded.sample(12)
    assert again == pytest.approx(loaded.in_unit(-loaded.log_prob(drawn).mean()).item(), abs=1e-4)


def test_a_folder_of_classes(call: Call, tmp_path: Path) -> None:
    data, run = tmp_path / "pets", tmp_path / "run"
    generator = np.random.default_rng(0)
    for name, low in (("cats", 0), ("dogs", 128)):
        _save_images(data / name, generator.integers(low, low + 128, (30, 4, 4), dtype=np.uint8))
    options = ("--max-epochs", 12, "--steps", 2, "--hidden-channels", 16, "--batch-size", 8)
    call("fit", data, "--classes", "--out", run, *options)
    assert Run.load(run).classes == ("cats", "dogs")
    assert (run / "samples.png").exists()
    assert "wrote 20 samples" in call("sample", run, "-n", 20, "--class", "dogs", "-o", tmp_path / "dogs.npy")
    call("sample", run, "-n", 20, "--class", "cats", "-o", tmp_path / "cats.npy")
    # The classes differ by 128; a standard error of the mean of 20 images is 2.
    assert np.load(tmp_path / "dogs.npy").mean() > np.load(tmp_path / "cats.npy").mean() + 60
    call("score", run, data, "--per-row", "-o", tmp_path / "scores.csv")
    assert pd.read_csv(tmp_path / "scores.csv")["class"].value_counts().to_dict() == {"cats": 30, "dogs": 30}
    assert "got 'fish'" in call("sample", run, "--class", "fish", "-o", tmp_path / "fish.png", status=2)
    call("sample", run, "-n", 9, "-o", tmp_path / "drawn")
    assert "bits per dim" in call("score", run, tmp_path / "drawn")
    assert "class" in call("score", run, data / "cats", status=2)


def test_labels_of_an_archive(call: Call, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=images, y=np.arange(40) % 4 + 2)
    options = ("--max-epochs", 1, "--steps", 1, "--hidden-channels", 8, "--batch-size", 8)
    call("fit", tmp_path / "x.npz", "--classes", "--out", tmp_path / "run", *options)
    assert Run.load(tmp_path / "run").classes == ("2", "3", "4", "5")
    call("sample", tmp_path / "run", "--class", 3, "-o", tmp_path / "threes.png")
    np.savez(tmp_path / "none.npz", x=images)
    assert "'y'" in call("fit", tmp_path / "none.npz", "--classes", "--out", tmp_path / "other", status=2)


def test_the_flow_is_chosen(call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))

    def couplings(*options: object) -> list[Coupling]:
        arguments = ("--out", tmp_path / "run", "--max-epochs", 1, "--overwrite")
        call("fit", tmp_path / "x.npy", *arguments, *options)
        return [part for part in Run.load(tmp_path / "run").flow.modules() if isinstance(part, Coupling)]

    realnvp = couplings("--flow", "realnvp", "--steps", 3, "--hidden-features", "16,8")
    assert len(realnvp) == 3
    assert all(isinstance(coupling.elementwise, AffineMap) for coupling in realnvp)
    assert all(coupling.conditioner.hidden_features == (16, 8) for coupling in realnvp)
    assert len(couplings("--flow", "nice", "--steps", 5)) == 5
    assert isinstance(couplings("--coupling", "spline")[0].elementwise, SplineMap)
    cases = [
        (("--flow", "maf"), "one of ['glow', 'nice', 'realnvp'], got 'maf'"),
        (("--hidden-channels", 8), "glow of tables has no option hidden_channels"),
        (("--levels", 2), "levels are for images"),
        (("--flow", "nice", "--levels", 2), "nice of tables has no option levels"),
        (("--hidden-features", "a"), "whole numbers such as 64,64, got 'a'"),
        (("--steps", 0), "expected steps of at least 1"),
        (("--crop",), "expected images"),
    ]
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for options, message in cases:
        arguments = ("fit", tmp_path / "x.npy", "--out", tmp_path / "run", "--overwrite", *options)
        assert message in call(*arguments, status=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_help_is_in_groups(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = call("fit", "--help")
    places = [text.index(f" {group} ─") for group in ("Data", "Flow", "Fit", "Output")]
    assert places == sorted(places)
    assert places[0] < text.index("--columns") < places[1] < text.index("--hidden-features") < places[2]


def test_ctrl_c_is_one_line_and_the_run_goes_on(call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2000, 4)))
    command = [sys.executable, "-m", "pyroflows", "fit", "x.npy", "--out", "run", "--max-epochs", "200"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    while not (tmp_path / "run" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    last = errors.strip().splitlines()[-1]
    assert last.endswith("pyroflows: stopped: the same command with --resume goes on from here")
    assert "Traceback" not in errors
    assert "wrote 5 samples" in call("sample", tmp_path / "run", "-n", 5, "-o", tmp_path / "rows.csv")
    for name in ("best.ckpt", "last.ckpt"):
        assert "nats" in call("score", tmp_path / "run" / name, tmp_path / "x.npy")


def test_a_finished_run_goes_on(call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 2)))
    arguments = ("fit", tmp_path / "x.npy", "--out", tmp_path / "run")
    call(*arguments, "--max-epochs", 2)
    assert "holds a finished run" in call(*arguments, "--max-epochs", 4, status=2)
    call(*arguments, "--max-epochs", 4, "--resume")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 4


def test_scores_and_samples_do_not_replace_what_is_there(call: Call, tmp_path: Path) -> None:
    data = tmp_path / "x.csv"
    _table()[["height", "weight"]].to_csv(data, index=False)
    call("fit", data, "--out", tmp_path / "run", "--max-epochs", 1)
    before = data.read_bytes()
    for arguments in (("score", tmp_path / "run", data, "--per-row"), ("sample", tmp_path / "run")):
        assert "is there already" in call(*arguments, "-o", data, status=2)
    assert "expected --per-row" in call("score", tmp_path / "run", data, "-o", tmp_path / "s.csv", status=2)
    assert data.read_bytes() == before
    assert not (tmp_path / "s.csv").exists()
    lines = call("score", tmp_path / "run", data, "--per-row").splitlines()
    assert lines[0] == "row,log_prob"
    assert len(lines) == N + 1


def test_a_package_that_is_missing_is_named(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _table().to_csv(tmp_path / "x.csv")
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "pip install 'pyroflows[tables]'" in call("fit", tmp_path / "x.csv", status=2)


def test_a_table_with_classes(call: Call, tmp_path: Path) -> None:
    """The classes are a column of the file, of what is written too."""
    frame = _table()[["height", "weight"]].assign(**{"class": np.where(np.arange(N) % 3, "adult", "child")})
    frame.to_csv(tmp_path / "people.csv", index=False)
    run = tmp_path / "run"
    assert "class" in call("fit", tmp_path / "people.csv", "--out", run, status=2)
    call("fit", tmp_path / "people.csv", "--classes", "--out", run, "--max-epochs", 2)
    for name in ("rows.csv", "rows.parquet"):
        call("sample", run, "-n", 9, "-o", tmp_path / name)
        assert "nats" in call("score", run, tmp_path / name)
    call("sample", run, "-n", 9, "--class", "adult", "-o", tmp_path / "adults.csv")
    out = call("score", run, tmp_path / "adults.csv", "--per-row")
    assert out.splitlines()[0] == "row,class,log_prob"
    call("score", run, tmp_path / "people.csv", "--per-row", "-o", tmp_path / "scores.csv")
    want = Run.load(run).log_prob(frame[["height", "weight"]], labels=frame["class"])
    np.testing.assert_allclose(_log_densities(tmp_path / "scores.csv"), want, atol=1e-5)
    frame[frame["class"] == "child"].to_csv(tmp_path / "children.csv", index=False)
    assert "two classes" in call("fit", tmp_path / "children.csv", "--classes", status=2)


def test_columns_of_an_array_are_not_forgotten(call: Call, tmp_path: Path) -> None:
    data, run = tmp_path / "x.npy", tmp_path / "run"
    table = np.random.default_rng(0).normal(size=(60, 2)) * [1, 100]
    np.save(data, table)
    call("fit", data, "--columns", "1,0", "--out", run, "--max-epochs", 1)
    assert "fitted to the columns 1,0 of an array" in call("score", run, data, status=2)
    value = float(call("score", run, data, "--columns", "1,0").split()[0])
    assert value == pytest.approx(-Run.load(run).log_prob(table[:, ::-1]).mean().item(), abs=1e-3)


def test_columns_by_number_and_with_commas(call: Call, tmp_path: Path) -> None:
    frame = _table().rename(columns={"height": "height, cm"})
    frame.to_csv(tmp_path / "x.csv", index=False)
    for columns in ("1,2", '"height, cm",weight'):
        call(
            "fit", tmp_path / "x.csv", "--columns", columns, "--out", tmp_path / "run", "--max-epochs", 1,
            "--overwrite",
        )  # fmt: skip
        assert Run.load(tmp_path / "run").names == ("height, cm", "weight")


def test_options_that_do_not_suit(call: Call, tmp_path: Path) -> None:
    _table()[["height", "weight"]].to_csv(tmp_path / "x.csv", index=False)
    call("fit", tmp_path / "x.csv", "--out", tmp_path / "run", "--max-epochs", 1)
    cases = [
        (("score", tmp_path / "run", tmp_path / "x.csv", "--crop"), "--crop is for images"),
        (("score", tmp_path / "run", tmp_path / "x.csv", "--drop-alpha"), "drop_alpha is for folders"),
        (("fit", tmp_path / "x.csv", "--skip-bad"), "skip_bad is for folders"),
        (("fit", tmp_path / "x.csv", "--hidden-features", "0"), "hidden_features of at least 1"),
        (("fit", tmp_path / "x.csv", "--devices", 0), "devices is a number of processes"),
        (("fit", tmp_path / "x.csv", "--seed", 2**60), "expected a seed of 0 to"),
        (("sample", tmp_path / "run", "--temperature", "inf", "-o", tmp_path / "x.png"), "that is finite"),
    ]
    for arguments, message in cases:
        assert message in call(*arguments, status=2)


def test_an_earlier_log_is_kept(call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 2)))
    arguments = ("fit", tmp_path / "x.npy", "--out", tmp_path / "run", "--log", "csv")
    call(*arguments, "--max-epochs", 2)
    call(*arguments, "--max-epochs", 4, "--resume")
    assert {"log", "log_2"} <= {path.name for path in (tmp_path / "run").iterdir()}
