"""`FlowDensity` in scikit-learn's grid search, beside `KernelDensity` and `GaussianMixture`: penguins.

    pip install '.[fit]'
    python -m tests.benchmarks.grid_search FOLDER

FOLDER holds `tables.npz`, with `penguins/train` (274 rows of 4 columns) and `penguins/test` (68 rows). Each
search sees the same three folds of the first and then fits its best candidate to all of it. Candidates: flows
of 2, 4 or 6 steps with spline couplings; kernels of 12 bandwidths; mixtures of 1 to 8 components with each of
the four kinds of covariance. Kernels and mixtures stand behind a `StandardScaler`, whose scale is taken off
their log densities. Printed are the mean log densities of the test rows in nats per row, more is better, and
the seconds of the whole search and of the last fit. A seed is one of the folds and of the fits.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from pyroflows.estimator import FlowDensity


def scaled(estimator: BaseEstimator) -> Pipeline:
    return Pipeline([("scale", StandardScaler()), ("density", estimator)])


def candidates(seed: int) -> dict[str, tuple[BaseEstimator, dict[str, Any]]]:
    return {
        # The default coupling depends on the number of rows, and a fold has fewer than the table.
        "FlowDensity": (FlowDensity(coupling="spline", random_state=seed), {"steps": [2, 4, 6]}),
        "KernelDensity": (
            scaled(KernelDensity()),
            {"density__bandwidth": np.geomspace(0.05, 1.5, 12).tolist()},
        ),
        "GaussianMixture": (
            scaled(GaussianMixture(n_init=2, random_state=seed)),
            {
                "density__n_components": list(range(1, 9)),
                "density__covariance_type": ["full", "tied", "diag", "spherical"],
            },
        ),
    }


def mean_log_density(estimator: Any, X: np.ndarray, y: Any = None) -> float:
    """Per row and of the rows as they were given: `KernelDensity.score` is a total of scaled rows."""
    log_scale = np.log(estimator["scale"].scale_).sum() if isinstance(estimator, Pipeline) else 0.0
    return float(estimator.score_samples(X).mean() - log_scale)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with np.load(arguments.folder / "tables.npz") as file:
        train, test = (file[f"penguins/{part}"].astype(np.float64) for part in ("train", "test"))
    scores: dict[str, list[float]] = {}
    print("| seed | estimator | chosen | test rows, nats | search, s | last fit, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed in range(arguments.seeds):
        folds = KFold(3, shuffle=True, random_state=seed)
        for name, (estimator, grid) in candidates(seed).items():
            start = time.perf_counter()
            search = GridSearchCV(estimator, grid, cv=folds, scoring=mean_log_density).fit(train)
            seconds = time.perf_counter() - start
            score = mean_log_density(search.best_estimator_, test)
            scores.setdefault(name, []).append(score)
            chosen = ", ".join(str(value) for value in search.best_params_.values())
            print(
                f"| {seed} | {name} | {chosen} | {score:.3f} | {seconds:.1f} | {search.refit_time_:.2f} |",
                flush=True,
            )
    for name, values in scores.items():
        print(f"{name}: {np.mean(values):.3f} nats, the mean of {len(values)} seeds")


if __name__ == "__main__":
    main()
