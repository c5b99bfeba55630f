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
    context: Tensor | None = None,
    val_context: Tensor | None = None,
    levels: int | None = None,
    noise: Flow | None = None,
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
    from up to 1,024 of the data. Integer data are dequantized (`Dequantized`) by uniform noise, or by noise
    that is learned with the flow.

    Args:
        flow: The flow; it is changed, and in evaluation mode afterwards.
        data: `(N, *event_shape)`: reals, or integers 0 to `levels - 1`.
        val_data: Held-out data of the same kind; no choice is made by them.
        context: `(N, *context_shape)`, each datum's context, if the flow is conditional.
        val_context: The held-out data's.
        levels: Number of levels of integer data; by default 256.
        noise: A conditional flow of the dequantization noise, which is fitted too. `None`: uniform noise.
        max_epochs: Number of passes over the data.
        batch_size: Data in a step.
        lr: Largest step size.
        weight_decay: AdamW's, of the networks' weights only.
        seed: Of the order of the data and the noise.
        progress_bar: Whether to show one.

    Returns:
        Losses and score: bits per dimension (integer data) or nats per datum (reals).

    Raises:
        ValueError: The data are not of the flow's event shape, are not finite, or are too few; a context is
            missing or not wanted; noise is given for reals.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, eq. 1 and 2; Loshchilov & Hutter 2019,
    "Decoupled weight decay regularization", arXiv 1711.05101.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> result = fit(Flow(realnvp(2)), torch.randn(256, 2), max_epochs=2, progress_bar=False)
        >>> len(result.losses)
        2
    """
    levels = _check_data(flow, data, context, levels, noise, at_least=2)
    if val_data is not None:
        _check_data(flow, val_data, val_context, levels, noise)
    if max_epochs < 1 or batch_size < 1 or not lr > 0:
        raise ValueError(
            f"fit expected max_epochs and batch_size of at least 1 and a positive lr, "
            f"got {max_epochs}, {batch_size}, {lr}"
        )
    rows = _Rows(data, context)
    batches = _batches(rows, batch_size, shuffle=True)
    module = _DensityModule(flow, levels, noise, lr, weight_decay, total_steps=max_epochs * len(batches))
    device = _device(flow)
    module.train()
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        first, *given = (part.to(device) for part in rows[torch.randperm(len(data))[:1024]])
        flow.initialize(module.reals(first, *given), *given)
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
    module.to(device).eval()
    if val_data is None:
        return FitResult(module.losses, None)
    return FitResult(module.losses, score(flow, val_data, context=val_context, levels=levels, noise=noise))


@torch.no_grad()
def score(
    flow: Flow,
    data: Tensor,
    *,
    context: Tensor | None = None,
    levels: int | None = None,
    noise: Flow | None = None,
    draws: int = 10,
) -> float:
    """Mean bits per dimension (integer data) or nats per datum (reals) of data under a flow.

    Args:
        flow: The flow; it is put into evaluation mode.
        data: `(N, *event_shape)`: reals, or integers 0 to `levels - 1`.
        context: `(N, *context_shape)`, each datum's context, if the flow is conditional.
        levels: Number of levels of integer data; by default 256.
        noise: The conditional flow of the dequantization noise. `None`: uniform noise.
        draws: Number of draws of the dequantization noise that are averaged.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> score(Flow(realnvp(2)), torch.zeros(5, 2)) > 0
        True
    """
    levels = _check_data(flow, data, context, levels, noise)
    module = _DensityModule(flow, levels, noise).eval()
    repeats = draws if levels is not None else 1
    total = sum(
        module.loss(*(part.to(_device(flow)) for part in batch)).item() * len(batch[0])
        for _ in range(repeats)
        for batch in _batches(_Rows(data, context), 256, shuffle=False)
    )
    return total / (repeats * len(data))


class _DensityModule(lightning.LightningModule):
    """The negative log-likelihood of a flow, and how it is minimised."""

    def __init__(
        self,
        flow: Flow,
        levels: int | None,
        noise: Flow | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        total_steps: int = 1,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.levels = levels
        self.noise = noise
        self.lr, self.weight_decay, self.total_steps = lr, weight_decay, total_steps
        self.losses: list[float] = []
        self._epoch_losses: list[Tensor] = []

    def reals(self, batch: Tensor, context: Tensor | None = None) -> Tensor:
        """The data as the flow sees them."""
        return batch if self.levels is None else self._of_integers(context).dequantize(batch)

    def loss(self, batch: Tensor, context: Tensor | None = None) -> Tensor:
        if self.levels is None:
            return -self.flow(context).log_prob(batch).mean()
        return self._of_integers(context).bits_per_dim(batch).mean()

    def _of_integers(self, context: Tensor | None) -> Dequantized:
        assert self.levels is not None
        return Dequantized(self.flow(context), self.levels, self.noise)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.loss(*batch)
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


class _Rows(Dataset[list[Tensor]]):
    """The rows of the data, and of their contexts if they have some, taken a batch of indices at a time."""

    def __init__(self, data: Tensor, context: Tensor | None) -> None:
        self.tensors = [data] if context is None else [data, context]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, indices: list[int] | Tensor) -> list[Tensor]:
        return [tensor[indices] for tensor in self.tensors]


def _device(flow: Flow) -> torch.device:
    return next(flow.parameters()).device


def _batches(rows: _Rows, batch_size: int, shuffle: bool) -> DataLoader[list[Tensor]]:
    order = RandomSampler(rows) if shuffle else SequentialSampler(rows)
    # Every step of a fit sees a whole batch, unless there is not even one.
    drop_last = shuffle and len(rows) >= batch_size
    return DataLoader(rows, sampler=BatchSampler(order, batch_size, drop_last), batch_size=None)


def _check_data(
    flow: Flow,
    data: Tensor,
    context: Tensor | None,
    levels: int | None,
    noise: Flow | None,
    at_least: int = 1,
) -> int | None:
    """Check the data, and give the number of levels if they are integers."""
    event_shape = tuple(flow.transform.event_shape)
    if data.dim() != 1 + len(event_shape) or tuple(data.shape[1:]) != event_shape:
        raise ValueError(
            f"expected data of shape (N, {', '.join(map(str, event_shape))}), got {tuple(data.shape)}"
        )
    if len(data) < at_least:
        raise ValueError(f"expected at least {at_least} data, got {len(data)}")
    context_shape = flow.transform.context_shape
    if context is not None and context_shape is None:
        raise ValueError("this flow takes no context: its transform was made without a context_dim")
    if context_shape is not None and (context is None or context.shape != (len(data), *context_shape)):
        raise ValueError(
            f"expected a context of shape {(len(data), *context_shape)}, one of each datum, "
            f"got {None if context is None else tuple(context.shape)}"
        )
    if data.is_floating_point():
        if levels is not None or noise is not None:
            raise ValueError(f"levels and noise are for integer data, got {data.dtype}")
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
