"""A fit that was interrupted goes on to the same weights; checkpoints hold what they should."""

import os
from pathlib import Path

import lightning
import pytest
import torch

from pyroflows import Flow, fit, glow
from pyroflows.state import read_state
from pyroflows.training import FitResult
from tests.benchmarks.kill_and_resume import count_equal

DATA = torch.randint(0, 17, (220, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class _Interrupt(lightning.Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            raise InterruptedError


def _run(folder: Path, **options) -> tuple[Flow, FitResult]:
    torch.manual_seed(0)
    flow = Flow(glow((1, 4, 4), levels=2, steps=1, hidden_channels=8, dropout=0.2))
    # An epoch of 25 steps, each of which is evaluated.
    options = {"grey_levels": 17, "max_epochs": 4, "batch_size": 8, "progress_bar": False, **options}
    return flow, fit(flow, DATA[:200], DATA[200:], out=folder, **options)


OPTIONS = [
    {},
    {"ema": 0.9},
    {"patience": 2, "lr": 0.05, "max_epochs": 12},  # which ends before its last epoch
    {"patience": None},
    {"patience": 2, "ema": 0.9},
    {"batch_size": 64, "max_epochs": 8},  # several epochs between two evaluations
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_interrupted_and_resumed_is_the_same_bit_for_bit(options, tmp_path: Path) -> None:
    flow, result = _run(tmp_path / "whole", **options)
    assert "lr" not in options or len(result.losses) < options["max_epochs"]
    for at in ((0, 2), (1, 0), (2, 2)):
        with pytest.raises(InterruptedError):
            _run(tmp_path / "parts", resume=True, callbacks=[_Interrupt(*at)], **options)
    # Once to the end, and once more when there is nothing left to do.
    for _ in range(2):
        other, again = _run(tmp_path / "parts", resume=True, **options)
        for name, value in flow.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
        assert (again.losses, again.val_losses) == (result.losses, result.val_losses)
    assert result.path == tmp_path / "whole"


def test_a_loader_of_the_users_own_goes_on_in_the_same_order(tmp_path: Path) -> None:
    def run(folder: Path, **options) -> Flow:
        torch.manual_seed(0)
        flow = Flow(glow((1, 4, 4), levels=2, steps=1, hidden_channels=8))
        loader = torch.utils.data.DataLoader(DATA, batch_size=50, shuffle=True)
        fit(flow, loader, grey_levels=17, max_epochs=3, out=folder, progress_bar=False, **options)
        return flow

    flow = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", callbacks=[_Interrupt(1, 1)])
    other = run(tmp_path / "parts", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """By SIGKILL; tests/benchmarks/kill_and_resume.py does this fifty times."""
    finished, equal, killed = count_equal(6, tmp_path, seed=1)
    assert (finished, equal) == (6, 6)
    assert killed > 0


def test_patience_stops_and_goes_back_to_the_best(tmp_path: Path) -> None:
    """With a held-out set of noise the fit soon gets worse."""
    torch.manual_seed(0)
    flow = Flow(glow(2, steps=2))
    data, other = torch.randn(64, 2), 3 * torch.randn(64, 2)
    result = fit(flow, data, other, max_epochs=60, lr=1e-2, patience=3, progress_bar=False)
    best = min(result.val_losses)
    assert result.val_score == pytest.approx(best, abs=1e-5)
    assert result.path is None


def test_an_average_of_the_weights_is_what_is_left() -> None:
    """Against the average by hand, of the weights after every step."""
    torch.manual_seed(0)
    flow, data = Flow(glow(2, steps=1)), torch.randn(64, 2)

    class Average(lightning.Callback):
        def __init__(self) -> None:
            self.weights: list[torch.Tensor] | None = None

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            now = [p.detach().clone() for p in module.parameters()]
            if self.weights is None:
                self.weights = now
            else:
                self.weights = [0.8 * a + 0.2 * b for a, b in zip(self.weights, now, strict=True)]

    average = Average()
    options = {"max_epochs": 3, "batch_size": 16, "val_fraction": 0, "progress_bar": False}
    fit(flow, data, ema=0.8, callbacks=[average], **options)
    for got, want in zip(flow.parameters(), average.weights, strict=True):
        torch.testing.assert_close(got.detach(), want)


def test_other_options_can_not_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        _run(tmp_path, callbacks=[_Interrupt(1, 0)])
    with pytest.raises(ValueError, match=r"started with lr=0.002, got lr=0.1: go on with the same options"):
        _run(tmp_path, resume=True, lr=0.1)
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not a checkpoint of pyroflows, or is damaged"):
        _run(tmp_path, resume=True)


def test_other_data_or_another_flow_can_not_be_resumed(tmp_path: Path) -> None:
    """Neither a run that was interrupted nor one that has ended."""
    options = {"grey_levels": 17, "max_epochs": 1, "progress_bar": False, "out": tmp_path, "resume": True}

    def flow(steps: int = 1) -> Flow:
        return Flow(glow((1, 4, 4), levels=2, steps=steps, hidden_channels=8))

    fit(flow(), DATA[:200], **options)
    for data in (DATA[:199], DATA[20:], DATA[:200].flip(0)):
        with pytest.raises(ValueError, match="was started with other data"):
            fit(flow(), data, **options)
    with pytest.raises(ValueError, match="has another flow, which differs in"):
        fit(flow(steps=2), DATA[:200], **options)
    fit(flow(), DATA[:200], **options)


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 2:  # the first epoch writes two, the best and the last
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"could not write .* to .*ckpt: No space left on device"):
        _run(tmp_path)
    assert len(read_state(tmp_path / "last.ckpt")["losses"]) == 1


def test_a_checkpoint_is_read_without_running_code(tmp_path: Path) -> None:
    _run(tmp_path, max_epochs=1)
    state = read_state(tmp_path / "last.ckpt")
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "losses"} <= set(state)


BAD = [
    ({"resume": True}, "resume=True needs out="),
    ({"patience": 0}, "patience is a number of epochs, at least 1, or None, got 0"),
    ({"val_fraction": 1.0}, "val_fraction of at least 0 and below 1, got 1.0"),
    ({"ema": 1.0}, "ema between 0 and 1"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Flow(glow(2)), torch.zeros(4, 2), progress_bar=False, **options)
