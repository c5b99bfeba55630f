"""When a fit goes on, starts elsewhere, takes a round back and stops."""

import math

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

    def loss(self) -> Tensor:
        return self.place.sum()

    def log_weights(self, n: int) -> Tensor:
        """Of a guide whose weights' spread grows with the distance from zero."""
        return self.place.detach() * torch.randn(n)

    def start_elsewhere(self) -> bool:
        with torch.no_grad():
            self.place.fill_(self.other)
        return self.second


def test_a_round_ends_with_the_mean_of_its_last_quarter() -> None:
    target = _Slope()
    Rounds(target, 8, progress_bar=False).run()
    rates = [0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    places = [-sum(rates[: step + 1]) for step in range(8)]
    assert target.place.item() == pytest.approx((places[6] + places[7]) / 2, rel=1e-4)


@pytest.mark.parametrize("second", [True, False])
def test_a_bad_first_round_is_left_for_another_start(second: bool) -> None:
    """The second start, at 50, is where a round of 500 steps, 25 down, leads into the better part."""
    target = _Slope(second)
    with torch.no_grad():
        target.place.fill_(1e3)
    result = Rounds(target, 1200, progress_bar=False).run()
    assert len(result.losses) == (1500 if second else 1200)
    assert (target.place.item() < 30) == second


def test_another_start_doubles_the_steps() -> None:
    """It is so far from where the weights are equal that all steps are taken."""
    target = _Slope(second=True, other=1e4)
    with torch.no_grad():
        target.place.fill_(1e5)
    assert len(Rounds(target, 700, progress_bar=False).run().losses) == 1400


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

    def __init__(self, sign: float = 1.0, scale: float = 0.45) -> None:
        self.log_scale = torch.tensor([math.log(scale)], requires_grad=True)
        self.parameters = [self.log_scale]
        self.sign = sign

    def loss(self) -> Tensor:
        return 0.0 * self.log_scale.sum()

    def forward_loss(self) -> tuple[Tensor, Tensor]:
        divergence = self.log_scale + 0.5 * (-2 * self.log_scale).exp()
        return self.sign * divergence.sum(), torch.tensor(0.5)

    def log_weights(self, n: int) -> Tensor:
        scale = self.log_scale.detach().exp()
        x = scale * torch.randn(n)
        return scale.log() + 0.5 * (x / scale) ** 2 - 0.5 * x**2


def test_where_weights_are_bad_the_last_steps_are_by_the_forward_divergence() -> None:
    target = _Narrow()
    result = Rounds(target, 2200, progress_bar=False).run()
    assert target.log_scale.exp().item() == pytest.approx(1.0, abs=0.05)
    assert result.khat < 0.3
    assert result.converged
    # Its steps, too, are recorded by the bound: after those of the first and second round.
    assert result.losses == [0.0] * 1000 + [0.5] * 300


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


def test_where_weights_are_bad_a_bound_that_still_grows_does_not_keep_the_steps() -> None:
    target = _Rising(0.65)
    result = Rounds(target, 2200, progress_bar=False).run()
    assert [loss == 0.5 for loss in result.losses] == [False] * 800 + [True] * 300
    assert target.log_scale.exp().item() == pytest.approx(1.0, abs=0.05)


def test_a_guide_that_is_far_goes_on_by_the_bound_in_one_long_round() -> None:
    """Its weights are too bad to choose draws by; all steps that may be the bound's have one decay."""
    target = _Rising(0.45)
    rates: list[float] = []
    loss = target.loss

    def seen() -> Tensor:
        rates.append(target.height.item())
        return loss()

    target.loss = seen  # type: ignore[method-assign]
    result = Rounds(target, 2200, progress_bar=False).run()
    assert [loss == 0.5 for loss in result.losses] == [False] * 1467 + [True] * 300
    # The height grows by the step size: after 1,000 steps it is the largest, 400 steps on not small.
    assert rates[1001] - rates[1000] == pytest.approx(0.1, rel=0.05)
    assert rates[1234] - rates[1233] == pytest.approx(0.05, rel=0.1)


def test_a_third_of_the_steps_is_not_for_the_bound() -> None:
    """Of k-hat 0.3 and a bound that grows: each round by the bound gains; two thirds hold no more."""
    result = Rounds(_Rising(0.84), 2200, progress_bar=False).run()
    assert [loss == 0.5 for loss in result.losses] == [False] * 1400 + [True] * 300
    # Of the bound more was to be gained.
    assert not result.converged


def test_of_the_rounds_by_the_forward_divergence_the_one_of_the_lowest_k_hat_is_kept() -> None:
    """Uphill: each of them is worse than the one before, and the guide before all of them the best."""
    target = _Narrow(sign=-1.0)
    result = Rounds(target, 2200, progress_bar=False).run()
    assert result.losses == [0.0] * 1000 + [0.5] * 1200
    assert target.log_scale.exp().item() == pytest.approx(0.45)
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
