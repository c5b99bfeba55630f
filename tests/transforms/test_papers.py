"""Log-likelihoods against evaluations written in NumPy from the papers, by no code of the package.

The weights are read from the state by name; everything that is computed with them is here.
"""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyroflows import Flow, glow, nice, realnvp
from pyroflows.transforms import Chain, Logit

Weights = dict[str, np.ndarray]


def _away_from_the_start(flow: Flow, size: float = 0.1, seed: int = 0) -> Weights:
    """Change all weights in place, and give them by name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    return {name: tensor.numpy() for name, tensor in flow.state_dict().items()}


def _below(weights: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: array for name, array in weights.items() if name.startswith(prefix)}


def _normal_log_density(
    z: np.ndarray, mean: np.ndarray | float = 0.0, log_sd: np.ndarray | float = 0.0
) -> float:
    total = -0.5 * (z - mean) ** 2 / np.exp(2 * log_sd) - log_sd - 0.5 * math.log(2 * math.pi)
    return float(np.broadcast_to(total, z.shape).sum())


def _convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A 3x3 convolution of `(C, H, W)`, zeros around: nine matrix products, one of each offset."""
    _, height, width = image.shape
    padded = np.zeros((image.shape[0], height + 2, width + 2))
    padded[:, 1:-1, 1:-1] = image
    output = np.zeros((kernel.shape[0], height, width))
    for i in range(3):
        for j in range(3):
            output += _mix(padded[:, i : i + height, j : j + width], kernel[:, :, i, j])
    return output


def _mix(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The matrix times the channels of each pixel."""
    output = np.empty((matrix.shape[0], *image.shape[1:]))
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            output[:, i, j] = matrix @ image[:, i, j]
    return output


def _zero_convolution(image: np.ndarray, weights: Weights) -> np.ndarray:
    output = _convolve(image, weights["weight"]) + weights["bias"][:, None, None]
    return output * np.exp(3 * weights["logs"])[:, None, None]


def _squeeze(image: np.ndarray) -> np.ndarray:
    channels, height, width = image.shape
    output = np.empty((4 * channels, height // 2, width // 2))
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                output[4 * c + 2 * (i % 2) + j % 2, i // 2, j // 2] = image[c, i, j]
    return output


def _matrix(weights: Weights) -> tuple[np.ndarray, float]:
    """P L (U + diag(s)), eq. 10 of the paper, and its log-determinant by eq. 11."""
    size = len(weights["sign"])
    permutation = np.zeros((size, size))
    for row, source in enumerate(weights["rows"]):
        permutation[row, source] = 1
    lower, upper = np.eye(size), np.zeros((size, size))
    for i in range(size):
        for j in range(i):
            lower[i, j] = weights["lower"][i, j]
            upper[j, i] = weights["upper"][j, i]
    diagonal = np.diag(weights["sign"] * np.exp(weights["log_diagonal"]))
    return permutation @ lower @ (upper + diagonal), float(weights["log_diagonal"].sum())


def _glow_network(image: np.ndarray, weights: Weights) -> np.ndarray:
    """3x3, actnorm, ReLU, 1x1, actnorm, ReLU, and the 3x3 that started at zero."""
    hidden = _convolve(image, weights["layers.0.weight"])
    hidden = np.maximum((hidden + weights["layers.1.bias"]) * np.exp(weights["layers.1.log_scale"]), 0)
    hidden = _mix(hidden, weights["layers.3.weight"][:, :, 0, 0])
    hidden = np.maximum((hidden + weights["layers.4.bias"]) * np.exp(weights["layers.4.log_scale"]), 0)
    return _zero_convolution(hidden, _below(weights, "layers.7."))


def _bounded(shift: np.ndarray) -> np.ndarray:
    """Between -3 and 3; log-scales of the learned priors too."""
    return shift / (1 + np.abs(shift) / 3)


def _glow_step(
    h: np.ndarray, context: np.ndarray, weights: Weights, coupling: str, papers: bool
) -> tuple[np.ndarray, float]:
    pixels = h.shape[1] * h.shape[2]
    log_scale = weights["transforms.2.log_scale"]
    h = (h + weights["transforms.2.bias"]) * np.exp(log_scale)
    matrix, log_det = _matrix(_below(weights, "transforms.1.weight."))
    h = _mix(h, matrix)
    ladj = pixels * (float(log_scale.sum()) + log_det)
    half = len(h) // 2
    repeated = np.ones((len(context), *h.shape[1:])) * context[:, None, None]
    network = _below(weights, "transforms.0.conditioner.")
    numbers = _glow_network(np.concatenate([h[:half], repeated]), network)
    if coupling == "additive":
        return np.concatenate([h[:half], h[half:] + numbers]), ladj
    shift, raw = numbers[: len(h) - half], numbers[len(h) - half :]
    if papers:
        scale = 1 / (1 + np.exp(-(raw + 2)))
    else:
        shift, scale = _bounded(shift), np.exp(np.where(raw > 0, raw / (1 + raw), raw / (1 - raw / 3)))
    return np.concatenate([h[:half], (h[half:] + shift) * scale]), ladj + float(np.log(scale).sum())


def _glow_log_likelihood(
    x: np.ndarray,
    context: np.ndarray,
    weights: Weights,
    levels: int,
    steps: int,
    coupling: str,
    papers: bool,
) -> float:
    total, h = 0.0, x
    for level in range(levels):
        below = _below(weights, f"transform.levels.{level}.transforms.")
        h = _squeeze(h)
        for step in reversed(range(1, steps + 1)):
            h, ladj = _glow_step(h, context, _below(below, f"{step}."), coupling, papers)
            total += ladj
        prior = _below(below, "0.conditioner.")
        if level < levels - 1:
            half = len(h) // 2
            h, leaving = h[:half], h[half:]
            numbers = _zero_convolution(h, prior)
        else:
            leaving = h
            numbers = prior["bias"] + prior["weight"] @ context
            numbers = (numbers * np.exp(3 * prior["logs"]))[:, None, None]
        count = len(leaving)
        numbers = numbers if papers else _bounded(numbers)
        # Coupled as z = (h + t) exp(r): mean -t, log standard deviation -r.
        total += _normal_log_density(leaving, -numbers[:count], -numbers[count:])
    return total


@pytest.mark.parametrize(
    ("coupling", "scale"), [("affine", "sigmoid"), ("affine", None), ("additive", None)], ids=str
)
def test_glow_with_every_option(coupling: str, scale: str | None) -> None:
    """K = 2, L = 3; actnorm inside, learned priors, a class as context; initialised from data.

    The paper's scale of couplings and priors, and the bounded ones.
    """
    torch.manual_seed(0)
    options = {"coupling": coupling, "scale": scale, "actnorm": True, "context_dim": 4}
    transform = glow((3, 8, 8), levels=3, steps=2, hidden_channels=7, **options)
    flow = Flow(transform).double()
    x, labels = torch.rand(40, 3, 8, 8, dtype=torch.float64), torch.arange(40) % 4
    context = torch.nn.functional.one_hot(labels, 4).double()
    _away_from_the_start(flow, 0.03, seed=1)
    flow.initialize(x, context)
    weights = _away_from_the_start(flow, 0.03, seed=2)
    got = flow(context).log_prob(x)
    assert (got.abs() < 1e4).all()  # else 1e-8 would be asked of a number with fewer digits
    for i in range(6):
        papers = scale == "sigmoid"
        want = _glow_log_likelihood(x[i].numpy(), context[i].numpy(), weights, 3, 2, coupling, papers)
        assert abs(got[i].item() - want) < 1e-8


def _mlp(x: np.ndarray, weights: Weights) -> np.ndarray:
    count = 1 + max(int(name.split(".")[1]) for name in weights) // 2
    for layer in range(count):
        x = weights[f"layers.{2 * layer}.weight"] @ x + weights[f"layers.{2 * layer}.bias"]
        if layer < count - 1:
            x = np.maximum(x, 0)
    return x


def test_nice_with_a_logistic_base() -> None:
    """Eq. 8 to 10, and the logistic log-density of section 3.3, on a flattened image."""
    base = dist.Logistic(torch.zeros(12), torch.ones(12)).to_event(1)
    flow = Flow(nice((3, 2, 2), steps=4, hidden_features=(9, 9)), base=base).double()
    weights = _away_from_the_start(flow)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    for image, got in zip(x, flow().log_prob(x), strict=True):
        h = image.numpy().reshape(-1).copy()
        for step in range(4):
            # Parts of the Chain are in the order latent to data, its first the scale, its last the reshape.
            network = _below(weights, f"transform.transforms.{4 - step}.conditioner.layers.")
            network = {f"layers.{name}": array for name, array in network.items()}
            changes, passes = (h[0::2], h[1::2]) if step % 2 == 0 else (h[1::2], h[0::2])
            changes += _mlp(passes, network)
        scale = _below(weights, "transform.transforms.0.")
        z = np.exp(scale["log_scale"]) * (h + scale["bias"])
        want = scale["log_scale"].sum() - (np.log1p(np.exp(z)) + np.log1p(np.exp(-z))).sum()
        assert abs(got.item() - want) < 1e-10


def _resnet(image: np.ndarray, weights: Weights, blocks: int = 2) -> np.ndarray:
    def convolution(value: np.ndarray, name: str) -> np.ndarray:
        return _convolve(value, weights[f"{name}.weight"]) + weights[f"{name}.bias"][:, None, None]

    hidden = convolution(image, "first")
    for block in range(blocks):
        inner = convolution(np.maximum(hidden, 0), f"residuals.{block}.1")
        hidden = hidden + convolution(np.maximum(inner, 0), f"residuals.{block}.3")
    return _zero_convolution(np.maximum(hidden, 0), _below(weights, "last."))


def _masked_coupling(h: np.ndarray, mask: np.ndarray, weights: Weights) -> tuple[np.ndarray, float]:
    """Eq. 9, `mask` being 1 where values pass."""
    numbers = _resnet(h * mask, weights)
    shift, raw = numbers[: len(h)], numbers[len(h) :]
    log_scale = raw / (1 + np.abs(raw) / 3)
    changed = (h + shift) * np.exp(log_scale)
    return mask * h + (1 - mask) * changed, float(((1 - mask) * log_scale).sum())


def _channel_coupling(h: np.ndarray, swap: bool, weights: Weights) -> tuple[np.ndarray, float]:
    half = len(h) // 2
    passes, changes = (h[half:], h[:half]) if swap else (h[:half], h[half:])
    numbers = _resnet(passes, weights)
    shift, raw = numbers[: len(changes)], numbers[len(changes) :]
    log_scale = raw / (1 + np.abs(raw) / 3)
    changed = (changes + shift) * np.exp(log_scale)
    return np.concatenate([changed, passes] if swap else [passes, changed]), float(log_scale.sum())


def test_realnvp_of_images() -> None:
    """Three checkerboards, squeeze, three of channels, half leaves; four checkerboards; alpha of 0.05."""
    shape = (2, 4, 4)
    transform = Chain([realnvp(shape, levels=2, hidden_channels=5), Logit(shape, alpha=0.05)])
    flow = Flow(transform).double()
    weights = _below(_away_from_the_start(flow), "transform.transforms.0.levels.")
    x = torch.rand(4, *shape, dtype=torch.float64)
    for image, got in zip(x, flow().log_prob(x), strict=True):
        p = 0.05 + 0.9 * image.numpy()
        h = np.log(p / (1 - p))
        want = float((np.log(0.9) - np.log(p) - np.log(1 - p)).sum())
        for level, (checkerboards, channels) in enumerate([(3, 3), (4, 0)]):
            odd = np.add.outer(np.arange(h.shape[1]), np.arange(h.shape[2])) % 2
            last = channels + checkerboards + (1 if channels else 0)
            position = last
            for step in range(checkerboards):
                position -= 1
                mask = odd if step % 2 == 0 else 1 - odd
                h, ladj = _masked_coupling(
                    h, mask, _below(weights, f"{level}.transforms.{position}.conditioner.")
                )
                want += ladj
            if not channels:
                want += _normal_log_density(h)
                continue
            h = _squeeze(h)
            position -= 1
            for step in range(channels):
                position -= 1
                h, ladj = _channel_coupling(
                    h, step % 2 == 1, _below(weights, f"{level}.transforms.{position}.conditioner.")
                )
                want += ladj
            want += _normal_log_density(h[len(h) // 2 :])
            h = h[: len(h) // 2]
        assert abs(got.item() - want) < 1e-10
