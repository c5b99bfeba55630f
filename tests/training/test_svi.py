"""`SVIModule` fits any Pyro model: against Pyro's own `SVI` and known posteriors."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyroflows import Flow, realnvp
from pyroflows.training import SVIModule
from tests.quiet import QUIET

pytestmark = pytest.mark.usefixtures("fresh_pyro")


def _fit(module: SVIModule, loader, epochs: int, **options) -> lightning.Trainer:
    trainer = lightning.Trainer(max_epochs=epochs, **QUIET, **options)
    trainer.fit(module, loader)
    return trainer


def test_the_posterior_of_a_mean_with_subsampling() -> None:
    """A conjugate model, whose posterior is known; the batch has to be scaled to the data."""
    x = 3 + 2 * torch.randn(200)

    def model(batch: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 200, subsample=batch):
            pyro.sample("x", dist.Normal(mean, 2.0), obs=batch)

    guide = AutoNormal(model)
    module = SVIModule(model, guide, optimizer=partial(torch.optim.Adam, lr=0.02))
    _fit(module, DataLoader(x, batch_size=50, shuffle=True), 150)
    precision = 1 / 100 + 200 / 4
    mean, low_high = guide.median()["mean"], guide.quantiles([0.1587, 0.8413])["mean"]
    sd = precision**-0.5
    assert mean.item() == pytest.approx(x.sum().item() / 4 / precision, abs=0.3 * sd)
    assert ((low_high[1] - low_high[0]) / 2).item() == pytest.approx(sd, rel=0.15)


def test_steps_are_those_of_pyros_svi() -> None:
    """Same parameters, same random state, same optimizer: the same losses and values as `SVI`."""
    x = torch.randn(40, 2)

    def model(batch: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        with pyro.plate("data", 40):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=batch)

    def guide(batch: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(40, 2))
        with pyro.plate("data", 40):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    pyro.set_rng_seed(1)
    for _ in range(5):
        svi.step(x)
    want = {name: pyro.param(name).detach().clone() for name in ("scale", "loc")}
    pyro.clear_param_store()
    module = SVIModule(model, guide, optimizer=partial(torch.optim.Adam, lr=0.05))

    class Seed(lightning.Callback):
        def on_train_start(self, trainer, module) -> None:
            pyro.set_rng_seed(1)

    _fit(module, DataLoader([[x]] * 5, batch_size=None), 1, callbacks=[Seed()])
    assert set(module.stored) == {"scale", "loc"}
    for name, value in want.items():
        torch.testing.assert_close(pyro.param(name), value)


class _Model(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow(realnvp(2, steps=2, hidden_features=(4,)))
        self.noise = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.flow())
            pyro.sample("x", dist.Normal(z, self.noise).to_event(1), obs=x)


def test_every_kind_of_parameter_is_trained() -> None:
    """Of a `PyroModule`, of a module named by `pyro.module`, of `pyro.param`."""
    model, outside = _Model(), Flow(realnvp(2, steps=2, context_dim=2))

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("outside", outside)
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", outside(x + shift))

    module = SVIModule(model, guide, optimizer=partial(torch.optim.Adam, lr=1e-2))
    x, y = torch.randn(32, 2), torch.randn(32)
    module.find_parameters([x, y])
    known = {id(parameter) for parameter in module.parameters()}
    parts = {
        "model": list(model.parameters()),
        "outside": list(outside.parameters()),
        "shift": [pyro.get_param_store()._params["shift"]],
    }
    assert all(id(parameter) in known for part in parts.values() for parameter in part)
    assert len(list(module.parameters())) == sum(len(part) for part in parts.values())
    before = {name: [p.detach().clone() for p in part] for name, part in parts.items()}
    _fit(module, DataLoader(TensorDataset(x, y), batch_size=16), 2)
    for name, part in parts.items():
        changed = sum(not torch.equal(p, b) for p, b in zip(part, before[name], strict=True))
        assert changed > len(part) / 2, name


def test_an_autoguide_is_made_by_the_first_batch() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    guide = AutoMultivariateNormal(model)
    module = SVIModule(model, guide)
    x, state = torch.randn(5, 3), torch.random.get_rng_state()
    module.find_parameters(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    names = {name for name, _ in module.named_parameters()}
    assert {"guide.loc", "guide.scale_unconstrained", "guide.scale_tril_unconstrained"} <= names


def test_accumulation_averages_batches() -> None:
    """Two batches a step give the step of their mean: the gradient of one batch of both."""
    x = torch.randn(8, 1)

    def model(batch: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 8, subsample=batch):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(0), obs=batch.squeeze(-1))

    locs = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        pyro.clear_param_store()
        module = SVIModule(model, optimizer=partial(torch.optim.SGD, lr=0.01))
        _fit(module, DataLoader(x, batch_size=batch_size), 3, accumulate_grad_batches=accumulate)
        locs.append(pyro.param("loc").detach())
    torch.testing.assert_close(*locs)


def test_gradients_are_clipped_and_precision_is_mixed() -> None:
    x = 100 + torch.randn(8, 2)
    flow = Flow(realnvp(2, steps=2))

    def model(batch: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", 8, subsample=batch):
            pyro.sample("x", flow(), obs=batch)

    lengths = []

    class Record(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            self.before = [parameter.detach().clone() for parameter in flow.parameters()]

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            moved = zip(flow.parameters(), self.before, strict=True)
            lengths.append(sum((p - b).square().sum() for p, b in moved).sqrt().item())

    options = {"gradient_clip_val": 0.5, "precision": "bf16-mixed", "callbacks": [Record()]}
    module = SVIModule(model, optimizer=partial(torch.optim.SGD, lr=1e-3))
    _fit(module, DataLoader(x, batch_size=8), 3, **options)
    # The gradient is long, so each step is as long as the clipped one.
    assert lengths == pytest.approx(3 * [0.5e-3], rel=1e-3)
    assert all(parameter.dtype == torch.float32 for parameter in flow.parameters())


def test_a_scheduler_and_batches_of_every_form() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x + y)

    rates = []

    class Record(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    halve = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    for batch in ({"x": torch.ones(4), "y": torch.ones(4)}, [torch.ones(4), torch.ones(4)]):
        pyro.clear_param_store()
        rates.clear()
        module = SVIModule(model, optimizer=partial(torch.optim.SGD, lr=0.08), scheduler=halve)
        _fit(module, DataLoader([batch] * 3, batch_size=None), 1, callbacks=[Record()])
        assert rates == [0.08, 0.04, 0.02]
        assert pyro.param("loc").item() > 0.5


def test_nothing_to_optimise() -> None:
    with pytest.raises(ValueError, match="with parameters, got none to optimise"):
        SVIModule(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)).configure_optimizers()


SCRIPT = """
import sys, lightning, pyro, torch
import pyro.distributions as dist
from functools import partial
from pyroflows.training import SVIModule

def model(batch):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", 32, subsample=batch):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=batch)

torch.manual_seed(0)
data, devices = torch.randn(32, 2), int(sys.argv[1])
loader = torch.utils.data.DataLoader(data, batch_size=32 // devices)
module = SVIModule(model, optimizer=partial(torch.optim.SGD, lr=0.01))
trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", devices=devices, logger=False,
                            enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(module, loader)
if trainer.is_global_zero:
    torch.save(pyro.param("loc").detach(), sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_scale_subsampling_right(tmp_path: Path) -> None:
    """Two processes with halves of the data take the steps of one with all: scales are not doubled."""
    (tmp_path / "script.py").write_text(SCRIPT)
    locs = []
    for devices in (1, 2):
        command = [sys.executable, "script.py", str(devices), f"{devices}.pt"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
        locs.append(torch.load(tmp_path / f"{devices}.pt", weights_only=True))
    assert locs[0].abs().max() > 0.01
    torch.testing.assert_close(*locs)
