"""What is done before a fit: the data are checked, a part is held out, centre and scale are found."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

from pyroflows import datasets
from pyroflows.distributions import Flow
from pyroflows.intake import as_rows, check_data, grey_levels_of
from pyroflows.rows import AnyRows, Batch, Rows, fingerprint, first_batch
from pyroflows.runs import Run
from pyroflows.tables import Grid, check_table, column_numbers
from pyroflows.training.density import DensityModule
from pyroflows.training.report import baseline_of, table_of

__all__ = [
    "Parts",
    "check_options",
    "check_seed",
    "count_steps",
    "hold_out",
    "initialize",
    "prepare",
    "standardize",
]

# A mean of so many standard deviations leaves a float32 a hundred steps for each of these.
_LARGEST = 1e5
# Rows up to which a table is fitted once more, to all rows, by the steps that were best: there a tenth more
# rows are worth 0.05 to 1 nats, and the time is short.
_FEW = 1000

# From a warning to the caller of `fit`: a helper here, `prepare`, `fit`, its wrapper, the caller.
_STACK = 5


@dataclass(frozen=True)
class Parts:
    """The data of a fit, and the run that it is to make.

    Attributes:
        given: All rows that were given to be fitted.
        rows: Those that are fitted.
        val_rows: Those by which the weights are chosen, or `None`.
        test_rows: Those that choose nothing, or `None`.
        run: The flow, and what is known of it before the fit.
        gridded: Numbers of the columns that are dequantized.
        skipped: Files that could not be read and were left out.
    """

    given: AnyRows
    rows: AnyRows
    val_rows: AnyRows | None
    test_rows: AnyRows | None
    run: Run
    gridded: tuple[int, ...]
    skipped: tuple[Path, ...]

    @property
    def is_short_table(self) -> bool:
        """Whether it is a table that is fitted once more, to all of its rows."""
        table = table_of(self.given, self.run.grey_levels)
        return table is not None and len(table) <= _FEW and self.rows is not self.given

    @property
    def fingerprint(self) -> str:
        """What tells the data, and validation data that were given, from others."""
        held_out = isinstance(self.given, Rows) and self.rows is not self.given
        of_val = "" if held_out or self.val_rows is None else fingerprint(self.val_rows)
        return fingerprint(self.given) + of_val


def prepare(
    flow: Flow,
    data: Any,
    val_data: Any,
    test_data: Any,
    *,
    contexts: tuple[Any, Any, Any],
    weights: tuple[Any, Any],
    grey_levels: int | None,
    noise: Flow | None,
    dequantize: Sequence[int | str],
    val_fraction: float,
    seed: int,
) -> Parts:
    """Check the data of a fit, hold out a part, and standardise the flow; arguments are those of `fit`."""
    if isinstance(data, str | Path):
        data = datasets.load(data)
    names = classes = None
    skipped: tuple[Path, ...] = ()
    if isinstance(data, datasets.Data):
        loaded, data, names, skipped = data, data.train, data.names, data.skipped
        grey_levels = loaded.grey_levels if grey_levels is None else grey_levels
        test_labels = loaded.test_labels if test_data is None else None
        test_data = loaded.test if test_data is None else test_data
        if contexts[0] is None and _takes_classes(flow, loaded):
            classes = loaded.classes
            contexts = (_one_hot(loaded, loaded.train_labels), contexts[1], _one_hot(loaded, test_labels))
    grey_levels = grey_levels_of(data) if grey_levels is None else grey_levels
    given = as_rows(data, contexts[0], grey_levels, weights[0], names)
    grey_levels = check_data(flow, given, grey_levels, noise, at_least=2)
    names = given.names if isinstance(given, Rows) else None
    val_rows = None if val_data is None else as_rows(val_data, contexts[1], grey_levels, weights[1], names)
    test_rows = None if test_data is None else as_rows(test_data, contexts[2], grey_levels, names=names)
    for others in (val_rows, test_rows):
        if others is not None:
            check_data(flow, others, grey_levels, noise)
    if weights[1] is not None and val_data is None:
        raise ValueError("val_weights= goes with val_data=, of which there are none")
    gridded: tuple[int, ...] = ()
    grid, table = None, table_of(given, grey_levels)
    if table is not None:
        gridded = column_numbers(dequantize, table.shape[1], names)
        check_table(table, names, gridded=gridded, stacklevel=_STACK)
        grid = Grid.of(table, gridded, names) if gridded else None
    elif dequantize:
        raise ValueError(f"dequantize names columns of a table of reals in memory, got {dequantize}")
    rows, val_rows = hold_out(given, val_rows, val_fraction, seed)
    standardize(flow, given, grey_levels)
    run = Run(flow, grey_levels, noise, grid, baseline_of(given, grey_levels), names, classes)
    return Parts(given, rows, val_rows, test_rows, run, gridded, skipped)


def _takes_classes(flow: Flow, data: datasets.Data) -> bool:
    if data.train_labels is None or data.classes is None:
        return False
    return flow.transform.context_shape == (len(data.classes),)


def _one_hot(data: datasets.Data, labels: Tensor | None) -> Tensor | None:
    assert data.classes is not None
    return None if labels is None else one_hot(labels, len(data.classes)).to(torch.get_default_dtype())


def hold_out(
    rows: AnyRows, val_rows: AnyRows | None, fraction: float, seed: int
) -> tuple[AnyRows, AnyRows | None]:
    """Rows to fit to and validation rows: those given, or a part of the rows at random."""
    if val_rows is not None or fraction == 0:
        return rows, val_rows
    if isinstance(rows, DataLoader):
        warnings.warn(
            "nothing is held out of a DataLoader, so the fit can't tell when to stop: give val_data",
            stacklevel=_STACK,
        )
        return rows, None
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    n_held_out = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    return rows.part(order[n_held_out:]), rows.part(order[:n_held_out])


def standardize(flow: Flow, rows: AnyRows, grey_levels: int | None) -> None:
    """Centre and scale data and contexts of a flow, once; integers of known grey levels stay as they are."""
    if grey_levels is not None and flow.transform.context_shape is None:
        return
    part = flow.standardize(data=grey_levels is None)
    if part is None:
        return
    part.fit_to(*_all(rows))
    if part.data and next(flow.parameters()).dtype == torch.float32:
        lost = (part.loc.abs() > _LARGEST * part.scale).flatten().nonzero().flatten().tolist()
        if lost:
            warnings.warn(
                f"samples of columns {lost} lose digits, as their values are far from zero for their spread: "
                "subtract their means, or fit with precision='64-true'",
                stacklevel=_STACK,
            )


def initialize(module: DensityModule, device: torch.device) -> None:
    """Initialise every `ActNorm` of a module's flow from the rows that it is fitted to."""
    module.train()
    first = first_batch(module.rows, 1024, module.seed).to(device)
    module.flow.initialize(module.run.reals(first), first.context)


def count_steps(rows: AnyRows, batch_size: int, devices: int | str) -> int:
    """Steps of an epoch, about; 20 for a loader that does not tell its length."""
    if isinstance(rows, DataLoader):
        try:
            return max(1, len(rows))
        except TypeError:
            return 20
    processes = devices if isinstance(devices, int) and devices > 0 else 1
    return max(1, len(rows) // (batch_size * processes))


def _all(rows: AnyRows) -> Batch:
    """All data and contexts that are in memory, or as many as an `ActNorm` is initialised from."""
    if isinstance(rows, DataLoader):
        return first_batch(rows, 1024, seed=0)
    if isinstance(rows.data, Tensor):
        return Batch(rows.data, rows.context, rows.weights)
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:1024]
    # In their own order, in which a sum is the same as that of a tensor.
    return rows[some.sort().values]


def check_options(
    max_epochs: int | None,
    batch_size: int,
    lr: float,
    val_fraction: float,
    patience: int | None,
    ema: float | None,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    sample_every: int | None,
    devices: int | str,
    seed: int,
) -> None:
    """Check the options of `fit` that are numbers, and which of them go together."""
    if (max_epochs is not None and max_epochs < 1) or batch_size < 1 or not lr > 0:
        raise ValueError(
            f"fit expected max_epochs and batch_size of at least 1 and a positive lr, "
            f"got {max_epochs}, {batch_size}, {lr}"
        )
    if patience is not None and patience < 1:
        raise ValueError(f"patience is a number of epochs, at least 1, or None, got {patience}")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"fit expected val_fraction of at least 0 and below 1, got {val_fraction}")
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"fit expected ema between 0 and 1, got {ema}")
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the run that is to go on")
    if overwrite and (resume or out is None):
        raise ValueError(
            "overwrite (--overwrite) goes with out (--out), whose run it removes, not with resume (--resume)"
        )
    if sample_every is not None and sample_every < 1:
        raise ValueError(f"sample_every is a number of epochs, at least 1, got {sample_every}")
    if isinstance(devices, int) and devices < 1:
        raise ValueError(f"devices is a number of processes, at least 1, got {devices}")
    check_seed(seed)


def check_seed(seed: int) -> int:
    """Refuse a seed that PyTorch can't take together with the number of an epoch."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected a seed of 0 to {2**32 - 1}, got {seed}")
    return seed
