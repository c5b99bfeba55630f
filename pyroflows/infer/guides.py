"""A guide that is a flow, in a space that is centred and whitened first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import biject_to

from pyroflows.infer.checks import check_latents, trace_once
from pyroflows.infer.flat import init_flat
from pyroflows.infer.hierarchy import hierarchy
from pyroflows.infer.noncentred import noncentred
from pyroflows.infer.normals import Normal
from pyroflows.infer.starts import INITS, Starts
from pyroflows.infer.unconstrained import LogDensity
from pyroflows.nets import MLP
from pyroflows.transforms import (
    AffineMap,
    Chain,
    Coupling,
    FlowTransform,
    Parallel,
    Permutation,
    Positions,
    SinhArcsinh,
    SplineMap,
    TriangularAffine,
    coupling,
)

__all__ = ["AutoFlow", "guide_transform"]

# Nats by which a start has to be better to be no luck of the draws.
_BETTER = 0.3


def guide_transform(
    size: int,
    *,
    steps: int = 8,
    hidden_features: tuple[int, ...] = (64, 64),
    levels: Sequence[Sequence[int]] = (),
) -> Chain:
    r"""The flow that `AutoFlow` makes of a vector: affine couplings of shuffled halves between learned tails.

    Then, for each level of a hierarchy but the last, two affine couplings in which it and all above it pass,
    with a network and with a shift and a log scale of what is below that are linear in them:

    .. math:: y_b = e^{r(x_a)} z_b + t(x_a), \qquad x_b = e^{A x_a + a} y_b + B x_a + b

    Of independent variables the linear ones make those whose scale is another's exponential (Neal's funnel),
    exactly. In one dimension, where no coupling has anything to look at, the flow is a spline.

    Args:
        size: Number of unconstrained dimensions.
        steps: Number of couplings.
        hidden_features: Sizes of the hidden layers of their conditioners.
        levels: Positions of the elements of each level, as of `hierarchy`.

    Source: Papaspiliopoulos et al. 2007, "A general framework for the parametrization of hierarchical
    models", Statistical Science 22 (what the last couplings undo); Ambrogioni et al. 2021, "Automatic
    structured variational inference", arXiv 2002.00643 (the model's structure in the guide).

    Example:
        >>> guide_transform(5)(torch.zeros(7, 5)).shape
        torch.Size([7, 5])
    """
    if size == 1:
        # Knots as far out as draws are, or the tails, which k-hat is the shape of, can't be mended.
        spline = SplineMap(bins=32, bound=8.0)
        return Chain([SinhArcsinh(1), coupling(1, elementwise=spline), SinhArcsinh(1)])
    parts: list[FlowTransform] = [SinhArcsinh(size)]
    # Smooth, as posteriors are: it comes closer than with ReLU in as many steps.
    network = partial(MLP, hidden_features=hidden_features, activation=nn.SiLU)
    for step in range(steps):
        # Which elements share a half is random, but the same in every run.
        order = torch.randperm(size, generator=torch.Generator().manual_seed(step))
        conditioner = network(size // 2, 2 * (size - size // 2))
        parts += [Coupling(size, conditioner, AffineMap("softclip")), Permutation(size, order)]
    parts.append(SinhArcsinh(size))
    above: list[int] = []
    for level in levels[:-1]:
        above = [*above, *level]
        passed, below = Positions((size,), above), 2 * (size - len(above))
        # Apart from the linear one, which has no bounds: a network's scales would be far too large far out.
        parts += [
            Coupling(size, network(len(above), below), AffineMap("softclip"), passed),
            Coupling(size, MLP(len(above), below, ()), AffineMap("exp"), passed),
        ]
    return Chain(parts)


class AutoFlow(AutoContinuous):
    r"""A guide for all continuous latent variables of a model: a flow in a whitened space.

    .. math:: z \sim \mathcal{N}(0, I), \qquad u = T \left( m + S (\mu + L f(z)) \right), \qquad
        \text{latents} = g(u)

    `g` maps the reals to the supports, `m` and `S` are the location and Cholesky factor that the start
    finds, and `\mu`, `L` and the flow `f` are learned. A posterior with standard deviations of 1e-3 and 1e3
    is thus no harder than a unit one. `T` is the identity, or undoes what a hierarchy's variables depend on
    (their non-centred coordinates) where the start is better so; the default flow starts as the identity.
    The start is made at the first call, with its arguments.

    Args:
        model: The model.
        transform_fn: From the number of unconstrained dimensions to the flow `f`, by default
            `guide_transform` with the levels of the model's hierarchy; or a flow for each of some latent
            sites, `{"z": glow((1, 8, 8))}`, of the site's unconstrained shape, while the others share the
            default one, without levels.
        init: The start. `"laplace"`: the mode and the curvature there. `"mean_field"`: the best normal of
            independent elements. `"prior"`: the prior's moments. `"auto"`: of the normals along a way to
            the mode and the prior's the one of highest evidence lower bound, moved until its scores match
            the model's; so from where `init_loc_fn` says and from zero, of a hierarchy with and without `T`,
            and the best of all.
        init_loc_fn: Where the search starts, as other autoguides'; of a flat prior (`ImproperUniform`), which
            most of them can't take a value from, at zero on the reals.

    Raises:
        ValueError: There is no such start, a latent variable is discrete, of a support without a bijection,
            of a size that changes or in a subsampled plate, or a flow is not of its site's shape.

    Source: Hoffman et al. 2019, arXiv 1903.03704, section 3 (a flow as guide); Zhang et al. 2022,
    "Pathfinder", arXiv 2108.03782, and Cai et al. 2024, "Batch and match", arXiv 2402.14758 (the start);
    Gorinova et al. 2020, "Automatic reparameterisation", arXiv 1906.03028 (`T`).

    Example:
        >>> import pyro
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, 1e-3 * scale), obs=torch.tensor(2e-3))
        >>> guide = AutoFlow(model)
        >>> guide.sample_posterior(100)["scale"].shape
        torch.Size([100])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        transform_fn: Callable[[int], FlowTransform] | Mapping[str, FlowTransform] | None = None,
        *,
        init: str = "auto",
        init_loc_fn: Callable[..., Any] = init_to_median,
    ) -> None:
        if init not in INITS:
            raise ValueError(f"AutoFlow expected init to be one of {INITS}, got {init!r}")
        super().__init__(model, init_loc_fn=partial(init_flat, init_loc_fn=init_loc_fn))
        # Not the one with initial values in it, which it would make anew at each call.
        self._given_model = (model,)
        self._transform_fn = transform_fn
        self._init = init
        self.transform: Chain

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's own takes the model from the guide that is saved, too.
        kept = self._model, self.master
        state = dict(super().__getstate__())
        self._model, self.master = kept
        return {**state, "_given_model": None}

    def log_density(self, *args: Any, **kwargs: Any) -> LogDensity:
        """The model's log density, as a function of one unconstrained vector."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        if self._given_model is None:
            raise ValueError("this AutoFlow was loaded without its model: make a new one of the model")
        return LogDensity(self._given_model[0], self._unpack_latent, self._prototype, args, kwargs)

    @property
    def _prototype(self) -> Trace:
        assert self.prototype_trace is not None
        return self.prototype_trace

    def _sites(self) -> list[tuple[str, Any]]:
        return list(self._prototype.iter_stochastic_nodes())

    @property
    def affine(self) -> TriangularAffine:
        """The part of the transform that whitens."""
        return self.transform.transforms[1]  # type: ignore[return-value]

    @property
    def whitened(self) -> Chain:
        """The transform from the whitened space, without the flow."""
        return Chain([part for part in (self.affine, self._coordinates) if part is not None])

    @property
    def _coordinates(self) -> Chain | None:
        """The part of the transform after that, if there is one."""
        parts = self.transform.transforms
        return parts[2] if len(parts) == 3 else None  # type: ignore[return-value]

    def get_base_dist(self) -> Any:
        zeros = torch.zeros_like(self.affine.fixed_loc)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> FlowTransform:
        return self.transform

    @torch.no_grad()
    def sample_posterior(self, n: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws of each latent variable, `(n, *shape)`, in the model's own space."""
        return {name: biject_to(support)(value) for name, support, value in self._draws(n, *args, **kwargs)}

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of each element of each latent variable, `(*quantiles.shape, *shape)`, by 10,000 draws.

        As of Pyro's autoguides they are taken in the unconstrained space. They are the same at each call.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            draws = list(self._draws(10_000, *args, **kwargs))
        result = {}
        for name, support, value in draws:
            levels = torch.as_tensor(quantiles).to(value)
            of_each = torch.quantile(value, levels.reshape(-1), 0)
            result[name] = biject_to(support)(of_each.reshape(levels.shape + value.shape[1:]))
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each element of each latent variable, as `quantiles` gives it."""
        return self.quantiles(0.5, *args, **kwargs)

    def _draws(self, n: int, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any, Tensor]]:
        """The name and support of each latent variable, and draws of its unconstrained value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        latent = self.transform(self.get_base_dist().sample((n,)))
        position = 0
        for name, site in self._sites():
            shape = self._unconstrained_shapes[name]
            yield name, site["fn"].support, latent[:, position : position + shape.numel()].reshape(n, *shape)
            position += shape.numel()

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        check_latents(self._given_model[0], *args, **kwargs)
        try:
            super()._setup_prototype(*args, **kwargs)
            loc = self._init_loc()
            self._levels = self._find_levels(args, kwargs)
            self.transform = Chain([self._flow(), TriangularAffine(self.latent_dim)]).to(loc)
            self._start(args, kwargs)
        except BaseException:
            # A guide that could not be made is not one that has been made.
            self.prototype_trace = None
            raise

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found, self._elbo = self._find_start(self._init, args, kwargs)
        # A start that was asked for is of the model as it is written.
        if self._init == "auto":
            other = noncentred(self.log_density(*args, **kwargs), self._levels, self._init_loc())
            if other is not None:
                found_there, elbo_there = self._find_start(self._init, args, kwargs, other)
                if elbo_there > self._elbo:
                    found, self._elbo = found_there, elbo_there
                    self.transform = Chain([*self.transform.transforms, other])
        self.affine.set_(found.loc, found.tril)

    def _find_start(
        self, way: str, args: tuple[Any, ...], kwargs: dict[str, Any], coordinates: Chain | None = None
    ) -> tuple[Normal, float]:
        """A normal from which the guide may start, in coordinates, and its evidence lower bound."""
        log_density, loc = self.log_density(*args, **kwargs), self._init_loc()
        if coordinates is not None:
            log_density.coordinates, loc = coordinates, coordinates.inv(loc)

        def prior_draw() -> Tensor:
            latent = self._prior_draw(*args, **kwargs)
            return latent if coordinates is None else coordinates.inv(latent)

        starts = Starts(log_density, loc, prior_draw)
        # A guide may be called first where no gradients are wanted, but the start takes some.
        with torch.enable_grad():
            found = getattr(starts, way)()
        return found, starts.elbo(found)

    def start_elsewhere(self, args: tuple[Any, ...], kwargs: dict[str, Any], only_better: bool) -> bool:
        """Begin again from another start, if that is left to the guide; whether it is.

        The flow is made anew, unless it was given for a site. If asked to, it is left as it is where the
        other start is not better than the first was.
        """
        if self._init != "auto" or isinstance(self._transform_fn, Mapping):
            return False
        found, elbo = self._find_start("elsewhere", args, kwargs, self._coordinates)
        if only_better and elbo < self._elbo + _BETTER:
            return False
        self.transform.transforms[0].load_state_dict(self._flow().state_dict())
        self.affine.set_(found.loc, found.tril)
        return True

    def _flow(self) -> FlowTransform:
        """The flow `f`, of the unconstrained vector in the order of the model's sites."""
        if self._transform_fn is None:
            return guide_transform(self.latent_dim, levels=self._levels)
        if not isinstance(self._transform_fn, Mapping):
            return self._transform_fn(self.latent_dim)
        shapes = self._unconstrained_shapes
        for name, flow in self._transform_fn.items():
            expected = tuple(shapes[name]) if name in shapes else None
            if expected != tuple(flow.event_shape):
                raise ValueError(
                    f"AutoFlow expected a flow for one of the latent variables "
                    f"{ {name: tuple(shape) for name, shape in shapes.items()} }, of its unconstrained "
                    f"shape, got one for {name!r} of event shape {tuple(flow.event_shape)}"
                )
        where = self._positions()
        rest = [where[name] for name in where if name not in self._transform_fn]
        flows = list(self._transform_fn.values())
        if rest:
            flows.append(guide_transform(sum(len(positions) for positions in rest)))
        of_each = [*(where[name] for name in self._transform_fn), *rest]
        order = [position for positions in of_each for position in positions]
        return Chain([Parallel(flows), Permutation(self.latent_dim, order)])

    def _positions(self) -> dict[str, list[int]]:
        """The positions of each latent variable in the unconstrained vector."""
        shapes = self._unconstrained_shapes
        positions = torch.arange(self.latent_dim).split([shape.numel() for shape in shapes.values()])
        return {name: of_site.tolist() for name, of_site in zip(shapes, positions, strict=True)}

    def _find_levels(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[int]]:
        where = self._positions()
        levels = hierarchy(self._given_model[0], self._unconstrained_shapes, args, kwargs)
        return [[position for name in level for position in where[name]] for level in levels]

    def _prior_draw(self, *args: Any, **kwargs: Any) -> Tensor:
        """A draw of the model's prior, as an unconstrained vector."""
        trace = trace_once(self._given_model[0], *args, **kwargs)
        values = [
            biject_to(site["fn"].support).inv(trace.nodes[name]["value"]).reshape(-1)
            for name, site in self._sites()
        ]
        return torch.cat(values)
