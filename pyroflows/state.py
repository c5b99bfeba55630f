"""State as a file that runs no code when it is read: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyroflows._extras import needs_fit_extra

with needs_fit_extra("saving and loading"):
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

__all__ = ["damaged", "read_state", "write_file", "write_state"]

_KEY = "pyroflows"


def write_state(state: dict[str, Any], path: str | Path) -> None:
    """Write nested dictionaries, lists and tuples of tensors and plain values.

    The file has its final name only once it is whole and on the disk, and a hash of its contents.

    Raises:
        ValueError: There is something else in the state, or the file can't be written.
    """
    tensors: dict[str, Tensor] = {}
    encoded = _encode(state, tensors, "")
    # One entry: safetensors writes several in any order, and the same state is to give the same bytes.
    header = {"sha256": _digest(json.dumps(encoded), tensors), "state": encoded}
    write_file(path, save(tensors, {_KEY: json.dumps(header)}))


def read_state(path: str | Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        ValueError: The file is not there, is not one of `write_state`'s, or is damaged.
    """
    if not Path(path).is_file():
        raise ValueError(f"expected a checkpoint of pyroflows, got {str(path)!r}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata[_KEY])
        if header["sha256"] != _digest(json.dumps(header["state"]), tensors):
            raise ValueError("its contents do not have the hash that was written with them")
        state = _decode(header["state"], tensors)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
        return state
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise damaged(path, error) from None


def damaged(path: str | Path, error: Exception) -> ValueError:
    """What to raise for a file in which something is wrong."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} is not a checkpoint of pyroflows, or is damaged: {reason}")


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name, and rename it once it is whole and on the disk.

    Raises:
        ValueError: It can't be written: what was there before is left as it was.
    """
    # A link stays one.
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        # What a process left that was killed while it wrote.
        for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
            if left.name.removeprefix(f"{path.name}.").removesuffix(".tmp").isdecimal():
                left.unlink(missing_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ValueError(
            f"could not write {len(content):,} bytes to {path}: {error.strerror or error}; what was written "
            "before is still there"
        ) from None


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """The value as JSON, its tensors set aside."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = where if where not in tensors else f"{where}#{len(tensors)}"
        # A copy: the same memory may not be under two names.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        # Fused optimizers go through a weight and its state in the order of the memory.
        last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        return {"channels_last" if last and not value.is_contiguous() else "tensor": name}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(part, tensors, f"{where}.{i}") for i, part in enumerate(value)]}
    if isinstance(value, dict):
        prefix = f"{where}." if where else ""
        items = [[_encode(k, tensors, where), _encode(v, tensors, f"{prefix}{k}")] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(f"a checkpoint holds tensors and plain values, got {type(value)} as {where!r}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "channels_last":
        return tensors[content].contiguous(memory_format=torch.channels_last)
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    parts = [_decode(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """A hash of the JSON and of each tensor's name, dtype, shape and contents."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
