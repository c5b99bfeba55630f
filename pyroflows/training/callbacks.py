"""What watches over a fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyroflows._extras import needs_fit_extra
from pyroflows.distributions import Flow
from pyroflows.plotting import plot_samples
from pyroflows.rows import Batch, as_batch
from pyroflows.runs import Run
from pyroflows.training.density import DensityModule
from pyroflows.transforms.base import FlowTransform
from pyroflows.transforms.standardize import Standardize

with needs_fit_extra("pyroflows.training"):
    import lightning

__all__ = ["Pictures", "Watch", "draw_samples", "first_non_finite", "round_trip_error"]

# On an accelerator looking at a loss waits for it, so it is looked at now and then.
_EVERY = 25


class Watch(lightning.Callback):
    """Stops a fit whose loss or weights are not finite, and warns once of an inverse that is none.

    It comes before what saves checkpoints, so none of these has weights that are not finite.

    Raises:
        FloatingPointError: The loss or a weight is not finite.
    """

    def __init__(self) -> None:
        self.warned = False
        self.batch: Batch | None = None
        self.held_out: Batch | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = as_batch(batch)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self.held_out = as_batch(batch)

    def on_before_backward(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, loss: Tensor
    ) -> None:
        if (loss.device.type == "cpu" or trainer.global_step % _EVERY == 0) and not loss.isfinite():
            self._stop(trainer, module, f"the loss is {loss.item()}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, DensityModule)
        loss = trainer.callback_metrics[module.unit]
        if not loss.isfinite():
            self._stop(trainer, module, f"the loss is {loss.item()}")
        for name, parameter in module.named_parameters():
            if not parameter.isfinite().all():
                self._stop(trainer, module, f"{name} is not finite")
        shown = self.batch if self.held_out is None else self.held_out
        # Where epochs are short, as often as held-out data are looked at.
        every = trainer.check_val_every_n_epoch or 1
        if self.warned or shown is None or (trainer.current_epoch + 1) % every:
            return
        some = shown.each(lambda part: part[:64])
        with torch.random.fork_rng(), torch.no_grad(), _evaluating(module):
            error = round_trip_error(module.flow, module.run.reals(some), some.context)
        if not error <= 1e-2:
            self.warned = True
            warnings.warn(
                f"after epoch {trainer.current_epoch} the flow's inverse is not one: data that go to the "
                f"latent and back differ by {error:.2g}; samples and their densities can't be trusted: use a "
                "lower lr, fewer steps, or double precision",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.warned = state_dict["warned"]

    def _stop(self, trainer: lightning.Trainer, module: lightning.LightningModule, what: str) -> None:
        assert isinstance(module, DensityModule)
        assert self.batch is not None
        with torch.no_grad(), module.whole():
            culprit = first_non_finite(module.flow, module.run.reals(self.batch), self.batch.context)
        raise FloatingPointError(
            f"{what} at step {trainer.global_step}, in epoch {trainer.current_epoch}; "
            f"{culprit}; the checkpoint of the last epoch is kept: use a lower lr, or look at the data"
        )


class Pictures(lightning.Callback):
    """Writes `samples.png` every so many epochs."""

    def __init__(self, folder: Path, every: int, real: Tensor | None) -> None:
        self.folder, self.every, self.real = folder, every, real

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, DensityModule)
        if (trainer.current_epoch + 1) % self.every == 0:
            with torch.random.fork_rng(), _evaluating(module):
                draw_samples(module.run, self.folder, self.real, trainer.is_global_zero)


def draw_samples(run: Run, folder: Path, real: Tensor | None, write: bool = True) -> None:
    """Write `samples.png`: a grid of 64 images, or 1,000 points; nothing for what can't be shown.

    A process that does not `write` draws all the same, as the weights may be spread over the processes.
    """
    shape = tuple(run.flow.transform.event_shape)
    # Without classes there is no telling which contexts to show.
    is_given = run.flow.transform.context_shape is not None and run.classes is None
    if is_given or (len(shape) == 3 and shape[0] not in (1, 3)):
        return
    x = run.draw(64 if len(shape) == 3 else 1000)
    if write:
        plot_samples(x, folder / "samples.png", real=real, grey_levels=run.grey_levels, names=run.names)


@contextmanager
def _evaluating(module: DensityModule) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        with module.whole():
            yield
    finally:
        module.train(training)


def round_trip_error(flow: Flow, data: Tensor, context: Tensor | None = None) -> float:
    """The largest difference between data and what the inverse and the transform make of them.

    In units of the data that a flow sees: standardised, if it standardises them.
    """
    transform: Any = flow.transform
    if isinstance(transform, Standardize):
        data, context, transform = transform._standard(data), transform._context(context), transform.transform
    if context is not None:
        transform = transform.condition(context)
    # Not by the views: those would remember the data.
    z, _ = transform.inv.call_and_ladj(data)
    x, _ = transform.call_and_ladj(z.clone())
    return (x - data).abs().max().item()


def first_non_finite(flow: Flow, data: Tensor, context: Tensor | None = None) -> str:
    """The first transform, from data to latent, that gives what is not finite, in words."""
    if not data.isfinite().all():
        return "the data themselves are not finite"
    found: list[str] = []
    parts = [(name, part) for name, part in flow.named_modules() if isinstance(part, FlowTransform)]

    def watched(name: str, part: FlowTransform) -> Any:
        inverse = part._inverse_and_ladj

        def evaluate(x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
            z, ladj = inverse(x, given)
            if not (found or (z.isfinite().all() and ladj.isfinite().all())):
                found.append(f"the first output that is not finite is of {name} ({type(part).__name__})")
            return z, ladj

        return evaluate

    try:
        for name, part in parts:
            part.__dict__["_inverse_and_ladj"] = watched(name, part)
        flow(context).transforms[0].inv.call_and_ladj(data)
    finally:
        for _, part in parts:
            part.__dict__.pop("_inverse_and_ladj", None)
    return found[0] if found else "every transform's output is finite, the base's log-density is not"
