"""Stochastic variational inference of any Pyro model as a Lightning module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyroflows._extras import needs_fit_extra

with needs_fit_extra("pyroflows.training"):
    import lightning
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["SVIModule"]


class SVIModule(lightning.LightningModule):
    r"""A Pyro model and guide, fitted by Lightning's `Trainer`.

    .. math:: \min_{\theta, \phi} \; -\mathbb{E}_{q_\phi(z)} [\log p_\theta(x, z) - \log q_\phi(z)]
        \text{ (nats)}

    Every parameter is optimised: those of modules that are the model or guide or that they name by
    `pyro.module`, and those of `pyro.param`, which stay in Pyro's param store. All of them are the module's
    own, so that Lightning clips, averages, synchronises and saves them. Those that the first call makes, as
    autoguides' do, are found by one evaluation of the first batch, before the fit.

    A batch is what model and guide are called with: a tensor, a list or tuple of arguments, or a dictionary
    of keyword arguments. A plate with subsampling, `pyro.plate("data", N, subsample=batch)`, scales the batch
    to the data; each process then estimates the same loss, and so does their mean, whose gradient is taken.

    Args:
        model: The model.
        guide: The guide. `None`: there is no latent variable, and the fit is one of maximum likelihood.
        loss: Pyro's ELBO, by default `Trace_ELBO()`.
        optimizer: From parameters to an optimizer, by default Adam with a step size of 1e-3.
        scheduler: From the optimizer to a scheduler, stepped after every step. `None`: a constant step size.

    Source: Hoffman et al. 2013, "Stochastic Variational Inference", arXiv 1206.7051; Ranganath et al. 2014,
    "Black Box Variational Inference", arXiv 1401.0118, eq. 1.

    Example:
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)
        >>> module = SVIModule(model, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01))
        >>> trainer = lightning.Trainer(
        ...     max_epochs=50, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(module, torch.utils.data.DataLoader(torch.full((20,), 3.0), batch_size=20))
        >>> round(pyro.param("loc").item(), 2)
        3.0
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        loss: Any = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.guide = _no_guide if guide is None else guide
        self.elbo = Trace_ELBO() if loss is None else loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.stored = nn.ParameterDict()

    def objective(self, batch: Any) -> Tensor:
        """The loss of a batch, in nats."""
        arguments, keywords = _arguments(batch)
        return self.elbo.differentiable_loss(self.model, self.guide, *arguments, **keywords)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.objective(batch)
        self.log("loss", loss, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.objective(batch), prog_bar=True, sync_dist=True, batch_size=1)

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.stored:
            self.trainer.fit_loop.setup_data()
            loader: Any = self.trainer.train_dataloader
            self.find_parameters(next(iter(loader)))

    @torch.no_grad()
    def find_parameters(self, batch: Any) -> None:
        """Make every parameter that an evaluation of the batch uses one of this module's."""
        arguments, keywords = _arguments(batch)
        with torch.random.fork_rng(), poutine.trace(param_only=True) as traced:
            self.elbo.loss(self.model, self.guide, *arguments, **keywords)
        store = pyro.get_param_store()
        own = {id(parameter) for parameter in self.parameters()}
        for name, site in traced.trace.nodes.items():
            if site["type"] != "param" or name not in store:
                continue
            parameter = store._params[name]
            if not isinstance(parameter, nn.Parameter):
                # Lightning moves, synchronises and saves modules' parameters; the store is to hold the same.
                parameter = nn.Parameter(parameter.detach())
                store._param_to_name.pop(store._params[name], None)
                store._params[name] = parameter
                store._param_to_name[parameter] = name
            if id(parameter) not in own and parameter.requires_grad:
                own.add(id(parameter))
                self.stored[name.replace(".", "/")] = parameter

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("SVIModule expected a model or guide with parameters, got none to optimise")
        optimizer = self.optimizer(parameters)
        if self.scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # type: ignore[return-value]


def _no_guide(*arguments: Any, **keywords: Any) -> None:
    """The guide of a model without latent variables."""


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, dict):
        return (), batch
    return (tuple(batch) if isinstance(batch, list | tuple) else (batch,)), {}
