"""The step size of each step, and when a fit ends."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Schedule"]

# Nats, or bits per dimension: less than this is no gain. Differences of 0.02 nats a column are of interest.
_MIN_GAIN = 1e-3
# The step size falls to this part, after each third of the patience.
_FACTOR, _PARTS = 0.3, 3
# Steps over which the step size rises in the beginning; a tenth of all steps if these are few.
_WARM_UP = 50
# Part of the largest step size with which a run that has ended goes on: its weights are about the best, and
# full steps would lose them.
_AGAIN = 0.1


@dataclass
class Schedule:
    r"""A warm-up, a cosine towards the last step, and a fall wherever the validation score stalls.

    .. math:: \min(1, (t + 1) / w) \cdot \tfrac{1}{2} (1 + \cos(\pi t / T)) \cdot 0.3^{\text{falls before } t}

    Attributes:
        patience: Evaluations without a gain after which the fit ends. The step size falls after a third and
            after two thirds of these. `None`: neither happens.
        total: `T`, the largest number of steps; known once a fit begins.
        best: The best validation score so far; less is better.
        stalled: Evaluations since then.
        falls: The steps at which the step size fell.
        before: The schedule of the steps before `start`, of a run that had ended and goes on.
        start: The step at which this schedule begins.
    """

    patience: int | None = None
    total: int | None = None
    best: float = math.inf
    stalled: int = 0
    falls: list[int] = field(default_factory=list)
    before: Schedule | None = None
    start: int = 0

    def update(self, score: float, step: int) -> None:
        """Take the validation score after a number of steps into account."""
        if score < self.best - _MIN_GAIN:
            self.best, self.stalled = score, 0
            return
        self.stalled += 1
        if self.patience is not None and self.stalled % math.ceil(self.patience / _PARTS) == 0:
            self.falls.append(step)

    def step_size(self, step: int) -> float:
        """What the largest step size is multiplied by."""
        if self.before is not None and step < self.start:
            return self.before.step_size(step)
        assert self.total is not None
        steps = step - self.start
        warm_up = max(1, min(_WARM_UP, self.total // 10))
        cosine = (1 + math.cos(math.pi * min(steps / self.total, 1.0))) / 2
        largest = 1.0 if self.before is None else _AGAIN
        falls = sum(fall <= step for fall in self.falls)
        return largest * min(1.0, (steps + 1) / warm_up) * cosine * _FACTOR**falls

    @property
    def ended(self) -> bool:
        """Whether the score has stalled for the whole patience."""
        return self.patience is not None and self.stalled >= self.patience

    def again(self) -> Schedule:
        """The same step sizes, for a fit of a number of steps that is known."""
        return Schedule(total=self.total, falls=list(self.falls), before=self.before, start=self.start)

    def go_on(self, step: int) -> None:
        """Begin anew after a number of steps, with small ones; the best score so far stays the best."""
        self.before, self.start = Schedule(**{**vars(self), "falls": list(self.falls)}), step
        self.total, self.stalled, self.falls = None, 0, []

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the patience is one's own."""
        self.total, self.best, self.stalled = state["total"], state["best"], state["stalled"]
        self.falls, self.start = list(state["falls"]), state.get("start", 0)
        if state.get("before") is not None:
            self.before = Schedule()
            self.before.load(state["before"])
