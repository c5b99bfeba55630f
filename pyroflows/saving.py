"""Flows and runs as files."""

from __future__ import annotations

import warnings
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyroflows.baseline import Gaussian
from pyroflows.config import build, describe
from pyroflows.distributions import Flow
from pyroflows.state import damaged, read_state, write_state
from pyroflows.tables import Grid

__all__ = [
    "BEST",
    "CHECKPOINT",
    "LAST",
    "METRICS",
    "find_run",
    "load_flow",
    "read_run",
    "run_config",
    "save_flow",
    "write_run",
]

CHECKPOINT, METRICS = "flow.safetensors", "metrics.json"
# The checkpoints of a fit.
LAST, BEST = "last.ckpt", "best.ckpt"
# What a damaged state can make of its parts.
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, RuntimeError)


def save_flow(flow: Flow, path: str | Path, extra: dict[str, Any]) -> None:
    """Write a flow, and what is to be kept with it."""
    write_state({"flow": _flow_config(flow), "weights": dict(flow.state_dict()), "extra": extra}, path)


def load_flow(path: str | Path) -> Flow:
    """Read what `save_flow` wrote: the flow, in evaluation mode.

    Raises:
        ValueError: The file is not there, was not written by `save_flow`, or is damaged.
    """
    state = read_state(path)
    try:
        return _build_flow(state["flow"], state["weights"])
    except _DAMAGED as error:
        raise damaged(path, error) from None


def run_config(flow: Flow, noise: Flow | None, **known: Any) -> dict[str, Any]:
    """What a run is made of, without its weights; `known` is what else is known of it.

    Raises:
        ValueError: A flow is not put together from pyroflows' own classes.
    """
    config = None if noise is None else _flow_config(noise)
    return {"flow": _flow_config(flow), "noise": config, "extra": _plain(known)}


def write_run(path: Path, flow: Flow, noise: Flow | None, **known: Any) -> None:
    """Write a run: a flow's file with what else is known of the run."""
    extra = _plain(known)
    if noise is not None:
        extra["noise"] = {"flow": _flow_config(noise), "weights": dict(noise.state_dict())}
    save_flow(flow, path, extra)


def find_run(path: Path) -> Path:
    """The file of a run from its folder; a file is returned as it is."""
    if not path.is_dir():
        return path
    found = [path / name for name in (CHECKPOINT, BEST, LAST) if (path / name).is_file()]
    if not found:
        raise ValueError(
            f"expected the folder of a run, with a {CHECKPOINT} in it, or a file such as {BEST}, "
            f"got {str(path)!r}"
        )
    first, last = found[0], found[-1]
    if first.name != CHECKPOINT:
        warnings.warn(
            f"the run in {path} has not ended, so its {first.name} is read: go on with it by --resume "
            "(resume=True)",
            stacklevel=3,
        )
    elif last.name == LAST and last.stat().st_mtime > first.stat().st_mtime:
        warnings.warn(
            f"the run in {path} goes on: its {CHECKPOINT} of before is read, as {BEST} may be better",
            stacklevel=3,
        )
    return first


def read_run(path: Path) -> dict[str, Any]:
    """The parts of a run, from what `write_run` or a fit's checkpoint wrote.

    Raises:
        ValueError: The file is not one of these, is damaged, or does not tell its flow.
    """
    state = read_state(path)
    is_checkpoint = "state_dict" in state
    if is_checkpoint and "run" not in state:
        raise ValueError(f"{path} is of an older pyroflows, whose checkpoints tell no flow: resume its fit")
    if is_checkpoint and state["run"] is None:
        raise ValueError(
            f"{path} does not tell what its flow is made of, which has classes that are not pyroflows': "
            "build it again, and resume the fit"
        )
    try:
        if is_checkpoint:
            config, weights = state["run"], state["state_dict"]
            extra, noise = dict(config["extra"]), config["noise"]
            flow = _build_flow(config["flow"], _below("model.", weights))
            noise = None if noise is None else _build_flow(noise, _below("noise.", weights))
        else:
            extra = dict(state["extra"])
            noise = extra.pop("noise", None)
            flow = _build_flow(state["flow"], state["weights"])
            noise = None if noise is None else _build_flow(noise["flow"], noise["weights"])
        # Older files call the grey levels by this name.
        extra.setdefault("grey_levels", extra.pop("levels", None))
        for name, kind in (("grid", Grid), ("baseline", Gaussian)):
            if extra.get(name) is not None:
                extra[name] = kind(**extra[name])
        return {"flow": flow, "noise": noise, **extra}
    except _DAMAGED as error:
        raise damaged(path, error) from None


def _flow_config(flow: Flow) -> dict[str, Any]:
    """What a flow is made of, without its weights.

    Raises:
        ValueError: It is not put together from pyroflows' own classes.
    """
    return {"transform": describe(flow._modules["transform"]), "base": describe(flow._base)}


def _build_flow(config: dict[str, Any], weights: dict[str, Tensor]) -> Flow:
    """The flow of a configuration and weights, in evaluation mode."""
    # What is random in a new flow is not drawn from the user's stream.
    with torch.random.fork_rng(devices=[]):
        flow = Flow(build(config["transform"]), build(config["base"]))
    # By the parameters: a `Standardize` keeps its numbers in double precision.
    dtype = next((weights[name].dtype for name, _ in flow.named_parameters()), None)
    flow.to(dtype=dtype).load_state_dict(weights)
    return flow.eval()


def _plain(known: dict[str, Any]) -> dict[str, Any]:
    return {name: vars(value) if is_dataclass(value) else value for name, value in known.items()}


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
