"""A fitted flow with what belongs to it: scores, samples, and the folder of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyroflows._renamed import renamed
from pyroflows.baseline import Gaussian
from pyroflows.distributions import Dequantized, Flow
from pyroflows.intake import as_context, as_rows, check_data
from pyroflows.rows import AnyRows, Batch, device_of, in_batches
from pyroflows.saving import CHECKPOINT, find_run, read_run, run_config, write_run
from pyroflows.tables import Grid

__all__ = ["Run"]

# Values that are drawn at once: 4 MB of float32. A flow's networks take some hundred times as much.
_AT_ONCE = 2**20
# Data that are scored at once, at least.
_BATCH = 256


@dataclass(frozen=True)
class Run:
    """A fitted flow and what belongs to it, written to and read from a folder.

    Attributes:
        flow: The flow.
        grey_levels: Number of grey levels of integer data; `None` for reals.
        noise: The conditional flow of the dequantization noise; `None` for uniform noise.
        grid: The grid of the columns of a table that were dequantized.
        baseline: The Gaussian that was fitted to the same table.
        names: Names of the columns of a table.
        classes: Names of the classes that are the flow's contexts, one-hot.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> run = Run(Flow(realnvp(2)), names=("height", "weight"))
        >>> run.sample(5).shape, run.log_prob(torch.zeros(3, 2)).shape
        (torch.Size([5, 2]), torch.Size([3]))
    """

    flow: Flow
    grey_levels: int | None = None
    noise: Flow | None = None
    grid: Grid | None = None
    baseline: Gaussian | None = None
    names: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None

    @property
    def unit(self) -> str:
        """The unit of scores: `"nats"`, or `"bits per dim"` for integer data."""
        return "nats" if self.grey_levels is None else "bits per dim"

    def reals(self, batch: Batch, offset: Tensor | None = None) -> Tensor:
        """The data as the flow sees them: integers and columns on a grid with a draw of noise.

        Args:
            batch: The data.
            offset: What is added to columns on a grid, `(D,)`; by default a draw for each datum.
        """
        if self.grey_levels is not None:
            return self._of_integers(batch.context).dequantize(batch.data)
        data = self._in_own_dtype(batch.data)
        if self.grid is None:
            return data
        return self.grid.blur(data) if offset is None else data + offset.to(data)

    def log_density(self, batch: Batch, offset: Tensor | None = None) -> Tensor:
        """Log density of each datum in nats, `(N,)`, by one draw of the noise; arguments as of `reals`."""
        if self.grey_levels is None:
            return self._given(batch.context).log_prob(self.reals(batch, offset))
        return self._of_integers(batch.context).log_prob(batch.data)

    def log_prob(
        self,
        data: Any,
        *,
        labels: Sequence[Any] | None = None,
        context: Any = None,
        draws: int = 10,
        seed: int = 0,
    ) -> Tensor:
        r"""Log density of each datum, `(N,)`, in nats: the lowest are the outliers.

        For integer data it is a lower bound of the log probability, by the mean over draws of the noise, and
        for columns on a grid one of the log density, by the mean over points that are the same for each row.

        Args:
            data: `(N, *event_shape)`: a tensor, an array, or a pandas or polars frame, whose columns are
                found by their names; a `Dataset` or a `DataLoader`.
            labels: The class of each datum, by its name, if the flow is conditional on classes.
            context: Each datum's context, `(N, *context_shape)`, of a flow without classes.
            draws: Number of draws of the noise, or of points.
            seed: Seed of the noise.

        Raises:
            ValueError: The data are not of the flow's shape or are not finite, a column is missing, or there
                is no such class.
        """
        if labels is not None:
            _check_alone(labels, context)
            context = self._one_hot(labels)
        rows = as_rows(data, context, self.grey_levels, names=self.names)
        check_data(self.flow, rows, self.grey_levels, self.noise)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.log_prob_of_rows(rows, draws)

    @torch.no_grad()
    def log_prob_of_rows(self, rows: AnyRows, draws: int = 10) -> Tensor:
        """As `log_prob`, of rows that were checked, by the random numbers that come."""
        self.flow.eval()
        if self.noise is not None:
            self.noise.eval()
        device = device_of(self.flow)
        offsets: Sequence[Tensor | None] = [None] * (1 if self.grey_levels is None else draws)
        if self.grid is not None:
            offsets = list(self.grid.offsets(draws))

        def mean_of(batch: Batch) -> Tensor:
            return torch.stack([self.log_density(batch, offset) for offset in offsets]).mean(0)

        at_once = max(_BATCH, _AT_ONCE // (4 * self.flow.transform.event_shape.numel()))
        # All draws of a batch together: a loader may give other batches the next time.
        return torch.cat([mean_of(batch.to(device)) for batch in in_batches(rows, at_once)])

    def score_rows(self, rows: AnyRows, draws: int = 10) -> float:
        """The mean negative log density of rows that were checked, by their weights, in `unit`."""
        log_prob = self.log_prob_of_rows(rows, draws).double()
        weights = getattr(rows, "weights", None)
        weights = torch.ones_like(log_prob) if weights is None else weights.to(log_prob)
        return self.in_unit(-(weights * log_prob).sum() / weights.sum()).item()

    def in_unit(self, nats: Tensor) -> Tensor:
        """Nats of a datum in the run's unit."""
        if self.grey_levels is None:
            return nats
        return nats / (self.flow.transform.event_shape.numel() * math.log(2))

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, *, label: Any = None, context: Any = None) -> Tensor:
        """Data, `(n, *event_shape)`: integers if it has grey levels, on the grid if it has one.

        Args:
            n: Number of samples.
            temperature: The base's scale is multiplied by this.
            label: The class of the samples, by its name; by default about as many of each class, one class
                after another.
            context: The context of each sample, `(n, *context_shape)`, of a flow without classes.

        Raises:
            FloatingPointError: A sample that should be of integers is not finite.
            ValueError: There is no such class, or a context is missing.
        """
        parts = self._distributions(n, temperature, label, as_context(context))
        if self.grey_levels is not None:
            grey_levels = self.grey_levels
            return torch.cat([Dequantized(part, grey_levels).sample(shape) for part, shape in parts])
        x = torch.cat([part.sample(shape) for part, shape in parts])
        return x if self.grid is None else self.grid.round(x)

    @torch.no_grad()
    def draw(self, n: int, temperature: float = 1.0, *, label: Any = None) -> Tensor:
        """Samples to look at: as `sample`, but always of reals, which may be not finite."""
        if self.grey_levels is None:
            return self.sample(n, temperature, label=label)
        grey_levels, parts = self.grey_levels, self._distributions(n, temperature, label, None)
        return torch.cat([Dequantized(part, grey_levels).sample_reals(shape) for part, shape in parts])

    def labels_of(self, n: int) -> list[str]:
        """The class of each of `n` samples that are drawn without a label.

        They are in the order in which a folder of classes is read.
        """
        classes = self.classes or ()
        return [classes[i * len(classes) // n] for i in range(n)]

    def _distributions(self, n: int, temperature: float, label: Any, context: Tensor | None) -> list[Any]:
        """Distributions and sample shapes that give `n` samples together, a part at a time."""
        if label is not None:
            _check_alone(label, context)
        if context is not None and len(context) != n:
            raise ValueError(f"expected {n} contexts, one of each sample, got {len(context)}")
        if label is not None or (context is None and self.classes is not None):
            context = self._one_hot(self.labels_of(n) if label is None else [label] * n)
        at_once = max(1, _AT_ONCE // self.flow.transform.event_shape.numel())
        sizes = [min(at_once, n - start) for start in range(0, n, at_once)]
        if context is None:
            together = self.flow(temperature=temperature)
            return [(together, (size,)) for size in sizes]
        given = self._in_own_dtype(context.to(device_of(self.flow))).split(at_once)
        return [(self.flow(part, temperature=temperature), ()) for part in given]

    def _of_integers(self, context: Tensor | None) -> Dequantized:
        assert self.grey_levels is not None
        return Dequantized(self._given(context), self.grey_levels, self.noise)

    def _given(self, context: Tensor | None) -> Any:
        return self.flow(None if context is None else self._in_own_dtype(context))

    def _in_own_dtype(self, x: Tensor) -> Tensor:
        """Reals in the flow's precision, unless it takes any and keeps their digits."""
        return x if self.flow.transform._takes_any_dtype else x.to(next(self.flow.parameters()).dtype)

    def _one_hot(self, labels: Sequence[Any]) -> Tensor:
        """The contexts of classes by their names."""
        if self.classes is None:
            raise ValueError("expected no class, as this flow was fitted without classes")
        numbers = {name: i for i, name in enumerate(self.classes)}
        labels = [str(label) for label in (labels.tolist() if isinstance(labels, Tensor) else labels)]
        unknown = sorted(set(labels) - set(numbers))
        if unknown:
            raise ValueError(f"expected classes among {list(self.classes)}, got {unknown[0]!r}")
        one_hot = torch.eye(len(self.classes), dtype=next(self.flow.parameters()).dtype)
        return one_hot[[numbers[label] for label in labels]]

    def config(self) -> dict[str, Any]:
        """What the run is made of, without its weights: plain values, for a checkpoint.

        Raises:
            ValueError: The flow is not put together from pyroflows' own classes.
        """
        return run_config(**self._parts())

    def save(self, folder: str | Path) -> None:
        """Write `flow.safetensors` to a folder, under a temporary name first, so that it is never half.

        Raises:
            ValueError: The flow is not put together from pyroflows' own classes, or can't be written.
        """
        write_run(Path(folder) / CHECKPOINT, **self._parts())

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run from its folder, its `flow.safetensors`, or a checkpoint of its fit.

        A folder without `flow.safetensors` is that of a run that has not ended: the best checkpoint so far
        is read, or the last, with a warning.

        Args:
            path: A folder, or a file such as `best.ckpt`.

        Raises:
            ValueError: There is no run, or it is damaged or made of classes that are not pyroflows'.
        """
        return cls(**read_run(find_run(Path(path))))

    def _parts(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


Run.__init__ = renamed(levels="grey_levels")(Run.__init__)  # type: ignore[method-assign]


def _check_alone(label: Any, context: Any) -> None:
    if context is not None:
        raise ValueError(f"expected a class or a context, got both: the class {str(label)[:40]} is a context")
