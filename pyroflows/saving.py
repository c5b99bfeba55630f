"""Flows as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pyroflows.config import build, describe
from pyroflows.distributions import Flow
from pyroflows.state import damaged, read_state, write_state

__all__ = ["load_flow", "save_flow"]


def save_flow(flow: Flow, path: str | Path, extra: dict[str, Any]) -> None:
    """Write a flow, and what is to be kept with it."""
    config = {"transform": describe(flow._modules["transform"]), "base": describe(flow._base)}
    write_state({"flow": config, "weights": dict(flow.state_dict()), "extra": extra}, path)


def load_flow(path: str | Path) -> tuple[Flow, dict[str, Any]]:
    """Read what `save_flow` wrote: the flow, in evaluation mode, and what was kept with it."""
    state = read_state(path)
    try:
        config, weights, extra = state["flow"], state["weights"], state["extra"]
        # What is random in a new flow is not drawn from the user's stream.
        with torch.random.fork_rng(devices=[]):
            flow = Flow(build(config["transform"]), build(config["base"]))
        # By the parameters: a `Standardize` keeps its numbers in double precision.
        dtype = next((weights[name].dtype for name, _ in flow.named_parameters()), None)
        flow.to(dtype=dtype).load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
    return flow.eval(), extra
