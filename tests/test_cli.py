"""The command line from fit to score, and what it says of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pyroflows import Dequantized
from pyroflows.datasets import load
from pyroflows.runs import Run
from pyroflows.state import write_state
from pyroflows.transforms import Coupling, SplineMap
from tests.conftest import Call


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    command = [sys.executable, "-m", "pyroflows", "fit", "digits", "--out", folder, "--max-epochs", "1"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    assert "test data: " in done.stdout
    assert "held-out part of the training data, which chose the weights: " in done.stdout
    assert "0 of 1000 samples are not finite" in done.stdout
    assert "bits/dim" in done.stdout + done.stderr  # on the progress bar
    assert "Warning" not in done.stderr
    return folder


WRITTEN = ["best.ckpt", "flow.safetensors", "last.ckpt", "losses.png", "metrics.json", "samples.png"]


def test_fit_writes_checkpoint_pictures_and_metrics(run_folder: Path) -> None:
    assert {path.name for path in run_folder.iterdir()} == set(WRITTEN)
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["unit"] == "bits_per_dim"
    assert all(2.0 < metrics[key] < 8 for key in ("test_score", "val_score", "train_score"))
    assert metrics["seconds"] > 0
    assert (metrics["epochs"], metrics["skipped"], metrics["n_not_finite"]) == (1, 0, 0)
    # A Gaussian stands beside a table alone.
    assert metrics["baseline_test_score"] is metrics["baseline_val_score"] is None
    assert (run_folder / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_score_prints_what_the_fit_measured(run_folder: Path, call: Call) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text())
    value, unit = call("score", run_folder, "digits").split(" ", 1)
    assert unit.strip() == "bits per dim"
    # Ten draws of the noise each for 297 images.
    assert float(value) == pytest.approx(metrics["test_score"], abs=0.01)


def test_score_of_a_file(run_folder: Path, call: Call, tmp_path: Path) -> None:
    images = load("digits").test[:50, 0].numpy()
    np.savez(tmp_path / "images.npz", x=images)
    value = float(call("score", run_folder, tmp_path / "images.npz").split()[0])
    torch.manual_seed(0)
    run = Run.load(run_folder)
    with torch.no_grad():
        want = Dequantized(run.flow(), 17).bits_per_dim(torch.tensor(images)[:, None]).mean().item()
    assert value == pytest.approx(want, abs=0.02)


def test_sample_writes_a_picture(run_folder: Path, call: Call, tmp_path: Path) -> None:
    out = call("sample", run_folder, "-n", 9, "--temperature", 0.7, "-o", tmp_path / "grid.png")
    assert "9 samples" in out
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_fit_of_a_table(call: Call, tmp_path: Path) -> None:
    """A table has no test part, and a Gaussian stands beside its scores."""
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(200, 3)))
    out = call("fit", tmp_path / "table.npy", "--out", tmp_path / "run", "--max-epochs", 2)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["unit"] == "nats"
    assert metrics["test_score"] is metrics["baseline_test_score"] is None
    score, baseline = metrics["val_score"], metrics["baseline_val_score"]
    assert f"which chose the weights: {score:.3f} nats, less is better (a Gaussian: {baseline:.3f})" in out
    assert "test data" not in out
    assert ("worse than a Gaussian" in out) == (score > baseline)
    told = call("score", tmp_path / "run", tmp_path / "table.npy").splitlines()
    assert len(told) == 2
    assert told[0].endswith("nats")
    assert told[1].endswith("nats, by a Gaussian that was fitted to the same table")


def test_fit_of_a_table_with_a_test_part(call: Call, tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(200, 2))
    np.savez(tmp_path / "table.npz", x_train=table[:150], x_test=table[150:])
    out = call("fit", tmp_path / "table.npz", "--out", tmp_path / "run", "--max-epochs", 2)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    told = f"{metrics['test_score']:.3f} nats, less is better (a Gaussian: "
    assert f"test data: {told}{metrics['baseline_test_score']:.3f})" in out
    assert metrics["val_score"] is not None


def test_a_column_of_whole_numbers_is_dequantized(call: Call, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    table = np.stack([generator.normal(size=200), generator.integers(0, 5, 200)], 1)
    np.save(tmp_path / "table.npy", table)
    call("fit", tmp_path / "table.npy", "--out", tmp_path / "run", "--max-epochs", 2, "--dequantize", 1)
    drawn = Run.load(tmp_path / "run").sample(50)
    assert torch.equal(drawn[:, 1], drawn[:, 1].round())
    assert not torch.equal(drawn[:, 0], drawn[:, 0].round())


def test_fit_of_a_short_table(call: Call, tmp_path: Path) -> None:
    """A tenth of nine rows is one, which is held out, chooses the weights and is scored."""
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(9, 2)))
    assert "nats" in call("fit", tmp_path / "table.npy", "--out", tmp_path / "run", "--max-epochs", 1)


def test_fit_with_another_coupling(call: Call, tmp_path: Path) -> None:
    call("fit", "checkerboard", "--coupling", "spline", "--out", tmp_path / "run", "--max-epochs", 1)
    couplings = [m for m in Run.load(tmp_path / "run").flow.modules() if isinstance(m, Coupling)]
    assert all(isinstance(coupling.elementwise, SplineMap) for coupling in couplings)


def test_fit_is_logged_and_goes_on_where_it_was(call: Call, tmp_path: Path) -> None:
    """What is not finished is not overwritten by mistake; a folder's bad images are counted."""
    (tmp_path / "images").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "bad.png").write_text("no image")
    arguments = ("fit", tmp_path / "images", "--out", tmp_path / "run", "--max-epochs", 2, "--batch-size", 8)
    assert "bad.png" in call(*arguments, status=2)
    arguments = (*arguments, "--skip-bad", "--log", "csv")
    assert "left out 1 images that can't be read: bad.png" in call(*arguments)
    assert "held out" in (tmp_path / "run" / "log" / "metrics.csv").read_text()
    flow = (tmp_path / "run" / "flow.safetensors").read_bytes()
    (tmp_path / "run" / "metrics.json").unlink()
    assert "holds a run that has not ended: go on with it by --resume" in call(*arguments, status=2)
    call(*arguments, "--resume")
    assert (tmp_path / "run" / "flow.safetensors").read_bytes() == flow
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["skipped"] == 1


def test_a_fit_that_is_not_finite_has_status_1(call: Call, tmp_path: Path) -> None:
    """Steps that are far too large."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 2)))
    arguments = ("fit", tmp_path / "x.npy", "--out", tmp_path / "run", "--max-epochs", 3, "--lr", 1e3)
    error = call(*arguments, status=1)
    assert "the loss is" in error


def test_fit_of_an_archive_of_images(call: Call, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, x_test=images[:8], y_train=np.arange(40))
    call("fit", tmp_path / "images.npz", "--out", tmp_path / "run", "--max-epochs", 1, "--batch-size", 16)
    assert Run.load(tmp_path / "run").flow.transform.event_shape == (1, 12, 12)


def test_the_checkpoint_is_the_flow(run_folder: Path) -> None:
    first, second = Run.load(run_folder), Run.load(run_folder)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(first.flow().log_prob(x), second.flow().log_prob(x))
    assert first.grey_levels == 17


def _one_line(text: str) -> str:
    assert text.startswith("pyroflows: ")
    assert text.count("\n") == 1
    return text


def test_bad_data_is_one_line_and_status_2(run_folder: Path, call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((3, 12, 12), np.uint8))
    np.save(tmp_path / "odd.npy", np.zeros((30, 7, 7), np.uint8))
    np.save(tmp_path / "bright.npy", np.full((3, 8, 8), 200, np.uint8))
    np.save(tmp_path / "constant.npy", np.stack([np.random.default_rng(0).normal(size=50), np.ones(50)], 1))
    before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    cases = [
        (("fit", "nothing.npz"), "no such file"),
        (("fit", tmp_path / "odd.npy", "--out", run_folder), "can't be squeezed"),
        (("fit", "digits", "--lr", "-1", "--out", run_folder), "positive lr"),
        (("fit", "digits", "--val-fraction", "1", "--out", run_folder), "below 1, got 1.0"),
        (("fit", "digits", "--patience", "0", "--out", run_folder), "at least 1, or None, got 0"),
        (("fit", tmp_path / "constant.npy", "--out", run_folder), "got column 1 with one value in all rows"),
        (("fit", "digits", "--coupling", "cubic", "--out", run_folder), "one of ['additive', 'affine'"),
        (("fit", "digits", "--out", tmp_path / "odd.npy"), "expected a folder to write to"),
        (("fit", "digits", "--out", run_folder), "holds a finished run"),
        (("fit", "digits", "--log", "xml", "--out", run_folder), "one of ['csv', 'tensorboard'], got 'xml'"),
        (("score", run_folder, tmp_path / "large.npy"), r"(N, 1, 8, 8), got (3, 1, 12, 12)"),
        (("score", run_folder, tmp_path / "bright.npy"), "integers 0 to 16"),
        (("score", tmp_path, "digits"), "expected the folder of a run"),
        (("sample", run_folder, "--temperature", "0"), "positive temperature"),
        (("sample", run_folder, "-o", tmp_path / "grid.xyz"), "expected a file that ends in one of"),
        (("sample", run_folder, "-o", tmp_path / "none" / "grid.png"), "which is not there"),
    ]
    for arguments, message in cases:
        assert message in _one_line(call(*arguments, status=2))
    assert {path.name: path.read_bytes() for path in run_folder.iterdir()} == before


def test_what_is_not_a_checkpoint_is_one_line_and_status_2(
    run_folder: Path, call: Call, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "flow.safetensors"
    good = (run_folder / "flow.safetensors").read_bytes()
    flipped = bytearray(good)
    flipped[40] ^= 0xFF

    def foreign() -> None:
        save_file({"weight": torch.zeros(3)}, checkpoint)

    def other_class() -> None:
        config = {"class": "os.system", "arguments": {"command": "true"}}
        write_state({"flow": {"transform": config, "base": None}, "weights": {}, "extra": {}}, checkpoint)

    writers = [
        lambda: checkpoint.write_bytes(b"no checkpoint"),
        lambda: checkpoint.write_bytes(b""),
        lambda: checkpoint.write_bytes(good[: len(good) // 2]),
        lambda: checkpoint.write_bytes(bytes(flipped)),
        lambda: torch.save({"weight": torch.zeros(3)}, checkpoint),
        foreign,
        other_class,
    ]
    for write in writers:
        write()
        for arguments in (("sample", tmp_path), ("score", tmp_path, "digits")):
            message = _one_line(call(*arguments, status=2))
            assert "is not a checkpoint of pyroflows, or is damaged" in message


def test_usage_errors_have_status_2(call: Call) -> None:
    assert "no such command" in call("draw", status=2).lower()
    assert "-n" in call("sample", "x", "-n", "0", status=2)
