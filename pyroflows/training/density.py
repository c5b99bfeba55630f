"""Maximum likelihood of a flow as a Lightning module."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyroflows._extras import needs_fit_extra
from pyroflows.config import same_config
from pyroflows.distributions import Flow
from pyroflows.rows import AnyRows, as_batch
from pyroflows.runs import Run
from pyroflows.training.batches import SeededLoader, batches
from pyroflows.training.schedule import Schedule
from pyroflows.training.svi import SVIModule

with needs_fit_extra("pyroflows.training"):
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["VALIDATION", "DensityModule"]

# The name of the validation score among Lightning's metrics.
VALIDATION = "held out"


class DensityModule(SVIModule):
    """The negative log-likelihood of a flow, and how it is minimised.

    What is random in an epoch, the order of the data and the noise, is a function of the seed, the epoch and
    the process: a run that goes on from an epoch's end goes on as if it had not stopped.
    """

    def __init__(
        self,
        run: Run,
        *,
        rows: AnyRows,
        val_rows: AnyRows | None = None,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
        schedule: Schedule | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(run.flow)
        self.noise = run.noise
        self._run, self._config = run, _config_of(run)
        self.rows, self.val_rows, self.batch_size = rows, val_rows, batch_size
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        self.schedule = Schedule() if schedule is None else schedule
        self.options = options
        self.losses: list[float] = []
        self.val_losses: list[float] = []
        # Seconds that the run took before it went on.
        self._seconds, self._start = 0.0, time.perf_counter()
        self._epoch_losses: list[Tensor] = []

    @property
    def flow(self) -> Flow:
        assert isinstance(self.model, Flow)
        return self.model

    @property
    def run(self) -> Run:
        """The run with the flow and noise that are trained, which may be copies of those given."""
        return replace(self._run, flow=self.flow, noise=self.noise)

    @property
    def unit(self) -> str:
        return "nats" if self._run.grey_levels is None else "bits/dim"

    @property
    def seconds(self) -> float:
        """How long the run has taken, with what came before it went on."""
        return self._seconds + time.perf_counter() - self._start

    def losses_of(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Each datum's loss, in nats or bits per dimension, and its weight."""
        rows, run = as_batch(batch), self.run
        losses = run.in_unit(-run.log_density(rows))
        return losses, torch.ones_like(losses) if rows.weights is None else rows.weights.to(losses)

    def objective(self, batch: Any) -> Tensor:
        """Mean of the weighted losses: the weights have a mean of 1 over all rows, not in each batch."""
        losses, weights = self.losses_of(batch)
        return (weights * losses).mean()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Where the flow may be evaluated outside a step, by every process: its weights are all there."""
        yield

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """All parameters are modules': there is none to be found."""

    def train_dataloader(self) -> Iterable[Any]:
        if isinstance(self.rows, DataLoader) and self.trainer.world_size == 1:
            return SeededLoader(self.rows, lambda: self._random_seed("order"))
        return batches(
            self.rows,
            self.batch_size,
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch,
            shuffle=True,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.val_rows is None:
            return []
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return batches(self.val_rows, 256, rank=rank, world_size=world_size)

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if index == 0:
            torch.manual_seed(self._random_seed("noise"))

    def _random_seed(self, what: str) -> int:
        """A seed for the epoch's order of data, or for a process's noise in it."""
        rank = 1 + self.trainer.global_rank if what == "noise" else 0
        return (self.seed * 1_000_003 + self.trainer.current_epoch) * 4_099 + rank

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.objective(batch)
        self.log(self.unit, loss, prog_bar=True, batch_size=1)
        self._epoch_losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.losses.append(self._over_processes(torch.stack(self._epoch_losses).mean(), "mean").item())
        self._epoch_losses.clear()

    def on_train_epoch_start(self) -> None:
        # The last weights are a candidate, whichever epochs are evaluated.
        if self.trainer.current_epoch + 1 == self.trainer.max_epochs:
            self.trainer.check_val_every_n_epoch = 1

    def on_validation_epoch_start(self) -> None:
        # The same noise each time; the training's is set anew by its next epoch.
        torch.manual_seed(self.seed)
        self._held_out = torch.zeros(2, device=self.device)

    def validation_step(self, batch: Any, index: int) -> None:
        losses, weights = self.losses_of(batch)
        self._held_out = self._held_out + torch.stack([(weights * losses).sum(), weights.sum()])

    def on_validation_epoch_end(self) -> None:
        # By sums of reals: Lightning's own mean over processes rounds the number of data.
        total, count = self._over_processes(self._held_out, "sum")
        self.val_losses.append((total / count).item())
        self.log(VALIDATION, total / count, prog_bar=True, sync_dist=True)
        self.schedule.update(self.val_losses[-1], self.trainer.global_step)
        if self.schedule.ended:
            self.trainer.should_stop = True

    def _over_processes(self, value: Tensor, how: str) -> Tensor:
        reduced = self.trainer.strategy.reduce(value, reduce_op=how)
        assert isinstance(reduced, Tensor)
        return reduced

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"], checkpoint["val_losses"] = self.losses, self.val_losses
        checkpoint["options"], checkpoint["schedule"] = self.options, self.schedule.state()
        checkpoint["run"], checkpoint["seconds"] = self._config, self.seconds
        last_epoch = self.trainer.current_epoch + 1 == self.trainer.max_epochs
        checkpoint["finished"] = last_epoch or self.trainer.should_stop

    def check_resumed(self, checkpoint: dict[str, Any], folder: Path) -> None:
        """Refuse a checkpoint of a run with other options, data or another flow.

        Raises:
            ValueError: It says what is different.
        """
        options, own = dict(checkpoint["options"]), dict(self.options or {})
        if self.goes_on(checkpoint) or self.ends_here(checkpoint):
            options["max_epochs"] = own["max_epochs"]
        same_data = options.pop("data", None) == own.pop("data", None)
        if options != own:
            names = [name for name in own if options.get(name) != own[name]]
            then, now = (", ".join(f"{name}={some.get(name)}" for name in names) for some in (options, own))
            end = ""
            if names == ["max_epochs"] and not checkpoint["finished"]:
                end = f", or end it by max_epochs={len(checkpoint['losses'])}"
            raise ValueError(
                f"the run in {folder} was started with {then}, got {now}: go on with the same options{end}"
            )
        if not same_data:
            raise ValueError(f"the run in {folder} was started with other data: choose another folder")
        theirs, ours = (
            {name: tuple(value.shape) for name, value in state.items()}
            for state in (checkpoint["state_dict"], self.state_dict())
        )
        if theirs != ours:
            names = sorted(name for name, _ in theirs.items() ^ ours.items())
            raise ValueError(
                f"the run in {folder} has another flow, which differs in {names[0]}: build the same flow, or "
                "choose another folder"
            )
        before, own_config = checkpoint.get("run"), self._config
        if before is None or own_config is None:
            return
        for name in ("grey_levels", "classes", "names"):
            then, now = before["extra"][name], own_config["extra"][name]
            if then != now:
                raise ValueError(f"the run in {folder} was started with {name}={then}, got {now}")
        if not same_config(before["flow"], own_config["flow"]):
            raise ValueError(
                f"the run in {folder} has another flow, made with other options: build the same one, or "
                "choose another folder"
            )

    def goes_on(self, checkpoint: dict[str, Any]) -> bool:
        """Whether a run that has ended is to go on, as more epochs than it has had are asked for."""
        asked, before = (self.options or {}).get("max_epochs"), checkpoint["options"]["max_epochs"]
        epochs = len(checkpoint["losses"])
        return checkpoint["finished"] and asked is not None and asked != before and asked > epochs

    def ends_here(self, checkpoint: dict[str, Any]) -> bool:
        """Whether a run that was stopped is to end, as no more epochs are asked for than it has had."""
        asked = (self.options or {}).get("max_epochs")
        return not checkpoint["finished"] and asked is not None and asked <= len(checkpoint["losses"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses, self.val_losses = checkpoint["losses"], checkpoint["val_losses"]
        self._seconds = checkpoint.get("seconds", 0.0)
        self.schedule.load(checkpoint["schedule"])
        if self.goes_on(checkpoint):
            self.schedule.go_on(checkpoint["global_step"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # The networks' matrices and kernels decay; zero is no natural value of the other parameters.
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        decays = {name for name, p in named if "conditioner" in name and p.dim() > 1}
        groups = [
            {"params": [p for name, p in named if name in decays], "weight_decay": self.weight_decay},
            {"params": [p for name, p in named if name not in decays], "weight_decay": 0.0},
        ]
        # With gradients that are scaled, Lightning does not clip for an optimizer that unscales them itself.
        fused = "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=fused)
        if self.schedule.total is None:
            self.schedule.total = int(self.trainer.estimated_stepping_batches) - self.schedule.start
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.step_size)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _config_of(run: Run) -> dict[str, Any] | None:
    """What a checkpoint tells of a run; nothing if the flow has classes that are not pyroflows'."""
    try:
        return run.config()
    except ValueError:
        return None
