"""Maximum likelihood of a flow as a Lightning module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyroflows._extras import needs_fit_extra
from pyroflows.distributions import Dequantized, Flow
from pyroflows.tables import Grid
from pyroflows.training.data import Rows, SeededLoader, as_list, batches
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
        flow: Flow,
        grey_levels: int | None,
        noise: Flow | None = None,
        *,
        rows: Rows | DataLoader[Any] | None = None,
        val_rows: Rows | DataLoader[Any] | None = None,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
        schedule: Schedule | None = None,
        grid: Grid | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(flow)
        self.grey_levels, self.noise = grey_levels, noise
        self.rows, self.val_rows, self.batch_size = rows, val_rows, batch_size
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        self.schedule = Schedule() if schedule is None else schedule
        self.grid = grid
        self.options = options
        self.losses: list[float] = []
        self.val_losses: list[float] = []
        self._epoch_losses: list[Tensor] = []

    @property
    def flow(self) -> Flow:
        assert isinstance(self.model, Flow)
        return self.model

    @property
    def unit(self) -> str:
        return "nats" if self.grey_levels is None else "bits/dim"

    def reals(self, batch: Tensor, context: Tensor | None = None) -> Tensor:
        """The data as the flow sees them."""
        if self.grey_levels is not None:
            return self._of_integers(context).dequantize(batch)
        if not self.flow.transform._takes_any_dtype:
            batch = batch.to(next(self.flow.parameters()).dtype)
        return batch if self.grid is None else self.grid.blur(batch)

    def objective(self, batch: Any) -> Tensor:
        """Mean nats, or bits per dimension of integers."""
        data, *given = as_list(batch)
        context = given[0] if given else None
        if self.grey_levels is None:
            return -self.flow(context).log_prob(self.reals(data)).mean()
        return self._of_integers(context).bits_per_dim(data).mean()

    def _of_integers(self, context: Tensor | None) -> Dequantized:
        assert self.grey_levels is not None
        return Dequantized(self.flow(context), self.grey_levels, self.noise)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Where the flow may be evaluated outside a step, by every process: its weights are all there."""
        yield

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """All parameters are modules': there is none to be found."""

    def train_dataloader(self) -> Iterable[Any]:
        assert self.rows is not None
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
        self.log(self.unit, loss, prog_bar=True)
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
        size = len(as_list(batch)[0])
        loss = self.objective(batch)
        self._held_out = self._held_out + torch.stack([loss * size, loss.new_tensor(size)])

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
        last_epoch = self.trainer.current_epoch + 1 == self.trainer.max_epochs
        checkpoint["finished"] = last_epoch or self.trainer.should_stop

    def check_resumed(self, checkpoint: dict[str, Any], folder: Path) -> None:
        """Refuse a checkpoint of a run with other options, data or another flow.

        Raises:
            ValueError: It says what is different.
        """
        options, own = dict(checkpoint["options"]), dict(self.options or {})
        same_data = options.pop("data", None) == own.pop("data", None)
        if options != own:
            raise ValueError(f"the run was started with {options}: go on with these, not with {own}")
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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses, self.val_losses = checkpoint["losses"], checkpoint["val_losses"]
        self.schedule.load(checkpoint["schedule"])

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
            self.schedule.total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.step_size)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
