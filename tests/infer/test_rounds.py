"""When a fit goes on, starts elsewhere, takes a round back and stops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyroflows.infer.diagnostics import pareto_smooth
from pyroflows.infer.objectives import Objective
from pyroflows.infer.rounds import Rounds


class _Slope(Objective):
    """A bound that is a straight line: each step of Adam's is as long as its step size."""

    lr, max_norm = 0.1, 10.0

    def __init__(self, second: bool = False, other: float = 50.0) -> None:
        self.place = torch.zeros(1, requires_grad=True)
        self.parameters = [self.place]
        self.second, self.other = second, other
        self.only_better: list[bool] = []

    def loss(self) -> Tensor:
        return self.place.sum()

    def log_weights(self, n: int) -> Tensor:
        """Of a normal beside another of the same width, at zero."""
        place = self.place.detach()
        return place * torch.randn(n) - 0.5 * place**2

    def start_elsewhere(self, only_better: bool) -> bool:
        self.only_better.append(only_better)
        if self.second:
            with torch.no_grad():
                self.place.fill_(self.other)
        return self.second


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The rounds of the fits of a test: the steps that each took, and by what."""
    taken = []
    of_class = Rounds._round

    def seen(self: Rounds, steps: int, forward: bool = False) -> Any:
        before = len(self.losses)
        try:
            return of_class(self, steps, forward)
        finally:
            taken.append((len(self.losses) - before, "forward" if forward else "bound"))

    monkeypatch.setattr(Rounds, "_round", seen)
    return taken


def test_a_round_ends_with_the_mean_of_its_last_quarter() -> None:
    target = _Slope()
    Rounds(target, 8, progress_bar=False).run()
    rates = [0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    places = [-sum(rates[: step + 1]) for step in range(8)]
    assert target.place.item() == pytest.approx((places[6] + places[7]) / 2, rel=1e-4)


@pytest.mark.parametrize("second", [True, False])
def test_a_bad_first_round_is_left_for_another_start(second: bool, rounds: list[tuple[int, str]]) -> None:
    """The second start, at 50, is where a round of 500 steps, 25 down, leads into the better part.

    For it there are a quarter as many steps more.
    """
    target = _Slope(second)
    with torch.no_grad():
        target.place.fill_(1e3)
    Rounds(target, 1200, progress_bar=False).run()
    assert rounds == [(500, "bound")] * 2 + [(500 if second else 200, "bound")]
    assert (target.place.item() < 30) == second
    assert target.only_better == [True]


class _Broken(_Slope):
    """Of no bound before it starts elsewhere."""

    def loss(self) -> Tensor:
        return super().loss() if self.only_better else self.place.sum() * math.nan


def test_a_first_round_that_breaks_is_left_for_any_other_start(rounds: list[tuple[int, str]]) -> None:
    target = _Broken(second=True, other=25.0)
    assert Rounds(target, 550, progress_bar=False).run().elbo == pytest.approx(0, abs=0.1)
    # The last of 50 failures is not among the steps.
    assert rounds[:2] == [(49, "bound"), (500, "bound")]
    assert target.only_better == [False]
    with pytest.raises(FloatingPointError, match="50 steps"):
        Rounds(_Broken(), 550, progress_bar=False).run()


def test_a_round_that_makes_it_worse_is_taken_back() -> None:
    """The first round ends near zero, where all weights are equal; the second leads away from there."""
    target = _Slope()
    with torch.no_grad():
        # Where the mean of the last quarter comes to half a unit.
        target.place.fill_(25.5)
    result = Rounds(target, 1200, progress_bar=False).run()
    assert len(result.losses) == 800
    assert 0 < target.place.item() < 1


@pytest.mark.parametrize(
    ("place", "max_steps", "taken"), [(1e3, 749, 500), (1e3, 751, 751), (25.1, 649, 500), (25.1, 651, 651)]
)
def test_less_than_half_a_round_is_not_begun(place: float, max_steps: int, taken: int) -> None:
    """After the first round 500 steps are a round where the guide is far, and 300 where it is near."""
    target = _Slope()
    with torch.no_grad():
        target.place.fill_(place)
    assert len(Rounds(target, max_steps, progress_bar=False).run().losses) == taken


class _Narrow(Objective):
    """A normal of sd `s` for one of sd 1, with k-hat `1 - s^2`, that its bound leaves where it is."""

    lr, max_norm, forward_lr = 0.1, 10.0, 0.015

    def __init__(self, sign: float = 1.0, scale: float = 0.55) -> None:
        self.log_scale = torch.tensor([math.log(scale)], requires_grad=True)
        self.parameters = [self.log_scale]
        self.sign = sign
        self.far: set[bool] = set()

    def loss(self) -> Tensor:
        return 0.0 * self.log_scale.sum()

    def forward_loss(self, far: bool) -> tuple[Tensor, Tensor]:
        self.far.add(far)
        divergence = self.log_scale + 0.5 * (-2 * self.log_scale).exp()
        return self.sign * divergence.sum(), torch.tensor(0.5)

    def log_weights(self, n: int) -> Tensor:
        scale = self.log_scale.detach().exp()
        x = scale * torch.randn(n)
        return scale.log() + 0.5 * (x / scale) ** 2 - 0.5 * x**2


def test_where_weights_are_bad_the_last_steps_are_by_the_forward_divergence(
    rounds: list[tuple[int, str]],
) -> None:
    target = _Narrow()
    result = Rounds(target, 2200, progress_bar=False).run()
    assert target.log_scale.exp().item() == pytest.approx(1.0, abs=0.05)
    assert result.khat < 0.3
    assert result.converged
    assert rounds == [(500, "bound"), (300, "bound"), (300, "forward")]
    assert target.far == {False}
    # Its steps, too, are recorded by the bound.
    assert result.losses == [0.0] * 800 + [0.5] * 300


class _Rising(_Narrow):
    """The same with a bound that each round makes larger."""

    def __init__(self, scale: float) -> None:
        super().__init__(scale=scale)
        # In double precision: beside it the weights' differences are small.
        self.height = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        self.parameters = [self.log_scale, self.height]

    def loss(self) -> Tensor:
        return super().loss() - self.height.sum()

    def log_weights(self, n: int) -> Tensor:
        return super().log_weights(n) + self.height.detach()


def test_where_weights_are_bad_a_bound_that_still_grows_does_not_keep_the_steps(
    rounds: list[tuple[int, str]],
) -> None:
    target = _Rising(0.65)
    Rounds(target, 2200, progress_bar=False).run()
    assert rounds == [(500, "bound"), (300, "bound"), (300, "forward")]
    assert target.log_scale.exp().item() == pytest.approx(1.0, abs=0.05)


class _Tailed(_Narrow):
    """Weights whose tail is of k-hat `shape`, however near to each other `size` makes them."""

    def __init__(self, shape: float, size: float) -> None:
        super().__init__()
        self.shape, self.size = shape, size
        self.only_better: list[bool] = []

    def log_weights(self, n: int) -> Tensor:
        # Quantiles instead of draws, so that what the bound lacks is the same each time.
        levels = (torch.arange(n) + 0.5) / n
        return (self.size * (levels**-self.shape - 1) / self.shape).log1p()

    def start_elsewhere(self, only_better: bool) -> bool:
        self.only_better.append(only_better)
        return False


@pytest.mark.parametrize(("size", "bad"), [(1e-6, False), (1e-3, True)])
def test_a_start_is_bad_by_its_tail_where_the_bound_lacks_something(size: float, bad: bool) -> None:
    """Of k-hat 1.26, and what the bound lacks is 4e-6 or 0.05 nats: weights all but equal have tails, too."""
    target = _Tailed(1.3, size)
    Rounds(target, 600, progress_bar=False).run()
    assert target.only_better == ([True] if bad else [])


@pytest.mark.parametrize(("size", "mended"), [(0.01, False), (0.05, True)])
def test_good_weights_are_mended_where_the_bound_lacks_something(
    size: float, mended: bool, rounds: list[tuple[int, str]]
) -> None:
    """Of k-hat 0.40, and what the bound lacks is 4e-4 or 7e-3 nats."""
    Rounds(_Tailed(0.4, size), 1000, progress_bar=False).run()
    assert ("forward" in {by for _, by in rounds}) == mended


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_guide_that_is_far_has_one_long_round_by_the_forward_divergence(
    sign: float, rounds: list[tuple[int, str]]
) -> None:
    """Of half of the steps, as soon as a second one by the bound was no help; another if that was bad."""
    target = _Narrow(sign, scale=0.45)
    result = Rounds(target, 2200, progress_bar=False).run()
    by_forward = [(1100, "forward")] if sign > 0 else [(1100, "forward"), (300, "forward")]
    assert rounds == [(500, "bound"), (300, "bound"), *by_forward]
    assert target.far == {True}
    assert target.log_scale.exp().item() == pytest.approx(1.0 if sign > 0 else 0.45, abs=0.05)
    assert result.converged == (sign > 0)


class _Lost(_Narrow):
    """Weights of which one in a hundred is e^10 times the others: the bound lacks 5 nats."""

    def __init__(self, starts_again: bool) -> None:
        super().__init__()
        self.starts_again = starts_again

    def log_weights(self, n: int) -> Tensor:
        # No two are the same, as a tail's shape can't be told then.
        return 10.0 * (torch.arange(n) % 100 == 0) + torch.linspace(0.0, 0.1, n)

    def start_elsewhere(self, only_better: bool) -> bool:
        return self.starts_again


@pytest.mark.parametrize(("starts_again", "by_bound"), [(False, [500, 600]), (True, [500, 500, 650])])
def test_a_guide_that_is_lost_has_one_long_round_by_the_bound(
    starts_again: bool, by_bound: list[int], rounds: list[tuple[int, str]]
) -> None:
    """To half of 2,200 steps; of another start a quarter more of them are for it, 550."""
    target = _Lost(starts_again)
    Rounds(target, 2200, progress_bar=False).run()
    assert rounds[: len(by_bound)] == [(steps, "bound") for steps in by_bound]
    assert rounds[len(by_bound)] == (1100, "forward")
    assert target.far == {True}


class _Changing(_Tailed):
    """The same, of another tail once a step is by the forward divergence."""

    def __init__(self, shape: float) -> None:
        super().__init__(0.55, 10.0)
        self.after = shape

    def forward_loss(self, far: bool) -> tuple[Tensor, Tensor]:
        self.shape = self.after
        return super().forward_loss(far)


@pytest.mark.parametrize(("khat", "kept"), [(0.65, True), (0.75, False)])
def test_of_a_guide_that_is_far_k_hat_does_not_tell_what_it_leaves_out(khat: float, kept: bool) -> None:
    """It was 0.55, and what the bound lacks 0.7 nats: the guide by the forward divergence has more of it."""
    target = _Changing(khat)
    result = Rounds(target, 1000, progress_bar=False).run()
    assert target.far == {True}
    assert result.khat == pytest.approx(khat if kept else 0.55, abs=0.04)
    assert (target.log_scale.exp().item() > 0.9) == kept


def test_half_of_the_steps_is_not_for_the_bound(rounds: list[tuple[int, str]]) -> None:
    """Of k-hat 0.36 and a bound that grows: each round by the bound gains, and 149 steps are no round."""
    result = Rounds(_Rising(0.8), 2 * (500 + 2 * 300 + 149), progress_bar=False).run()
    assert rounds == [(500, "bound"), *[(300, "bound")] * 2, (300, "forward")]
    # Of the bound more was to be gained.
    assert not result.converged


def test_of_the_rounds_by_the_forward_divergence_the_one_of_the_lowest_k_hat_is_kept(
    rounds: list[tuple[int, str]],
) -> None:
    """Uphill: each of them is worse than the one before, and the guide before all of them the best."""
    target = _Narrow(sign=-1.0)
    result = Rounds(target, 2200, progress_bar=False).run()
    assert rounds[2:] == [*[(300, "forward")] * 4, (200, "forward")]
    assert target.log_scale.exp().item() == pytest.approx(0.55)
    assert result.khat > 0.6
    assert not result.converged


@pytest.mark.parametrize("together", [True, False])
def test_k_hat_is_the_mean_of_estimates_where_draws_are_cheap(together: bool) -> None:
    target = _Narrow()
    target.together, target.forward_lr = together, None
    torch.manual_seed(0)
    result = Rounds(target, 8, progress_bar=False).run()
    torch.manual_seed(0)
    estimates = [pareto_smooth(target.log_weights(10_000))[1] for _ in range(4 if together else 1)]
    assert result.khat == pytest.approx(sum(estimates) / len(estimates), abs=1e-4)


class _Spoilt(_Slope):
    """Log weights of which one in a thousand is far below the others."""

    def log_weights(self, n: int) -> Tensor:
        values = 0.01 * torch.randn(n)
        values[::1000] = -1e6
        return values


def test_a_few_draws_do_not_spoil_a_guide_and_are_told_of() -> None:
    result = Rounds(_Spoilt(), 500, progress_bar=False).run()
    assert result.converged
    # Thousands of numbers hide the few that are of use.
    assert "losses" not in repr(result)
    assert result.elbo == pytest.approx(-1000, rel=1e-2)
    assert "without them the evidence lower bound is 0.00" in result.advice.replace("-0.00", "0.00")
