"""Flows as Pyro distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, TransformedDistribution, constraints
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Size, Tensor
from torch.distributions import Distribution

from pyroflows._renamed import renamed
from pyroflows.transforms.base import FlowTransform, sum_last
from pyroflows.transforms.chain import map_tensors
from pyroflows.transforms.standardize import Standardize, is_unbounded

__all__ = ["Dequantized", "Flow"]


class FlowDistribution(TransformedDistribution):
    """A `TransformedDistribution` by one transform, whose `log_prob` is always one inverse pass.

    The general one inverts and then asks for the ladj, which is a second pass wherever the transform can't
    remember the first: under `torch.compile`, `vmap` and inference mode.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z, ladj = self.transforms[0].inv.call_and_ladj(value)
        return self.base_dist.log_prob(z) + ladj


class Flow(PyroModule):
    r"""A transform and a base distribution; a call gives the distribution of `x = f(z)`.

    .. math:: \log p(x) = \log p_{\text{base}}(f^{-1}(x)) + \log |\det \partial f^{-1}(x) / \partial x|
        \text{ (nats)}

    The same object is a prior in a model, a posterior in a guide, or a density model: it does not know.

    Args:
        transform: The bijection from latent to data.
        base: Distribution of the latent, of event shape `transform.latent_shape`, or a module whose call
            gives one (with learned parameters, say). By default a standard normal.

    Shapes:
        `flow()`: batch shape `()`, event shape `transform.event_shape`. `flow(context)`: the context's batch
        shape.

    Raises:
        ValueError: The transform is not a `FlowTransform`, the base does not fit it, a context is missing
            or not wanted, or the temperature is not positive.

    Source: Papamakarios et al. 2021, arXiv 1912.02762, eq. 4.

    Example:
        >>> flow = Flow(realnvp(2))
        >>> x = torch.randn(1000, 2)
        >>> loss = -flow().log_prob(x).mean()
        >>> flow(temperature=0.7).sample((5,)).shape
        torch.Size([5, 2])
        >>> Flow(realnvp(2, context_dim=3))(torch.zeros(7, 3)).batch_shape
        torch.Size([7])
    """

    transform: FlowTransform

    def __init__(
        self, transform: FlowTransform, base: Distribution | Callable[[], Distribution] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(transform, FlowTransform):
            raise ValueError(f"Flow expected a FlowTransform, got {type(transform)}: put it in a Chain")
        self.transform = transform
        self._base = base
        # Follows the module to its device and dtype, so the default base can be made where it is needed.
        self.register_buffer("_zero", torch.zeros(()), persistent=False)
        shape = tuple(self.base.event_shape)
        if shape != tuple(transform.latent_shape):
            raise ValueError(
                f"Flow expected a base of event shape {tuple(transform.latent_shape)}, got {shape}: "
                "use `.to_event(n)` to make batch dimensions part of the event"
            )

    @property
    def base(self) -> Distribution:
        """The latent's distribution."""
        if self._base is None:
            return _normal(self._zero, self.transform.latent_shape, 1.0)
        return self._base if isinstance(self._base, Distribution) else self._base()

    def forward(
        self, context: Tensor | None = None, *, temperature: float | Sequence[float] = 1.0
    ) -> FlowDistribution:
        """The flow's distribution.

        Args:
            context: Given if and only if the transform is conditional.
            temperature: The base's scale is multiplied by this; by one number for each level of a multi-scale
                transform, finest first, where a sequence is given.
        """
        for each in temperature if isinstance(temperature, Sequence) else [temperature]:
            if not 0 < each < math.inf:
                raise ValueError(f"Flow expected a positive temperature that is finite, got {temperature}")
        if am_i_wrapped():
            self._register()
        # Not by attribute, which in a call registers the parameters wherever it is, if only to sample.
        transform = self._modules["transform"]
        assert isinstance(transform, FlowTransform)
        if context is None and transform.context_shape is not None:
            raise ValueError(
                f"this Flow is conditional: call it with a context of shape "
                f"(*batch, {', '.join(map(str, transform.context_shape))})"
            )
        if context is not None and transform.context_shape is None:
            raise ValueError("this Flow takes no context: its transform was made without a context_dim")
        conditioned = transform if context is None else transform.condition(context)
        return FlowDistribution(self._tempered(transform, temperature), [conditioned])

    def _register(self) -> None:
        """Make the parameters known to Pyro in a model or guide.

        Inside a `PyroModule` they have its names, as usual. On its own a flow has none, and Pyro would call
        the parameters of any two flows alike, of which then only the first is trained; so they keep the name
        that `pyro.module` gave them, or get one that is free.
        """
        if self._pyro_name or pyro.settings.get("module_local_params"):
            _ = self.transform
            return
        store = pyro.get_param_store()
        named = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        taken = {name.split("$$$")[0] for name in store.keys()}  # noqa: SIM118
        free = next(name for n in itertools.count() if (name := f"flow{n or ''}") not in taken)
        for name, parameter in named:
            pyro.param(store.param_name(parameter) or f"{free}$$${name}", parameter)

    def _tempered(self, transform: FlowTransform, temperature: float | Sequence[float]) -> Distribution:
        scale = self._scale(transform, temperature) if isinstance(temperature, Sequence) else temperature
        if self._base is None:
            return _normal(self._zero, transform.latent_shape, scale)
        base = self.base
        if isinstance(scale, float | int) and scale == 1:
            return base
        mean = base.mean
        if not mean.isfinite().all():
            raise ValueError(f"a temperature needs a base with a mean, which {base} does not have")
        shrink = dist.transforms.AffineTransform(mean * (1 - scale), scale, len(base.event_shape))
        return dist.TransformedDistribution(base, [shrink])

    def _scale(self, transform: FlowTransform, temperatures: Sequence[float]) -> Tensor:
        """Each level's temperature, at each of its elements of the latent."""
        if len(temperatures) != len(transform.level_shapes):
            raise ValueError(
                f"Flow expected one temperature, or one of each of the {len(transform.level_shapes)} levels, "
                f"got {len(temperatures)}"
            )
        zero = self._zero
        levels = zip(temperatures, transform.level_shapes, strict=True)
        return transform.join_latent([(zero + each).expand(shape) for each, shape in levels])

    @torch.no_grad()
    def initialize(self, batch: Tensor, context: Tensor | None = None) -> None:
        """Set every `ActNorm` from a batch of data, so that its output has mean 0 and variance 1.

        It happens once: an `ActNorm` that was initialised (it is part of the state) stays as it is.

        Args:
            batch: Data, `(N, *event_shape)`.
            context: Their contexts, `(N, *context_shape)`.
        """
        value, context = self.transform._prepare(batch, context, forward=False)
        if value.dim() == len(self.transform.event_shape):
            raise ValueError(f"initialize expected a batch of data, got one of shape {tuple(value.shape)}")
        self.transform._initialize(value, context)

    def save(self, path: str | Path) -> None:
        """Write the flow to a file: its weights as safetensors, what it is made of as JSON in their header.

        Args:
            path: The file. It is written under a temporary name, then renamed.

        Raises:
            ValueError: It is not put together from pyroflows' own classes, or can't be written.

        Example:
            >>> import tempfile
            >>> flow = Flow(realnvp(2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     flow.save(f"{folder}/flow.safetensors")
            ...     again = Flow.load(f"{folder}/flow.safetensors")
            >>> bool(again().log_prob(torch.zeros(2)) == flow().log_prob(torch.zeros(2)))
            True
        """
        from pyroflows.saving import save_flow

        save_flow(self, path, {})

    @staticmethod
    def load(path: str | Path) -> Flow:
        """Read a flow that `save` wrote, in evaluation mode; no code in the file is run.

        Raises:
            ValueError: The file is not there, is none of `save`'s, or is damaged.
        """
        from pyroflows.saving import load_flow

        return load_flow(path)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # `fit` puts the transform into a `Standardize`; so does the state of a flow that was fitted.
        if f"{prefix}transform.context_loc" in state_dict:
            self.standardize(data=f"{prefix}transform.loc" in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def standardize(self, *, data: bool = True) -> Standardize | None:
        """Put the transform into a `Standardize`, unless there is one in it or nothing to standardise.

        Args:
            data: Whether the data are standardised, unless they are bounded, and not the contexts alone.

        Returns:
            The `Standardize`, which leaves data as they are until `Flow.initialize` or its own `fit_to`.
        """
        transform = self._modules["transform"]
        assert isinstance(transform, FlowTransform)
        found = next((part for part in transform.modules() if isinstance(part, Standardize)), None)
        data = data and is_unbounded(transform)
        if found is None and (data or transform.context_shape is not None):
            found = self.transform = Standardize(transform, data=data)
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Flow:
        if isinstance(self._base, Distribution):
            map_tensors(self._base, fn)
        return super()._apply(fn, *args, **kwargs)


def _normal(like: Tensor, shape: Size, scale: float | Tensor) -> Distribution:
    loc = like.expand(shape)
    return dist.Normal(loc, loc + scale, validate_args=False).to_event(len(shape))


class Dequantized(TorchDistribution):
    r"""A distribution of integers, by a density of reals with noise added.

    .. math:: \log P(x) \ge \mathbb{E}_{u \sim q(u | x)} \left[ \log p\left(\frac{x + u}{n}\right)
        - \log q(u | x) \right] - D \log n \text{ (nats)}

    for `n` grey levels and `D` elements. The noise is uniform on [0, 1), or, where it is learned, `\Phi(v)`
    of a conditional flow's `v`, by the standard normal's distribution function: `q(u | x)` is `v`'s density
    over the standard normal's, so noise of a flow that is the identity is uniform. `log_prob` is an unbiased
    estimate of the bound, by one draw of the noise.

    Args:
        base: A distribution of reals, which data in [0, 1) are to follow: images `(C, H, W)` or vectors.
        grey_levels: Number of values, 0 to `grey_levels - 1`.
        noise: `None` for uniform noise, or a conditional `Flow` (or any callable) that gives the
            distribution of `v`, of the base's event shape, for data that were brought to [-1, 1].

    Shapes:
        Batch and event shape are those of `base`.

    Raises:
        ValueError: `grey_levels` is not at least 2, a value is not an integer of 0 to `grey_levels - 1`, or
            the noise is not of the data's shape.

    Source: Theis et al. 2016, "A note on the evaluation of generative models", arXiv 1511.01844, section
    3.1; Ho et al. 2019, "Flow++", arXiv 1902.00275, eq. 7 and section 3.1 (learned noise).

    Example:
        >>> flow = Flow(glow((1, 8, 8), steps=2, hidden_channels=16))
        >>> images = Dequantized(flow(), grey_levels=17)
        >>> x = images.sample((5,))
        >>> x.shape, x.dtype, images.bits_per_dim(x).shape
        (torch.Size([5, 1, 8, 8]), torch.uint8, torch.Size([5]))
        >>> noise = Flow(realnvp((1, 8, 8), levels=1, hidden_channels=16, context_shape=(1, 8, 8)))
        >>> Dequantized(flow(), grey_levels=17, noise=noise).log_prob(x).shape
        torch.Size([5])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    @renamed(levels="grey_levels")
    def __init__(
        self,
        base: Distribution,
        grey_levels: int = 256,
        noise: Callable[[Tensor], Distribution] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if grey_levels < 2:
            raise ValueError(f"Dequantized expected at least 2 grey levels, got {grey_levels}")
        if isinstance(noise, Distribution) or (noise is not None and not callable(noise)):
            raise ValueError(f"Dequantized expected a conditional Flow as noise, got {type(noise)}")
        self.base_dist = base
        self.grey_levels = grey_levels
        self.noise = noise
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        return constraints.independent(
            constraints.integer_interval(0, self.grey_levels - 1), len(self.event_shape)
        )

    def expand(
        self, batch_shape: Size | list[int] | tuple[int, ...], _instance: Dequantized | None = None
    ) -> Dequantized:
        new = self._get_checked_instance(Dequantized, _instance)
        new.base_dist = self.base_dist.expand(torch.Size(batch_shape))
        new.grey_levels, new.noise = self.grey_levels, self.noise
        super(Dequantized, new).__init__(new.base_dist.batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def dequantize(self, x: Tensor) -> Tensor:
        """Integers to reals in [0, 1) by noise: `(x + u) / grey_levels`."""
        return self._dequantize(x)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """An unbiased estimate of the lower bound of log P(x), in nats."""
        # More levels than a byte has can't be compared with one.
        x = x.to(torch.int64) if x.dtype == torch.uint8 and self.grey_levels > 2**8 else x
        if self._validate_args:
            self._validate_sample(x)
        y, log_q = self._dequantize(x)
        return self.base_dist.log_prob(y) - log_q - self.event_shape.numel() * math.log(self.grey_levels)

    def _dequantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of `(x + u) / levels`, and the log-density of `u`."""
        dtype, event_dim = _dtype_of(self.base_dist), len(self.event_shape)
        if self.noise is None:
            u = torch.rand(x.shape, dtype=dtype, device=x.device)
            return (x + u) / self.grey_levels, u.new_zeros(())
        noise = self.noise((2 * x.to(dtype) + 1) / self.grey_levels - 1)
        v = noise.rsample()
        if v.shape != x.shape:
            raise ValueError(
                f"Dequantized expected noise of the data's shape {tuple(x.shape)}, got {tuple(v.shape)}"
            )
        log_normal = sum_last(-(v**2 + math.log(2 * math.pi)) / 2, event_dim)
        return (x + torch.special.ndtr(v)) / self.grey_levels, noise.log_prob(v) - log_normal

    def bits_per_dim(self, x: Tensor) -> Tensor:
        r"""`-log P(x) / (D \log 2)`, an estimate of an upper bound, in bits per dimension."""
        return -self.log_prob(x) / (self.event_shape.numel() * math.log(2))

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Integers, `uint8` for up to 256 grey levels and `int64` for more.

        Raises:
            FloatingPointError: A sample of the base is not finite, and no integer.
        """
        x = self.sample_reals(sample_shape)
        bad = int((~x.isfinite()).sum())
        if bad:
            raise FloatingPointError(
                f"{bad} of {x.numel()} values that were drawn are not finite: draw with a lower temperature, "
                "or fit a flow whose scales are bounded"
            )
        return x.to(torch.uint8 if self.grey_levels <= 256 else torch.int64)

    def sample_reals(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Integers as reals: a value that is not finite is NaN."""
        with torch.no_grad():
            y = self.base_dist.sample(torch.Size(sample_shape))
        y = torch.where(y.isfinite(), y, torch.nan)
        return (y * self.grey_levels).floor().clamp(0, self.grey_levels - 1)


def _dtype_of(distribution: Distribution) -> torch.dtype:
    """The dtype that a distribution of reals takes."""
    parameter = next(
        (
            parameter
            for transform in getattr(distribution, "transforms", [])
            if isinstance(transform, torch.nn.Module)
            for parameter in transform.parameters()
        ),
        None,
    )
    return torch.get_default_dtype() if parameter is None else parameter.dtype
