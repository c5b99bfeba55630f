"""Held-out bits per dimension of Glow on digits: couplings and dequantization noise, all else being the same.

    pip install '.[fit]'
    python -m tests.benchmarks.digits_quality

All rows share data, split, steps, batch and network sizes. Nothing is held out of the 1,500 training images,
so every fit runs to its last epoch; the other 297 images are only scored. `--best` is the best combination,
which takes more steps. `--classes` is class-conditional: its bits are those given the class, and a linear
classifier that was trained on real digits names its samples, which are drawn at temperature 1.
"""

import argparse
import time

import torch
from sklearn.linear_model import LogisticRegression

from pyroflows import Dequantized, Flow, fit, glow, realnvp
from pyroflows.datasets import load
from pyroflows.transforms import LogisticMixtureMap
from pyroflows.transforms.elementwise import ElementwiseMap

SHAPE, LEVELS = (1, 8, 8), 17
COUPLINGS = ("affine", "spline", "logistic_mixture")


def learned_noise() -> Flow:
    return Flow(realnvp(SHAPE, levels=1, steps=3, hidden_channels=32, context_shape=SHAPE))


def run(
    name: str,
    coupling: str | ElementwiseMap,
    seed: int,
    *,
    learn_noise: bool,
    classes: bool = False,
    epochs: int = 50,
    dropout: float = 0.2,
) -> None:
    start = time.perf_counter()
    digits = load("digits")
    assert digits.test is not None
    assert digits.train_labels is not None
    assert digits.test_labels is not None
    torch.manual_seed(seed)
    flow = Flow(
        glow(
            SHAPE,
            levels=2,
            steps=8,
            hidden_channels=64,
            dropout=dropout,
            coupling=coupling,
            context_dim=10 if classes else None,
        )
    )
    contexts = [
        torch.nn.functional.one_hot(labels, 10).float() if classes else None
        for labels in (digits.train_labels, digits.test_labels)
    ]
    score = fit(
        flow,
        digits.train,
        test_data=digits.test,
        context=contexts[0],
        test_context=contexts[1],
        val_fraction=0,
        grey_levels=LEVELS,
        noise=learned_noise() if learn_noise else None,
        max_epochs=epochs,
        lr=3e-3,
        seed=seed,
        progress_bar=False,
    ).test_score
    noise = "learned" if learn_noise else "uniform"
    row = f"| {name} | {noise} | {seed} | {score:.3f} | {time.perf_counter() - start:.0f} |"
    if classes:
        classifier = LogisticRegression(max_iter=5000).fit(digits.train.flatten(1), digits.train_labels)
        asked_for = torch.arange(2000) % 10
        context = torch.nn.functional.one_hot(asked_for, 10).float()
        named = classifier.score(Dequantized(flow(context), LEVELS).sample().flatten(1), asked_for)
        real = classifier.score(digits.test.flatten(1), digits.test_labels)
        row += f" samples named as asked: {named:.1%} (real digits: {real:.1%})"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--classes", action="store_true")
    arguments = parser.parse_args()
    print("| coupling | noise | seed | bits per dimension | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for seed in range(arguments.seeds):
        if arguments.best:
            mixture = LogisticMixtureMap(components=8)
            run("best", mixture, seed, learn_noise=True, epochs=100, dropout=0.3)
        elif arguments.classes:
            run("logistic_mixture", "logistic_mixture", seed, learn_noise=False, classes=True)
        else:
            for learn_noise in (False, True):
                for coupling in COUPLINGS:
                    run(coupling, coupling, seed, learn_noise=learn_noise)


if __name__ == "__main__":
    main()
