"""Wrong shapes, dtypes and contexts are ValueErrors that say what was expected and what came."""

import pyro.distributions as dist
import pytest
import torch

from pyroflows.transforms import (
    ActNorm,
    AffineMap,
    Chain,
    Coupling,
    FlowTransform,
    InvertibleConv1x1,
    InvertibleLinear,
    Logit,
    MultiScale,
    Positions,
    Reshape,
    Squeeze,
    coupling,
    glow,
)

BUILD = [
    (lambda: InvertibleLinear((2, 3, 4)), r"InvertibleLinear expected an event of shape \(D,\)"),
    (lambda: InvertibleConv1x1((3,)), r"InvertibleConv1x1 expected an event of shape \(C, H, W\)"),
    (lambda: InvertibleLinear((2,), "qr"), r"parameterization of \['full', 'lu'\], got 'qr'"),
    (lambda: AffineMap("tanh"), r"scale of \['exp', 'sigmoid', 'softclip'\], got 'tanh'"),
    (lambda: AffineMap(above=0), r"positive, finite bounds, got below=3.0, above=0, max_shift=None"),
    (lambda: AffineMap(max_shift=float("inf")), r"positive, finite bounds, got .* max_shift=inf"),
    (lambda: AffineMap("exp", below=1.0), r"bounds of scale='softclip', got them with 'exp'"),
    (lambda: Squeeze((3, 5, 4)), r"even H and W, got \(3, 5, 4\)"),
    (lambda: Squeeze((4,)), "even H and W"),
    (lambda: Reshape((4,), (3,)), "as many elements"),
    (lambda: Logit((3,), alpha=0.5), r"alpha in \[0, 0.5\), got 0.5"),
    (lambda: Chain([]), "at least one FlowTransform"),
    (lambda: Chain([dist.transforms.ExpTransform()]), "at least one FlowTransform"),
    (lambda: Chain([torch.nn.Linear(2, 2)]), "expected transforms, got"),
    (lambda: Chain([ActNorm((3,)), ActNorm((4,))]), r"ActNorm gives \(3,\) and ActNorm takes \(4,\)"),
    (lambda: Chain([coupling(4, context_dim=1), coupling(4, context_dim=2)]), "one context shape"),
    (lambda: MultiScale([]), "at least one level"),
    (lambda: MultiScale([Squeeze((1, 4, 4)), ActNorm((3, 2, 2))]), r"event shape \(2, 2, 2\)"),
    (lambda: coupling(4, partition="thirds"), "Partition or one of .*'halves'"),
    (lambda: Positions((4,), [1, 1]), "some of 0 to D - 1, each once"),
    (lambda: Positions((4,), [4]), "some of 0 to D - 1, each once"),
    (lambda: Positions((4, 1, 1), [0]), r"expected an event of shape \(D,\)"),
    (lambda: coupling(4, partition="checkerboard"), r"expected an event of shape \(C, H, W\)"),
    (lambda: coupling((2, 2, 2), partition="alternate"), r"expected an event of shape \(D,\)"),
]


@pytest.mark.parametrize(("build", "message"), BUILD)
def test_building(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


CALL = [
    (torch.zeros(3, 4), r"Chain expected a tensor of shape \(\*batch, 5\), got \(3, 4\)"),
    (torch.zeros(()), r"expected a tensor of shape \(\*batch, 5\), got \(\)"),
    (torch.zeros(5, dtype=torch.float64), "dtype torch.float32, as its parameters have, got torch.float64"),
    (torch.zeros(5, dtype=torch.int64), "got torch.int64"),
    (torch.zeros(5, dtype=torch.bfloat16), "got torch.bfloat16"),
]


@pytest.mark.parametrize(("value", "message"), CALL)
def test_calling(value: torch.Tensor, message: str) -> None:
    transform = glow(5, steps=1, hidden_features=(4,))
    calls = (transform, transform.inv, transform.call_and_ladj, transform.inv.call_and_ladj)
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(value)
    with pytest.raises(ValueError, match=message):
        transform.call_and_score(value, torch.zeros(value.shape))


def test_scores() -> None:
    transform = glow(5, steps=1, hidden_features=(4,))
    with pytest.raises(ValueError, match=r"score of the shape of z, \(3, 5\), got \(5,\)"):
        transform.call_and_score(torch.zeros(3, 5), torch.zeros(5))


def test_a_transform_without_parameters_takes_reals() -> None:
    assert Squeeze((1, 2, 2))(torch.zeros(4, 1, 1, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match="expected an input of a floating-point dtype, got"):
        Squeeze((1, 2, 2))(torch.zeros(4, 1, 1, dtype=torch.uint8))


def test_contexts() -> None:
    transform = glow(5, steps=1, hidden_features=(4,), context_dim=2)
    with pytest.raises(ValueError, match=r"conditional: use `.condition\(context\)`.*\(\*batch, 2\)"):
        transform(torch.zeros(5))
    with pytest.raises(ValueError, match=r"context of shape \(\*batch, 2\), got \(3,\)"):
        transform.condition(torch.zeros(3))
    with pytest.raises(ValueError, match="expected a tensor as context, got"):
        transform.condition([1.0, 2.0])
    with pytest.raises(ValueError, match="expected a context of dtype"):
        transform.condition(torch.zeros(2, dtype=torch.float64))(torch.zeros(5))
    with pytest.raises(ValueError, match=r"\(3,\) and the context's batch shape \(4,\) do not broadcast"):
        transform.condition(torch.zeros(4, 2))(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"context of shape \(\*batch, 2\), got \(3,\)"):
        transform.call_and_score(torch.zeros(5), torch.zeros(5), torch.zeros(3))


def test_a_conditioner_of_the_wrong_size() -> None:
    transform = Coupling((5,), torch.nn.Linear(2, 5), AffineMap())
    with pytest.raises(ValueError, match=r"2 parameters for each changing element.*\(3, 6\), got \(3, 5\)"):
        transform(torch.zeros(3, 5))


def test_shapes_are_checked_before_anything_is_drawn() -> None:
    with pytest.raises(ValueError, match=r"\(\*batch, 5\)"):
        dist.TransformedDistribution(dist.Normal(torch.zeros(4), 1.0), [glow(5, steps=1)])


def test_a_transform_must_write_both_directions() -> None:
    with pytest.raises(NotImplementedError):
        FlowTransform((2,))(torch.zeros(2))
    with pytest.raises(NotImplementedError):
        FlowTransform((2,)).inv(torch.zeros(2))
