"""A fit that goes wrong says so."""

import warnings
from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor

from pyroflows import Flow, fit, glow, realnvp
from pyroflows.state import read_state
from pyroflows.training.callbacks import first_non_finite, round_trip_error
from pyroflows.transforms import ActNorm, Chain, FlowTransform, InvertibleLinear


class _Root(FlowTransform):
    """Not finite for data below -3."""

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return z**2 - 3, (2 * z).abs().log().sum(-1)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z = (x + 3).sqrt()
        return z, -(2 * z).abs().log().sum(-1)


class _NoInverse(ActNorm):
    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = super()._forward_and_ladj(z, context)
        return x + 0.1, ladj


def test_the_first_transform_that_is_not_finite_is_named() -> None:
    flow = Flow(Chain([ActNorm(2), _Root(2), InvertibleLinear(2), ActNorm(2)]))
    found = first_non_finite(flow, torch.full((3, 2), -50.0))
    assert found == "the first output that is not finite is of transform.transforms.1 (_Root)"
    assert first_non_finite(flow, torch.tensor([[0.0, float("nan")]])) == "the data themselves are not finite"
    assert "the base's log-density" in first_non_finite(Flow(ActNorm(2)), torch.zeros(1, 2))
    # Nothing of the search is left.
    assert all("_inverse_and_ladj" not in vars(module) for module in flow.modules())


def test_a_loss_that_is_not_finite_stops_the_fit(tmp_path: Path) -> None:
    """In its third epoch data arrive that the flow can't take; the second's checkpoint is kept."""
    epochs = []

    class Data(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Tensor:
            epochs.append(index)
            return torch.tensor([1.0, 1.1]) * (-50.0 if len(epochs) > 8 + 8 + 8 + 20 else 1.0 + index)

    flow = Flow(Chain([ActNorm(2), _Root(2)]))
    with pytest.raises(
        FloatingPointError, match=r"the loss is .* in epoch 2; .* is of transform.transform.transforms.1"
    ):
        fit(flow, Data(), val_fraction=0, max_epochs=5, batch_size=4, out=tmp_path, progress_bar=False)
    assert len(read_state(tmp_path / "last.ckpt")["losses"]) == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A gradient may be infinite where the loss is not: here in the last step of the second epoch."""

    class Break(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            if trainer.global_step == 3:
                module.flow.transform.transform.bias.grad.fill_(torch.inf)

    with pytest.raises(
        FloatingPointError, match=r"model.transform.transform.bias is not finite at step 4, in epoch 1"
    ):
        fit(
            Flow(ActNorm(2)),
            torch.randn(8, 2),
            val_fraction=0,
            max_epochs=3,
            batch_size=4,
            out=tmp_path,
            callbacks=[Break()],
            progress_bar=False,
        )
    state = read_state(tmp_path / "last.ckpt")
    assert len(state["losses"]) == 1
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_an_inverse_that_is_none_is_warned_of_once() -> None:
    flow = Flow(Chain([_NoInverse(2), InvertibleLinear(2)]))
    with pytest.warns(
        UserWarning, match=r"after epoch 0 the flow's inverse is not one: .* differ by 0."
    ) as caught:
        fit(flow, torch.randn(400, 2), max_epochs=3, progress_bar=False)
    assert sum("inverse is not one" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(Flow(realnvp(2)), torch.randn(64, 2), max_epochs=1, progress_bar=False)


def test_round_trip_error() -> None:
    x = torch.randn(5, 3, 8, 8)
    assert round_trip_error(Flow(glow((3, 8, 8), steps=2, hidden_channels=8)), x) < 1e-4
    assert round_trip_error(Flow(_NoInverse((3, 8, 8))), x) == pytest.approx(0.1, abs=1e-5)


def test_pictures_during_and_after_a_fit(tmp_path: Path) -> None:
    seen = []

    class Look(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Tensor:
            seen.append((tmp_path / "samples.png").exists())
            return torch.randn(2)

    options = {"val_fraction": 0, "max_epochs": 3, "batch_size": 8, "sample_every": 2, "progress_bar": False}
    fit(Flow(realnvp(2)), Look(), out=tmp_path, **options)
    # It is written before the third epoch, not before the second.
    assert 8 <= sum(seen) <= 16
    assert {file.name for file in tmp_path.iterdir()} == {
        "density.png", "flow.safetensors", "last.ckpt", "losses.png", "metrics.json", "samples.png"
    }  # fmt: skip
