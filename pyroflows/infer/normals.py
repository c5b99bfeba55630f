"""Normals near a density of an unconstrained vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyroflows.infer.unconstrained import can_fail
from pyroflows.infer.validation import unvalidated

__all__ = ["Normal", "batch_and_match", "elbo_of", "find_mode", "mean_field"]

Density = Callable[[Tensor], Tensor]

# Steps after which to look whether the log weights still grow, by more than these nats.
_WINDOW, _GAIN = 100, 0.1

_QUARTILES = torch.tensor([0.25, 0.5, 0.75])


@dataclass(frozen=True)
class Normal:
    """A multivariate normal: its mean `(D,)` and the Cholesky factor `(D, D)` of its covariance."""

    loc: Tensor
    tril: Tensor

    @staticmethod
    def of(loc: Tensor, covariance: Tensor) -> Normal:
        """From a mean and a covariance that may be singular to rounding."""
        scale = covariance.diagonal().clamp(min=1e-30).sqrt()
        correlation = covariance / scale / scale[:, None]
        jitter = 1e-10 if covariance.dtype == torch.float64 else 1e-6
        for _ in range(12):
            tril, failed = torch.linalg.cholesky_ex(correlation + jitter * torch.eye(len(loc)).to(scale))
            if not failed:
                return Normal(loc, scale[:, None] * tril)
            jitter *= 10
        return Normal(loc, scale.diag())

    def to(self, other: Tensor) -> Normal:
        return Normal(self.loc.to(other), self.tril.to(other))

    def sample(self, n: int) -> Tensor:
        return self.loc + torch.randn(n, len(self.loc)).to(self.loc) @ self.tril.T


@torch.no_grad()
def elbo_of(log_density: Density, normal: Normal, n: int) -> float:
    """The evidence lower bound of a normal, in nats, by `n` draws; `-inf` where it is not finite."""
    try:
        values = log_density(normal.sample(n))
    except can_fail:
        return -math.inf
    entropy = 0.5 * len(normal.loc) * (1 + math.log(2 * math.pi)) + normal.tril.diagonal().log().sum()
    elbo = (values.mean() + entropy).item()
    return elbo if math.isfinite(elbo) else -math.inf


def find_mode(log_density: Density, start: Tensor, max_steps: int = 60) -> list[Normal]:
    r"""The path of a damped Newton method to a mode, and at each of its points the normal of the curvature.

    .. math:: u \leftarrow u + (|H| + \mu D)^{-1} g, \qquad q = \mathcal{N}(u, |H|^{-1})

    `g` and `-H` are the gradient and Hessian of the log density, `|H|` has the absolute values of its
    eigenvalues, in units of its diagonal `D`, and the damping `\mu` grows until the density does. Where the
    density is bounded the last normal is Laplace's approximation; where its mode is not where its mass is,
    one on the way may be better.

    Source: Zhang et al. 2022, "Pathfinder", arXiv 2108.03782, section 2 (a normal at each point of the path,
    chosen by its evidence lower bound; there of L-BFGS); Dauphin et al. 2014, arXiv 1406.2572, eq. 5.
    """
    path: list[Normal] = []
    point, damping = start.detach(), 0.0
    for _ in range(max_steps):
        try:
            value, gradient, hessian = _derivatives(log_density, point)
        except can_fail:
            break
        if not (gradient.isfinite().all() and hessian.isfinite().all()):
            break
        # In units of each element's own curvature, so that no scale is lost to rounding beside another.
        hessian = hessian.double()
        unit = hessian.diagonal().abs().clamp(min=1e-30).rsqrt()
        curvature, axes = torch.linalg.eigh(-unit * hessian * unit[:, None])
        axes = unit[:, None] * axes
        slope = axes.T @ gradient.double()
        size = curvature.abs()
        size = size.clamp(min=1e-8 * size.max().item())
        path.append(Normal.of(point.double(), (axes / size) @ axes.T).to(point))
        if (slope**2 / size).sum() < 1e-3 and (curvature > 0).all():
            break
        tried = 0
        while tried < 30:
            step = slope / (size + damping)
            new = point + (axes @ step).to(point)
            expected = (slope * step - 0.5 * size * step**2).sum().item()
            if _value(log_density, new) - value > 0.1 * expected:
                break
            length = max(step.norm().item(), 1e-9)
            tried += 1
            damping = max(4 * damping, 1e-2 * slope.norm().item() / length, 1e-8 * size.max().item())
        else:
            break
        if tried == 0:
            damping = damping / 10 if damping > 1e-6 * size.min().item() else 0.0
        point = new.detach()
    return path


def _derivatives(log_density: Density, point: Tensor) -> tuple[float, Tensor, Tensor]:
    point = point.detach().requires_grad_()
    value = log_density(point)
    (gradient,) = torch.autograd.grad(value, point, create_graph=True)
    directions = torch.eye(len(point)).to(point)
    try:
        (hessian,) = torch.autograd.grad(
            gradient, point, directions, is_grads_batched=True, retain_graph=True
        )
    except RuntimeError:
        # Not every operation of a model can be batched.
        rows = [torch.autograd.grad(gradient, point, row, retain_graph=True)[0] for row in directions]
        hessian = torch.stack(rows)
    return value.item(), gradient.detach(), hessian


@torch.no_grad()
def _value(log_density: Density, point: Tensor) -> float:
    try:
        value = log_density(point).item()
    except can_fail:
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def batch_and_match(
    log_density: Density, starts: Sequence[Normal], max_steps: int, batch: int
) -> list[Normal]:
    r"""Ways to the normal whose scores match the density's, by closed-form updates from draws.

    .. math:: q_{t+1} = \arg\min_q \mathbb{E}_{z \sim q_t} \| \nabla \log q(z) - \nabla \log p(z)
        \|^2_{\Sigma_q} + \tfrac{2}{\lambda_t} \mathrm{KL}(q_t \| q), \qquad \lambda_t = a_t \frac{B D}{t}

    It has no step size to tune: where a step leads to log weights that are clearly smaller, it is made again
    from the same draws with a quarter of the rate, as far from a normal the paper's own (`a_t = 1`) diverges.
    A way ends where the log weights grow no more; of every hundred of its steps the last normal is given. The
    density is taken of the draws of all ways at once.

    Source: Cai et al. 2024, "Batch and match: black-box variational inference with a score-based
    divergence", arXiv 2402.14758, eq. 8 to 11.
    """
    like = starts[0].loc
    ways = [_Way(Normal(start.loc.double(), start.tril.double())) for start in starts]
    for step in range(1, max_steps + 1):
        going = [way for way in ways if not way.ended]
        if not going:
            break
        draws = [way.normal.sample(batch) for way in going]
        for way, z, (value, score) in zip(
            going, draws, _values_and_scores(log_density, draws, like), strict=True
        ):
            way.take(_Scored.of(way.normal, z, value, score), look=step % _WINDOW == 0 or step == max_steps)
    return [normal.to(like) for way in ways for normal in way.path]


@dataclass
class _Way:
    """One way of `batch_and_match`: the normal to draw from next, and the last one that was not worse."""

    normal: Normal
    held: _Scored | None = None
    factor: float = 1.0
    taken: int = 0
    middles: list[float] = field(default_factory=list)
    path: list[Normal] = field(default_factory=list)
    ended: bool = False

    def take(self, scored: _Scored, look: bool) -> None:
        """A step, from draws of the normal; a look at whether there was any gain."""
        if len(scored.z) < 2 and self.held is None:
            self.normal = Normal(self.normal.loc, self.normal.tril / 2)
            return
        # Of two errors of that size, but where the new normal is far off its own would excuse it.
        if self.held is None or scored.middle > self.held.middle - 3 * self.held.error:
            self.held, self.factor, self.taken = scored, min(1.5 * self.factor, 1.0), self.taken + 1
        else:
            self.factor /= 4
        self.middles.append(self.held.middle)
        if look:
            self.path.append(self.held.normal)
            before, last = self.middles[-2 * _WINDOW : -_WINDOW], self.middles[-_WINDOW:]
            self.ended = bool(before) and sum(last) / len(last) - sum(before) / len(before) < _GAIN
        self.normal = self.held.matched(self.factor * scored.size / self.taken)


@dataclass(frozen=True)
class _Scored:
    """Those of draws `(B, D)` of a normal with finite scores, and the median of the draws' log weights."""

    normal: Normal
    z: Tensor
    score: Tensor
    size: int
    middle: float
    error: float

    @staticmethod
    def of(normal: Normal, z: Tensor, value: Tensor, score: Tensor) -> _Scored:
        noise = torch.linalg.solve_triangular(normal.tril, (z - normal.loc).T, upper=False)
        log_weights = value + 0.5 * noise.square().sum(0) + normal.tril.diagonal().log().sum()
        kept = log_weights.isfinite() & score.isfinite().all(-1)
        log_weights = log_weights.where(kept, -math.inf)
        # Of quartiles and the median, which a few draws far out do not move.
        low, middle, high = log_weights.quantile(_QUARTILES.to(z), interpolation="nearest").tolist()
        error = 1.25 * (high - low) / 1.35 / math.sqrt(len(z)) if math.isfinite(low) else 0.0
        return _Scored(normal, z[kept], score[kept], z.numel(), middle, error)

    def matched(self, rate: float) -> Normal:
        """The closest normal to this one that matches the scores, the closer the smaller the rate."""
        loc, covariance = self.normal.loc, self.normal.tril @ self.normal.tril.T
        mean_z, mean_score = self.z.mean(0), self.score.mean(0)
        part = rate / (1 + rate)
        u = rate * _covariance(self.score) + part * torch.outer(mean_score, mean_score)
        v = covariance + rate * _covariance(self.z) + part * torch.outer(loc - mean_z, loc - mean_z)
        # 2 V (I + (I + 4 U V)^(1/2))^(-1), by the eigenvalues of the symmetric R' U R, where V = R R'.
        root = Normal.of(loc, v).tril
        values, axes = torch.linalg.eigh(4 * root.T @ u @ root)
        axes = root @ axes
        covariance = (axes * (2 / (1 + (1 + values.clamp(min=0)).sqrt()))) @ axes.T
        return Normal.of(loc / (1 + rate) + part * (covariance @ mean_score + mean_z), covariance)


def mean_field(log_density: Density, start: Normal, steps: int, batch: int, lr: float = 0.05) -> Normal:
    """The normal of independent elements with the highest evidence lower bound, by Adam, in units of `start`.

    Source: Kucukelbir et al. 2017, "Automatic Differentiation Variational Inference", arXiv 1603.00788.
    """
    unit = start.tril.norm(dim=1)
    shift, log_scale = torch.zeros_like(unit).requires_grad_(), torch.zeros_like(unit).requires_grad_()
    optimizer = torch.optim.Adam([shift, log_scale], lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        noise = torch.randn(batch, len(unit)).to(unit)
        scaled = shift + log_scale.exp() * noise
        # The path gradient: of log q through the draw alone.
        log_q = -0.5 * ((scaled - shift.detach()) / log_scale.detach().exp()).square().sum(-1)
        optimizer.zero_grad()
        try:
            (log_q - log_density(start.loc + unit * scaled)).mean().backward()
        except can_fail:
            continue
        if all(p.grad is not None and p.grad.isfinite().all() for p in (shift, log_scale)):
            optimizer.step()
            scheduler.step()
    loc = start.loc + unit * shift.detach()
    return Normal(loc, (unit * log_scale.detach().exp()).diag())


def _values_and_scores(
    log_density: Density, draws: Sequence[Tensor], like: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The log densities of each of some sets of draws `(B, D)` and their gradients, or what is not finite."""
    z = torch.cat(list(draws)).to(like).requires_grad_()
    try:
        value = log_density(z)
        (score,) = torch.autograd.grad(value.sum(), z)
    except can_fail:
        if len(draws) > 1:
            return [found for each in draws for found in _values_and_scores(log_density, [each], like)]
        value, score = torch.full_like(z[:, 0], math.nan), torch.zeros_like(z)
    sizes = [len(each) for each in draws]
    of_each = zip(value.detach().double().split(sizes), score.double().split(sizes), strict=True)
    return list(of_each)


def _covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def without_validation(log_density: Density) -> Density:
    """A density that gives what is not finite, instead of an error, outside of a support."""

    def evaluate(u: Tensor) -> Tensor:
        with unvalidated():
            return log_density(u)

    return evaluate
