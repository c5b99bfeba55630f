"""A density fit whose weights and optimizer state are spread over the processes (FSDP)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from pyroflows._extras import needs_fit_extra
from pyroflows.training.density import DensityModule
from pyroflows.transforms import Coupling

with needs_fit_extra("pyroflows.training"):
    from lightning.pytorch.strategies import ModelParallelStrategy
    from lightning_utilities.core.apply_func import apply_to_collection

__all__ = ["Sharded", "ShardedDensityModule"]


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for what shards itself, with the checkpoints of every other fit.

    A checkpoint holds whole weights, and is read by a fit of any strategy and number of processes.
    """

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return _gathered(self._sharded().state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return _gathered(optimizer.state_dict())

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        module, state = self._sharded(), checkpoint["state_dict"]
        like = module.state_dict()
        module.load_state_dict({name: _spread(value, like[name]) for name, value in state.items()}, strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            of_weights = {
                index: {name: _spread(value, weights[index]) for name, value in of_weight.items()}
                for index, of_weight in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": of_weights})

    def _sharded(self) -> nn.Module:
        assert self.model is not None
        return self.model


class ShardedDensityModule(DensityModule):
    """A `DensityModule` for `Sharded`: it trains a sharded copy, whose weights the flow gets in the end.

    Each coupling's network is gathered where it is evaluated, and all else for the whole step. Weights that
    no one process can hold are thus no problem while training, but they are in the end.
    """

    def configure_model(self) -> None:
        self._given = (self.flow, self.noise)
        self.model, self.noise = copy.deepcopy(self.flow), copy.deepcopy(self.noise)
        for parameter in self.parameters():
            parameter.data = parameter.data.contiguous()
        scalars = [name for name, parameter in self.named_parameters() if parameter.dim() == 0]
        if scalars:
            raise ValueError(
                f"strategy 'fsdp' splits parameters along their first dimension, but {scalars} have none: "
                "give them the shape (1,), or use strategy='ddp'"
            )
        device, processes = self.trainer.strategy.root_device, self.trainer.world_size
        mesh = init_device_mesh(device.type, (processes,))
        for part in self.modules():
            if isinstance(part, Coupling) and any(True for _ in part.conditioner.parameters()):
                fully_shard(part.conditioner, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for method in ("training_step", "validation_step"):
            register_fsdp_forward_method(self, method)

    def on_fit_end(self) -> None:
        state = _gathered(self.state_dict())
        self.model, self.noise = self._given
        self.load_state_dict(state)

    @contextmanager
    def whole(self) -> Iterator[None]:
        assert isinstance(self, FSDPModule)
        self.unshard()
        try:
            yield
        finally:
            self.reshard()


def _gathered(state: Any) -> Any:
    """The state with whole tensors, on the CPU."""
    return apply_to_collection(state, DTensor, lambda tensor: tensor.full_tensor().cpu())


def _spread(value: Any, like: Any) -> Any:
    """What is a part of `like`, which may be sharded, of a whole tensor."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
