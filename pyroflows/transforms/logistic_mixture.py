"""Flow++'s element-wise map."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyroflows.transforms.elementwise import ElementwiseMap, softclip

__all__ = ["LogisticMixtureMap"]

# Weight of the standard logistic.
_WEIGHT = 0.01


class LogisticMixtureMap(ElementwiseMap):
    r"""The distribution function of a mixture of logistics, brought back to the real line, then affine.

    .. math:: z = e^{a} \operatorname{logit} F(x) + b \text{ (data to latent)}, \qquad
        F(x) = \epsilon \, \sigma(x) + (1 - \epsilon) \sum_k \pi_k \, \sigma\left(e^{-s_k} (x - \mu_k)\right)

    with the ladj `a + log F'(x) - log F(x) - log(1 - F(x))` from data to latent, in nats per element. From
    latent to data the equation is solved by bisection, and differentiated by the implicit function theorem.

    The conditioner gives each element `a`, `b` and the components' log-weights, means and log-scales,
    `3 * components + 2` numbers. They are softly clipped, so that the map stays tame far from the data: `a`
    to [-1, 1/4], `b` to [-3, 3], the means to [-5, 5] and the log-scales to [-3, 1/2]. The standard logistic
    has a weight of 0.01 for the same reason: beyond the others it is what gives the slope. With all numbers 0
    the means are spread over [-1, 1]: components that start alike would stay alike.

    Args:
        components: Number of logistics.

    Raises:
        ValueError: There is no component.

    Source: Ho et al. 2019, "Flow++", arXiv 1902.00275, section 3.2 (without bounds).

    Example:
        >>> mixture, parameters = LogisticMixtureMap(components=2), torch.randn(5, 8)
        >>> z, ladj = mixture.inverse_and_ladj(torch.ones(5), parameters)
        >>> x, back = mixture.forward_and_ladj(z, parameters)
        >>> bool((x - 1).abs().max() < 1e-4), bool((ladj + back).abs().max() < 1e-4)
        (True, True)
    """

    def __init__(self, components: int = 4) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"LogisticMixtureMap expected at least 1 component, got {components}")
        self.components = components
        self.n_parameters = 3 * components + 2

    def forward_and_ladj(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift, mixture = self._split(parameters)
        target = (z - shift) * torch.exp(-log_scale)
        x = mixture.detach().solve(target.detach())
        # Newton's steps from the solution, of size 0, which are there for their derivatives: those of the
        # first are the implicit function theorem's, with the second those of second order are true as well.
        for _ in range(2):
            value, log_slope = mixture.logit_and_log_slope(x)
            x = x - (value - value.detach() - target + target.detach()) * torch.exp(-log_slope)
        return x, -log_scale - mixture.logit_and_log_slope(x)[1]

    def inverse_and_ladj(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift, mixture = self._split(parameters)
        value, log_slope = mixture.logit_and_log_slope(x)
        return value * torch.exp(log_scale) + shift, log_scale + log_slope

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, _Mixture]:
        n = self.components
        affine, log_weights, means, log_scales = parameters.split([2, n, n, n], -1)
        log_scale, shift = affine.unbind(-1)
        spread = torch.linspace(-1, 1, n, dtype=means.dtype, device=means.device)
        mixture = _Mixture(
            F.pad(log_weights.log_softmax(-1) + math.log1p(-_WEIGHT), (0, 1), value=math.log(_WEIGHT)),
            F.pad(softclip(means, 5.0, 5.0) + spread, (0, 1)),
            F.pad(softclip(log_scales, 3.0, 0.5), (0, 1)),
        )
        return softclip(log_scale, 1.0, 0.25), softclip(shift), mixture

    def extra_repr(self) -> str:
        return f"components={self.components}"


class _Mixture(NamedTuple):
    """A mixture of logistics for each element, the components in the last dimension."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    def detach(self) -> _Mixture:
        return _Mixture(self.log_weights.detach(), self.means.detach(), self.log_scales.detach())

    def logit_and_log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of the distribution function at `x`, and the log of the logit's derivative."""
        log_below, log_above = self._log_parts(x)
        below, above = self._total(log_below), self._total(log_above)
        log_density = self._total(log_below + log_above - self.log_scales)
        return below - above, log_density - below - above

    def solve(self, target: Tensor) -> Tensor:
        """Where the logit of the distribution function is `target`."""
        # There every component's own solution is on one side or the other.
        solutions = self.means + torch.exp(self.log_scales) * target[..., None]
        low, high = solutions.amin(-1), solutions.amax(-1)
        # As many halvings as the numbers have bits: nothing is left between the two.
        for _ in range(torch.finfo(target.dtype).bits):
            middle = (low + high) / 2
            log_below, log_above = self._log_parts(middle)
            is_low = self._total(log_below) - self._total(log_above) < target
            low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
        return (low + high) / 2

    def _log_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logs of each component's mass below and above `x`."""
        standardised = (x[..., None] - self.means) * torch.exp(-self.log_scales)
        return F.logsigmoid(standardised), F.logsigmoid(-standardised)

    def _total(self, log_values: Tensor) -> Tensor:
        return torch.logsumexp(self.log_weights + log_values, -1)
