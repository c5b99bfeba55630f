"""What a flow is made of, as plain values, and the flow made again from these.

Every class here keeps each argument of its constructor under the argument's name, so the configuration of an
object is its class's name and these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyroflows import layers, nets, transforms
from pyroflows.transforms import partition

__all__ = ["build", "describe", "same_config"]

_CLASSES: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        transforms.ActNorm,
        transforms.AdditiveMap,
        transforms.AffineMap,
        transforms.Chain,
        transforms.Coupling,
        transforms.InvertibleConv1x1,
        transforms.InvertibleLinear,
        transforms.Logit,
        transforms.LogisticMixtureMap,
        transforms.MultiScale,
        transforms.Parallel,
        transforms.Permutation,
        transforms.Reshape,
        transforms.SinhArcsinh,
        transforms.SplineMap,
        transforms.Squeeze,
        transforms.Standardize,
        transforms.TriangularAffine,
        partition.Alternate,
        partition.Checkerboard,
        partition.Halves,
        partition.Nothing,
        partition.Positions,
        layers.ZeroConv,
        nets.ConvNet,
        nets.MLP,
        nets.ResNet,
        nets.TopPrior,
    )
}
_DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (dist.Cauchy, dist.Laplace, dist.Logistic, dist.Normal, dist.StudentT, dist.Uniform)
}
_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    kind.__name__: kind for kind in (nn.ELU, nn.GELU, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Softplus, nn.Tanh)
}


def describe(value: Any) -> Any:
    """An object's configuration: plain values, tensors and dictionaries of these.

    Raises:
        ValueError: It is of a class that is not one of pyroflows'.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple | nn.ModuleList):
        return tuple(describe(part) for part in value)
    if isinstance(value, dist.Independent):
        return _described(value, base_distribution=value.base_dist, n=value.reinterpreted_batch_ndims)
    if _DISTRIBUTIONS.get(type(value).__name__) is type(value):
        return _described(value, **{name: getattr(value, name) for name in value.arg_constraints})
    if _CLASSES.get(type(value).__name__) is type(value):
        parameters = inspect.signature(type(value)).parameters.values()
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return _described(value, **{name: getattr(value, name) for name in names})
    if isinstance(value, type) and value.__name__ in _ACTIVATIONS:
        return {"activation": value.__name__}
    raise ValueError(
        f"a flow is saved if it is put together from pyroflows' own classes, got an object of {type(value)}: "
        "save its `state_dict()`, and build it again yourself"
    )


def _described(value: Any, **arguments: Any) -> dict[str, Any]:
    described = {name: describe(argument) for name, argument in arguments.items()}
    return {"class": type(value).__name__, "arguments": described}


def build(config: Any) -> Any:
    """The object that a configuration describes; only what is named here is called.

    Raises:
        ValueError: The configuration names something else.
    """
    if isinstance(config, tuple):
        return tuple(build(part) for part in config)
    if not isinstance(config, dict):
        return config
    if set(config) == {"activation"} and config["activation"] in _ACTIVATIONS:
        return _ACTIVATIONS[config["activation"]]
    if set(config) == {"class", "arguments"}:
        arguments = {name: build(argument) for name, argument in config["arguments"].items()}
        if config["class"] == "Independent":
            return dist.Independent(arguments["base_distribution"], arguments["n"])
        kind = _CLASSES.get(config["class"]) or _DISTRIBUTIONS.get(config["class"])
        if kind is not None:
            return kind(**arguments)
    raise ValueError(f"expected the configuration of one of pyroflows' classes, got {str(config)[:80]}")


def same_config(a: Any, b: Any) -> bool:
    """Whether two configurations are the same; lists, as files have them, and tuples are alike."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a.cpu() == b.cpu()).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_config(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_config, a, b))
    return bool(a == b)
