"""Whether image flows stay tame off their data: samples that are not finite, and held-out bits per dimension.

    pip install '.[fit]'
    python -m tests.benchmarks.image_quality patches
    python -m tests.benchmarks.image_quality cifar FOLDER
    python -m tests.benchmarks.image_quality cifar_samples FOLDER

`patches`: a Glow of width 64 is fitted to 200 patches of two photographs, 16x16 RGB, for 12 and for 60
epochs without early stopping, and scored on 60 others. `cifar`: 300 steps of 64 images of a Glow with three
levels of eight steps, width 128, Adam 1e-3 after 50 steps of warm-up, clipped at 50; scored on the first
1,000 test images. `cifar_samples`: samples after 4 epochs of `fit`. FOLDER holds `cifar10_10k.npz`: 10,000
images of CIFAR-10 as `x_train` and `x_test`, `(N, 32, 32, 3)` uint8. Samples are 500 at temperatures 1 and
0.7.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from pyroflows import Dequantized, Flow, fit, glow, realnvp
from pyroflows.training import score


def patches() -> tuple[Tensor, Tensor]:
    """200 and 60 patches, none of which overlap."""
    cut = [
        image[top : top + 16, left : left + 16]
        for image in load_sample_images().images
        for top in range(0, image.shape[0] - 15, 16)
        for left in range(0, image.shape[1] - 15, 16)
    ]
    order = np.random.default_rng(0).permutation(len(cut))[:260]
    images = torch.tensor(np.stack([cut[i] for i in order])).movedim(-1, 1).contiguous()
    return images[:200], images[200:]


@torch.no_grad()
def samples(flow: Flow) -> str:
    told = []
    for temperature in (1.0, 0.7):
        x = torch.cat([flow(temperature=temperature).sample((50,)) for _ in range(10)])
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        told.append(f"{bad} (largest {x.abs().max():.3g})")
    return ", ".join(told)


def patch_rows(seeds: int, flows: list[str]) -> None:
    recipes = {
        "glow": lambda: glow((3, 16, 16), hidden_channels=64),
        "glow sigmoid": lambda: glow((3, 16, 16), hidden_channels=64, scale="sigmoid"),
        "glow softclip": lambda: glow((3, 16, 16), hidden_channels=64, scale="softclip"),
        "glow spline": lambda: glow((3, 16, 16), steps=4, hidden_channels=64, coupling="spline"),
        "glow mixture": lambda: glow((3, 16, 16), steps=4, hidden_channels=64, coupling="logistic_mixture"),
        "realnvp": lambda: realnvp((3, 16, 16), hidden_channels=32),
    }
    train, test = patches()
    print("| flow | seed | epochs | bits per dimension | not finite of 500 at 1 and 0.7 | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in flows:
        for seed in range(seeds):
            for epochs in (12, 60):
                start = time.perf_counter()
                torch.manual_seed(seed)
                flow = Flow(recipes[name]())
                options = {"max_epochs": epochs, "batch_size": 32, "lr": 1e-3, "val_fraction": 0}
                fit(flow, train, seed=seed, progress_bar=False, **options)
                bits, told = score(flow, test), samples(flow)
                seconds = time.perf_counter() - start
                print(f"| {name} | {seed} | {epochs} | {bits:.3f} | {told} | {seconds:.0f} |", flush=True)


def cifar_flow(seed: int, scale: str | None) -> Flow:
    torch.manual_seed(seed)
    return Flow(glow((3, 32, 32), levels=3, steps=8, hidden_channels=128, scale=scale))


def cifar_row(train: Tensor, test: Tensor, seed: int, scale: str | None) -> None:
    flow = cifar_flow(seed, scale)
    generator = torch.Generator().manual_seed(seed)
    flow.initialize(
        Dequantized(flow()).dequantize(train[torch.randperm(len(train), generator=generator)[:1024]])
    )
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    batches = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(3)]).split(64)
    start = time.perf_counter()
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        loss = Dequantized(flow()).bits_per_dim(train[batches[step]]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 50.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    bits = score(flow.eval(), test[:1000], draws=1)
    print(f"| {scale or 'default'} | {seed} | {bits:.3f} | {samples(flow)} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["patches", "cifar", "cifar_samples"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flow", action="append", help="of patches; by default glow")
    parser.add_argument("--scale", help="of cifar")
    arguments = parser.parse_args()
    if arguments.what == "patches":
        patch_rows(arguments.seeds, arguments.flow or ["glow"])
        return
    with np.load(arguments.folder / "cifar10_10k.npz") as file:
        train, test = (torch.tensor(file[key]).movedim(-1, 1).contiguous() for key in ("x_train", "x_test"))
    print("| scale | seed | bits per dimension | not finite of 500 at 1 and 0.7 | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for seed in range(arguments.seeds):
        if arguments.what == "cifar":
            cifar_row(train, test, seed, arguments.scale)
        else:
            flow = cifar_flow(seed, arguments.scale)
            result = fit(flow, train, max_epochs=4, seed=seed, progress_bar=False)
            row = f"| {arguments.scale or 'default'} | {seed} | {result.val_score:.3f} | {samples(flow)} | |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
