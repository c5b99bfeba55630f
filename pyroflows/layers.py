"""The layers that the networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ChannelNorm",
    "Conv",
    "ZeroConv",
    "channels_to_space",
    "initialize",
    "over_images",
    "space_to_channels",
]


class Conv(nn.Conv2d):
    """A convolution that is computed with its channels last, which is faster.

    The parameter itself is contiguous: of any other Pyro's param store takes a copy, and trains that.

    Example:
        >>> Conv(4, 2, 1)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class ZeroConv(nn.Conv2d):
    r"""A convolution that starts at zero, with a learned gain of `exp(3 * logs)` per output channel.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 3.3 and its reference
    implementation.

    Example:
        >>> ZeroConv(4, 2)(torch.ones(1, 4, 8, 8)).abs().max().item()
        0.0
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.logs = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        # The gain acts on the weights, of which there are fewer than activations.
        gain = torch.exp(3 * self.logs)
        assert self.bias is not None
        weight = (self.weight * gain[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        bias = self.bias * gain
        return over_images(lambda images: F.conv2d(images, weight, bias, padding=1), x)


class ChannelNorm(nn.Module):
    r"""Glow's actnorm as a layer of a network: a learned shift and scale of each channel.

    .. math:: y = e^{s} (x + b)

    It starts as the identity, and is set from data by `initialize`.

    Example:
        >>> ChannelNorm(3)(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 3, 8, 8])
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias) * torch.exp(self.log_scale)


@torch.no_grad()
def initialize(network: nn.Module, *inputs: Tensor) -> None:
    """Set every `ChannelNorm` of a network, unless it was set before, so that its output is standard."""
    norms = [m for m in network.modules() if isinstance(m, ChannelNorm) and not m.initialized]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(lambda norm, x: standardize(norm, x[0], -3)) for norm in norms]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


class _Norm(Protocol):
    bias: nn.Parameter
    log_scale: nn.Parameter
    initialized: Tensor


def standardize(norm: _Norm, x: Tensor, channel_dim: int) -> None:
    """Set a norm's bias and log-scale so that `x` gets mean 0 and variance 1 in each channel."""
    others = [dim for dim in range(-x.dim(), 0) if dim != channel_dim]
    variance, mean = torch.var_mean(x, dim=others, correction=0)
    scale = torch.where(variance > 1e-12, variance.rsqrt(), 1.0)
    norm.bias.copy_(-mean.view_as(norm.bias))
    norm.log_scale.copy_(scale.log().view_as(norm.log_scale))
    norm.initialized.fill_(True)


def space_to_channels(x: Tensor, factor: int) -> Tensor:
    """Each block of `f` x `f` pixels as channels: `(*batch, C, H, W)` to `(*batch, C f f, H/f, W/f)`."""
    blocks = x.unflatten(-2, (-1, factor)).unflatten(-1, (-1, factor))
    return blocks.movedim((-3, -1), (-4, -3)).flatten(-5, -3)


def channels_to_space(z: Tensor, factor: int) -> Tensor:
    """The inverse of `space_to_channels`."""
    blocks = z.unflatten(-3, (-1, factor, factor))
    return blocks.movedim((-4, -3), (-3, -1)).flatten(-4, -3).flatten(-2)


def over_images(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of a batch of images to any batch dimensions."""
    output = function(x.reshape(-1, *x.shape[-3:]))
    return output.reshape(x.shape[:-3] + output.shape[1:])
