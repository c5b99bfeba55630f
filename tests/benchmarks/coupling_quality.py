"""Held-out nats of the couplings on densities in the plane: same data, split, steps, batch and network sizes.

pip install '.[fit]'
python -m tests.benchmarks.coupling_quality
"""

import argparse

import torch

from pyroflows import Flow, fit, realnvp
from pyroflows.datasets import load

DENSITIES = ("moons", "checkerboard", "eight_gaussians")
COUPLINGS = ("affine", "spline", "logistic_mixture")


def held_out(density: str, coupling: str, epochs: int, seed: int) -> float:
    data = load(density)
    torch.manual_seed(seed)
    flow = Flow(realnvp(2, steps=6, hidden_features=(64, 64), coupling=coupling))
    # Nothing is held out: all couplings take the same steps. The test data choose nothing.
    options = {"val_fraction": 0, "max_epochs": epochs, "batch_size": 128, "progress_bar": False}
    score = fit(flow, data.train, test_data=data.test, seed=seed, **options).test_score
    assert score is not None
    return score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print("| density | " + " | ".join(COUPLINGS) + " |")
    print("| --- |" + " --- |" * len(COUPLINGS))
    for density in DENSITIES:
        cells = []
        for coupling in COUPLINGS:
            scores = torch.tensor(
                [held_out(density, coupling, arguments.epochs, seed) for seed in range(arguments.seeds)]
            )
            cells.append(f"{scores.mean():.3f} ({scores.min():.3f} to {scores.max():.3f})")
        print(f"| {density} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
