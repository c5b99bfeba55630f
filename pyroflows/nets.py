"""The networks inside couplings: from what passes, and the context, to a map's parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from pyroflows._zuko import zuko
from pyroflows.layers import ChannelNorm, Conv, ZeroConv, over_images, space_to_channels

__all__ = ["MLP", "ConvNet", "ResNet"]


class MLP(nn.Module):
    """A multi-layer perceptron (zuko's) whose output starts at zero.

    Args:
        in_features: Number of features that pass; it may be 0, then the output depends on the context
            alone.
        out_features: Number of outputs.
        hidden_features: Sizes of the hidden layers.
        activation: Constructor of the activation; by default `torch.nn.ReLU`.
        dropout: Probability with which each hidden feature is left out while training.
        context_shape: The context's event shape; an image `(K, H, W)` is flattened. `None`: no context.

    Shapes:
        `x`: `(*batch, in_features)`, `context`: `(*batch, *context_shape)`, output: `(*batch, out_features)`.

    Example:
        >>> MLP(3, 8, (32, 32), context_shape=(2,))(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: tuple[int, ...] = (64, 64),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        context_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if not all(size > 0 for size in hidden_features):
            raise ValueError(f"expected hidden_features of at least 1 each, got {tuple(hidden_features)}")
        self.in_features, self.out_features, self.hidden_features = in_features, out_features, hidden_features
        self.activation, self.dropout, self.context_shape = activation, dropout, context_shape
        # A constant feature stands in where there is none, so that a bias can still be learned.
        self.constant = in_features == 0 and context_shape is None
        self.context_dim = 0 if context_shape is None else len(context_shape)
        self.context_features = 0 if context_shape is None else Size(context_shape).numel()
        total = int(self.constant) + in_features + self.context_features
        self.layers = zuko.nn.MLP(
            total,
            out_features,
            hidden_features,
            activation=lambda: nn.Sequential(activation(), nn.Dropout(dropout)) if dropout else activation(),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.constant:
            x = x.new_ones((*x.shape[:-1], 1))
        if context is not None:
            batch = context.shape[: context.dim() - self.context_dim]
            x = torch.cat([x, context.reshape(*batch, self.context_features)], -1)
        return self.layers(x)


class _ImageNet(nn.Module):
    """What the image networks share: any batch dimensions, and a context beside the image.

    A context vector is repeated at every pixel. A context image is brought to the size of what passes
    by moving blocks of its pixels into channels, so nothing of it is lost at the smaller levels.
    """

    def __init__(self, context_shape: tuple[int, ...] | None, factor: int) -> None:
        super().__init__()
        if context_shape is not None and len(context_shape) not in (1, 3):
            raise ValueError(
                f"{type(self).__name__} expected a context of shape (K,) or (K, H, W), got {context_shape}"
            )
        self.context_shape, self.factor = context_shape, factor
        self.context_dim = 0 if context_shape is None else len(context_shape)
        self.context_channels = 0
        if context_shape is not None:
            self.context_channels = context_shape[0] * (factor**2 if self.context_dim == 3 else 1)

    def _layers(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return over_images(self._layers, self._with_context(x, context))

    def _with_context(self, x: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return x
        if self.context_dim == 1:
            context = context[..., None, None].expand(*context.shape, *x.shape[-2:])
        elif self.factor > 1:
            context = space_to_channels(context, self.factor)
        return torch.cat([x, context], -3)


class ConvNet(_ImageNet):
    """Glow's conditioner: convolutions 3x3, 1x1, 3x3 with ReLU between, the last one starting at zero.

    While training, `dropout` leaves out hidden channels: each pass is then another, equally exact bijection.

    Args:
        in_channels: Channels that pass.
        out_channels: Channels of the output.
        hidden_channels: Width.
        dropout: Probability with which each hidden channel is left out of the last convolution.
        actnorm: Whether the first two convolutions have a `ChannelNorm` in place of a bias, as in Glow's
            reference implementation.
        context_shape: `(K,)` or `(K, H * factor, W * factor)`. `None`: no context.
        factor: How many times larger a context image is than what passes.

    Shapes:
        `x`: `(*batch, in_channels, H, W)`, output: `(*batch, out_channels, H, W)`.

    Raises:
        ValueError: The context is neither a vector nor an image.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 5.

    Example:
        >>> ConvNet(2, 4, 32)(torch.zeros(5, 2, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 128,
        *,
        dropout: float = 0.0,
        actnorm: bool = False,
        context_shape: tuple[int, ...] | None = None,
        factor: int = 1,
    ) -> None:
        super().__init__(context_shape, factor)
        self.in_channels, self.out_channels, self.hidden_channels = in_channels, out_channels, hidden_channels
        self.dropout, self.actnorm = dropout, actnorm

        def norm() -> list[nn.Module]:
            return [ChannelNorm(hidden_channels)] if actnorm else []

        self.layers = nn.Sequential(
            Conv(in_channels + self.context_channels, hidden_channels, 3, padding=1, bias=not actnorm),
            *norm(),
            nn.ReLU(inplace=True),
            Conv(hidden_channels, hidden_channels, 1, bias=not actnorm),
            *norm(),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            ZeroConv(hidden_channels, out_channels),
        )

    def _layers(self, images: Tensor) -> Tensor:
        return self.layers(images)


class TopPrior(_ImageNet):
    """Each channel's numbers given the context alone, linear and the same at every pixel, starting at zero.

    A context image gives each pixel its own. The gain is that of `ZeroConv`.

    Args:
        out_channels: Channels of the output.
        context_shape: `(K,)` or `(K, H * factor, W * factor)`. `None`: learned constants.
        factor: How many times larger a context image is than the output.

    Shapes:
        `x`: `(*batch, 0, H, W)`, output: `(*batch, out_channels, H, W)`.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, the reference implementation's `prior`.

    Example:
        >>> TopPrior(4, context_shape=(10,))(torch.zeros(5, 0, 8, 8), torch.zeros(5, 10)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(
        self, out_channels: int, *, context_shape: tuple[int, ...] | None = None, factor: int = 1
    ) -> None:
        super().__init__(context_shape, factor)
        self.out_channels = out_channels
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.logs = nn.Parameter(torch.zeros(out_channels))
        if context_shape is not None:
            self.weight = nn.Parameter(torch.zeros(out_channels, self.context_channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        gain = torch.exp(3 * self.logs)
        output = (self.bias * gain)[:, None, None]
        if context is not None:
            pixels = self._with_context(x, context).movedim(-3, -1)
            output = output + F.linear(pixels, self.weight * gain[:, None]).movedim(-1, -3)
        return output.expand(*x.shape[:-3], -1, *x.shape[-2:])


class ResNet(_ImageNet):
    """RealNVP's conditioner: pre-activation residual blocks, the last convolution starting at zero.

    Args:
        in_channels: Channels that pass.
        out_channels: Channels of the output.
        hidden_channels: Width.
        blocks: Number of residual blocks.
        context_shape: `(K,)` or `(K, H * factor, W * factor)`. `None`: no context.
        factor: How many times larger a context image is than what passes.

    Shapes:
        `x`: `(*batch, in_channels, H, W)`, output: `(*batch, out_channels, H, W)`.

    Raises:
        ValueError: The context is neither a vector nor an image.

    Source: Dinh et al. 2016, "Density estimation using Real NVP", arXiv 1605.08803, section 4.1.

    Example:
        >>> ResNet(2, 4, 32, blocks=1)(torch.zeros(5, 2, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        *,
        blocks: int = 2,
        context_shape: tuple[int, ...] | None = None,
        factor: int = 1,
    ) -> None:
        super().__init__(context_shape, factor)
        self.in_channels, self.out_channels, self.hidden_channels = in_channels, out_channels, hidden_channels
        self.blocks = blocks
        self.first = Conv(in_channels + self.context_channels, hidden_channels, 3, padding=1)
        self.residuals = nn.ModuleList(_residual(hidden_channels) for _ in range(blocks))
        self.last = ZeroConv(hidden_channels, out_channels)

    def _layers(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        for residual in self.residuals:
            hidden = hidden + residual(hidden)
        return self.last(F.relu(hidden))


def _residual(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        Conv(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        Conv(channels, channels, 3, padding=1),
    )
