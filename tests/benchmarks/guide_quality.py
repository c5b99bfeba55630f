"""How close guides come to posteriors that are known: `AutoFlow` and Pyro's autoguides, and what each takes.

The funnel, the banana and a Gaussian process (`accel_gp`) are here. A folder with a `models.py` adds others:
`MODELS`, `load(name)` for a model and its reference draws, and `compare(model, guide, reference)` for the
worst errors.

pip install '.[fit]'
python -m tests.benchmarks.guide_quality [FOLDER] [--seeds 0 1 2] [--only NAME ...]
"""

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal

from pyroflows.infer import AutoFlow, fit_guide, psis_khat
from tests.benchmarks.accel_gp import MOMENTS, accel_gp

PEERS = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
}
STEPS, PARTICLES, DRAWS = 1500, 32, 20_000


class Score(NamedTuple):
    mean: float  # worst error of a mean, in reference standard deviations
    sd: float  # worst |log| of a ratio of standard deviations
    khat: float
    seconds: float


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp()[..., None]).to_event(1))


def banana() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    pyro.sample("b", dist.Normal(0.03 * (a**2 - 100), 1.0))


# The means and standard deviations; of the funnel's `x` no draws can tell them.
KNOWN: dict[str, tuple[Callable[[], None], dict[str, tuple[Any, Any]]]] = {
    "funnel": (funnel, {"v": (0.0, 3.0)}),
    "banana": (banana, {"a": (0.0, 10.0), "b": (0.0, math.sqrt(2 * 0.03**2 * 10.0**4 + 1))}),
    "accel_gp": (accel_gp, MOMENTS),
}


def errors(guide: Any, moments: dict[str, tuple[Any, Any]]) -> tuple[float, float]:
    with torch.no_grad(), pyro.plate("draws", DRAWS, dim=-1):
        draws = guide()
    means, sds = [], []
    for name, (mean, sd) in moments.items():
        values = draws[name].double().numpy()
        means.append(np.abs((values.mean(0) - mean) / sd).max())
        sds.append(np.abs(np.log(values.std(0) / sd)).max())
    return float(max(means)), float(max(sds))


def by_svi(model: Callable[[], None], guide: Any) -> tuple[bool, float]:
    """By common settings, Adam from 1e-2 to 5e-4: whether it held, and the seconds that all steps take."""
    adam = pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.05 ** (1 / STEPS)})
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, adam, elbo)
    start = time.perf_counter()
    with pyro.validation_enabled(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(STEPS):
            try:
                svi.step()
            except ValueError:
                # What is no longer finite takes as long, so that its time can be compared all the same.
                pyro.enable_validation(False)
    seconds = time.perf_counter() - start
    return all(parameter.isfinite().all() for parameter in guide.parameters()), seconds


def score(
    kind: str, model: Callable[[], None], seed: int, compare: Callable[[Any], tuple[float, float]]
) -> Score:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoFlow(model) if kind == "AutoFlow" else PEERS[kind](model)
    if kind == "AutoFlow":
        start = time.perf_counter()
        fit_guide(model, guide, seed=seed, progress_bar=False)
        done, seconds = True, time.perf_counter() - start
    else:
        done, seconds = by_svi(model, guide)
    if not done:
        return Score(math.nan, math.nan, math.nan, seconds)
    mean, sd = compare(guide)
    return Score(mean, sd, psis_khat(model, guide), seconds)


def cell(scores: list[Score]) -> str:
    """The worst of the seeds: the error of a mean, of a standard deviation, k-hat."""
    if any(math.isnan(s.mean) for s in scores):
        return "failed"
    return " / ".join(f"{max(getattr(s, part) for s in scores):.2f}" for part in ("mean", "sd", "khat"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+")
    arguments = parser.parse_args()
    others: Any = None
    if arguments.folder is not None:
        spec = importlib.util.spec_from_file_location("models", arguments.folder / "models.py")
        assert spec is not None
        assert spec.loader is not None
        others = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(others)
    names = [*(others.MODELS if others else ()), *KNOWN]
    kinds = [*PEERS, "AutoFlow"]
    print("| posterior | " + " | ".join(kinds) + " | time |")
    print("| --- |" + " --- |" * (len(kinds) + 1))
    for name in arguments.only or names:
        ours = name in KNOWN
        model, reference = KNOWN[name] if ours else others.load(name)
        scores: dict[str, list[Score]] = {kind: [] for kind in kinds}
        for seed in arguments.seeds:
            # One run of each peer, beside the first of ours, tells how it does and how long it takes.
            for kind in kinds if seed == arguments.seeds[0] else ["AutoFlow"]:

                def compare(
                    guide: Any, model: Any = model, reference: Any = reference, ours: bool = ours
                ) -> tuple[float, float]:
                    return errors(guide, reference) if ours else others.compare(model, guide, reference)

                scores[kind].append(score(kind, model, seed, compare))
        (peer,) = scores["AutoIAFNormal"]
        ratios = [f"{score.seconds / peer.seconds:.1f}" for score in scores["AutoFlow"]]
        cells = [cell(scores[kind]) for kind in kinds]
        print(f"| {name} | " + " | ".join(cells) + f" | {', '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
