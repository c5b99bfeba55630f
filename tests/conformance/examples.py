"""The registry: one example of every transform. A new transform is one more line in `EXAMPLES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyroflows.transforms import (
    ActNorm,
    AffineMap,
    Chain,
    Coupling,
    FlowTransform,
    InvertibleConv1x1,
    InvertibleLinear,
    LogisticMixtureMap,
    Logit,
    MultiScale,
    Parallel,
    Permutation,
    Positions,
    Reshape,
    SinhArcsinh,
    SplineMap,
    Squeeze,
    Standardize,
    TriangularAffine,
    coupling,
    glow,
    glow_step,
    nice,
    realnvp,
)


@dataclass(frozen=True)
class Example:
    name: str
    build: Callable[[], FlowTransform]

    def make(self, dtype: torch.dtype = torch.float64) -> FlowTransform:
        """The transform away from its start, where conditioners give 0 and much would be trivially right."""
        torch.manual_seed(0)
        transform = self.build().to(dtype)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return transform


def latent(
    transform: FlowTransform, *batch: int, dtype: torch.dtype = torch.float64, seed: int = 1
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, *transform.latent_shape, dtype=dtype, generator=generator)


def context(
    transform: FlowTransform, *batch: int, dtype: torch.dtype = torch.float64, seed: int = 2
) -> Tensor | None:
    """A context of that batch shape, or `None` for an unconditional transform."""
    if transform.context_shape is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, *transform.context_shape, dtype=dtype, generator=generator)


def conditioned(transform: FlowTransform, given: Tensor | None) -> torch.distributions.Transform:
    return transform if given is None else transform.condition(given)


def _linear_coupling() -> Coupling:
    return Coupling((5,), torch.nn.Linear(2, 6), AffineMap("softclip"))


def _with_foreign_parts() -> Chain:
    affine = dist.transforms.AffineTransform(0.5, 2.0)
    return Chain([affine, ActNorm((3,)), dist.transforms.Permute(torch.tensor([2, 0, 1])), coupling(3)])


def _standardized(context_dim: int | None = None) -> Standardize:
    transform = Standardize(realnvp(3, steps=2, hidden_features=(8,), context_dim=context_dim))
    x = torch.tensor([[1.0, 2.0, -5.0], [3.0, 2.5, 7.0]])
    transform.fit_to(x, None if context_dim is None else torch.tensor([[1.0, 9.0], [2.0, 3.0]]))
    return transform


EXAMPLES = [
    Example("actnorm_vector", lambda: ActNorm((3,))),
    Example("actnorm_image", lambda: ActNorm((3, 2, 4))),
    Example("linear_lu", lambda: InvertibleLinear((4,))),
    Example("linear_full", lambda: InvertibleLinear((4,), parameterization="full")),
    Example("conv_lu", lambda: InvertibleConv1x1((3, 2, 4))),
    Example("conv_full", lambda: InvertibleConv1x1((3, 2, 4), parameterization="full")),
    Example("coupling_own_conditioner", _linear_coupling),
    Example("coupling_additive", lambda: coupling(5, "additive")),
    Example("coupling_sigmoid", lambda: coupling(5, AffineMap("sigmoid"))),
    Example("coupling_softclip", lambda: coupling(5, AffineMap("softclip"), swap=True)),
    Example("coupling_exp", lambda: coupling(4, AffineMap("exp"))),
    Example("coupling_spline", lambda: coupling(5, "spline")),
    Example("coupling_spline_image", lambda: coupling((2, 2, 2), SplineMap(bins=4), hidden_channels=8)),
    Example("coupling_logistic_mixture", lambda: coupling(5, "logistic_mixture")),
    Example(
        "coupling_logistic_mixture_image",
        lambda: coupling((2, 2, 2), LogisticMixtureMap(components=2), hidden_channels=8, context_dim=2),
    ),
    Example("coupling_alternate", lambda: coupling(5, partition="alternate")),
    Example("coupling_alternate_swap", lambda: coupling(5, partition="alternate", swap=True)),
    Example("coupling_positions", lambda: coupling(5, partition=Positions((5,), [3, 0]))),
    Example("coupling_positions_swap", lambda: coupling(5, partition=Positions((5,), [3, 0], swap=True))),
    Example("coupling_one_element", lambda: coupling(1)),
    Example("coupling_context", lambda: coupling(5, context_dim=2)),
    Example("coupling_channels", lambda: coupling((3, 2, 2), partition="channels", hidden_channels=8)),
    Example(
        "coupling_checkerboard", lambda: coupling((1, 3, 3), partition="checkerboard", hidden_channels=8)
    ),
    Example("coupling_image_vector_context", lambda: coupling((2, 2, 2), hidden_channels=8, context_dim=3)),
    Example(
        "coupling_image_image_context",
        lambda: coupling((2, 2, 2), hidden_channels=8, context_shape=(1, 4, 4)),
    ),
    Example("coupling_nothing_passes", lambda: coupling(3, partition="nothing", context_dim=2)),
    Example("coupling_actnorm", lambda: coupling((2, 2, 2), hidden_channels=8, actnorm=True)),
    Example("permutation", lambda: Permutation(5, [3, 0, 4, 1, 2])),
    Example("permutation_image", lambda: Permutation((3, 2, 2), [2, 0, 1])),
    Example(
        "parallel",
        lambda: Parallel([realnvp(3, steps=2), glow((1, 2, 2), levels=1, steps=1, hidden_channels=4)]),
    ),
    Example("triangular_affine", lambda: TriangularAffine(4)),
    Example("sinh_arcsinh", lambda: SinhArcsinh(4)),
    Example("sinh_arcsinh_image", lambda: SinhArcsinh((2, 2, 3))),
    Example("squeeze", lambda: Squeeze((3, 4, 2))),
    Example("reshape", lambda: Reshape((12,), (3, 2, 2))),
    Example("standardize", _standardized),
    Example("standardize_context", lambda: _standardized(context_dim=2)),
    Example("standardize_image", lambda: Standardize(glow((1, 4, 4), levels=1, steps=1, hidden_channels=4))),
    Example("logit", lambda: Logit((3,), alpha=0.05)),
    Example("logit_image", lambda: Logit((1, 2, 3), alpha=0.01)),
    Example("multiscale", lambda: MultiScale([Squeeze((1, 4, 4)), Chain([ActNorm((2, 2, 2))])])),
    Example("chain_foreign", _with_foreign_parts),
    Example("nice", lambda: nice(5, hidden_features=(8,))),
    Example("nice_image", lambda: nice((1, 2, 4), steps=2, hidden_features=(8,))),
    Example("nice_context", lambda: nice(4, steps=2, hidden_features=(8,), context_dim=2)),
    Example("realnvp", lambda: realnvp(4, hidden_features=(8,))),
    Example("realnvp_context", lambda: realnvp(3, steps=2, hidden_features=(8,), context_dim=2)),
    Example("realnvp_image", lambda: realnvp((3, 4, 4), levels=2, steps=2, hidden_channels=4)),
    Example(
        "realnvp_image_context",
        lambda: realnvp((1, 4, 4), levels=2, steps=1, hidden_channels=4, context_shape=(2, 4, 4)),
    ),
    Example("glow_step", lambda: glow_step((3, 2, 2), hidden_channels=4)),
    Example("glow", lambda: glow(5, steps=2, hidden_features=(8,))),
    Example("glow_spline", lambda: glow(4, steps=2, hidden_features=(8,), coupling="spline")),
    Example("glow_context", lambda: glow(4, steps=2, hidden_features=(8,), context_dim=2)),
    Example("glow_image", lambda: glow((3, 4, 4), levels=2, steps=2, hidden_channels=4)),
    Example(
        "glow_additive", lambda: glow((1, 4, 4), levels=1, steps=1, hidden_channels=4, coupling="additive")
    ),
    Example(
        "glow_shuffle",
        lambda: glow((1, 4, 4), steps=2, hidden_channels=4, actnorm=True, permutation="shuffle"),
    ),
    Example("glow_reverse", lambda: glow(4, steps=2, hidden_features=(8,), permutation="reverse")),
    Example(
        "glow_conditional_prior",
        lambda: glow((1, 4, 4), steps=1, hidden_channels=4, conditioned="prior", context_dim=3),
    ),
    Example(
        "glow_image_context",
        lambda: glow((1, 4, 4), levels=2, steps=1, hidden_channels=4, context_shape=(2, 4, 4)),
    ),
    Example(
        "glow_image_vector_context",
        lambda: glow((1, 4, 4), levels=2, steps=1, hidden_channels=4, context_dim=3),
    ),
]
