"""Interpolation and attributes against flows whose latent is known."""

import pytest
import torch

from pyroflows import Flow, attribute_direction, glow, interpolate, realnvp
from pyroflows.transforms import ActNorm, Chain, InvertibleLinear


def _perturbed(flow: Flow) -> Flow:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.double()


def test_a_linear_flow_interpolates_on_a_line() -> None:
    flow = _perturbed(Flow(Chain([InvertibleLinear((3,)), ActNorm((3,))])))
    a, b = torch.randn(2, 5, 3, dtype=torch.float64)
    path = interpolate(flow, a, b, 4)
    assert path.shape == (4, 5, 3)
    for i in range(4):
        torch.testing.assert_close(path[i], a + i / 3 * (b - a))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_interpolation_is_even_in_the_latent_and_ends_at_the_data(batch: tuple[int, ...]) -> None:
    flow = _perturbed(Flow(glow((1, 4, 4), steps=1, hidden_channels=4)))
    a, b = torch.rand(2, *batch, 1, 4, 4, dtype=torch.float64)
    path = interpolate(flow, a, b, 5)
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    steps = flow.transform.inv(path).diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert not path.requires_grad


def test_interpolation_given_a_context() -> None:
    flow = _perturbed(Flow(realnvp(3, context_dim=2)))
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    context = torch.randn(4, 2, dtype=torch.float64)
    path = interpolate(flow, a, b, 3, context)
    torch.testing.assert_close(path[0], a)
    inverse = flow.transform.condition(context).inv
    torch.testing.assert_close(inverse(path[1]), (inverse(a) + inverse(b)) / 2)


def test_attribute_direction_is_the_difference_of_mean_latents() -> None:
    flow = _perturbed(Flow(realnvp(3)))
    # More data than are inverted at once.
    with_it, without_it = torch.randn(600, 3, dtype=torch.float64) + 1, torch.randn(5, 3, dtype=torch.float64)
    want = flow.transform.inv(with_it).mean(0) - flow.transform.inv(without_it).mean(0)
    torch.testing.assert_close(attribute_direction(flow, with_it, without_it), want.detach())


def test_bad_input() -> None:
    flow = Flow(realnvp(3))
    data = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="n of at least 2"):
        interpolate(flow, data, data, 1)
    with pytest.raises(ValueError, match=r"data of one shape, got \(2, 3\) and \(1, 3\)"):
        interpolate(flow, data, data[:1], 3)
    with pytest.raises(ValueError, match=r"data of shape \(N, 3\), got \(0, 3\)"):
        attribute_direction(flow, data, data[:0])
    with pytest.raises(ValueError, match=r"data of shape \(N, 3\), got \(3,\)"):
        attribute_direction(flow, data[0], data)
    with pytest.raises(ValueError, match="conditional"):
        attribute_direction(Flow(realnvp(3, context_dim=1)), data, data)
