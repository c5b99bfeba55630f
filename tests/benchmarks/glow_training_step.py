"""A training step of Glow on 3x32x32 images against the same architecture in normflows.

    pip install 'pyroflows[bench]'
    python -m tests.benchmarks.glow_training_step

Levels 3, steps 8, width 128, batch 32, Adam; LU parameterization, sigmoid scale and ActNorm in both.
pyroflows' has a learned prior of each split half besides, which normflows' has not.
"""

import argparse
from collections.abc import Callable

import normflows
import torch

from pyroflows import Flow, glow
from tests.benchmarks.timing import compare

SHAPE, LEVELS, STEPS, WIDTH, BATCH = (3, 32, 32), 3, 8, 128, 32


def ours(images: torch.Tensor) -> Callable[[], None]:
    transform = glow(SHAPE, levels=LEVELS, steps=STEPS, hidden_channels=WIDTH, scale="sigmoid")
    flow = Flow(transform).to(images.device)
    flow.initialize(images)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4)

    def step() -> None:
        loss = -flow().log_prob(images).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def theirs(images: torch.Tensor) -> Callable[[], None]:
    channels, height, width = SHAPE
    bases, flows, merges = [], [], []
    for level in range(LEVELS):
        factor = 2 ** (LEVELS + 1 - level)
        blocks = [normflows.flows.GlowBlock(channels * factor, WIDTH) for _ in range(STEPS)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        if level > 0:
            merges.append(normflows.flows.Merge())
        divisor = 2 ** (LEVELS - level)
        latent_channels = channels * factor if level == 0 else channels * factor // 2
        bases.append(
            normflows.distributions.DiagGaussian((latent_channels, height // divisor, width // divisor))
        )
    model = normflows.MultiscaleFlow(bases, flows, merges, class_cond=False).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        loss = model.forward_kld(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(BATCH, *SHAPE, device=arguments.device)
    print("training step:", compare(ours(images), theirs(images), arguments.rounds))


if __name__ == "__main__":
    main()
