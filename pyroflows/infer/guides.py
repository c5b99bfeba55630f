"""A guide that is a flow, in a space that is centred and whitened first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to

from pyroflows.infer.diagnostics import latent_names
from pyroflows.infer.starts import (
    Normal,
    batch_and_match,
    elbo_of,
    find_mode,
    mean_field,
    without_validation,
)
from pyroflows.infer.unconstrained import LogDensity
from pyroflows.transforms import (
    AffineMap,
    Chain,
    Coupling,
    FlowTransform,
    Parallel,
    Permutation,
    SinhArcsinh,
    SplineMap,
    TriangularAffine,
    coupling,
)

__all__ = ["AutoFlow", "guide_transform"]

INITS = ("auto", "laplace", "mean_field", "prior")

# A Hessian is a backward pass for each dimension.
_LARGEST_HESSIAN = 200


def guide_transform(size: int, *, steps: int = 6, hidden_features: tuple[int, ...] = (64, 64)) -> Chain:
    """The flow that `AutoFlow` makes of a vector: affine couplings of shuffled halves between learned tails.

    In one dimension, where no coupling has anything to look at, it is a spline.

    Args:
        size: Number of unconstrained dimensions.
        steps: Number of couplings.
        hidden_features: Sizes of the hidden layers of their conditioners.

    Example:
        >>> guide_transform(5)(torch.zeros(7, 5)).shape
        torch.Size([7, 5])
    """
    if size == 1:
        return Chain([SinhArcsinh(1), coupling(1, elementwise=SplineMap()), SinhArcsinh(1)])
    parts: list[FlowTransform] = [SinhArcsinh(size)]
    for step in range(steps):
        # Which elements share a half is random, but the same in every run.
        order = torch.randperm(size, generator=torch.Generator().manual_seed(step))
        step_coupling: Coupling = coupling(
            size, elementwise=AffineMap("softclip"), hidden_features=hidden_features
        )
        parts += [step_coupling, Permutation(size, order)]
    return Chain([*parts, SinhArcsinh(size)])


class AutoFlow(AutoContinuous):
    r"""A guide for all continuous latent variables of a model: a flow in a whitened space.

    .. math:: z \sim \mathcal{N}(0, I), \qquad u = m + S \left( \mu + L f(z) \right), \qquad
        \text{latents} = g(u)

    `g` maps the reals to the supports, `m` and `S` are the location and Cholesky factor that the start
    finds, and `\mu`, `L` and the flow `f` are learned, from the identity on. A posterior with standard
    deviations of 1e-3 and 1e3 is thus no harder than a unit one, and the guide starts as a normal. The start
    is made at the first call, with its arguments.

    Args:
        model: The model.
        transform_fn: From the number of unconstrained dimensions to the flow `f`, by default
            `guide_transform`; or a flow for each of some latent sites, `{"z": glow((1, 8, 8))}`, of the
            site's unconstrained shape, while the others share the default one.
        init: The start. `"laplace"`: the mode and the curvature there. `"mean_field"`: the best normal of
            independent elements. `"prior"`: the prior's moments. `"auto"`: of the normals along the way to
            the mode and the prior's the one with the highest evidence lower bound, moved until its scores
            match the model's.
        init_loc_fn: Where the search starts, as other autoguides'.

    Raises:
        ValueError: There is no such start, a latent variable is discrete, of a support without a bijection,
            of a size that changes or in a subsampled plate, or a flow is not of its site's shape.

    Source: Hoffman et al. 2019, arXiv 1903.03704, section 3 (a flow as guide); Zhang et al. 2022,
    "Pathfinder", arXiv 2108.03782, and Cai et al. 2024, "Batch and match", arXiv 2402.14758 (the start).

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
        super().__init__(model, init_loc_fn=init_loc_fn)
        # Not the one with initial values in it, which it would make anew at each call.
        self._given_model = (model,)
        self._transform_fn = guide_transform if transform_fn is None else transform_fn
        self._init = init
        self.transform: Chain

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's own takes the model from the guide that is saved, too.
        return {**self.__dict__, "_model": None, "_given_model": None, "master": None}

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
        """The last part of the transform, which whitens."""
        return self.transform.transforms[-1]  # type: ignore[return-value]

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
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            draws = list(self._draws(10_000, *args, **kwargs))
        result = {}
        for name, support, value in draws:
            levels = torch.as_tensor(quantiles).to(value)
            of_each = torch.quantile(value, levels.reshape(-1), 0)
            result[name] = biject_to(support)(of_each.reshape(*levels.shape, *value.shape[1:]))
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
            self.transform = Chain([self._flow(), TriangularAffine(self.latent_dim)]).to(loc)
            start = _Start(self.log_density(*args, **kwargs), loc, self._prior_draws(*args, **kwargs))
        except BaseException:
            # A guide that could not be made is not one that has been made.
            self.prototype_trace = None
            raise
        found = getattr(start, self._init)()
        self.affine.set_(found.loc, found.tril)

    def _flow(self) -> FlowTransform:
        """The flow `f`, of the unconstrained vector in the order of the model's sites."""
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
        positions = torch.arange(self.latent_dim).split([shape.numel() for shape in shapes.values()])
        where = dict(zip(shapes, positions, strict=True))
        rest = [position for name, position in where.items() if name not in self._transform_fn]
        flows = list(self._transform_fn.values())
        if rest:
            flows.append(guide_transform(sum(len(position) for position in rest)))
        order = torch.cat([*(where[name] for name in self._transform_fn), *rest])
        return Chain([Parallel(flows), Permutation(self.latent_dim, order.argsort())])

    def _prior_draws(self, *args: Any, **kwargs: Any) -> Callable[[int], Tensor]:
        def draws(n: int) -> Tensor:
            rows = []
            for _ in range(n):
                trace = _trace(self._given_model[0], *args, **kwargs)
                values = [
                    biject_to(site["fn"].support).inv(trace.nodes[name]["value"]).reshape(-1)
                    for name, site in self._sites()
                ]
                rows.append(torch.cat(values))
            return torch.stack(rows).detach()

        return draws


class _Start:
    """The ways to find a normal from which a guide starts; each has the name of an `init`."""

    def __init__(self, log_density: LogDensity, loc: Tensor, prior_draws: Callable[[int], Tensor]) -> None:
        self.one = without_validation(log_density)
        self.loc, self.prior_draws = loc, prior_draws
        near = Normal(loc, 0.1 * torch.eye(len(loc)).to(loc)).sample(3)
        self.many = without_validation(
            log_density if log_density.broadcasts(near) else log_density.one_by_one
        )

    def laplace(self) -> Normal:
        path = find_mode(self.one, self.loc, max_steps=200)
        if not path:
            raise ValueError(
                "AutoFlow expected a model whose log density has a finite gradient and Hessian where "
                'init_loc_fn starts, got none: use init="prior", or another init_loc_fn'
            )
        return path[-1]

    def prior(self) -> Normal:
        draws = self.prior_draws(100)
        draws = draws[draws.isfinite().all(-1)]
        if len(draws) < 2:
            return self._around(1.0)
        # Moments of a heavy tail say nothing of where the mass is.
        low, middle, high = torch.quantile(draws, torch.tensor([0.16, 0.5, 0.84]).to(draws), 0)
        return Normal(middle, ((high - low) / 2).clamp(min=1e-6).diag())

    def mean_field(self) -> Normal:
        return mean_field(self.many, self._best())

    def auto(self) -> Normal:
        if len(self.loc) > _LARGEST_HESSIAN:
            return self.mean_field()
        best = self._best()
        matched = batch_and_match(self.many, best)
        # A thousand draws, so that the luck of a few does not choose.
        return max((best, matched), key=lambda normal: elbo_of(self.many, normal, 1000))

    def _best(self) -> Normal:
        """Of the normals along the way to the mode, and around the start of it, the one of highest ELBO."""
        candidates = [self.prior(), *(self._around(scale) for scale in (0.1, 0.3, 1.0))]
        if len(self.loc) <= _LARGEST_HESSIAN:
            for normal in find_mode(self.one, self.loc):
                candidates += [normal, _capped(normal)]
        return max(candidates, key=lambda normal: elbo_of(self.many, normal))

    def _around(self, scale: float) -> Normal:
        return Normal(self.loc, scale * torch.eye(len(self.loc)).to(self.loc))


def _capped(normal: Normal) -> Normal:
    """The normal with no standard deviation above 1: far from the mode the curvature may say little."""
    axes, scales, _ = torch.linalg.svd(normal.tril.double())
    return Normal.of(normal.loc.double(), (axes * scales.clamp(max=1.0) ** 2) @ axes.T).to(normal.loc)


def check_latents(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise where a latent variable of a model is not one of a fixed number of reals."""
    sizes: dict[str, torch.Size] = {}
    for attempt in range(2):
        trace = _trace(model, *args, **kwargs)
        now = {}
        for name in latent_names(trace):
            site: Any = trace.nodes[name]
            _check_site(name, site)
            now[name] = site["value"].shape
        if attempt and now != sizes:
            changed = sorted(name for name in {*now, *sizes} if now.get(name) != sizes.get(name))
            raise ValueError(
                f"AutoFlow expected latent variables of fixed size, got {changed}, which are there or not, "
                "or of another shape, from one run of the model to the next: give them the largest size and "
                "mask what is not used, or condition on what sets the size"
            )
        sizes = now
    if not sizes:
        raise ValueError(
            "AutoFlow expected a model with latent variables, got none: nothing is to be inferred"
        )


def _check_site(name: str, site: Any) -> None:
    support = site["fn"].support
    if site["fn"].has_enumerate_support or support.is_discrete:
        raise ValueError(
            f"AutoFlow expected continuous latent variables, got {name!r}, which is discrete "
            f"({site['fn']}): sum it out in the model, by dist.MixtureSameFamily or dist.DiscreteHMM, say, "
            f"or leave it to another guide by poutine.block(model, hide=[{name!r}])"
        )
    try:
        biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"AutoFlow expected supports that biject_to maps the reals to, got {support} of {name!r}: "
            "register a bijection by torch.distributions.biject_to.register, or write the model with a "
            "variable on the reals and pyro.deterministic"
        ) from error
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized:
            raise ValueError(
                f"AutoFlow expected vectorized plates, got {name!r} in the sequential plate {frame.name!r}: "
                "write `with pyro.plate(...)`"
            )
        if frame.full_size is not None and frame.full_size != frame.size:
            raise ValueError(
                f"AutoFlow expected latent variables that are there at each step, got {name!r} in the plate "
                f"{frame.name!r}, of which {frame.size} of {frame.full_size} are drawn: use an amortised "
                "guide for it, or take all of the plate"
            )


def _trace(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Trace:
    with torch.no_grad(), poutine.block():
        return poutine.trace(model).get_trace(*args, **kwargs)
