"""The rounds of a fit: steps with one decay of the step size each, and a look at the guide after each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from pyroflows.infer.diagnostics import pareto_smooth
from pyroflows.infer.objectives import Objective
from pyroflows.infer.unconstrained import can_fail

__all__ = ["FitResult", "Rounds"]

# Of k-hat: from `_BAD` on importance weights can't be trusted (Vehtari et al. 2024, section 3.2.4), below
# `_GOOD` that is no luck of the draws, not even of those of one estimate, and below `_LOW` all is well.
_BAD, _GOOD, _LOW = 0.7, 0.5, 0.3

# Nats between the evidence and its bound: those that move a mean by 0.07 standard deviations at the most,
# those from which on more steps are worth it, those that say that parts of the posterior are left out, and
# those that say that the start was bad.
_CLOSE, _LACKING, _FAR, _LOST = 2.5e-3, 0.02, 0.3, 3.0

# Steps of the round from a start, and of the one after it where that is far; and of any others.
_STEPS, _MORE = 500, 300

# Failed steps that end a fit, draws of one estimate of k-hat, whose standard error is 0.1, and estimates.
_FAILED, _DRAWS, _ESTIMATES = 50, 10_000, 4

# The share of draws whose log weights count as the next larger one: a few in the neck of a funnel can be
# 1e5 nats below, and say nothing of the others.
_FEW = 0.01


@dataclass(frozen=True)
class FitResult:
    """What a fit of a guide gave.

    Attributes:
        elbo: The evidence lower bound, in nats.
        khat: The shape of the tail of the importance weights, as the mean of some estimates (`psis_khat`
            makes one): below 0.7 the guide's draws can be corrected by weights, from 0.7 on the guide is
            too far from the posterior.
        losses: The negative evidence lower bound of each step, in nats, by its few draws.
        converged: Whether it stopped because nothing more was to be gained, and not at `max_steps`.
        advice: What the numbers say, and what to do where they are bad.
    """

    elbo: float
    khat: float
    losses: list[float] = field(repr=False)
    converged: bool
    advice: str


@dataclass(frozen=True)
class _State:
    """A guide between two rounds.

    The bound as it is, and a robust one (`_FEW`) with its standard error; k-hat; what the robust bound
    lacks of the evidence; and the guide's tensors.
    """

    elbo: float
    robust: float
    error: float
    khat: float
    gap: float
    tensors: list[Tensor]

    @property
    def far(self) -> bool:
        """Whether parts of the posterior may be left out."""
        return self.gap >= _FAR

    @property
    def lost(self) -> bool:
        """Whether it is near no part of the posterior, or near a small one."""
        return self.gap >= _LOST

    @property
    def badly_started(self) -> bool:
        """Whether the start may be to blame, and not only a tail of weights that are almost equal."""
        return self.lost or (self.khat >= 1 and self.gap >= _LACKING)

    @property
    def enough(self) -> bool:
        """Whether weights correct what is left."""
        return self.khat < _GOOD and self.gap < _LACKING

    @property
    def lacks_mass(self) -> bool:
        """Whether large weights are to be mended: of a guide that is all but exact only bad ones."""
        return self.khat >= _GOOD or (self.khat >= _LOW and self.gap >= _CLOSE)


class Rounds:
    """A fit, from a start to its result; see `fit_guide`."""

    def __init__(self, target: Objective, max_steps: int, progress_bar: bool) -> None:
        self.target, self.max_steps = target, max_steps
        self.mends = target.forward_lr is not None
        # Of the steps, those that are not for the bound.
        self.kept = max_steps // 2 if self.mends else 0
        self.far = False
        self.losses: list[float] = []
        self.bar = tqdm(total=max_steps, disable=not progress_bar, unit="step")

    def run(self) -> FitResult:
        with self.bar:
            best, done = self._by_bound(self._first())
            if best.lacks_mass and self.mends:
                best, done = self._by_mass(best, done)
        self._restore(best)
        return FitResult(best.elbo, best.khat, self.losses, done, _advice(best, done))

    def _by_bound(self, best: _State) -> tuple[_State, bool]:
        """The guide after rounds by the bound, and whether no more of these are needed."""
        # A guide may be good of a model that is not yet.
        learns_model = self.target.learns_model
        done = best.gap < _CLOSE and not learns_model
        steps = self._steps(self._far_to_go(best), self._left - self.kept if self.mends else _STEPS)
        # A round that is cut short gains nothing.
        while not done and self._left - self.kept >= steps // 2:
            self._restore(best)
            try:
                state = self._round(min(steps, self._left - self.kept))
            except FloatingPointError:
                break
            gained = state.robust - best.robust
            best = max(best, state, key=lambda state: state.robust)
            steps = self._steps(self._far_to_go(best), self._left - self.kept)
            # Of a model's own parameters little of the bound may still be much.
            little = max(2 * state.error, 0.0 if learns_model else _CLOSE)
            # Neither weights nor chains are of use where the guide is nowhere near.
            to_mend = best.khat >= _GOOD and not best.lost and self.mends
            done = (best.enough and not learns_model) or gained < little or to_mend
        return best, done

    def _by_mass(self, best: _State, done: bool) -> tuple[_State, bool]:
        """The same after a round by the forward divergence, or more of them where k-hat is not good then."""
        self._restore(best)
        self.far = best.far
        steps = self._steps(best.far, self.kept)
        while self._left >= _MORE // 2:
            try:
                state = self._round(steps, forward=True)
            except FloatingPointError:
                break
            # It may cost some of the bound, which is why that does not judge here; and k-hat is too rough to
            # tell that nothing more is gained. Of what a guide that is far leaves out k-hat tells nothing.
            if self.far and state.khat < _BAD:
                return state, done and state.khat < _GOOD
            best = min(best, state, key=lambda state: state.khat)
            if best.khat < _GOOD:
                break
        return best, done and best.khat < _GOOD

    def _far_to_go(self, state: _State) -> bool:
        """Whether there is, by the bound; what is left out of a guide that is near chains find sooner."""
        return state.lost if self.mends else state.far

    @staticmethod
    def _steps(far: bool, where_far: int) -> int:
        """Of the next round: one long decay goes further than short ones where there is far to go."""
        return max(where_far, _MORE) if far else _MORE

    def _first(self) -> _State:
        """The guide after a round from the start, or from another one where that is bad."""
        try:
            state = self._round(_STEPS)
        except FloatingPointError:
            if not self._start_elsewhere(only_better=False):
                raise
            return self._round(_STEPS)
        if not (state.badly_started and self._start_elsewhere(only_better=True)):
            return state
        try:
            return max(state, self._round(_STEPS), key=lambda state: state.robust)
        except FloatingPointError:
            return state

    def _start_elsewhere(self, only_better: bool) -> bool:
        if not self._left:
            return False
        started = self.target.start_elsewhere(only_better)
        if started:
            more = self.max_steps // 4
            self.bar.total += more
            self.max_steps += more
        return started

    @property
    def _left(self) -> int:
        return self.max_steps - len(self.losses)

    @torch.no_grad()
    def _restore(self, state: _State) -> None:
        for tensor, value in zip(self.target.state(), state.tensors, strict=True):
            tensor.copy_(value)

    def _round(self, steps: int, forward: bool = False) -> _State:
        """Steps with one decay of the step size, and the guide that they lead to."""
        target, steps = self.target, min(steps, self._left)
        lr = target.forward_lr if forward and target.forward_lr else target.lr
        optimizers = target.optimizers(lr)
        schedulers = [CosineAnnealingLR(optimizer, steps) for optimizer in optimizers]
        mean: list[Tensor] = []
        failed = averaged = 0
        for step in range(steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
            try:
                loss = self._backward(forward)
            except can_fail:
                loss = math.nan
            if math.isfinite(loss) and _clip(target.parameters, target.max_norm):
                for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                    optimizer.step()
                    scheduler.step()
                failed = 0
            else:
                failed += 1
            if failed == _FAILED:
                raise FloatingPointError(
                    f"the evidence lower bound was not finite in {_FAILED} steps, one after the other: look "
                    "at the model's density where the guide draws, or start elsewhere (init, init_loc_fn)"
                )
            self.losses.append(loss)
            if step >= steps - max(steps // 4, 1):
                with torch.no_grad():
                    averaged += 1
                    if averaged == 1:
                        mean = [parameter.detach().clone() for parameter in target.parameters]
                    else:
                        torch._foreach_lerp_(mean, [p.detach() for p in target.parameters], 1 / averaged)
            self.bar.update()
            if step % 50 == 0:
                self.bar.set_postfix(elbo=f"{-loss:.2f}")
        with torch.no_grad():
            for parameter, value in zip(target.parameters, mean, strict=True):
                parameter.copy_(value)
        state = self._state()
        self.bar.set_postfix(elbo=f"{state.elbo:.2f}", khat=f"{state.khat:.2f}")
        return state

    def _backward(self, forward: bool) -> float:
        """The negative bound; its gradient, or the forward divergence's, is left at the parameters."""
        if forward:
            loss, negative_bound = self.target.forward_loss(self.far)
        else:
            loss = negative_bound = self.target.loss()
        loss.backward()
        return negative_bound.item()

    def _state(self) -> _State:
        sets = [self.target.log_weights(_DRAWS) for _ in range(_ESTIMATES if self.target.together else 1)]
        khat = sum(pareto_smooth(of_set)[1] for of_set in sets) / len(sets)
        log_weights = torch.cat(sets)
        evidence = log_weights.logsumexp(0).item() - math.log(len(log_weights))
        # One of the weights, as between an infinite one and another there is none.
        least = log_weights.quantile(_FEW, interpolation="higher")
        floored = log_weights.clamp(min=least)
        robust, error = floored.mean().item(), floored.std().item() / math.sqrt(len(floored))
        tensors = [tensor.detach().clone() for tensor in self.target.state()]
        return _State(log_weights.mean().item(), robust, error, khat, evidence - robust, tensors)


def _clip(parameters: list[Tensor], max_norm: float) -> bool:
    """Clip the gradient; whether it is finite."""
    return bool(torch.nn.utils.clip_grad_norm_(parameters, max_norm).isfinite())


def _advice(state: _State, converged: bool) -> str:
    if state.khat >= _BAD:
        return (
            f"k-hat is {state.khat:.2f}, not below {_BAD}: the guide is too far from the posterior. Use "
            "neutra_nuts(model, guide), whose draws are right however far it is, if few of them diverge; "
            "give fit_guide more max_steps; or write the model with variables that depend less on each other "
            "(non-centred)."
        )
    more = "" if converged else ", though more max_steps may bring it closer"
    few = (
        f" A few draws are where the model has almost no density, in the neck of a funnel, say: without them "
        f"the evidence lower bound is {state.robust:.2f}."
        if state.robust - state.elbo > _FAR
        else ""
    )
    return (
        f"k-hat is {state.khat:.2f}, below {_BAD}: the guide is close to the posterior{more}.{few} "
        "importance_resample(model, guide, n) corrects what is left."
    )
