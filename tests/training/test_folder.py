"""The folder of a run: one writes to it, nothing is overwritten unasked, and a run that has ended goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import pytest
import torch

from pyroflows import Flow, Run, fit, realnvp
from pyroflows.datasets import Data
from pyroflows.state import read_state
from pyroflows.training.folder import claimed
from pyroflows.training.schedule import Schedule

DATA = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
OPTIONS = {"batch_size": 20, "progress_bar": False}


def _flow() -> Flow:
    torch.manual_seed(0)
    return Flow(realnvp(2, steps=2, hidden_features=(8,)))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    fit(_flow(), DATA, out=tmp_path, max_epochs=2, **OPTIONS)
    before = _contents(tmp_path)
    assert ".lock" not in before
    with pytest.raises(ValueError, match=r"holds a finished run: go on with it by --resume .* --overwrite"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=3, **OPTIONS)
    # Nor is it lost to a mistake in the new one.
    with pytest.raises(ValueError, match="finite"):
        fit(_flow(), DATA / 0, out=tmp_path, overwrite=True, **OPTIONS)
    assert _contents(tmp_path) == before
    result = fit(_flow(), DATA, out=tmp_path, max_epochs=3, overwrite=True, **OPTIONS)
    assert len(result.losses) == json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 3
    for options in ({"overwrite": True}, {"overwrite": True, "resume": True, "out": tmp_path}):
        with pytest.raises(ValueError, match=r"overwrite \(--overwrite\) goes with out"):
            fit(_flow(), DATA, max_epochs=3, **options, **OPTIONS)


def test_what_is_overwritten_leaves_nothing_behind(tmp_path: Path) -> None:
    """A killed run is not taken for the one that was there before."""

    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer, module) -> None:
            raise InterruptedError

    fit(_flow(), DATA, out=tmp_path, max_epochs=2, **OPTIONS)
    with pytest.raises(InterruptedError):
        fit(_flow(), DATA, out=tmp_path, overwrite=True, callbacks=[Stop()], **OPTIONS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected the folder of a run"):
        Run.load(tmp_path)


SCRIPT = """
import sys, time, torch, lightning
from pathlib import Path
from pyroflows import Flow, fit, realnvp

class Wait(lightning.Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 1:
            Path(sys.argv[2]).touch()
            time.sleep(100)

torch.manual_seed(0)
flow = Flow(realnvp(2, steps=2, hidden_features=(8,)))
data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
try:
    fit(flow, data, out=sys.argv[1], max_epochs=4, batch_size=20, callbacks=[Wait()], progress_bar=False)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def _started(folder: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that writes to the folder, and waits at the end of its second epoch."""
    (tmp_path / "script.py").write_text(SCRIPT)
    here = tmp_path / "here"
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", folder, here], stdout=subprocess.PIPE, text=True
    )
    while not here.exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_the_folder_is_one_runs_alone_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = _started(folder, tmp_path)
    try:
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=r"another process writes to .*: wait for its end"):
                fit(_flow(), DATA, out=folder, max_epochs=4, **options, **OPTIONS)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ValueError, match="holds a run that has not ended: go on with it by --resume"):
        fit(_flow(), DATA, out=folder, max_epochs=4, **OPTIONS)
    fit(_flow(), DATA, out=folder, max_epochs=4, resume=True, **OPTIONS)
    assert not (folder / ".lock").exists()


def test_an_interrupt_is_one_and_the_run_goes_on(tmp_path: Path) -> None:
    """Lightning would exit, and ignore Ctrl-C for the rest of the process."""
    folder = tmp_path / "run"
    process = _started(folder, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert process.returncode == 0
    handler = signal.getsignal(signal.SIGINT)
    result = fit(_flow(), DATA, out=folder, max_epochs=4, resume=True, **OPTIONS)
    assert len(result.losses) == 4
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_processes_of_a_run_share_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed(tmp_path):
        with pytest.raises(ValueError, match="another process writes"), claimed(tmp_path):
            pass
        monkeypatch.setattr("pyroflows.training.folder.is_main_process", lambda: False)
        with claimed(tmp_path) as folder:
            assert folder == tmp_path


def test_a_lock_that_was_removed_a_moment_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its owner may have removed it."""
    from filelock import FileLock

    acquire, removed = FileLock.acquire, []

    def acquire_removed(self: FileLock) -> None:
        acquire(self)
        if not removed:
            removed.append((tmp_path / ".lock").unlink())

    monkeypatch.setattr(FileLock, "acquire", acquire_removed)
    with claimed(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"expected a folder to write to as --out \(out=\)"):
            fit(_flow(), DATA, out=folder, max_epochs=1, **OPTIONS)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"patience": None}, {"patience": 2}], ids=str)
def test_a_run_that_has_ended_goes_on_for_more_epochs(options, tmp_path: Path) -> None:
    options = {**OPTIONS, **options}
    first = fit(_flow(), DATA, out=tmp_path, max_epochs=4, **options)
    last = read_state(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"goes on from its last weights, .* not the same as one run"):
        result = fit(_flow(), DATA, out=tmp_path, max_epochs=9, resume=True, **options)
    state = read_state(tmp_path / "last.ckpt")
    epochs = len(first.losses)
    steps = 9 * epochs
    assert result.losses[:epochs] == first.losses
    assert epochs < len(result.losses) <= 9
    assert options.get("patience") == 2 or (epochs, len(result.losses)) == (4, 9)
    assert state["global_step"] > last["global_step"] == steps
    # Its own largest step is a tenth of the first's, but no score that was better is lost.
    schedule = Schedule()
    schedule.load(state["schedule"])
    before = Schedule()
    before.load(last["schedule"])
    sizes = [schedule.step_size(step) for step in range(state["global_step"])]
    assert sizes[:steps] == [before.step_size(step) for step in range(steps)]
    assert 0.05 < max(sizes[steps:]) <= 0.1
    if options.get("patience", 15) is not None:
        assert result.val_score == pytest.approx(min(result.val_losses), abs=1e-5)
    # Killed on its way, it goes on as any run does; and once it has ended it says the same again.
    again = fit(_flow(), DATA, out=tmp_path, max_epochs=9, resume=True, **options)
    assert again.losses == result.losses
    with pytest.raises(ValueError, match="was started with"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=5, resume=True, **options)


def test_a_continued_run_that_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            if (trainer.current_epoch, batch_idx) == (5, 3):
                raise InterruptedError

    flows = []
    for name, killed in (("whole", False), ("parts", True)):
        folder = tmp_path / name
        fit(_flow(), DATA, out=folder, max_epochs=3, **OPTIONS)
        if killed:
            with pytest.raises(InterruptedError), pytest.warns(UserWarning, match="goes on"):
                fit(_flow(), DATA, out=folder, max_epochs=7, resume=True, callbacks=[Stop()], **OPTIONS)
        flow = _flow()
        fit(flow, DATA, out=folder, max_epochs=7, resume=True, **OPTIONS)
        flows.append(flow)
    for a, b in zip(flows[0].parameters(), flows[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_time_of_all_parts_of_a_run_is_told(tmp_path: Path) -> None:
    first = fit(_flow(), DATA, out=tmp_path, max_epochs=3, **OPTIONS)
    state = read_state(tmp_path / "last.ckpt")
    assert 0 < state["seconds"] <= first.seconds
    result = fit(_flow(), DATA, out=tmp_path, max_epochs=3, resume=True, **OPTIONS)
    assert result.seconds > state["seconds"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the super-user writes everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="expected a folder to write to"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=1, **OPTIONS)


class _StopAt(lightning.Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, module) -> None:
        if trainer.current_epoch == self.epoch:
            raise InterruptedError


@pytest.mark.parametrize(
    "options", [{"precision": "foo"}, {"accelerator": "foo"}, {"devices": 0}, {"sample_every": 0}], ids=str
)
def test_a_wrong_option_costs_no_run(options, tmp_path: Path) -> None:
    fit(_flow(), DATA, out=tmp_path, max_epochs=1, **OPTIONS)
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match=next(iter(options)) if "precision" not in options else "foo"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=1, overwrite=True, **options, **OPTIONS)
    assert _contents(tmp_path) == before


def test_a_folder_that_was_renamed_keeps_its_best_weights(tmp_path: Path) -> None:
    """Validation data of another spread have their best epoch early."""
    options = {**OPTIONS, "lr": 0.1, "max_epochs": 8, "patience": 8, "val_data": 3 * DATA[:50]}
    whole = _flow()
    scores = fit(whole, DATA, out=tmp_path / "whole", **options).val_losses
    assert scores.index(min(scores)) < 5
    with pytest.raises(InterruptedError):
        fit(_flow(), DATA, out=tmp_path / "before", callbacks=[_StopAt(6)], **options)
    (tmp_path / "before").rename(tmp_path / "after")
    moved = _flow()
    fit(moved, DATA, out=tmp_path / "after", resume=True, **options)
    assert not (tmp_path / "before").exists()
    for a, b in zip(whole.parameters(), moved.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_flow_that_can_not_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyroflows import saving

    def full(state, path) -> None:
        raise ValueError("no space left")

    monkeypatch.setattr(saving, "write_state", full)
    with pytest.raises(ValueError, match="no space left"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=1, **OPTIONS)
    assert not (tmp_path / "metrics.json").exists()


def test_what_can_not_go_on_is_not_replaced(tmp_path: Path) -> None:
    fit(_flow(), DATA, out=tmp_path, max_epochs=1, **OPTIONS)
    (tmp_path / "last.ckpt").unlink()
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds a run without last.ckpt"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=1, resume=True, **OPTIONS)
    assert _contents(tmp_path) == before


def test_pictures_of_ones_own_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "samples.png").write_text("kept")
    (tmp_path / "flow.safetensors.mine.tmp").write_text("kept")
    with pytest.raises(ValueError, match=r"holds samples.png, which a run would replace"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=1, **OPTIONS)
    (tmp_path / "samples.png").rename(tmp_path / "mine.png")
    fit(_flow(), DATA, out=tmp_path, max_epochs=1, **OPTIONS)
    assert (tmp_path / "flow.safetensors.mine.tmp").exists()


def test_another_flow_of_the_same_shapes_can_not_go_on(tmp_path: Path) -> None:
    def flow(scale: str) -> Flow:
        torch.manual_seed(0)
        return Flow(realnvp(2, steps=2, hidden_features=(8,), scale=scale))

    fit(flow("softclip"), DATA, out=tmp_path, max_epochs=1, **OPTIONS)
    with pytest.raises(ValueError, match="another flow, made with other options"):
        fit(flow("exp"), DATA, out=tmp_path, max_epochs=2, resume=True, **OPTIONS)
    named = Data(DATA, None, None, names=("a", "b"))
    with pytest.raises(ValueError, match=r"was started with names=None, got \('a', 'b'\)"):
        fit(flow("softclip"), named, out=tmp_path, max_epochs=1, resume=True, **OPTIONS)


def test_other_validation_data_can_not_go_on(tmp_path: Path) -> None:
    fit(_flow(), DATA, DATA[:20], out=tmp_path, max_epochs=1, **OPTIONS)
    with pytest.raises(ValueError, match="was started with other data"):
        fit(_flow(), DATA, DATA[:30], out=tmp_path, max_epochs=3, resume=True, **OPTIONS)


def test_a_finished_run_that_goes_on_says_so_when_it_is_read(tmp_path: Path) -> None:
    fit(_flow(), DATA, out=tmp_path, max_epochs=2, **OPTIONS)
    assert Run.load(tmp_path).sample(2).shape == (2, 2)
    os.utime(tmp_path / "flow.safetensors", (0, 0))
    with pytest.raises(InterruptedError), pytest.warns(UserWarning, match="goes on"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=6, resume=True, callbacks=[_StopAt(4)], **OPTIONS)
    with pytest.warns(UserWarning, match=r"goes on: its flow.safetensors of before is read"):
        Run.load(tmp_path)


def test_an_exit_is_no_interrupt(tmp_path: Path) -> None:
    class Exit(lightning.Callback):
        def on_train_epoch_start(self, trainer, module) -> None:
            raise SystemExit(3)

    with pytest.raises(SystemExit) as exit_info:
        fit(_flow(), DATA, max_epochs=2, callbacks=[Exit()], **OPTIONS)
    assert exit_info.value.code == 3


@pytest.mark.parametrize("seed", [-1, 2**52])
def test_a_seed_that_is_too_large(seed: int) -> None:
    with pytest.raises(ValueError, match=f"expected a seed of 0 to 4294967295, got {seed}"):
        fit(_flow(), DATA, seed=seed, **OPTIONS)


@pytest.mark.parametrize("options", [{}, {"patience": None}, {"ema": 0.9}], ids=str)
def test_a_run_that_was_stopped_can_be_ended(options, tmp_path: Path) -> None:
    """Its results are those of the epochs that it has had; it can still go on as it was started."""
    options = {**OPTIONS, **options}
    with pytest.raises(InterruptedError):
        fit(_flow(), DATA, out=tmp_path, max_epochs=50, callbacks=[_StopAt(3)], **options)
    with pytest.raises(ValueError, match=r"max_epochs=50, got max_epochs=4: .*, or end it by max_epochs=3"):
        fit(_flow(), DATA, out=tmp_path, max_epochs=4, resume=True, **options)
    result = fit(_flow(), DATA, out=tmp_path, max_epochs=1, resume=True, **options)
    assert len(result.losses) == json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 3
    if options.get("patience", 15) is not None:
        assert result.val_score == pytest.approx(min(result.val_losses), abs=1e-5)
    assert Run.load(tmp_path).sample(2).shape == (2, 2)
    whole, parts = _flow(), _flow()
    fit(whole, DATA, max_epochs=50, **options)
    fit(parts, DATA, out=tmp_path, max_epochs=50, resume=True, **options)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
