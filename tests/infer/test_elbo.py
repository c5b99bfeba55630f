"""The path gradient: unbiased, and without variance where the guide is the posterior."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from pyroflows import Flow, realnvp
from pyroflows.infer import TraceSTL_ELBO
from pyroflows.transforms import ActNorm, Chain, InvertibleLinear

pytestmark = pytest.mark.usefixtures("fresh_pyro", "double_precision")

COVARIANCE = torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -3.0], dtype=torch.float64)


def _gaussian() -> None:
    pyro.sample("z", dist.MultivariateNormal(MEAN, COVARIANCE))


def _exact_by_parameters() -> None:
    loc = pyro.param("loc", MEAN.clone())
    tril = pyro.param("tril", torch.linalg.cholesky(COVARIANCE), constraint=constraints.lower_cholesky)
    pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))


def _exact_flow() -> Callable[[], None]:
    """A linear flow that is the Gaussian."""
    flow = Flow(Chain([InvertibleLinear(2, "full"), ActNorm(2)])).double()
    with torch.no_grad():
        flow.transform.transforms[0].weight.weight.copy_(torch.linalg.cholesky(COVARIANCE).inverse())
        flow.transform.transforms[1].bias.copy_(-MEAN)

    def guide() -> None:
        pyro.module("flow", flow)
        pyro.sample("z", flow())

    return guide


def _exact_autoguide() -> AutoMultivariateNormal:
    guide = AutoMultivariateNormal(_gaussian)
    guide()
    tril = torch.linalg.cholesky(COVARIANCE)
    with torch.no_grad():
        guide.loc.copy_(MEAN)
    guide.scale = tril.diagonal().clone()
    guide.scale_tril = tril / tril.diagonal()[:, None]
    return guide


def _hierarchical_model() -> None:
    z = pyro.sample("z", dist.Normal(1.0, 2.0))
    pyro.sample("x", dist.Normal(z, 0.5))


def _exact_hierarchy() -> None:
    z = pyro.sample(
        "z", dist.Normal(pyro.param("loc", torch.tensor(1.0)), pyro.param("sd", torch.tensor(2.0)))
    )
    pyro.sample("x", dist.Normal(z * pyro.param("slope", torch.tensor(1.0)), 0.5))


def _gradients(loss: Trace_ELBO, model: Callable, guide: Callable, draws: int) -> dict[str, Tensor]:
    """Gradients of single draws, `(draws, ...)`, by parameter."""
    loss.differentiable_loss(model, guide)
    parameters = dict(pyro.get_param_store().named_parameters())
    if isinstance(guide, torch.nn.Module):
        parameters |= dict(guide.named_parameters())
    gradients: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for _ in range(draws):
        grads = torch.autograd.grad(
            loss.differentiable_loss(model, guide), list(parameters.values()), allow_unused=True
        )
        for name, grad in zip(parameters, grads, strict=True):
            gradients[name].append(torch.zeros_like(parameters[name]) if grad is None else grad)
    return {name: torch.stack(values) for name, values in gradients.items()}


@pytest.mark.parametrize("vectorize", [False, True], ids=["loop", "vectorized"])
@pytest.mark.parametrize(
    ("model", "make"),
    [
        (_gaussian, lambda: _exact_by_parameters),
        (_gaussian, _exact_flow),
        (_gaussian, _exact_autoguide),
        (_hierarchical_model, lambda: _exact_hierarchy),
    ],
    ids=["parameters", "flow", "autoguide", "hierarchy"],
)
def test_no_variance_where_the_guide_is_the_posterior(model, make, vectorize: bool) -> None:
    guide = make()
    options = {"num_particles": 3, "vectorize_particles": vectorize, "max_plate_nesting": 0}
    stl = _gradients(TraceSTL_ELBO(**options), model, guide, 20)
    plain = _gradients(Trace_ELBO(**options), model, guide, 20)
    assert stl
    for gradients in stl.values():
        assert gradients.abs().max() < 1e-9
    # With the score, which is not left out there, single gradients are anything but zero.
    assert max(gradients.abs().max() for gradients in plain.values()) > 0.1


def _plates(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 10, subsample_size=4):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.StudentT(4.0, z, 0.5), obs=x[:4])


def _amortized(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("mean", dist.Normal(loc, 0.5))
    with pyro.plate("data", 10, subsample_size=4):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.8)) * x[:4], 0.6))


def test_the_mean_is_that_of_the_usual_gradient() -> None:
    """With plates, subsampling and a guide that is not the posterior; five standard errors."""
    x = torch.randn(10)
    model, guide = (lambda: _plates(x)), (lambda: _amortized(x))
    options = {"num_particles": 10}
    stl = _gradients(TraceSTL_ELBO(**options), model, guide, 400)
    plain = _gradients(Trace_ELBO(**options), model, guide, 400)
    for name in ("loc", "slope"):
        a, b = stl[name], plain[name]
        error = ((a.var() + b.var()) / 400).sqrt()
        assert (a.mean() - b.mean()).abs() < 5 * error, name
        assert b.mean().abs() > 10 * error


def test_the_loss_is_the_usual_one() -> None:
    for vectorize in (False, True):
        options = {"num_particles": 5, "vectorize_particles": vectorize, "max_plate_nesting": 0}
        losses = []
        for kind in (Trace_ELBO, TraceSTL_ELBO):
            pyro.set_rng_seed(3)
            losses.append(float(kind(**options).differentiable_loss(_gaussian, _exact_by_parameters)))
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, AutoIAFNormal])
def test_pyros_autoguides_are_trained(make) -> None:
    """The path gradient finds the Gaussian: its mean to the last digits, as no noise is left there."""
    guide = make(_gaussian)
    svi = SVI(_gaussian, guide, pyro.optim.Adam({"lr": 0.05}), TraceSTL_ELBO(num_particles=4))
    losses = [svi.step() for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_a_flow_inside_a_pyro_module() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = Flow(realnvp(2, steps=2)).double()

        def forward(self) -> None:
            pyro.sample("z", self.flow())

    guide = Guide()
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    svi = SVI(_gaussian, guide, pyro.optim.Adam({"lr": 0.01}), TraceSTL_ELBO(num_particles=4))
    svi.step()
    svi.step()
    changed = [not torch.equal(p, b) for p, b in zip(guide.parameters(), before, strict=True)]
    assert sum(changed) > len(changed) / 2


def test_what_is_not_reparameterized() -> None:
    def guide() -> None:
        pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    with pytest.raises(ValueError, match=r"reparameterized draws, got Bernoulli.* for 'k': use Trace_ELBO"):
        TraceSTL_ELBO().differentiable_loss(lambda: pyro.sample("k", dist.Bernoulli(0.3)), guide)
