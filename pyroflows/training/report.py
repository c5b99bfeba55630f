"""What is told of a fit: samples that are not finite, and the Gaussian beside the flow."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyroflows.baseline import Gaussian
from pyroflows.distributions import Flow
from pyroflows.tables import Grid
from pyroflows.training.data import device_of, first_batch
from pyroflows.training.prepare import AnyRows, table_of

__all__ = ["DRAWN", "FitResult", "baselines", "count_not_finite"]

# Samples that are drawn after a fit and counted, and how many of them at a time.
DRAWN, _AT_ONCE = 1000, 100


@dataclass(frozen=True)
class FitResult:
    """What a fit gave. Scores are mean negative log densities: less is better.

    Their unit is bits per dimension for integer data and nats per datum for reals.

    Attributes:
        losses: Training loss of each epoch.
        val_losses: Score of the validation data after each evaluation, by one draw of the noise.
        val_score: Score of the validation data, which chose the weights, or the number of steps of the last
            fit to all rows; `None` if nothing was held out.
        test_score: Score of the test data, which chose nothing; `None` if none were given.
        n_not_finite: How many of 1,000 samples of the fitted flow are not finite.
        seconds: How long the fit took, without its pictures.
        refit: Whether the flow was then fitted once more, to all rows, by as many steps as were best.
        path: The folder of the checkpoints, or `None`.
        baseline: The Gaussian that was fitted to the same table; `None` for other data.
        baseline_val_score: That of a Gaussian fitted without the validation data, on these.
        baseline_test_score: The Gaussian's on the test data.
        grid: The grid of the columns that were dequantized.
    """

    losses: list[float] = field(repr=False)
    val_losses: list[float] = field(repr=False)
    val_score: float | None
    test_score: float | None
    n_not_finite: int
    seconds: float
    refit: bool = False
    path: Path | None = None
    baseline: Gaussian | None = field(default=None, repr=False)
    baseline_val_score: float | None = None
    baseline_test_score: float | None = None
    grid: Grid | None = field(default=None, repr=False)


@torch.no_grad()
def count_not_finite(flow: Flow, rows: AnyRows) -> int:
    """How many of `DRAWN` samples are not finite, given the contexts of data; some are warned of."""
    contexts = first_batch(rows, DRAWN, seed=0)[1:]
    count = 0
    for start in range(0, DRAWN, _AT_ONCE):
        if contexts:
            chosen = torch.arange(start, start + _AT_ONCE) % len(contexts[0])
            samples = flow(contexts[0][chosen].to(device_of(flow))).sample()
        else:
            samples = flow().sample((_AT_ONCE,))
        count += int((~samples.isfinite()).flatten(1).any(1).sum())
    if count:
        warnings.warn(
            f"{count} of {DRAWN} samples of the fitted flow are not finite: use a scale that is bounded "
            "(not scale='sigmoid' or 'exp'), a lower lr, or fewer steps of flow",
            stacklevel=3,
        )
    return count


def baselines(
    flow: Flow,
    given: AnyRows,
    rows: AnyRows,
    val_rows: AnyRows | None,
    test_rows: AnyRows | None,
    grey_levels: int | None,
) -> dict[str, Any]:
    """The Gaussian of all rows that were given, and the scores of `FitResult`; nothing where none fits."""
    table, fitted = table_of(given, grey_levels), table_of(rows, grey_levels)
    if table is None or fitted is None or flow.transform.context_shape is not None:
        return {}
    gaussian = Gaussian.fit(table)
    val, test = table_of(val_rows, grey_levels), table_of(test_rows, grey_levels)
    # Few rows may vary only with those that were held out.
    varies = bool((fitted != fitted[0]).any(0).all())
    return {
        "baseline": gaussian,
        "baseline_val_score": Gaussian.fit(fitted).score(val) if val is not None and varies else None,
        "baseline_test_score": None if test is None else gaussian.score(test),
    }
