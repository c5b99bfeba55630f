"""Learnable bijections, and how they are put together."""

from pyroflows.transforms.actnorm import ActNorm, actnorm
from pyroflows.transforms.affine import TriangularAffine, triangular_affine
from pyroflows.transforms.base import FlowTransform
from pyroflows.transforms.chain import Chain
from pyroflows.transforms.coupling import Coupling, coupling
from pyroflows.transforms.elementwise import AdditiveMap, AffineMap, ElementwiseMap, SplineMap
from pyroflows.transforms.glow import glow, glow_step
from pyroflows.transforms.linear import (
    InvertibleConv1x1,
    InvertibleLinear,
    invertible_conv1x1,
    invertible_linear,
)
from pyroflows.transforms.logistic_mixture import LogisticMixtureMap
from pyroflows.transforms.multiscale import MultiScale
from pyroflows.transforms.parallel import Parallel
from pyroflows.transforms.partition import Partition, Positions
from pyroflows.transforms.permutation import Permutation
from pyroflows.transforms.preprocess import Logit
from pyroflows.transforms.recipes import nice, realnvp
from pyroflows.transforms.squeeze import Reshape, Squeeze
from pyroflows.transforms.standardize import Standardize
from pyroflows.transforms.tails import SinhArcsinh, sinh_arcsinh

__all__ = [
    "ActNorm",
    "AdditiveMap",
    "AffineMap",
    "Chain",
    "Coupling",
    "ElementwiseMap",
    "FlowTransform",
    "InvertibleConv1x1",
    "InvertibleLinear",
    "LogisticMixtureMap",
    "Logit",
    "MultiScale",
    "Parallel",
    "Partition",
    "Permutation",
    "Positions",
    "Reshape",
    "SinhArcsinh",
    "SplineMap",
    "Squeeze",
    "Standardize",
    "TriangularAffine",
    "actnorm",
    "coupling",
    "glow",
    "glow_step",
    "invertible_conv1x1",
    "invertible_linear",
    "nice",
    "realnvp",
    "sinh_arcsinh",
    "triangular_affine",
]
