"""The unconstrained log density against the one written by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroflows.infer import AutoFlow

pytestmark = pytest.mark.usefixtures("fresh_pyro")

X = torch.tensor([[0.3, 1.2, -0.4], [2.0, 0.1, 0.9]])


def _model(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", 2, dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(mean.unsqueeze(-1) + torch.zeros(3), 0.5).to_event(1), obs=x)


def _by_hand(u: Tensor, x: Tensor) -> Tensor:
    scale, mean = u[..., 0].exp(), u[..., 1:]
    normal = dist.Normal
    return (
        dist.LogNormal(0.0, 1.0).log_prob(scale)
        + u[..., 0]
        + normal(torch.zeros_like(mean), scale.unsqueeze(-1)).log_prob(mean).sum(-1)
        + normal(mean.unsqueeze(-1), 0.5).log_prob(x).sum((-2, -1))
    )


def test_it_is_the_density_by_hand() -> None:
    log_density = AutoFlow(_model, init="prior").log_density(X)
    u = torch.randn(5, 3)
    torch.testing.assert_close(log_density(u), _by_hand(u, X))
    torch.testing.assert_close(log_density(u[0]), _by_hand(u[0], X))
    torch.testing.assert_close(log_density.one_by_one(u), _by_hand(u, X))
    assert log_density.broadcasts(u)


def test_rows_without_a_density_say_nothing_of_the_others() -> None:
    def truncated() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.factor("x", torch.where(u < 0, -torch.inf, 0.0))

    log_density = AutoFlow(truncated, init="prior").log_density()
    assert log_density.broadcasts(torch.tensor([[-1.0], [1.0]]))
    # Where there are no others, one by one is right whatever the model is.
    assert not log_density.broadcasts(torch.tensor([[-1.0], [-2.0]]))


def test_rows_that_overflow_in_another_way_together_are_alike() -> None:
    def overflows() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.factor("x", torch.where(u < 0, torch.nan if u.dim() else -torch.inf, 0.0))

    log_density = AutoFlow(overflows, init="prior").log_density()
    assert log_density.broadcasts(torch.tensor([[-1.0], [1.0]]))


def test_a_model_that_mixes_its_draws_does_not_broadcast() -> None:
    def mixing() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        # The mean over all draws, where the one of each draw's elements was meant.
        pyro.sample("x", dist.Normal(z.mean(), 1.0), obs=torch.tensor(1.0))

    log_density = AutoFlow(mixing, init="prior").log_density()
    assert not log_density.broadcasts(torch.randn(3, 2))


def test_it_names_the_models_own_parameters() -> None:
    def learned() -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(0.0, scale))

    log_density = AutoFlow(learned, init="prior").log_density()
    log_density(torch.zeros(1))
    (parameter,) = log_density.parameters
    assert parameter is pyro.param("scale").unconstrained()


def test_no_handler_of_the_caller_sees_it() -> None:
    guide = AutoFlow(_model, init="prior")
    with pyro.poutine.trace() as seen, pyro.plate("outer", 7, dim=-2):
        value = guide.log_density(X)(torch.zeros(3))
        values = guide.log_density(X)(torch.zeros(5, 3))
    assert value.shape == ()
    assert values.shape == (5,)
    torch.testing.assert_close(values, value.expand(5))
    # The plate around the call alone.
    assert [name for name, site in seen.trace.nodes.items() if site["type"] == "sample"] == ["outer"]
