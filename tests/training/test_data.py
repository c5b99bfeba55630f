"""Whatever data come as; and two processes see what one sees."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from pyroflows import Flow, fit, realnvp
from pyroflows.training import score
from pyroflows.training.batches import Batches
from pyroflows.transforms import Chain


@given(
    n=st.integers(1, 50),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 3),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_processes_share_out_what_one_would_see(n, batch_size, world_size, epoch, shuffle) -> None:
    def of(rank: int, world: int, size: int) -> list[list[int]]:
        options = {"seed": 5, "epoch": lambda: epoch, "shuffle": shuffle}
        return list(Batches(n, size, rank=rank, world_size=world, **options))

    one = of(0, 1, batch_size * world_size)
    several = [of(rank, world_size, batch_size) for rank in range(world_size)]
    for step, batch in enumerate(one):
        together = [i for own in several if step < len(own) for i in own[step]]
        assert sorted(together) == sorted(batch)
    seen = [i for batch in one for i in batch]
    assert len(set(seen)) == len(seen)
    if not shuffle:
        assert seen == list(range(n))


def test_each_epoch_has_its_order() -> None:
    orders = [list(Batches(20, 5, epoch=lambda e=e: e, shuffle=True)) for e in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def _data() -> torch.Tensor:
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def _fitted(data, **options) -> list[torch.Tensor]:
    torch.manual_seed(0)
    flow = Flow(realnvp(2, steps=2, hidden_features=(8,)))
    fit(flow, data, max_epochs=2, batch_size=16, progress_bar=False, **options)
    return [parameter.detach() for parameter in flow.parameters()]


def test_tensors_arrays_and_datasets_are_the_same() -> None:
    want = _fitted(_data())
    assert all(torch.equal(a, b) for a, b in zip(_fitted(_data().numpy()), want, strict=True))
    # A short table in memory is fitted once more to all of its rows, a dataset is not.
    want = _fitted(_data(), val_fraction=0)
    for data in (TensorDataset(_data()), list_dataset(_data())):
        assert all(torch.equal(a, b) for a, b in zip(_fitted(data, val_fraction=0), want, strict=True))
    loader = DataLoader(_data(), batch_size=16, shuffle=True)
    with pytest.warns(UserWarning, match="nothing is held out of a DataLoader"):
        assert not all(torch.equal(a, b) for a, b in zip(_fitted(loader), want, strict=True))
    flow = Flow(realnvp(2))
    assert score(flow, loader) == pytest.approx(score(flow, _data()), abs=1e-5)


def test_a_file_and_its_test_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=_data().numpy(), x_test=_data()[:10].numpy())
    flow = Flow(realnvp(2))
    result = fit(flow, tmp_path / "x.npz", max_epochs=1, progress_bar=False)
    assert result.test_score == pytest.approx(score(flow, _data()[:10]), abs=1e-5)


def list_dataset(data: torch.Tensor) -> torch.utils.data.Dataset:
    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> torch.Tensor:
            return data[index]

    return Items()


def test_contexts_in_a_dataset() -> None:
    context = torch.randn(64, 3)
    flow = Flow(realnvp(2, context_dim=3))
    want = score(flow, _data(), context=context)
    assert score(flow, TensorDataset(_data(), context)) == pytest.approx(want, abs=1e-6)
    fit(flow, TensorDataset(_data(), context), max_epochs=1, progress_bar=False)


BAD = [
    ([1, 2], r"a pandas or polars frame, a Dataset with a length or a DataLoader, got <class 'list'>"),
    ("missing.npz", "no such file"),
    (np.full((3, 2), np.nan, np.float32), "got nan in column 0, row 0"),
    (np.zeros((3, 4), np.float32), r"data of shape \(N, 2\), got \(3, 4\)"),
    (TensorDataset(torch.zeros(4, 3)), r"data of shape \(N, 2\), got \(1, 3\)"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_bad_data(data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Flow(realnvp(2)), data, progress_bar=False)
    with pytest.raises(ValueError, match="context= goes with a tensor"):
        fit(Flow(realnvp(2)), TensorDataset(torch.zeros(4, 2)), context=torch.zeros(4, 1), progress_bar=False)


SCRIPT = """
import sys, lightning, torch
from pyroflows import Flow, fit, glow
from pyroflows.training.trainer import is_main_process

class Record(lightning.Callback):
    gradients = []
    def on_after_backward(self, trainer, module):
        # Each process of an FSDP fit has a part.
        self.gradients.append([getattr(p.grad, "full_tensor", p.grad.clone)() for p in module.parameters()])

devices, batch_size, strategy, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(0)
data = torch.randn(70, 2, 4, 4, dtype=torch.float64)
flow = Flow(glow((2, 4, 4), levels=2, steps=1, hidden_channels=8)).double()
result = fit(flow, data, data[:11], max_epochs=2, batch_size=batch_size, accelerator="cpu", devices=devices,
             strategy=strategy, callbacks=[Record()], patience=2, progress_bar=False)
if is_main_process():
    torch.save((Record.gradients, result.losses, result.val_losses, result.val_score), path)
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_two_processes_give_the_gradient_of_one_with_twice_the_batch(strategy: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    results = []
    for devices, batch_size, how in ((1, 16, "auto"), (2, 8, strategy)):
        command = [sys.executable, "script.py", str(devices), str(batch_size), how, f"{devices}.pt"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
        results.append(torch.load(tmp_path / f"{devices}.pt", weights_only=True))
    (one, *one_scores), (two, *two_scores) = results
    assert len(one) == len(two) == 2 * (70 // 16)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=0)
    for a, b in zip(one_scores, two_scores, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_reals_of_any_dtype() -> None:
    """Tables, of integers too, and flows of either precision; bounded data are cast, not standardised."""
    options = {"max_epochs": 1, "progress_bar": False}
    for data in (_data().half(), _data().double(), _data().double().numpy(), (9 * _data()).long()):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="whole numbers")
            for flow in (Flow(realnvp(2)), Flow(realnvp(2)).double()):
                result = fit(flow, data, test_data=data, **options)
                assert result.test_score == pytest.approx(score(flow, data), abs=1e-5)
    positive = Flow(Chain([realnvp(2), torch.distributions.ExpTransform()]))
    assert fit(positive, _data().double().exp(), **options).n_not_finite == 0


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_very_few_rows(rows: int) -> None:
    result = fit(Flow(realnvp(3)), torch.randn(rows, 3), max_epochs=2, progress_bar=False)
    assert result.n_not_finite == 0
    assert math.isfinite(result.baseline.score(torch.zeros(1, 3)))


def test_contexts_that_are_not_finite() -> None:
    context = torch.zeros(64, 1)
    context[7] = torch.inf
    with pytest.raises(ValueError, match=r"expected finite contexts, got inf in element \(0,\), row 7"):
        fit(Flow(realnvp(2, context_dim=1)), _data(), context=context, progress_bar=False)


def test_complex_and_boolean_data() -> None:
    for data in (torch.zeros(4, 2, dtype=torch.complex64), torch.zeros(4, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="expected data of reals or integers, got torch"):
            fit(Flow(realnvp(2)), data, grey_levels=2, progress_bar=False)


def test_columns_that_a_float32_can_not_hold() -> None:
    data = torch.stack([1e9 + 1e-3 * torch.randn(40).double(), torch.randn(40).double()], -1)
    with pytest.warns(UserWarning, match=r"samples of columns \[0\] lose digits") as caught:
        fit(Flow(realnvp(2)), data, max_epochs=5, progress_bar=False)
    # Its inverse is none the worse.
    assert not any("inverse" in str(warning.message) for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Flow(realnvp(2)).double(), data, max_epochs=1, progress_bar=False)
