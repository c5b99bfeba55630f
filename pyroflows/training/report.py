"""What is told of a fit: samples that are not finite, and the Gaussian beside the flow."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyroflows.baseline import Gaussian
from pyroflows.distributions import Flow
from pyroflows.rows import AnyRows, Rows, device_of, first_batch
from pyroflows.runs import Run
from pyroflows.saving import CHECKPOINT, METRICS
from pyroflows.state import write_file
from pyroflows.tables import Grid

__all__ = ["DRAWN", "FitResult", "baseline_of", "baseline_scores", "count_not_finite", "save_run", "table_of"]

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
        run: The fitted flow with what belongs to it: scores of new data by `run.log_prob`, samples by
            `run.sample`.
        baseline_val_score: That of a Gaussian fitted without the validation data, on these.
        baseline_test_score: The Gaussian's on the test data.
    """

    losses: list[float] = field(repr=False)
    val_losses: list[float] = field(repr=False)
    val_score: float | None
    test_score: float | None
    n_not_finite: int
    seconds: float
    run: Run = field(repr=False)
    refit: bool = False
    path: Path | None = None
    baseline_val_score: float | None = None
    baseline_test_score: float | None = None

    @property
    def baseline(self) -> Gaussian | None:
        """The Gaussian that was fitted to the same table; `None` for other data."""
        return self.run.baseline

    @property
    def grid(self) -> Grid | None:
        """The grid of the columns that were dequantized."""
        return self.run.grid


def table_of(rows: AnyRows | None, grey_levels: int | None) -> Tensor | None:
    """The rows as a table of reals, `(N, D)`, if they are one tensor of these."""
    if not isinstance(rows, Rows) or not isinstance(rows.data, Tensor) or grey_levels is not None:
        return None
    return rows.data if rows.data.dim() == 2 else None


@torch.no_grad()
def count_not_finite(flow: Flow, rows: AnyRows) -> int:
    """How many of `DRAWN` samples are not finite, given the contexts of data; some are warned of."""
    contexts = first_batch(rows, DRAWN, seed=0).context
    count = 0
    for start in range(0, DRAWN, _AT_ONCE):
        if contexts is not None:
            chosen = torch.arange(start, start + _AT_ONCE) % len(contexts)
            samples = flow(contexts[chosen].to(device_of(flow))).sample()
        else:
            samples = flow().sample((_AT_ONCE,))
        count += int((~samples.isfinite()).flatten(1).any(1).sum())
    if count:
        warnings.warn(
            f"{count} of {DRAWN} samples of the fitted flow are not finite: use a scale that is bounded "
            "(not scale='sigmoid' or 'exp'), a lower lr, or fewer steps of flow",
            stacklevel=4,
        )
    return count


def baseline_of(given: AnyRows, grey_levels: int | None) -> Gaussian | None:
    """The Gaussian of all rows that were given, if they are a table without contexts."""
    table = table_of(given, grey_levels)
    if table is None or not isinstance(given, Rows) or given.context is not None:
        return None
    return Gaussian.fit(table, given.weights)


def baseline_scores(
    gaussian: Gaussian | None, rows: AnyRows, val_rows: AnyRows | None, test_rows: AnyRows | None
) -> dict[str, Any]:
    """The scores of the Gaussian in a `FitResult`: on the validation data, of one fitted without these."""
    if gaussian is None or not isinstance(rows, Rows):
        return {}
    fitted, val, test = table_of(rows, None), table_of(val_rows, None), table_of(test_rows, None)
    assert fitted is not None
    # Few rows may vary only with those that were held out.
    varies = bool((fitted != fitted[0]).any(0).all())
    val_score = None
    if val is not None and varies:
        val_score = Gaussian.fit(fitted, rows.weights).score(val, getattr(val_rows, "weights", None))
    test_score = None if test is None else gaussian.score(test)
    return {"baseline_val_score": val_score, "baseline_test_score": test_score}


def save_run(result: FitResult, folder: Path, skipped: Sequence[Path]) -> None:
    """Write the scores of a fit and, unless it has classes that are not pyroflows', the flow."""
    run = result.run
    metrics = {
        "unit": run.unit.replace(" ", "_"),
        "test_score": result.test_score,
        "val_score": result.val_score,
        "train_score": result.losses[-1],
        "baseline_test_score": result.baseline_test_score,
        "baseline_val_score": result.baseline_val_score,
        "n_not_finite": result.n_not_finite,
        "refit": result.refit,
        "epochs": len(result.losses),
        "skipped": len(skipped),
        "seconds": round(result.seconds, 1),
    }
    try:
        run.config()
    except ValueError as error:
        (folder / CHECKPOINT).unlink(missing_ok=True)
        warnings.warn(f"no flow was written to {folder}: {error}", stacklevel=4)
    else:
        run.save(folder)
    write_file(folder / METRICS, (json.dumps(metrics, indent=2) + "\n").encode())
