"""`Flow` and `Dequantized` against closed forms and quadratures."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyroflows import Dequantized, Flow, glow, nice, realnvp
from pyroflows.transforms import ActNorm, Chain, InvertibleLinear, Logit, coupling


def _perturbed(flow: Flow, size: float = 0.2, seed: int = 0) -> Flow:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return flow


def _logistic(size: int) -> dist.Distribution:
    uniform = dist.Uniform(torch.zeros(size), torch.ones(size))
    return dist.TransformedDistribution(uniform, [dist.transforms.SigmoidTransform().inv]).to_event(1)


@pytest.mark.parametrize("make", [realnvp, glow, nice], ids=lambda f: f.__name__)
def test_density_integrates_to_one(make) -> None:
    flow = _perturbed(Flow(make(2, steps=2, hidden_features=(16,))))
    edge = torch.linspace(-15, 15, 1501)
    grid = torch.cartesian_prod(edge, edge)
    with torch.no_grad():
        mass = flow().log_prob(grid).exp().sum() * (edge[1] - edge[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_samples_follow_the_density() -> None:
    """The mean of a function by sampling is its integral against the density."""
    flow = _perturbed(Flow(realnvp(2, hidden_features=(16,))))
    edge = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(edge, edge)
    torch.manual_seed(0)
    with torch.no_grad():
        weights = flow().log_prob(grid).exp() * (edge[1] - edge[0]) ** 2
        x = flow().sample((100_000,))
    for function in (lambda x: x[..., 0].tanh(), lambda x: (x[..., 0] * x[..., 1]).sin()):
        # Both are at most 1, so five standard errors are at most 5 / sqrt(100,000).
        assert function(x).mean().item() == pytest.approx((weights * function(grid)).sum().item(), abs=0.016)


def test_batch_and_event_shapes() -> None:
    flow = Flow(glow((3, 8, 8), levels=2, steps=1, hidden_channels=4))
    assert (flow().batch_shape, flow().event_shape) == ((), (3, 8, 8))
    assert flow().sample((5,)).shape == (5, 3, 8, 8)
    assert flow().expand((4,)).log_prob(torch.zeros(4, 3, 8, 8)).shape == (4,)
    assert isinstance(flow(), dist.TransformedDistribution)
    conditional = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=4, context_dim=2))
    assert conditional(torch.zeros(6, 1, 2)).batch_shape == (6, 1)


def test_temperature_multiplies_the_bases_scale() -> None:
    flow = _perturbed(Flow(Chain([InvertibleLinear((3,)), ActNorm((3,))])))
    jacobian = torch.autograd.functional.jacobian(flow.transform, torch.zeros(3))
    mean = flow.transform(torch.zeros(3)).detach()
    cool = dist.MultivariateNormal(mean, 0.7**2 * jacobian @ jacobian.T)
    x = torch.randn(10, 3)
    torch.testing.assert_close(flow(temperature=0.7).log_prob(x), cool.log_prob(x), atol=1e-4, rtol=1e-4)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a positive temperature"):
            flow(temperature=bad)


@pytest.mark.parametrize(
    "base", [None, dist.Normal(torch.ones(64), 2.0).to_event(1)], ids=["default", "given"]
)
def test_a_temperature_for_each_level(base) -> None:
    """Each level of the latent has its own, also behind the Logit in a Chain."""
    image = Chain([glow((1, 8, 8), levels=2, steps=1, hidden_channels=4), Logit((1, 8, 8))])
    flow = _perturbed(Flow(image, base), 0.05)
    torch.manual_seed(0)
    with torch.no_grad():
        x = flow(temperature=(0.5, 0.1)).sample((4000,))
        fine, coarse = image.split_latent(flow.transform.inv(x))
    loc, scale = (0.0, 1.0) if base is None else (1.0, 2.0)
    for level, temperature in ((fine, 0.5), (coarse, 0.1)):
        assert level.mean().item() == pytest.approx(loc, abs=0.02)
        assert level.std().item() == pytest.approx(temperature * scale, rel=0.02)
    same = flow(temperature=0.5).log_prob(x)
    torch.testing.assert_close(flow(temperature=[0.5, 0.5]).log_prob(x), same)
    with pytest.raises(ValueError, match="one of each of the 2 levels, got 3"):
        flow(temperature=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="positive temperature"):
        flow(temperature=(1.0, 0.0))


def test_temperature_of_a_given_base_is_about_its_mean() -> None:
    base = dist.Normal(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])).to_event(1)
    flow = Flow(ActNorm((2,)), base=base)
    want = dist.Normal(torch.tensor([1.0, 2.0]), 0.5 * torch.tensor([0.5, 3.0])).to_event(1)
    x = torch.randn(5, 2)
    torch.testing.assert_close(flow(temperature=0.5).log_prob(x), want.log_prob(x))
    cauchy = Flow(ActNorm((2,)), base=dist.Cauchy(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match="needs a base with a mean"):
        cauchy(temperature=0.5)


def test_a_given_base() -> None:
    flow = Flow(nice(2, steps=2), base=_logistic(2))
    x = torch.randn(5, 2)
    # At the start the couplings shift by nothing, and the density is the base's.
    expected = (-x - 2 * torch.nn.functional.softplus(-x)).sum(-1)
    torch.testing.assert_close(flow().log_prob(x), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"base of event shape \(2,\), got \(\): use `.to_event"):
        Flow(nice(2), base=dist.Normal(torch.zeros(2), 1.0))


def test_a_learned_base() -> None:
    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor([1.0, -1.0]))

        def forward(self) -> dist.Distribution:
            return dist.Normal(self.loc, 1.0).to_event(1)

    flow = Flow(ActNorm((2,)), base=Base())
    assert "_base.loc" in dict(flow.named_parameters())
    x = torch.zeros(2)
    torch.testing.assert_close(flow().log_prob(x), dist.Normal(0.0, 1.0).log_prob(torch.ones(2)).sum())
    (gradient,) = torch.autograd.grad(flow().log_prob(x), flow._base.loc)
    torch.testing.assert_close(gradient, -flow._base.loc.detach())


@pytest.mark.parametrize("base", [None, "logistic"])
def test_moves_with_the_module(base: str | None) -> None:
    flow = Flow(realnvp(2), base=None if base is None else _logistic(2)).double()
    x = flow().sample((3,))
    assert x.dtype == torch.float64
    assert flow().log_prob(x).dtype == torch.float64
    with pytest.raises(ValueError, match="dtype"):
        flow().log_prob(x.float())


def test_transforms_of_torch_move_with_the_flow() -> None:
    affine = dist.transforms.AffineTransform(torch.zeros(2), torch.ones(2))
    permute = dist.transforms.Permute(torch.tensor([1, 0]))
    nested = dist.transforms.ComposeTransform([permute, dist.transforms.SoftplusTransform().inv])
    flow = Flow(Chain([realnvp(2), affine, nested])).double()
    assert (affine.loc.dtype, affine.scale.dtype) == (torch.float64, torch.float64)
    flow.to("meta")
    assert (affine.scale.device.type, permute.permutation.device.type) == ("meta", "meta")
    assert permute.permutation.dtype == torch.long


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moves_to_the_gpu() -> None:
    flow = Flow(realnvp(2), base=_logistic(2)).cuda()
    x = flow().sample((3,))
    assert x.is_cuda
    assert flow().log_prob(x).is_cuda


def test_copies_and_pickles_after_use() -> None:
    flow = _perturbed(Flow(realnvp(2)))
    x = flow().rsample((3,))
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other().log_prob(x.detach()), flow().log_prob(x.detach()))


def test_log_prob_compiles_as_one_graph_and_one_pass() -> None:
    """Also after calls, and also where what is remembered is not looked at."""
    flow = _perturbed(Flow(realnvp(3, steps=2, hidden_features=(4,))))
    x = flow().sample((5,))
    want = flow().log_prob(x).detach()
    density = flow()
    graphs = []

    def count(graph, inputs):
        graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    # A graph can have no validation, which the first torch.compile of a process switches off, and only that.
    with pyro.validation_enabled(False):
        compiled = torch.compile(density.log_prob, fullgraph=True, backend=count)
        torch.testing.assert_close(compiled(x), want)
        once = torch.compile(flow.transform.inv.call_and_ladj, fullgraph=True, backend=count)
        once(x)
    assert len(graphs) == 2
    assert graphs[0] < 1.5 * graphs[1]


def test_arguments() -> None:
    with pytest.raises(ValueError, match="expected a FlowTransform"):
        Flow(dist.transforms.ExpTransform())
    conditional, plain = Flow(realnvp(2, context_dim=3)), Flow(realnvp(2))
    with pytest.raises(ValueError, match=r"conditional: call it with a context of shape \(\*batch, 3\)"):
        conditional()
    with pytest.raises(ValueError, match="takes no context"):
        plain(torch.zeros(3))
    with pytest.raises(ValueError, match="a batch of data, got one"):
        plain.initialize(torch.zeros(2))


def test_initialize_normalises_once_and_is_saved() -> None:
    flow = Flow(glow(3, steps=3))
    data = torch.tensor([5.0, -2.0, 0.0]) + torch.tensor([3.0, 0.1, 1.0]) * torch.randn(1000, 3)
    flow.initialize(data)
    value = data
    for step in reversed(flow.transform.transforms):
        value = step.transforms[-1].inv(value)
        torch.testing.assert_close(value.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(value.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
        for part in reversed(list(step.transforms)[:-1]):
            value = part.inv(value)
    state = copy.deepcopy(flow.state_dict())
    flow.initialize(10 * data)
    assert all(torch.equal(flow.state_dict()[name], value) for name, value in state.items())
    restored = Flow(glow(3, steps=3))
    restored.load_state_dict(state)
    restored.initialize(10 * data)
    assert all(torch.equal(restored.state_dict()[name], value) for name, value in state.items())


def test_initialize_keeps_the_scale_of_a_constant_feature() -> None:
    flow = Flow(ActNorm((2,)))
    data = torch.stack([torch.randn(100), torch.full((100,), 3.0)], -1)
    flow.initialize(data)
    z = flow.transform.inv(data)
    torch.testing.assert_close(z[:, 1], torch.zeros(100))
    assert flow.transform.log_scale[1] == 0


def test_initialize_a_conditional_flow() -> None:
    flow = Flow(glow(3, steps=2, context_dim=2))
    flow.initialize(5 + torch.randn(50, 3), torch.randn(50, 2))
    assert all(m.initialized for m in flow.modules() if isinstance(m, ActNorm))


# Dequantized


def _uniform(*shape: int) -> dist.Distribution:
    return dist.Uniform(torch.zeros(shape), torch.ones(shape)).to_event(len(shape))


def test_uniform_density_is_the_log_of_the_levels() -> None:
    images = Dequantized(_uniform(1, 4, 4), grey_levels=17)
    x = torch.randint(0, 17, (5, 1, 4, 4))
    torch.testing.assert_close(images.log_prob(x), torch.full((5,), -16 * math.log(17)))
    torch.testing.assert_close(images.bits_per_dim(x), torch.full((5,), math.log2(17)))


def test_log_prob_is_the_bound_by_quadrature() -> None:
    """Its mean is the integral of the log-density over each cell, and below the log of the cell's mass."""
    flow = _perturbed(Flow(Chain([coupling(1, "affine"), Logit((1,))])), seed=1)
    levels, points = 8, 4000
    images = Dequantized(flow(), levels)
    u = (torch.arange(points) + 0.5) / points
    torch.manual_seed(0)
    total = 0.0
    for value in range(levels):
        with torch.no_grad():
            density = flow().log_prob(((value + u) / levels)[:, None]) - math.log(levels)
            draws = images.log_prob(torch.full((4000, 1), value))
        error = 5 * density.std().item() / 4000**0.5 + 1e-6
        assert draws.mean().item() == pytest.approx(density.mean().item(), abs=error)
        assert density.mean() <= density.exp().mean().log() + 1e-6
        total += density.exp().mean().item()
    # The rest of the mass is where the logit's range goes beyond the data's.
    assert 0.5 < total <= 1.0 + 1e-4


def _noise(event_shape: tuple[int, ...]) -> Flow:
    return Flow(realnvp(event_shape, steps=2, context_shape=event_shape))


def test_learned_noise_is_weighted_by_its_density() -> None:
    """The mean of exp(log_prob) over draws of the noise is the cell's mass, here by quadrature."""
    flow = _perturbed(Flow(Chain([realnvp(2, steps=2), Logit((2,))])), seed=1)
    levels, points = 4, 200
    images = Dequantized(flow(), levels, noise=_perturbed(_noise((2,)), 0.05, seed=2))
    u = torch.cartesian_prod(*2 * [(torch.arange(points) + 0.5) / points])
    torch.manual_seed(0)
    for x in (torch.tensor([0, 3]), torch.tensor([2, 1])):
        with torch.no_grad():
            mass = (flow().log_prob((x + u) / levels).exp().mean() / levels**2).item()
            draws = images.log_prob(x.expand(20_000, 2)).exp()
        assert draws.std() > 0.01 * mass
        assert draws.mean().item() == pytest.approx(mass, abs=5 * draws.std().item() / 20_000**0.5)
        assert draws.log().mean().exp() < mass


def test_learned_noise_sees_the_datum_between_minus_one_and_one() -> None:
    seen = []

    def noise(context: torch.Tensor) -> dist.Distribution:
        seen.append(context)
        return dist.Normal(torch.zeros_like(context), 1.0).to_event(1)

    # Then the noise is uniform, and so is the density here.
    images = Dequantized(_uniform(3), 4, noise=noise)
    x = torch.tensor([[0, 1, 3], [2, 2, 2]])
    torch.testing.assert_close(images.log_prob(x), torch.full((2,), -3 * math.log(4)))
    torch.testing.assert_close(seen[0], torch.tensor([[-0.75, -0.25, 0.75], [0.25, 0.25, 0.25]]))
    assert images.expand((5,)).noise is noise


def test_learned_noise_of_another_shape() -> None:
    images = Dequantized(_uniform(3), 4, noise=lambda context: dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"noise of the data's shape \(3,\), got \(2,\)"):
        images.log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="expected a conditional Flow as noise"):
        Dequantized(_uniform(3), 4, noise=_uniform(3))


def test_learned_noise_is_trained_behind_pyro_sample() -> None:
    flow, noise = Flow(realnvp(3, steps=2)), _noise((3,))
    data = torch.randint(0, 17, (6, 3))

    def model() -> None:
        pyro.module("flow", flow)
        pyro.module("noise", noise)
        with pyro.plate("data", 6):
            pyro.sample("x", Dequantized(flow(), 17, noise), obs=data)

    pyro.clear_param_store()
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step()
    before = [parameter.detach().clone() for parameter in noise.parameters()]
    svi.step()
    assert (
        sum(not torch.equal(p, b) for p, b in zip(noise.parameters(), before, strict=True)) > len(before) / 2
    )
    pyro.clear_param_store()


@pytest.mark.parametrize(("levels", "dtype"), [(17, torch.uint8), (256, torch.uint8), (1000, torch.int64)])
def test_samples_are_integers(levels: int, dtype: torch.dtype) -> None:
    images = Dequantized(_uniform(3), levels)
    x = images.sample((2000,))
    assert x.dtype == dtype
    assert x.shape == (2000, 3)
    assert 0 <= x.min() < levels / 20
    assert levels - 1 - levels / 20 < x.max() <= levels - 1
    # Uniform: five standard errors.
    assert x.double().mean().item() == pytest.approx((levels - 1) / 2, abs=5 * levels / 12**0.5 / 6000**0.5)
    assert images.log_prob(x).shape == (2000,)


def test_bad_integers() -> None:
    images = Dequantized(_uniform(3), 17, validate_args=True)
    for bad in (torch.tensor([0, 1, 17]), torch.tensor([-1, 0, 1]), torch.tensor([0.5, 1.0, 2.0])):
        with pytest.raises(ValueError, match="support"):
            images.log_prob(bad)
    with pytest.raises(ValueError, match="at least 2 grey levels, got 1"):
        Dequantized(_uniform(3), 1)


def test_double_precision() -> None:
    flow = Flow(realnvp(3)).double()
    assert Dequantized(flow(), 17).log_prob(torch.zeros(5, 3, dtype=torch.uint8)).dtype == torch.float64


def test_behind_pyro_sample() -> None:
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=4))
    data = torch.randint(0, 17, (6, 1, 4, 4), dtype=torch.uint8)

    def model() -> None:
        pyro.module("flow", flow)
        with pyro.plate("images", 6):
            pyro.sample("x", Dequantized(flow(), 17), obs=data)

    torch.manual_seed(0)
    trace = pyro.poutine.trace(model).get_trace()
    got = trace.log_prob_sum()
    torch.manual_seed(0)
    noise = torch.rand(6, 1, 4, 4)
    want = flow().log_prob((data + noise) / 17).sum() - 6 * 16 * math.log(17)
    torch.testing.assert_close(got, want)
    pyro.clear_param_store()


def test_expands() -> None:
    images = Dequantized(_uniform(3), 17).expand((2, 4))
    assert (images.batch_shape, images.event_shape) == ((2, 4), (3,))
    assert images.log_prob(torch.zeros(2, 4, 3)).shape == (2, 4)
    assert images.sample((5,)).shape == (5, 2, 4, 3)
