"""A fit whose weights are spread over the processes is the fit of one process that has them all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from pyroflows import Flow, fit, realnvp
from pyroflows.state import read_state

# By a script of its own, as a process group stays with the process that starts it.
SCRIPT = """
import json, sys, lightning, torch
from pyroflows import Flow, fit, glow, realnvp
from pyroflows.training.trainer import is_main_process

class Interrupt(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == 2:
            raise InterruptedError

class Look(lightning.Callback):
    def on_train_start(self, trainer, module):
        self.local = sum(getattr(p, "to_local", lambda: p)().numel() for p in module.parameters())
        self.backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None

name, interrupt, options = sys.argv[1], sys.argv[2] == "1", json.loads(sys.argv[3])
data = torch.randint(0, 17, (220, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
torch.manual_seed(0)
flow = Flow(glow((1, 4, 4), levels=2, steps=1, hidden_channels=8))
noise = Flow(realnvp((1, 4, 4), levels=1, hidden_channels=8, context_shape=(1, 4, 4)))
before = [id(p) for p in flow.parameters()]
look = Look()
torch.use_deterministic_algorithms(True)
try:
    result = fit(flow, data[:200], data[200:], grey_levels=17, noise=noise, max_epochs=4, batch_size=32,
                 out=name,
                 resume=True, sample_every=2, progress_bar=False,
                 callbacks=[look] + [Interrupt()] * interrupt, **options)
except InterruptedError:
    sys.exit()
assert [id(p) for p in flow.parameters()] == before
assert type(flow) is Flow and not any("FSDP" in type(part).__name__ for part in flow.modules())
if is_main_process():
    torch.save({"flow": flow.state_dict(), "noise": noise.state_dict(), "losses": result.losses,
                "score": result.val_score, "local": look.local, "backend": look.backend}, name + ".pt")
"""


def _run(folder: Path, name: str, *, interrupt: bool = False, **options: Any) -> Any:
    (folder / "script.py").write_text(SCRIPT)
    options = {"devices": 1, "accelerator": "cpu", **options}
    command = [sys.executable, "script.py", name, str(int(interrupt)), json.dumps(options)]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return None if interrupt else torch.load(folder / f"{name}.pt", weights_only=True)


def _equal(a: Any, b: Any) -> bool:
    weights = all(
        torch.equal(value, b[part][name]) for part in ("flow", "noise") for name, value in a[part].items()
    )
    return weights and a["losses"] == b["losses"] and a["score"] == b["score"]


@pytest.mark.slow
def test_one_process_is_the_plain_fit_bit_for_bit_and_resumes_it(tmp_path: Path) -> None:
    """Either goes on from the other's checkpoint: the weights, and Adam's state of each, are in one form."""
    want = _run(tmp_path, "plain")
    assert _equal(_run(tmp_path, "sharded", strategy="fsdp"), want)
    for name, first, then in (("there", "auto", "fsdp"), ("back", "fsdp", "auto")):
        _run(tmp_path, name, interrupt=True, strategy=first)
        assert read_state(tmp_path / name / "last.ckpt")["losses"] == want["losses"][:2]
        assert _equal(_run(tmp_path, name, strategy=then), want)
    assert (tmp_path / "sharded" / "samples.png").stat().st_size > 1000


@pytest.mark.slow
def test_two_processes_hold_half_each_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    want = _run(tmp_path, "whole", devices=2, strategy="fsdp")
    weights = sum(value.numel() for part in ("flow", "noise") for value in want[part].values())
    assert abs(want["local"] / weights - 0.5) < 0.05
    _run(tmp_path, "parts", interrupt=True, devices=2, strategy="fsdp")
    assert _equal(_run(tmp_path, "parts", devices=2, strategy="fsdp"), want)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_on_gpus_by_nccl(strategy: str, tmp_path: Path) -> None:
    """With as many processes as there are GPUs, each with its part of the batch of one process."""
    devices = torch.cuda.device_count()
    common: dict[str, Any] = {"accelerator": "gpu", "devices": devices, "strategy": strategy}
    want = _run(tmp_path, "whole", **common)
    assert want["backend"] == "nccl"
    _run(tmp_path, "parts", interrupt=True, **common)
    assert _equal(_run(tmp_path, "parts", **common), want)
    if devices == 1:
        assert _equal(_run(tmp_path, "plain", accelerator="gpu"), want)


def test_what_can_not_be_sharded(tmp_path: Path) -> None:
    flow, data = Flow(realnvp(2)), torch.randn(64, 2)
    with pytest.raises(ValueError, match="keeps no average of the weights"):
        fit(flow, data, strategy="fsdp", ema=0.9, progress_bar=False)
    for strategy in ("fsdp_cpu_offload", "deepspeed", lightning.pytorch.strategies.ModelParallelStrategy()):
        with pytest.raises(ValueError, match="checkpoints could not be resumed"):
            fit(flow, data, strategy=strategy, progress_bar=False)
    code = """if True:
        import torch
        from pyroflows import Flow, fit
        from pyroflows.transforms import ActNorm
        class Tempered(ActNorm):
            def __init__(self):
                super().__init__((2,))
                self.temperature = torch.nn.Parameter(torch.tensor(1.0))
        fit(Flow(Tempered()), torch.randn(64, 2), strategy="fsdp", accelerator="cpu", progress_bar=False)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: strategy 'fsdp' splits parameters along their first dimension" in done.stderr
    assert "['model.transform.transform.temperature'] have none" in done.stderr
