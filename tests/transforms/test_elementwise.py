"""Element-wise maps against what their formulas say."""

import pyro.distributions as dist
import pytest
import torch

from pyroflows.transforms import AdditiveMap, AffineMap, ElementwiseMap, LogisticMixtureMap, SplineMap


def _parameters(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_spline_is_the_identity_at_its_start_and_beyond_its_bound() -> None:
    x = torch.linspace(-9, 9, 101, dtype=torch.float64)
    spline = SplineMap(bins=4, bound=3.0)
    for direction in (spline.forward_and_ladj, spline.inverse_and_ladj):
        value, ladj = direction(x, torch.zeros(101, 11, dtype=torch.float64))
        torch.testing.assert_close(value, x)
        torch.testing.assert_close(ladj, torch.zeros_like(x), atol=1e-12, rtol=0)
        value, ladj = direction(x, _parameters(11).expand(101, 11))
        outside = x.abs() > 3
        assert torch.equal(value[outside], x[outside])
        assert (ladj[outside] == 0).all()
        assert (value[~outside] - x[~outside]).abs().max() > 0.1


def test_spline_is_monotone_smooth_and_keeps_its_smallest_slope() -> None:
    x = torch.linspace(-4, 4, 20_001, dtype=torch.float64, requires_grad=True)
    z, ladj = SplineMap(bins=6, bound=3.0).inverse_and_ladj(x, _parameters(17).expand(len(x), 17))
    (slope,) = torch.autograd.grad(z.sum(), x)
    assert (slope > 0).all()
    torch.testing.assert_close(slope.log(), ladj, atol=1e-9, rtol=0)
    assert (z[1:] > z[:-1]).all()
    # The area under the slope is the rise, so the slope belongs to these values.
    area = ((slope[1:] + slope[:-1]) / 2 * (x[1:] - x[:-1])).sum()
    assert area.item() == pytest.approx(8.0, abs=0.02)


@pytest.mark.parametrize(("bins", "bound", "slope"), [(1, 5.0, 1e-3), (8, 0.0, 1e-3), (8, 5.0, 1.0)])
def test_bad_splines(bins: int, bound: float, slope: float) -> None:
    with pytest.raises(ValueError, match="at least 2 bins, a positive bound and a slope in"):
        SplineMap(bins, bound, slope)


def _clipped(raw: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return raw / (1 + raw.abs() / torch.where(raw > 0, high, -low))


def test_logistic_mixture_is_that_of_its_formula() -> None:
    """Against the distribution function and density of Pyro's mixture of logistics."""
    parameters = _parameters(14)
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    z, ladj = LogisticMixtureMap(components=4).inverse_and_ladj(x, parameters.expand(101, 14))
    log_scale, shift = _clipped(parameters[0], -1, 0.25), _clipped(parameters[1], -3, 3)
    weights = torch.cat([0.99 * parameters[2:6].softmax(0), torch.tensor([0.01]).double()])
    means = _clipped(parameters[6:10], -5, 5) + torch.linspace(-1, 1, 4).double()
    means = torch.cat([means, torch.zeros(1).double()])
    scales = torch.cat([_clipped(parameters[10:], -3, 0.5), torch.zeros(1).double()]).exp()
    logistics = dist.Logistic(means, scales)
    below = (weights * logistics.cdf(x[:, None])).sum(-1)
    above = (weights * logistics.cdf(2 * means - x[:, None])).sum(-1)
    density = (weights * logistics.log_prob(x[:, None]).exp()).sum(-1)
    torch.testing.assert_close(z, log_scale.exp() * (below / above).log() + shift)
    torch.testing.assert_close(ladj, log_scale + (density / below / above).log())


def test_logistic_mixture_starts_close_to_the_identity() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    z, ladj = LogisticMixtureMap().inverse_and_ladj(x, torch.zeros(101, 14, dtype=torch.float64))
    # The mixture's components lie at most 1 from the one logistic that would give the identity.
    assert (z - x).abs().max() < 1
    assert ladj.abs().max() < 0.2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)], ids=str)
def test_logistic_mixture_is_inverted_in_the_far_tails(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([torch.linspace(-50, 50, 1001), torch.tensor([-1e6, 1e6])]).to(dtype)
    # Weights, means and scales of every size; the weakest slope stays above the rounding.
    parameters = _parameters(len(x), 14).to(dtype)
    mixture = LogisticMixtureMap(components=4)
    z, ladj = mixture.inverse_and_ladj(x, parameters)
    back, back_ladj = mixture.forward_and_ladj(z, parameters)
    # What rounding of z leaves is as much larger as the map is flat.
    allowed = tolerance * (1 + x.abs()) * (1 + (-ladj).exp())
    assert ((back - x).abs() <= allowed).all()
    assert ((back_ladj + ladj).abs() <= 30 * allowed).all()


def test_logistic_mixtures_inverse_has_true_derivatives() -> None:
    """Also of second order and in forward mode, through the equation that is solved."""
    mixture = LogisticMixtureMap(components=3)
    z, parameters = _parameters(4).requires_grad_(), _parameters(4, 11).requires_grad_()
    assert torch.autograd.gradcheck(mixture.forward_and_ladj, (z, parameters), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(mixture.forward_and_ladj, (z, parameters))


def test_logistic_mixtures_solution_is_not_changed_by_its_derivatives() -> None:
    z, parameters = _parameters(50), _parameters(50, 14)
    x, _ = LogisticMixtureMap().forward_and_ladj(z, parameters)
    back, _ = LogisticMixtureMap().inverse_and_ladj(x, parameters)
    torch.testing.assert_close(back, z, atol=1e-9, rtol=0)


def test_a_mixture_needs_a_component() -> None:
    with pytest.raises(ValueError, match="at least 1 component, got 0"):
        LogisticMixtureMap(0)


@pytest.mark.parametrize(
    "elementwise", [AdditiveMap(), AffineMap(), SplineMap(), LogisticMixtureMap()], ids=str
)
def test_maps_are_increasing_bijections(elementwise) -> None:
    x = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    parameters = _parameters(elementwise.n_parameters).expand(len(x), -1)
    z, ladj = elementwise.inverse_and_ladj(x, parameters)
    assert (z[1:] > z[:-1]).all()
    back, back_ladj = elementwise.forward_and_ladj(z, parameters)
    torch.testing.assert_close(back, x, atol=1e-8, rtol=0)
    torch.testing.assert_close(back_ladj, -ladj, atol=1e-8, rtol=0)


TAME = [SplineMap(), LogisticMixtureMap(), AffineMap(below=1, above=0.25, max_shift=3)]


@pytest.mark.parametrize("tame", TAME, ids=lambda tame: type(tame).__name__)
def test_far_out_a_map_neither_grows_nor_shrinks_without_limit(tame: ElementwiseMap) -> None:
    """Whatever a network gives off its data: slopes of at most exp(1.5) there, and values alike."""
    torch.manual_seed(0)
    size = 10 ** torch.linspace(-1, 4, 500)[:, None].double()
    parameters = size * torch.randn(500, tame.n_parameters).double()
    for far in (-1e3, 1e3):
        value = torch.full((500,), far, dtype=torch.float64)
        for evaluate in (tame.forward_and_ladj, tame.inverse_and_ladj):
            result, ladj = evaluate(value, parameters)
            assert (ladj.abs() <= 1.5 + 1e-9).all()
            assert ((result / value).log().abs() <= 1.5 + 0.05).all()
