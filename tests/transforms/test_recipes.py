"""NICE, RealNVP and Glow are put together as their papers have them, for every size that fits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyroflows import glow, nice, realnvp
from pyroflows.layers import ChannelNorm
from pyroflows.transforms import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Coupling,
    InvertibleConv1x1,
    InvertibleLinear,
    Permutation,
    SplineMap,
    Squeeze,
    coupling,
    glow_step,
)
from pyroflows.transforms.maps import MAPS
from pyroflows.transforms.partition import Alternate, Checkerboard, Halves, Nothing


def _parts(transform: torch.nn.Module, kind: type) -> list:
    return [module for module in transform.modules() if isinstance(module, kind)]


def test_nice_is_additive_couplings_and_a_diagonal_scale() -> None:
    transform = nice(6, steps=4)
    assert [type(part) for part in transform.transforms] == [ActNorm] + 4 * [Coupling]
    assert all(isinstance(part.elementwise, AdditiveMap) for part in transform.transforms[1:])
    swaps = [part.partition.offsets[0] for part in transform.transforms[1:]]
    assert swaps == [0, 1, 0, 1]
    assert all(isinstance(part.partition, Alternate) for part in transform.transforms[1:])


def test_nice_keeps_volume_up_to_its_scale() -> None:
    transform = nice((1, 2, 3), steps=2)
    for parameter in transform.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    _, ladj = transform.call_and_ladj(torch.randn(5, 6))
    torch.testing.assert_close(ladj, -transform.transforms[0].log_scale.sum().expand(5))


def test_realnvp_of_images_is_the_papers() -> None:
    transform = realnvp((3, 16, 16), levels=3, hidden_channels=4)
    kinds = [
        [type(p.partition) if isinstance(p, Coupling) else type(p) for p in level.transforms]
        for level in transform.levels
    ]
    assert kinds[0] == kinds[1] == 3 * [Halves] + [Squeeze] + 3 * [Checkerboard]
    assert kinds[2] == 4 * [Checkerboard]
    assert [tuple(level.event_shape) for level in transform.levels] == [(3, 16, 16), (6, 8, 8), (12, 4, 4)]
    assert all(c.elementwise.scale == "softclip" for c in _parts(transform, Coupling))


def test_glow_of_images_is_the_papers() -> None:
    transform = glow((3, 16, 16), levels=2, steps=3, hidden_channels=4, scale="sigmoid")
    first, last = transform.levels
    step = [Coupling, InvertibleConv1x1, ActNorm]
    top, *steps, _squeeze = last.transforms
    assert isinstance(top.partition, Nothing)
    assert [type(p) for s in steps for p in s.transforms] == 3 * step
    # Before the steps, on the side of the latent: the learned prior of the half that leaves.
    prior, *steps, squeeze = first.transforms
    assert isinstance(squeeze, Squeeze)
    assert isinstance(prior, Coupling)
    assert prior.elementwise.scale == "exp"
    assert [type(p) for s in steps for p in s.transforms] == 3 * step
    assert all(step.transforms[0].elementwise.scale == "sigmoid" for step in steps)
    assert top.elementwise.scale == "exp"
    assert all(c.elementwise.max_shift is None for c in _parts(transform, Coupling))
    assert tuple(last.event_shape) == (6, 8, 8)


def test_glow_of_images_is_bounded_by_default() -> None:
    """The more couplings, the closer their bounds; those of priors are wider, and no shift is above 3."""
    for steps, below, above in ((1, 3.0, 3.0), (6, 2.0, 0.5), (12, 1.0, 0.25)):
        transform = glow((3, 16, 16), levels=2, steps=steps, hidden_channels=4)
        for level in transform.levels:
            prior, *flow_steps, _squeeze = level.transforms
            assert (prior.elementwise.below, prior.elementwise.above) == (3.0, 3.0)
            maps = [step.transforms[0].elementwise for step in flow_steps]
            assert [(each.below, each.above) for each in maps] == steps * [(below, above)]
        parts = [c.elementwise for c in _parts(transform, Coupling)]
        assert {(each.scale, each.max_shift) for each in parts} == {("softclip", 3.0)}
    step = _parts(glow_step((4, 8, 8), hidden_channels=4), Coupling)[0].elementwise
    assert (step.below, step.above) == (1.0, 0.25)
    with pytest.raises(ValueError, match="a scale of"):
        glow((3, 16, 16), coupling="additive", hidden_channels=4, scale="tanh")
    splines = glow((3, 16, 16), levels=2, steps=1, hidden_channels=4, coupling="spline")
    assert [type(c.elementwise) for c in _parts(splines.levels[0], Coupling)] == [AffineMap, SplineMap]


def test_glow_of_vectors() -> None:
    transform = glow(5, steps=2)
    kinds = [type(p) for s in transform.transforms for p in s.transforms]
    assert kinds == 2 * [Coupling, InvertibleLinear, ActNorm]
    assert all(isinstance(c.elementwise, SplineMap) for c in _parts(transform, Coupling))
    affine = _parts(glow(5, steps=2, coupling="affine"), Coupling)
    assert all((c.elementwise.scale, c.elementwise.max_shift) == ("softclip", None) for c in affine)


@pytest.mark.parametrize("recipe", [nice, realnvp, glow])
def test_the_scale_of_affine_couplings(recipe) -> None:
    papers = _parts(recipe(4, steps=2, coupling="affine", scale="sigmoid"), Coupling)
    assert [c.elementwise.scale for c in papers] == 2 * ["sigmoid"]
    bounded = _parts(recipe(4, steps=2, coupling="affine"), Coupling)
    assert [c.elementwise.scale for c in bounded] == 2 * ["softclip"]


def test_glows_permutations() -> None:
    """Fixed orders in the place of the linear map; a shuffle is another in each step, and saved."""
    for shape in ((6,), (6, 4, 4)):
        shuffle = glow(shape, levels=1, steps=2, permutation="shuffle")
        orders = [part.order.tolist() for part in _parts(shuffle, Permutation)]
        assert len(orders) == 2
        assert orders[0] != orders[1]
        assert sum(name.endswith(".order") for name in shuffle.state_dict()) == 2
        reverse = _parts(glow(shape, levels=1, steps=1, permutation="reverse"), Permutation)
        assert reverse[0].order.tolist() == list(range(len(orders[0])))[::-1]


def test_a_context_for_the_prior_alone() -> None:
    transform = glow((1, 8, 8), levels=2, steps=1, hidden_channels=4, context_dim=3, conditioned="prior")
    for parameter in transform.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 8, 8)
    (fine, a), (same, b) = (
        transform.split_latent(transform.condition(context).inv(x)) for context in torch.randn(2, 3)
    )
    assert torch.equal(fine, same)
    assert not torch.equal(a, b)


def test_actnorm_in_the_conditioner_is_set_from_data_once() -> None:
    torch.manual_seed(0)
    change = coupling((2, 4, 4), hidden_channels=8, actnorm=True, context_dim=2)
    x, given = 5 + 3 * torch.randn(200, 2, 4, 4), torch.randn(200, 2)
    outputs = []
    norms = _parts(change, ChannelNorm)
    for norm in norms:
        norm.register_forward_hook(lambda norm, inputs, output: outputs.append(output.clone()))
    change._initialize(x, given)
    before = [norm.bias.clone() for norm in norms]
    for output in outputs[-2:]:
        variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros(8), atol=1e-4, rtol=0)
        torch.testing.assert_close(variance, torch.ones(8), atol=1e-3, rtol=0)
    assert all(norm.initialized for norm in norms)
    change._initialize(2 * x, given)
    assert all(torch.equal(norm.bias, b) for norm, b in zip(norms, before, strict=True))


def test_couplings_share_no_parameters() -> None:
    elementwise = AffineMap("exp")
    elementwise.extra = torch.nn.Parameter(torch.zeros(1))
    transform = glow(4, steps=2, coupling=elementwise)
    extras = {id(c.elementwise.extra) for c in _parts(transform, Coupling)}
    assert len(extras) == 2


def test_glow_starts_near_the_identity() -> None:
    """Conditioners start at zero, linear maps as permutations: an order is left, or `sigmoid(2)`."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    for kind in ("spline", "affine"):
        z, ladj = glow(6, steps=3, coupling=kind).inv.call_and_ladj(x)
        torch.testing.assert_close(ladj, torch.zeros(4))
        torch.testing.assert_close(z.sort(-1).values, x.sort(-1).values)
    z, ladj = glow(6, steps=3, coupling="affine", scale="sigmoid").inv.call_and_ladj(x)
    torch.testing.assert_close(ladj, (3 * 3 * torch.sigmoid(torch.tensor(2.0)).log()).expand(4))
    # 1x1 convolutions start as rotations, which keep the norm.
    x = torch.randn(4, 3, 8, 8)
    z, ladj = glow((3, 8, 8), steps=2, hidden_channels=4).inv.call_and_ladj(x)
    torch.testing.assert_close(ladj, torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.norm(dim=-1), x.flatten(1).norm(dim=-1))
    z, _ = realnvp((3, 8, 8), hidden_channels=4).inv.call_and_ladj(x)
    torch.testing.assert_close(z.sort(-1).values, x.flatten(1).sort(-1).values)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 9),
    batch=st.lists(st.integers(0, 3), max_size=2),
    context_dim=st.one_of(st.none(), st.integers(1, 3)),
    recipe=st.sampled_from([nice, realnvp, glow]),
    kind=st.sampled_from(sorted(MAPS)),
    steps=st.integers(1, 3),
)
def test_vectors_of_any_size(size, batch, context_dim, recipe, kind, steps) -> None:
    transform = recipe(size, steps=steps, hidden_features=(4,), coupling=kind, context_dim=context_dim)
    view = transform if context_dim is None else transform.condition(torch.randn(context_dim))
    x = view(torch.randn(*batch, size))
    assert x.shape == (*batch, size)
    assert view.inv.call_and_ladj(x.detach())[1].shape == tuple(batch)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 5),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    levels=st.integers(1, 3),
    batch=st.lists(st.integers(0, 2), max_size=2),
    recipe=st.sampled_from([realnvp, glow]),
    kind=st.sampled_from(sorted(MAPS)),
)
def test_images_of_any_size_that_halves(channels, height, width, levels, batch, recipe, kind) -> None:
    shape = (channels, height * 2**levels, width * 2**levels)
    transform = recipe(shape, levels=levels, steps=1, hidden_channels=4, coupling=kind)
    size = channels * shape[1] * shape[2]
    x = transform(torch.randn(*batch, size))
    assert x.shape == (*batch, *shape)
    parts = transform.split_latent(transform.inv(x.detach()))
    assert len(parts) == levels
    assert sum(part.shape[-3:].numel() for part in parts) == size
    torch.testing.assert_close(transform.join_latent(parts), transform.inv(x.detach()))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 32, 32), (1, 2, 2), (2, 6, 10)])
@pytest.mark.parametrize("recipe", [glow, realnvp])
def test_default_levels_fit_the_image(shape: tuple[int, ...], recipe) -> None:
    transform = recipe(shape, steps=1, hidden_channels=4)
    assert transform(torch.randn(transform.latent_shape)).shape == shape


def test_split_latent_is_by_level() -> None:
    transform = glow((3, 8, 8), levels=2, steps=1, hidden_channels=4)
    z = torch.randn(5, 192)
    parts = transform.split_latent(z)
    assert [tuple(part.shape) for part in parts] == [(5, 6, 4, 4), (5, 24, 2, 2)]
    assert torch.equal(transform.join_latent(parts), z)
    with pytest.raises(ValueError, match="join_latent expected levels of shape"):
        transform.join_latent(parts[::-1])


BAD = [
    (lambda: glow((3, 12, 12), levels=3), r"12x12 can't be squeezed 3 times.*multiples of 8, such as 16x16"),
    (lambda: glow((3, 5, 4)), r"5x4 can't be squeezed 1 times.*multiples of 2, such as 6x4"),
    (lambda: realnvp((3, 6, 6), levels=3), "multiples of 4, such as 8x8"),
    (lambda: glow((3, 8)), r"expected an event shape D, \(D,\) or \(C, H, W\)"),
    (lambda: glow(0), "positive sizes, got 0"),
    (lambda: glow(3, levels=2), "levels are for images"),
    (lambda: glow(3, steps=0), "expected steps of at least 1, got 0"),
    (lambda: glow((3, 8, 8), hidden_channels=0), "expected hidden_channels of at least 1"),
    (lambda: nice(4, steps=0), "expected steps of at least 1"),
    (lambda: glow(3, coupling="cubic"), r"expected an ElementwiseMap or one of .*'affine'.*got 'cubic'"),
    (lambda: glow(3, scale="sigmoid"), "scale='sigmoid' is for affine couplings: .* got 'spline'"),
    (lambda: nice(3, scale="exp"), "give it with coupling='affine', got 'additive'"),
    (lambda: glow(3, context_dim=2, context_shape=(2,)), "context_dim or context_shape, got both"),
    (lambda: glow(3, permutation="random"), "permutation 'linear', 'shuffle' or 'reverse', got 'random'"),
    (lambda: glow(3, actnorm=True), "actnorm inside the conditioner is for images"),
    (
        lambda: glow((1, 8, 8), conditioned="top"),
        "conditioned to be 'all' or, for images, 'prior', got 'top'",
    ),
    (lambda: glow(3, conditioned="prior"), r"got 'prior' for an event of shape \(3,\)"),
    (lambda: Permutation(3, [0, 2, 2]), r"expected each of 0 to 2 once, got \[0, 2, 2\]"),
    (lambda: glow((1, 8, 8), context_shape=(1, 6, 6)), "multiple of the image's"),
    (lambda: glow((1, 8, 8), context_shape=(1, 6)), "multiple of the image's"),
    (lambda: glow_step((1, 8, 8)), "at least 2 channels"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_what_can_not_be_built_says_what_would_do(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
