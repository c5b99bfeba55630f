"""Element-wise maps against what their formulas say."""

import pytest
import torch

from pyroflows.transforms import SplineMap


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
