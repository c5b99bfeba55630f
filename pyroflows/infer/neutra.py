"""NUTS in the space of a guide's base, where the posterior is nearly a normal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoContinuous, init_to_uniform
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyroflows.infer.diagnostics import check_takes_all, latent_names
from pyroflows.infer.flat import init_flat
from pyroflows.infer.validation import unvalidated

__all__ = ["NeuTraDraws", "neutra_nuts"]

# As many draws of the guide are tried as a start, as Pyro tries of the prior.
_STARTS = 100


@dataclass(frozen=True)
class NeuTraDraws:
    """Draws of the posterior by NUTS, and what they cost.

    Attributes:
        samples: Each latent variable, `(num_chains * num_samples, *shape)`, in the model's own space, one
            chain after the other.
        num_chains: Number of chains.
        divergences: How many draws' trajectories diverged, over all chains. More than a few say that the
            draws miss a part of the posterior.
        num_gradients: How often the gradient of the log density was taken for the draws, over all chains:
            their leapfrog steps, without those of the warm-up.
    """

    samples: dict[str, Tensor]
    num_chains: int
    divergences: int
    num_gradients: int


def neutra_nuts(
    model: Callable[..., Any],
    guide: AutoContinuous,
    *args: Any,
    num_samples: int = 1000,
    warmup_steps: int = 500,
    num_chains: int = 1,
    seed: int | None = None,
    target_accept_prob: float = 0.9,
    max_tree_depth: int = 10,
    progress_bar: bool = True,
    **kwargs: Any,
) -> NeuTraDraws:
    r"""Draw from the posterior by NUTS, in the space that a guide's transform makes nearly normal.

    .. math:: \log p(z \mid x) = \log p(x, f(z)) + \log \left| \det \frac{\partial f}{\partial z} \right| + c

    With `f` the guide's transform, from its base to the model's unconstrained space. The draws are of the
    posterior itself, however good the guide; a good one makes them cost few gradients. Of a part that the
    guide leaves out a chain seldom finds the way in or out: divergences tell of it, and chains that differ.

    Args:
        model: The model. Discrete variables, on which no continuous one depends, are summed out.
        guide: The guide, fitted: `AutoMultivariateNormal`, `AutoIAFNormal`, `AutoFlow` or any other that has
            a `get_transform`, of all continuous variables of the model. It is left as it was.
        args: What both are called with.
        num_samples: Number of draws of each chain.
        warmup_steps: Number of steps of each chain that set the step size and mass matrix, and are dropped.
        num_chains: Number of chains, made one after the other. Each starts from a draw of the guide.
        seed: Of the draws, which then leave the global random state as it was.
        target_accept_prob: What the step size is set for: nearer to 1 for smaller steps.
        max_tree_depth: A trajectory has up to two to the power of it steps.
        progress_bar: Whether to show one for each chain.
        kwargs: What both are called with.

    Raises:
        ValueError: The guide is not an `AutoContinuous`, has no transform or leaves out a variable of the
            model, a plate subsamples, a number is not positive, or the guide lies where the model has no
            density.

    Source: Hoffman et al. 2019, "NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural
    Transport", arXiv 1903.03704, section 3.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoMultivariateNormal
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=torch.ones(3))
        >>> draws = neutra_nuts(model, AutoMultivariateNormal(model), num_samples=20, warmup_steps=20,
        ...     seed=0, progress_bar=False)
        >>> draws.samples["scale"].shape, bool((draws.samples["scale"] > 0).all())
        (torch.Size([20]), True)
    """
    if not isinstance(guide, AutoContinuous):
        raise ValueError(
            "neutra_nuts expected a guide of pyro.infer.autoguide.AutoContinuous, such as AutoFlow or "
            f"AutoMultivariateNormal, got {type(guide).__name__}: fit one of those to the model"
        )
    counts = {"num_samples": num_samples, "warmup_steps": warmup_steps, "num_chains": num_chains}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {name} of at least 1, got {count}")
    options = {"target_accept_prob": target_accept_prob, "max_tree_depth": max_tree_depth}
    with _seeded(seed):
        # What a guide is made of, parameters included, is known once it has run.
        if guide.prototype_trace is None or not hasattr(guide, "plates"):
            guide(*args, **kwargs)
        with _without_gradients(guide):
            warped = _Warped(model, guide, args, kwargs)
            chains = [
                warped.chain(num_samples, warmup_steps, progress_bar, options) for _ in range(num_chains)
            ]
        samples = warped.unwarp(torch.cat([chain.latents for chain in chains]))
    divergences, num_gradients = sum(c.divergences for c in chains), sum(c.num_gradients for c in chains)
    return NeuTraDraws(samples, num_chains, divergences, num_gradients)


class _Chain(NamedTuple):
    """One chain's draws of the latent variable, `(num_samples, D)`, and what they cost."""

    latents: Tensor
    divergences: int
    num_gradients: int


class _Bound:
    """A guide whose transform is that of given arguments: Pyro's NeuTra asks for it without any."""

    def __init__(self, guide: AutoContinuous, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self.base, self.transform = guide.get_base_dist(), guide.get_transform(*args, **kwargs)
        except NotImplementedError as error:
            raise ValueError(
                f"neutra_nuts expected a guide with a transform from its base, got {type(guide).__name__}, "
                "which has none: use AutoMultivariateNormal, AutoIAFNormal or AutoFlow"
            ) from error
        self.guide = guide

    def get_base_dist(self) -> Any:
        return self.base

    def get_transform(self) -> Any:
        return self.transform

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guide, name)


class _Warped:
    """A model whose continuous variables are the guide's transform of a single one, `latent`."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoContinuous,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        reparam: Any = NeuTraReparam(guide)
        reparam.guide = bound = _Bound(guide, args, kwargs)
        self.model, self.args, self.kwargs = reparam.reparam(model), args, kwargs
        self.base = bound.base
        self.names = [name for name, _ in bound.prototype_trace.iter_stochastic_nodes()]
        self.latent = f"{self.names[0]}_shared_latent"
        self._check()
        # Any start will do here: it only keeps Pyro from looking for one.
        start = {self.latent: self.base.sample()}
        try:
            _, self.potential, self.transforms, _ = initialize_model(
                self.model,
                args,
                kwargs,
                initial_params=start,
                init_strategy=partial(init_flat, init_loc_fn=init_to_uniform),
            )
        except AssertionError as error:
            # Pyro's, without a word: of a discrete variable's values each would have its own draw.
            raise ValueError(
                f"neutra_nuts expected continuous variables, {self.names}, of which none depends on a "
                "discrete one, got one that does: sum the discrete one out in the model"
            ) from error

    def _check(self) -> None:
        with torch.no_grad(), unvalidated():
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        check_takes_all("neutra_nuts", trace)
        free = [name for name in latent_names(trace) if not trace.nodes[name]["fn"].has_enumerate_support]
        if free != [self.latent]:
            raise ValueError(
                "neutra_nuts expected a guide of all continuous variables of the model, got one of "
                f"{self.names}, which leaves {[name for name in free if name != self.latent]}: make the "
                "guide of this model"
            )

    def chain(
        self, num_samples: int, warmup_steps: int, progress_bar: bool, options: dict[str, Any]
    ) -> _Chain:
        gradients = divergences = 0

        def counted(params: dict[str, Tensor]) -> Tensor:
            nonlocal gradients
            gradients += 1
            return self.potential(params)

        def note(kernel: NUTS, params: dict[str, Tensor], stage: str, i: int) -> None:
            nonlocal gradients, divergences
            if stage.startswith("Warmup"):
                gradients = 0
            else:
                divergences = len(kernel.diagnostics()["divergences"])

        mcmc = MCMC(
            NUTS(potential_fn=counted, **options),
            num_samples,
            warmup_steps,
            initial_params=self._start(),
            transforms=self.transforms,
            hook_fn=note,
            disable_progbar=not progress_bar,
        )
        mcmc.run()
        return _Chain(mcmc.get_samples()[self.latent], divergences, gradients)

    def _start(self) -> dict[str, Tensor]:
        """A draw of the guide at which the model has a density."""
        with torch.no_grad(), unvalidated():
            for _ in range(_STARTS):
                start = {self.latent: self.base.sample()}
                if self.potential(start).isfinite():
                    return start
        raise ValueError(
            f"neutra_nuts expected a guide where the model has a density, got none at {_STARTS} draws of it: "
            "fit the guide"
        )

    def unwarp(self, latents: Tensor) -> dict[str, Tensor]:
        """The model's own variables at `latents`, `(n, D)`."""
        values: dict[str, list[Tensor]] = {name: [] for name in self.names}
        # By the model, and not by the guide's prototype: a variable's support may depend on other variables.
        with torch.no_grad(), unvalidated(), poutine.block(), poutine.mask(mask=False):
            for latent in latents:
                conditioned = poutine.condition(self.model, {self.latent: latent})
                nodes: Any = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs).nodes
                for name, value in values.items():
                    value.append(nodes[name]["value"])
        return {name: torch.stack(value) for name, value in values.items()}


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Random numbers of a seed, and after it those that would have come without."""
    if seed is None:
        yield
        return
    # Pyro's seed is also NumPy's and Python's.
    state = get_rng_state()
    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            set_rng_state(state)


@contextmanager
def _without_gradients(guide: AutoContinuous) -> Iterator[None]:
    """The gradients that NUTS takes are of the latent variable alone."""
    trained = [parameter for parameter in guide.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
