"""One flow object as likelihood, prior, guide and reparameterization in Pyro, against known numbers."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule
from torch import Tensor

from pyroflows import Flow, glow, nice, realnvp
from pyroflows.transforms import ActNorm, Chain, InvertibleConv1x1, InvertibleLinear, Reshape, coupling

pytestmark = pytest.mark.usefixtures("fresh_pyro", "double_precision")


def _linear_flow(size: int) -> Flow:
    """A flow whose distribution is exactly a Gaussian."""
    flow = Flow(Chain([InvertibleLinear((size,)), ActNorm((size,))]))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def _linear_image_flow() -> Flow:
    flow = Flow(Chain([Reshape((8,), (2, 2, 2)), InvertibleConv1x1((2, 2, 2)), ActNorm((2, 2, 2))]))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def _gaussian(flow: Flow) -> dist.MultivariateNormal:
    """The Gaussian that a flow with a linear transform is, by autograd's Jacobian."""
    zero = torch.zeros(flow.transform.latent_shape)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.transform(z).flatten(), zero)
    with torch.no_grad():
        mean = flow.transform(zero).flatten()
    return dist.MultivariateNormal(mean, jacobian @ jacobian.T)


def _posterior(prior: dist.MultivariateNormal, x: Tensor, noise: float) -> dist.MultivariateNormal:
    """Of z ~ prior given x = z + noise * eps."""
    precision = prior.precision_matrix + torch.eye(len(x)) / noise**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (prior.precision_matrix @ prior.mean + x / noise**2)
    return dist.MultivariateNormal(mean, covariance)


def _evidence(prior: dist.MultivariateNormal, x: Tensor, noise: float) -> Tensor:
    covariance = prior.covariance_matrix + noise**2 * torch.eye(len(x))
    return dist.MultivariateNormal(prior.mean, covariance).log_prob(x)


# (a) As a likelihood


def test_likelihood_in_a_plate_with_subsampling_is_scaled() -> None:
    flow, data = _linear_flow(3), torch.randn(20, 3)

    def model(data: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(data), subsample_size=5) as rows:
            pyro.sample("x", flow(), obs=data[rows])

    trace = poutine.trace(model).get_trace(data)
    rows = trace.nodes["data"]["value"]
    expected = 20 / 5 * _gaussian(flow).log_prob(data[rows]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected, atol=1e-9, rtol=0)


def test_likelihood_trained_by_svi_finds_the_gaussian() -> None:
    mean, factor = (
        torch.tensor([1.0, -2.0, 0.5]),
        torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.4, 0.3, 2.0]]),
    )
    data = mean + torch.randn(500, 3) @ factor.T
    flow = Flow(Chain([InvertibleLinear((3,)), ActNorm((3,))]))
    flow.initialize(data)

    def model(data: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(data), subsample_size=100) as rows:
            pyro.sample("x", flow(), obs=data[rows])

    steps = 600
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(model, lambda data: None, optimizer, Trace_ELBO())
    for _ in range(steps):
        svi.step(data)
    fitted = _gaussian(flow)
    best = dist.MultivariateNormal(data.mean(0), data.T.cov(correction=0))
    # The maximum-likelihood Gaussian is the best of its family; minibatches leave a little.
    excess = torch.distributions.kl_divergence(best, fitted).item()
    assert 0 <= excess < 0.005


# (b) As a learnable prior


@pytest.mark.parametrize("make", [partial(_linear_flow, 3), _linear_image_flow], ids=["vector", "image"])
@pytest.mark.parametrize("vectorize", [False, True])
def test_prior_gives_the_evidence(make, vectorize: bool) -> None:
    """With the exact posterior as the guide, every draw of the ELBO is the evidence."""
    flow = make()
    shape, noise = flow.transform.event_shape, 0.5
    x = torch.randn(shape)
    posterior = _posterior(_gaussian(flow), x.flatten(), noise)

    def model() -> None:
        pyro.module("flow", flow)
        z = pyro.sample("z", flow())
        pyro.sample("x", dist.Normal(z, noise).to_event(len(shape)), obs=x)

    def guide() -> None:
        reshape = dist.transforms.ReshapeTransform((shape.numel(),), shape)
        pyro.sample("z", dist.TransformedDistribution(posterior, [reshape]))

    elbo = Trace_ELBO(num_particles=4, vectorize_particles=vectorize, max_plate_nesting=0)
    loss = elbo.loss(model, guide)
    assert loss == pytest.approx(-_evidence(_gaussian(flow), x.flatten(), noise).item(), abs=1e-8)


def test_prior_learns_the_evidences_gradient() -> None:
    flow, noise = _linear_flow(2), 0.5
    x = torch.randn(2)
    parameters = list(flow.parameters())

    def model() -> None:
        pyro.module("flow", flow)
        z = pyro.sample("z", flow())
        pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    posterior = _posterior(_gaussian(flow), x, noise)
    guide_loc, guide_scale_tril = posterior.mean.detach(), posterior.scale_tril.detach()

    def guide() -> None:
        pyro.sample("z", dist.MultivariateNormal(guide_loc, scale_tril=guide_scale_tril))

    # At the exact posterior the ELBO's expected gradient is the evidence's (Fisher's identity).
    elbo = Trace_ELBO(num_particles=100_000, vectorize_particles=True, max_plate_nesting=0)
    got = torch.autograd.grad(-elbo.differentiable_loss(model, guide), parameters)

    zero = torch.zeros(2)
    jacobian = torch.stack(
        [
            torch.autograd.grad(flow.transform(z)[i], z, create_graph=True)[0]
            for i in range(2)
            for z in [zero.clone().requires_grad_()]
        ]
    )
    marginal = dist.MultivariateNormal(flow.transform(zero), jacobian @ jacobian.T + noise**2 * torch.eye(2))
    want = torch.autograd.grad(marginal.log_prob(x), parameters)
    for got_part, want_part in zip(got, want, strict=True):
        # 100,000 draws: a standard error of about 0.003 times the spread of a draw's gradient, up to 3.
        torch.testing.assert_close(got_part, want_part, atol=0.05, rtol=0)


def test_predictive_draws_from_the_prior() -> None:
    flow = _linear_image_flow()

    def model() -> None:
        pyro.sample("z", flow())

    draws = Predictive(model, num_samples=20_000, parallel=True)()["z"]
    assert draws.shape == (20_000, 2, 2, 2)
    want = _gaussian(flow)
    flat = draws.flatten(1)
    scale = want.covariance_matrix.diagonal().max().sqrt()
    # Five standard errors of a mean and of a covariance.
    torch.testing.assert_close(flat.mean(0), want.mean, atol=5 * scale.item() / 20_000**0.5, rtol=0)
    error = 5 * 2**0.5 * scale.item() ** 2 / 20_000**0.5
    torch.testing.assert_close(flat.T.cov(), want.covariance_matrix, atol=error, rtol=0)


# (c) As a guide's distribution


@pytest.mark.parametrize("vectorize", [False, True])
def test_guide_finds_the_posterior(vectorize: bool) -> None:
    prior = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.9 * (1 - torch.eye(3)))
    x, noise = torch.tensor([1.0, -1.0, 2.0]), 0.7
    flow = Flow(Chain([InvertibleLinear((3,)), ActNorm((3,))]))

    def model() -> None:
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def guide() -> None:
        pyro.module("flow", flow)
        pyro.sample("z", flow())

    steps = 1000
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / steps)})
    elbo = Trace_ELBO(
        num_particles=16 if vectorize else 2, vectorize_particles=vectorize, max_plate_nesting=0
    )
    svi = SVI(model, guide, optimizer, elbo)
    for _ in range(steps):
        svi.step()
    divergence = torch.distributions.kl_divergence(_gaussian(flow), _posterior(prior, x, noise))
    assert 0 <= divergence < (0.01 if vectorize else 0.03)


# (d) Behind AutoNormalizingFlow and NeuTra


def _banana() -> None:
    """Not Gaussian, with known moments: a ~ N(0, 1), b ~ N(a^2, 0.5^2)."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a**2, 0.5))


BANANA = {"a": (0.0, 1.0), "b": (1.0, (2 + 0.25) ** 0.5)}


@pytest.mark.slow
def test_autonormalizingflow_and_neutra() -> None:
    guide = AutoNormalizingFlow(_banana, partial(realnvp, steps=6, hidden_features=(32, 32)))
    steps = 1500
    optimizer = pyro.optim.ClippedAdam({"lr": 5e-3, "lrd": 0.05 ** (1 / steps)})
    svi = SVI(_banana, guide, optimizer, Trace_ELBO(num_particles=64, vectorize_particles=True))
    for _ in range(steps):
        svi.step()
    # The ELBO of a normalised density is minus the divergence of the guide from it.
    elbo = Trace_ELBO(num_particles=4000, vectorize_particles=True)
    assert -0.01 < elbo.loss(_banana, guide) < 0.05
    with torch.no_grad():
        draws = Predictive(guide, num_samples=4000, parallel=True)()
    for name, (mean, sd) in BANANA.items():
        assert draws[name].mean().item() == pytest.approx(mean, abs=0.15 * sd)
        assert draws[name].std().item() == pytest.approx(sd, rel=0.15)

    guide.requires_grad_(False)
    neutra = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(neutra.reparam(_banana)), num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    (latent,) = mcmc.get_samples().values()
    draws = neutra.transform_sample(latent)
    for name, (mean, sd) in BANANA.items():
        # 400 nearly independent draws: five standard errors.
        assert draws[name].mean().item() == pytest.approx(mean, abs=5 * sd / 400**0.5)
        assert draws[name].std().item() == pytest.approx(sd, rel=0.25)


def test_neutra_keeps_the_density() -> None:
    """log p(z) in the warped space is that of the model plus the transform's ladj, by autograd's Jacobian."""
    guide = AutoNormalizingFlow(_banana, partial(realnvp, steps=2, hidden_features=(8,)))
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    neutra = NeuTraReparam(guide)
    model = neutra.reparam(_banana)
    trace = poutine.trace(model).get_trace()
    z = trace.nodes["a_shared_latent"]["value"].detach()
    jacobian = torch.autograd.functional.jacobian(guide.transform, z)
    a, b = guide.transform(z)
    log_density = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a**2, 0.5).log_prob(b)
    expected = log_density + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(trace.log_prob_sum(), expected, atol=1e-9, rtol=0)


# (e) Parameters


def test_parameters_reach_the_store_by_module() -> None:
    flow = _linear_flow(3)

    def model(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("x", flow(), obs=x)

    x = torch.randn(10, 3)
    before = {name: parameter.detach().clone() for name, parameter in flow.named_parameters()}
    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x)
    store = pyro.get_param_store()
    assert set(store.keys()) == {f"flow$$${name}" for name in before}
    for name, parameter in flow.named_parameters():
        assert store[f"flow$$${name}"] is parameter
        assert (parameter != before[name]).any()


def test_two_flows_that_nobody_named_are_both_trained() -> None:
    """Pyro alone would call the parameters of both `transform$$$...`, and train the first."""
    prior, posterior = _linear_flow(2), _linear_flow(2)
    prior().sample()
    assert len(pyro.get_param_store()) == 0  # sampling outside of inference registers nothing

    def model() -> None:
        z = pyro.sample("z", prior())
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=torch.ones(2))

    def guide() -> None:
        pyro.sample("z", posterior())

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    before = [p.detach().clone() for p in (*prior.parameters(), *posterior.parameters())]
    svi.step()
    after = [*prior.parameters(), *posterior.parameters()]
    assert all((b != a).any() for b, a in zip(before, after, strict=True))
    svi.step()
    assert len(pyro.get_param_store()) == len(after)


def test_parameters_reach_the_store_as_an_attribute() -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = Flow(glow(3, steps=1, hidden_features=(4,)))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", self.flow(), obs=x)

    model, x = Model(), torch.randn(10, 3)
    model.flow.initialize(x)
    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(100)]
    assert losses[-1] < losses[0]
    # The loss is the likelihood that the flow itself reports, after the step before.
    loss = svi.evaluate_loss(x)
    assert loss == pytest.approx(-model.flow().log_prob(x).sum().item(), abs=1e-9)
    assert len(pyro.get_param_store()) == len(list(model.flow.parameters()))


# (f) With Pyro's own transforms and distributions


def test_mixed_with_pyros_transforms() -> None:
    mixed = [
        dist.transforms.AffineTransform(torch.tensor([0.1, 0.2, 0.3]), 2.0),
        realnvp(3, steps=2, hidden_features=(8,)),
        dist.transforms.affine_autoregressive(3, hidden_dims=[8]),
        ActNorm((3,)),
        dist.transforms.ExpTransform(),
    ]
    for transform in mixed:
        if isinstance(transform, torch.nn.Module):
            transform.double()
            for parameter in transform.parameters():
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    density = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), mixed)
    assert (density.batch_shape, density.event_shape) == ((), (3,))
    z = torch.randn(3)

    def forward(z: Tensor) -> Tensor:
        for transform in mixed:
            z = transform(z)
        return z

    jacobian = torch.autograd.functional.jacobian(forward, z)
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(density.log_prob(forward(z).detach()), expected, atol=1e-8, rtol=0)


def test_two_flow_transforms_in_a_list() -> None:
    first, second = InvertibleLinear((2,)), Chain([ActNorm((2,)), coupling(2)])
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    in_list = dist.TransformedDistribution(base, [first, second])
    x = in_list.rsample((5,))
    chained = Flow(Chain([first, second]))()
    torch.testing.assert_close(in_list.log_prob(x), chained.log_prob(x.detach()), atol=1e-9, rtol=0)


def test_iterated_builds_from_our_helpers() -> None:
    transform = dist.transforms.iterated(3, dist.transforms.glow_step, (2, 4, 4), hidden_channels=4)
    base = dist.Normal(torch.zeros(2, 4, 4), 1.0).to_event(3)
    density = dist.TransformedDistribution(base, [transform])
    x = density.rsample((5,))
    z, total = x.detach(), 0.0
    for part in reversed(transform.parts):
        z, ladj = part.inv.call_and_ladj(z)
        total = total + ladj
    torch.testing.assert_close(density.log_prob(x), base.log_prob(z) + total, atol=1e-9, rtol=0)
    assert len(list(transform.parameters())) == 3 * len(list(transform.parts[0].parameters()))


def test_conditional_transformed_distribution() -> None:
    conditional, plain = coupling(3, context_dim=2), ActNorm((3,))
    for parameter in (*conditional.parameters(), *plain.parameters()):
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    context = torch.randn(4, 1, 2)
    density = dist.ConditionalTransformedDistribution(base, [conditional, plain]).condition(context)
    assert (density.batch_shape, density.event_shape) == ((4, 1), (3,))
    assert density.sample((5,)).shape == (5, 4, 1, 3)
    x = torch.randn(4, 6, 3)
    flow = Flow(Chain([conditional, plain]))
    torch.testing.assert_close(density.log_prob(x), flow(context).log_prob(x), atol=1e-9, rtol=0)
    one_by_one = torch.stack([flow(context[i, 0]).log_prob(x[i]) for i in range(4)])
    torch.testing.assert_close(density.log_prob(x), one_by_one, atol=1e-9, rtol=0)


@pytest.mark.parametrize("context_shape", [(3,), (2, 4, 4)], ids=["vector", "image"])
@pytest.mark.parametrize("event_shape", [(5,), (2, 4, 4)], ids=["of_vectors", "of_images"])
@pytest.mark.parametrize("system", [nice, realnvp, glow], ids=lambda f: f.__name__)
def test_every_system_is_conditional(system, event_shape, context_shape) -> None:
    """On vectors and images, by vectors and images: batch shapes, plates, and a datum's own context alone."""
    sizes = {"hidden_features": (4,)} if system is nice else {"hidden_features": (4,), "hidden_channels": 4}
    flow = Flow(system(event_shape, steps=1, context_shape=context_shape, **sizes))
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    context = torch.randn(4, 1, *context_shape)
    density = flow(context)
    assert (density.batch_shape, density.event_shape) == ((4, 1), event_shape)
    pyros = dist.ConditionalTransformedDistribution(flow.base, [flow.transform]).condition(context)
    assert (pyros.batch_shape, pyros.event_shape) == ((4, 1), event_shape)
    x = density.sample((2,))
    assert x.shape == (2, 4, 1, *event_shape)
    assert density.expand((4, 3)).sample().shape == (4, 3, *event_shape)
    log_prob = density.log_prob(x)
    torch.testing.assert_close(pyros.log_prob(x), log_prob, atol=1e-9, rtol=0)
    for i in range(4):
        torch.testing.assert_close(flow(context[i, 0]).log_prob(x[:, i, 0]), log_prob[:, i, 0])
    other = torch.randn_like(context)
    assert ((flow(other).log_prob(x) - log_prob).abs() > 1e-6).any()

    def model() -> None:
        with pyro.plate("columns", 4, dim=-2), pyro.plate("rows", 3, dim=-1):
            pyro.sample("x", flow(context))

    assert poutine.trace(model).get_trace().nodes["x"]["value"].shape == (4, 3, *event_shape)


def test_a_class_label_as_context() -> None:
    """An embedding of labels is learned with the flow."""
    labels = torch.arange(6) % 3

    class Conditional(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = PyroModule[torch.nn.Embedding](3, 2)
            self.flow = Flow(realnvp(2, steps=2, context_dim=2))

        def forward(self, x: Tensor, labels: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", self.flow(self.embedding(labels)), obs=x)

    model = Conditional()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    before = model.embedding.weight.detach().clone()
    svi = SVI(model, lambda x, labels: None, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step(torch.randn(6, 2), labels)
    assert ((model.embedding.weight - before).abs() > 1e-5).all()


def test_conditional_flow_in_a_model_with_plates() -> None:
    """A conditional prior of a local latent: the batch shape is the plate's."""
    flow = Flow(realnvp(2, steps=2, hidden_features=(8,), context_dim=3))
    for parameter in flow.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    context = torch.randn(7, 3)

    def model() -> Tensor:
        with pyro.plate("data", 7):
            return pyro.sample("z", flow(context))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    z, log_prob = trace.nodes["z"]["value"], trace.nodes["z"]["log_prob"]
    assert z.shape == (7, 2)
    for i in range(7):
        jacobian = torch.autograd.functional.jacobian(flow.transform.condition(context[i]).inv, z[i].detach())
        base = flow.transform.condition(context[i]).inv(z[i].detach())
        expected = -(base**2).sum() / 2 - math.log(2 * math.pi) + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_prob[i], expected, atol=1e-8, rtol=0)
