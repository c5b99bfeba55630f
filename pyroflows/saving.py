"""Flows as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyroflows.config import build, describe
from pyroflows.distributions import Flow
from pyroflows.state import damaged, read_state, write_state

__all__ = ["build_flow", "flow_config", "load_flow", "save_flow"]


def flow_config(flow: Flow) -> dict[str, Any]:
    """What a flow is made of, without its weights.

    Raises:
        ValueError: It is not put together from pyroflows' own classes.
    """
    return {"transform": describe(flow._modules["transform"]), "base": describe(flow._base)}


def build_flow(config: dict[str, Any], weights: dict[str, Tensor]) -> Flow:
    """The flow of a configuration and weights, in evaluation mode."""
    # What is random in a new flow is not drawn from the user's stream.
    with torch.random.fork_rng(devices=[]):
        flow = Flow(build(config["transform"]), build(config["base"]))
    # By the parameters: a `Standardize` keeps its numbers in double precision.
    dtype = next((weights[name].dtype for name, _ in flow.named_parameters()), None)
    flow.to(dtype=dtype).load_state_dict(weights)
    return flow.eval()


def save_flow(flow: Flow, path: str | Path, extra: dict[str, Any]) -> None:
    """Write a flow, and what is to be kept with it."""
    write_state({"flow": flow_config(flow), "weights": dict(flow.state_dict()), "extra": extra}, path)


def load_flow(path: str | Path) -> Flow:
    """Read what `save_flow` wrote: the flow, in evaluation mode.

    Raises:
        ValueError: The file is not there, is none of `save_flow`'s, or is damaged.
    """
    state = read_state(path)
    try:
        return build_flow(state["flow"], state["weights"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
