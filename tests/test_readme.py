"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pyro
import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 9
    code = "\n".join(blocks).replace("max_epochs=80", "max_epochs=1, progress_bar=False")
    code = code.replace("max_epochs=30", "max_epochs=1")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    elbo = pyro.infer.Trace_ELBO()
    assert elbo.loss(names["model"], names["guide"], torch.randn(4, 2)) < float("inf")
    pyro.clear_param_store()
