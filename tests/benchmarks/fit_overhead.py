"""`fit` against a bare loop that does the same steps on the same Glow of 3x32x32 images, batches of 32.

Nothing is held out. The loop draws 1,000 samples at its end and looks whether they are finite, as `fit` does.

pip install '.[fit]'
python -m tests.benchmarks.fit_overhead
"""

import argparse

import torch

from pyroflows import Dequantized, Flow, fit, glow
from tests.benchmarks.timing import compare

SHAPE, BATCH, LR = (3, 32, 32), 32, 1e-4


def _flow(device: str) -> Flow:
    torch.manual_seed(0)
    return Flow(glow(SHAPE, levels=3, steps=8, hidden_channels=128)).to(device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    images = torch.randint(0, 256, (arguments.steps * BATCH, *SHAPE), dtype=torch.uint8)
    fitted, looped = _flow(arguments.device), _flow(arguments.device)
    accelerator = "cpu" if arguments.device == "cpu" else "gpu"

    def by_fit() -> None:
        options = {"val_fraction": 0, "max_epochs": 1, "batch_size": BATCH, "lr": LR}
        fit(fitted, images, accelerator=accelerator, progress_bar=False, **options)

    def by_hand() -> None:
        looped.train()
        first = Dequantized(looped()).dequantize(images[:1024].to(arguments.device))
        looped.initialize(first)
        optimizer = torch.optim.AdamW(looped.parameters(), lr=LR, fused=True)
        for batch in images.split(BATCH):
            loss = Dequantized(looped()).bits_per_dim(batch.to(arguments.device)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(looped.parameters(), 100.0)
            optimizer.step()
            loss.item()
        looped.eval()
        with torch.no_grad():
            for _ in range(10):
                looped().sample((100,)).isfinite().all().item()

    print(f"{arguments.steps} steps, fit over a bare loop:", compare(by_fit, by_hand, arguments.rounds))


if __name__ == "__main__":
    main()
