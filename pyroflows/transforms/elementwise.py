"""The element-wise maps that couplings are put together from.

A map takes `n_parameters` numbers per element from the conditioner, in the last dimension, and gives
each element's value and log-derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyroflows._zuko import zuko

__all__ = ["AdditiveMap", "AffineMap", "ElementwiseMap", "SplineMap"]


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

    The scale is a smooth function of the conditioner's output `r`: `"sigmoid"` is `sigmoid(r + 2)`
    (Glow's), `"softclip"` is `exp(r / (1 + |r| / 3))`, between `exp(-3)` and `exp(3)`, and `"exp"` is
    `exp(r)`.

    Raises:
        ValueError: There is no such scale.

    Source: Dinh et al. 2016, arXiv 1605.08803, eq. 7; Kingma & Dhariwal 2018, arXiv 1807.03039, table 1
    and its reference implementation.

    Example:
        >>> AffineMap("exp").inverse_and_ladj(torch.ones(1), torch.tensor([[1.0, 0.0]]))
        (tensor([2.]), tensor([0.]))
    """

    n_parameters = 2
    linear = True

    def __init__(self, scale: str = "sigmoid") -> None:
        super().__init__()
        if scale not in _LOG_SCALES:
            raise ValueError(f"AffineMap expected a scale of {sorted(_LOG_SCALES)}, got {scale!r}")
        self.scale = scale

    def forward_and_ladj(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        ladj = -log_scale
        return z * torch.exp(ladj) - shift, ladj

    def inverse_and_ladj(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        return (x + shift) * torch.exp(log_scale), log_scale

    def _shift_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.unbind(-1)
        return shift, _LOG_SCALES[self.scale](raw)

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}"


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


def _log_sigmoid(raw: Tensor) -> Tensor:
    return F.logsigmoid(raw + 2)


def softclip(raw: Tensor) -> Tensor:
    """Smoothly between -3 and 3, with slope 1 at 0."""
    return raw / (1 + raw.abs() / 3)


def _identity(raw: Tensor) -> Tensor:
    return raw


_LOG_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": _log_sigmoid,
    "softclip": softclip,
    "exp": _identity,
}
