"""Batch shapes: of contexts against samples, and in `TransformedDistribution`."""

import pyro.distributions as dist
import pytest
import torch

from pyroflows.transforms import ActNorm, Coupling, InvertibleLinear, Logit, coupling, realnvp


@pytest.mark.parametrize(
    ("batch", "context_batch", "expected"),
    [
        ((), (4,), (4,)),
        ((4,), (), (4,)),
        ((3, 1), (4,), (3, 4)),
        ((2, 3, 4), (3, 1), (2, 3, 4)),
        ((0,), (), (0,)),
    ],
)
def test_context_broadcasts(batch, context_batch, expected) -> None:
    transform = realnvp(3, steps=2, hidden_features=(4,), context_dim=2)
    view = transform.condition(torch.randn(*context_batch, 2))
    x, ladj = view.call_and_ladj(torch.randn(*batch, 3))
    assert x.shape == (*expected, 3)
    assert ladj.shape == expected
    assert view.forward_shape((*batch, 3)) == (*expected, 3)
    assert view.inverse_shape((*batch, 3)) == (*expected, 3)


def test_context_image_at_every_level() -> None:
    transform = coupling((2, 4, 4), hidden_channels=4, context_shape=(1, 8, 8))
    assert transform.condition(torch.randn(5, 1, 8, 8))(torch.randn(2, 4, 4)).shape == (5, 2, 4, 4)


def test_distribution_of_a_conditioned_transform() -> None:
    transform = realnvp(3, steps=2, hidden_features=(4,), context_dim=2)
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    density = dist.TransformedDistribution(base, [transform.condition(torch.randn(4, 1, 2))])
    assert (density.batch_shape, density.event_shape) == ((4, 1), (3,))
    x = density.rsample((6,))
    assert x.shape == (6, 4, 1, 3)
    assert density.log_prob(x).shape == (6, 4, 1)
    expanded = density.expand((4, 5))
    assert expanded.sample().shape == (4, 5, 3)
    assert expanded.log_prob(expanded.sample()).shape == (4, 5)
    # Draws are independent along a dimension that the context was broadcast over.
    assert expanded.sample()[0].unique(dim=0).shape[0] == 5


def test_a_vectors_size_is_its_shape() -> None:
    for build in (ActNorm, InvertibleLinear, Logit, lambda n: Coupling(n, torch.nn.Linear(1, 4))):
        assert build(3).event_shape == build((3,)).event_shape == (3,)


def test_inverse_views() -> None:
    transform = realnvp(3, steps=1, hidden_features=(4,), context_dim=2)
    view = transform.condition(torch.randn(4, 2))
    assert transform.inv.inv is transform
    assert view.inv.inv is view
    assert (view.domain.event_dim, view.codomain.event_dim) == (1, 1)
    x = torch.randn(4, 3)
    torch.testing.assert_close(transform.inv.condition(view.context)(x), view.inv(x))
    assert list(view.inv.parameters()) == list(transform.parameters())
    for direction in (view, view.inv):
        assert direction.with_cache(0).with_cache(1)(x).shape == (4, 3)
        assert direction.with_cache(1) is direction
