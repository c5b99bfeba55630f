"""The element-wise maps that couplings are put together from.

A map takes `n_parameters` numbers per element from the conditioner, in the last dimension, and gives
each element's value and log-derivative.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyroflows._zuko import zuko

__all__ = ["AdditiveMap", "AffineMap", "ElementwiseMap", "SplineMap"]

_SCALES = ["exp", "sigmoid", "softclip"]


class ElementwiseMap(nn.Module):
    """A monotone map of one number, whose parameters a conditioner computes for each element.

    A subclass sets `n_parameters`, and `linear` where an element's ladj depends on these alone, and writes
    both directions; with all parameters 0 (where conditioners start) it should be close to the identity.

    Shapes:
        `z`, `x` and each element's ladj: `(*batch, *event)`; `parameters`:
        `(*batch, *event, n_parameters)`.
    """

    n_parameters: int
    linear = False

    def forward_and_ladj(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`x` and log|dx/dz| (nats) of each element."""
        raise NotImplementedError

    def inverse_and_ladj(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`z` and log|dz/dx| (nats) of each element."""
        raise NotImplementedError


class AdditiveMap(ElementwiseMap):
    r"""A shift, which keeps volumes.

    .. math:: z = x + t \text{ (data to latent)}, \qquad \text{ladj} = 0

    Source: Dinh et al. 2014, "NICE", arXiv 1410.8516, eq. 8 to 10.

    Example:
        >>> AdditiveMap().inverse_and_ladj(torch.ones(2), torch.tensor([[0.5], [-1.0]]))[0]
        tensor([1.5000, 0.0000])
    """

    n_parameters = 1
    linear = True

    def forward_and_ladj(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return z - parameters.squeeze(-1), torch.zeros_like(z)

    def inverse_and_ladj(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters.squeeze(-1), torch.zeros_like(x)


class AffineMap(ElementwiseMap):
    r"""A shift and a positive scale.

    .. math:: z = s(r) (x + t) \text{ (data to latent)}, \qquad
        \text{ladj} = -\log s(r) \text{ (latent to data, in nats, per element)}

    The scale is a smooth function of the conditioner's output `r`:

    * `"softclip"`: smoothly between `exp(-below)` and `exp(above)`, `exp(r / (1 + |r| / 3))` by default;
    * `"sigmoid"`: `sigmoid(r + 2)`, as in Glow, which has no lower bound: from latent to data it can explode;
    * `"exp"`: `exp(r)`, without any bound.

    Many couplings in a row need closer bounds: off the data a network's outputs are large, and the next
    network sees what they made.

    Args:
        scale: The name of the scale.
        below: How far the log-scale of `"softclip"` goes below 0.
        above: How far it goes above 0.
        max_shift: `B`: the shift is `t / (1 + |t| / B)`, between `-B` and `B`. `None`: it is `t`.

    Raises:
        ValueError: There is no such scale, a bound is not positive, or bounds are given for another scale.

    Source: Dinh et al. 2016, arXiv 1605.08803, eq. 7; Kingma & Dhariwal 2018, arXiv 1807.03039, table 1
    and its reference implementation; Behrmann et al. 2021, "Understanding and Mitigating Exploding Inverses
    in Invertible Neural Networks", arXiv 2006.09347 (why both bounds).

    Example:
        >>> AffineMap("exp").inverse_and_ladj(torch.ones(1), torch.tensor([[1.0, 0.0]]))
        (tensor([2.]), tensor([0.]))
    """

    n_parameters = 2
    linear = True

    def __init__(
        self,
        scale: str = "softclip",
        *,
        below: float = 3.0,
        above: float = 3.0,
        max_shift: float | None = None,
    ) -> None:
        super().__init__()
        if scale not in _SCALES:
            raise ValueError(f"AffineMap expected a scale of {_SCALES}, got {scale!r}")
        bounds = [below, above, 1.0 if max_shift is None else max_shift]
        if not all(0 < bound < math.inf for bound in bounds):
            raise ValueError(
                f"AffineMap expected positive, finite bounds, got below={below}, above={above}, "
                f"max_shift={max_shift}"
            )
        if scale != "softclip" and (below, above) != (3.0, 3.0):
            raise ValueError(f"below and above are bounds of scale='softclip', got them with {scale!r}")
        self.scale, self.below, self.above, self.max_shift = scale, below, above, max_shift

    def forward_and_ladj(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        ladj = -log_scale
        return z * torch.exp(ladj) - shift, ladj

    def inverse_and_ladj(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        return (x + shift) * torch.exp(log_scale), log_scale

    def _shift_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.unbind(-1)
        if self.max_shift is not None:
            shift = softclip(shift, self.max_shift, self.max_shift)
        if self.scale == "exp":
            return shift, raw
        return shift, F.logsigmoid(raw + 2) if self.scale == "sigmoid" else softclip(
            raw, self.below, self.above
        )

    def extra_repr(self) -> str:
        bounds = f", below={self.below:.3g}, above={self.above:.3g}" if self.scale == "softclip" else ""
        return f"scale={self.scale!r}{bounds}, max_shift={self.max_shift}"


class SplineMap(ElementwiseMap):
    r"""A monotone rational-quadratic spline with linear tails (zuko's).

    .. math:: z = \operatorname{RQS}(x) \text{ for } |x| \le B, \quad z = x \text{ beyond (data to latent)},
        \qquad \text{ladj} = -\log \operatorname{RQS}'(x) \text{ (latent to data, in nats, per element)}

    The conditioner gives each element the widths and heights of `bins` bins and the slopes at the knots
    between them, `3 * bins - 1` numbers; with all of them 0 the map is the identity.

    Args:
        bins: Number of bins.
        bound: `B`: the spline is on `[-B, B]`.
        slope: The smallest slope, in (0, 1).

    Raises:
        ValueError: There are fewer than 2 bins, the bound is not positive, or the slope not in (0, 1).

    Source: Durkan et al. 2019, "Neural Spline Flows", arXiv 1906.04032, section 3.1.

    Example:
        >>> z, ladj = SplineMap(bins=4).inverse_and_ladj(torch.ones(2), torch.zeros(2, 11))
        >>> bool((z - 1).abs().max() < 1e-6), ladj.shape
        (True, torch.Size([2]))
    """

    def __init__(self, bins: int = 8, bound: float = 5.0, slope: float = 1e-3) -> None:
        super().__init__()
        if bins < 2 or not bound > 0 or not 0 < slope < 1:
            raise ValueError(
                f"SplineMap expected at least 2 bins, a positive bound and a slope in (0, 1), "
                f"got {bins}, {bound}, {slope}"
            )
        self.bins, self.bound, self.slope = bins, bound, slope
        self.n_parameters = 3 * bins - 1

    def forward_and_ladj(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        spline = self._spline(parameters)
        # Not by `.inv`, which makes a cycle of references that keeps the whole graph until it is collected.
        x = spline._inverse(z)
        return x, -spline.call_and_ladj(x)[1]

    def inverse_and_ladj(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._spline(parameters).call_and_ladj(x)

    def _spline(self, parameters: Tensor) -> zuko.transforms.MonotonicRQSTransform:
        widths, heights, slopes = parameters.split([self.bins, self.bins, self.bins - 1], -1)
        return zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, self.bound, self.slope)

    def extra_repr(self) -> str:
        return f"bins={self.bins}, bound={self.bound}, slope={self.slope}"


def softclip(raw: Tensor, below: float = 3.0, above: float = 3.0) -> Tensor:
    """Smoothly between `-below` and `above`, with slope 1 at 0."""
    if below == above:
        return raw / (1 + raw.abs() / above)
    odd, even = (1 / above - 1 / below) / 2, (1 / above + 1 / below) / 2
    return raw / (1 + odd * raw + even * raw.abs())
