"""Fit a flow to data, in Lightning's loop."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from pyroflows._extras import needs_fit_extra
from pyroflows.distributions import Dequantized, Flow

with needs_fit_extra("pyroflows.training"):
    import lightning
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

__all__ = ["FitResult", "fit", "score"]


@dataclass(frozen=True)
class FitResult:
    """What a fit gave.

    Attributes:
        losses: Mean training loss of each epoch: bits per dimension of integer data, else nats per datum.
        score: Mean of the same on the validation data at the end, or `None` without.
    """

    losses: list[float]
    score: float | None


def fit(
    flow: Flow,
    data: Tensor,
    val_data: Tensor | None = None,
    *,
    levels: int | None = None,
    max_epochs: int = 50,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.1,
    seed: int = 0,
    progress_bar: bool = True,
) -> FitResult:
    r"""Fit a flow to data by maximum likelihood, in place.

    .. math:: \min_\theta \; -\frac{1}{N} \sum_n \log p_\theta(x_n)

    with AdamW, a short warm-up and a cosine decay of the step size. First every `ActNorm` is initialised
    from up to 1,024 of the data. Integer data are dequantized by uniform noise (`Dequantized`).

    Args:
        flow: The flow; it is changed, and in evaluation mode afterwards.
        data: `(N, *event_shape)`: reals, or integers 0 to `levels - 1`.
        val_data: Held-out data of the same kind; no choice is made by them.
        levels: Number of levels of integer data; by default 256.
        max_epochs: Number of passes over the data.
        batch_size: Data in a step.
        lr: Largest step size.
        weight_decay: AdamW's, of the networks' weights only.
        seed: Of the order of the data and the noise.
        progress_bar: Whether to show one.

    Returns:
        Losses and score: bits per dimension (integer data) or nats per datum (reals).

    Raises:
        ValueError: The data are not of the flow's event shape, are not finite, or are too few.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, eq. 1 and 2; Loshchilov & Hutter 2019,
    "Decoupled weight decay regularization", arXiv 1711.05101.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> result = fit(Flow(realnvp(2)), torch.randn(256, 2), max_epochs=2, progress_bar=False)
        >>> len(result.losses)
        2
    """
    levels = _check_data(flow, data, levels, at_least=2)
    if val_data is not None:
        _check_data(flow, val_data, levels)
    if max_epochs < 1 or batch_size < 1 or not lr > 0:
        raise ValueError(
            f"fit expected max_epochs and batch_size of at least 1 and a positive lr, "
            f"got {max_epochs}, {batch_size}, {lr}"
        )
    batches = _batches(data, batch_size, shuffle=True)
    module = _DensityModule(flow, levels, lr, weight_decay, total_steps=max_epochs * len(batches))
    device = _device(flow)
    flow.train()
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        flow.initialize(module.reals(data[torch.randperm(len(data))[:1024]].to(device)))
        trainer = lightning.Trainer(
            max_epochs=max_epochs,
            devices=1,
            gradient_clip_val=100.0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress_bar,
        )
        trainer.fit(module, batches)
    # Lightning leaves what it trained on an accelerator on the CPU.
    flow.to(device).eval()
    return FitResult(module.losses, None if val_data is None else score(flow, val_data, levels=levels))


@torch.no_grad()
def score(flow: Flow, data: Tensor, *, levels: int | None = None, draws: int = 10) -> float:
    """Mean bits per dimension (integer data) or nats per datum (reals) of data under a flow.

    Args:
        flow: The flow; it is put into evaluation mode.
        data: `(N, *event_shape)`: reals, or integers 0 to `levels - 1`.
        levels: Number of levels of integer data; by default 256.
        draws: Number of draws of the dequantization noise that are averaged.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> score(Flow(realnvp(2)), torch.zeros(5, 2)) > 0
        True
    """
    levels = _check_data(flow, data, levels)
    module = _DensityModule(flow.eval(), levels)
    repeats = draws if levels is not None else 1
    total = sum(
        module.loss(batch.to(_device(flow))).item() * len(batch)
        for _ in range(repeats)
        for batch in _batches(data, 256, shuffle=False)
    )
    return total / (repeats * len(data))


class _DensityModule(lightning.LightningModule):
    """The negative log-likelihood of a flow, and how it is minimised."""

    def __init__(
        self,
        flow: Flow,
        levels: int | None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        total_steps: int = 1,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.levels = levels
        self.lr, self.weight_decay, self.total_steps = lr, weight_decay, total_steps
        self.losses: list[float] = []
        self._epoch_losses: list[Tensor] = []

    def reals(self, batch: Tensor) -> Tensor:
        """The data as the flow sees them."""
        return batch if self.levels is None else Dequantized(self.flow(), self.levels).dequantize(batch)

    def loss(self, batch: Tensor) -> Tensor:
        if self.levels is None:
            return -self.flow().log_prob(batch).mean()
        return Dequantized(self.flow(), self.levels).bits_per_dim(batch).mean()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = self.loss(batch)
        unit = "nats" if self.levels is None else "bits/dim"
        self.log(unit, loss, prog_bar=True)
        self._epoch_losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.losses.append(torch.stack(self._epoch_losses).mean().item())
        self._epoch_losses.clear()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        # The networks' matrices and kernels decay; zero is no natural value of the other parameters.
        weights = [p for name, p in self.named_parameters() if "conditioner" in name and p.dim() > 1]
        others = [p for name, p in self.named_parameters() if not ("conditioner" in name and p.dim() > 1)]
        groups = [
            {"params": weights, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=True)
        warmup = max(1, min(50, self.total_steps // 10))

        def schedule(step: int) -> float:
            cosine = (1 + math.cos(math.pi * min(step / self.total_steps, 1.0))) / 2
            return min(1.0, (step + 1) / warmup) * cosine

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Rows(Dataset[Tensor]):
    """A tensor's rows, taken a batch of indices at a time."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: list[int]) -> Tensor:
        return self.data[indices]


def _device(flow: Flow) -> torch.device:
    return next(flow.parameters()).device


def _batches(data: Tensor, batch_size: int, shuffle: bool) -> DataLoader[Tensor]:
    rows = _Rows(data)
    order = RandomSampler(rows) if shuffle else SequentialSampler(rows)
    # Every step of a fit sees a whole batch, unless there is not even one.
    drop_last = shuffle and len(data) >= batch_size
    return DataLoader(rows, sampler=BatchSampler(order, batch_size, drop_last), batch_size=None)


def _check_data(flow: Flow, data: Tensor, levels: int | None, at_least: int = 1) -> int | None:
    """Check the data, and give the number of levels if they are integers."""
    event_shape = tuple(flow.transform.event_shape)
    if data.dim() != 1 + len(event_shape) or tuple(data.shape[1:]) != event_shape:
        raise ValueError(
            f"expected data of shape (N, {', '.join(map(str, event_shape))}), got {tuple(data.shape)}"
        )
    if len(data) < at_least:
        raise ValueError(f"expected at least {at_least} data, got {len(data)}")
    if data.is_floating_point():
        if levels is not None:
            raise ValueError(f"levels={levels} is for integer data, got {data.dtype}")
        bad = (~data.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            raise ValueError(f"expected finite data, got a value that is not in row {bad[0].item()}")
        return None
    levels = 256 if levels is None else levels
    low, high = int(data.min()), int(data.max())
    if low < 0 or high >= levels:
        raise ValueError(f"expected integers 0 to {levels - 1}, got {low} to {high}: set levels")
    return levels


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice that a user of `fit` can't follow off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.` is deprecated.*")
            yield
    finally:
        logger.setLevel(level)
