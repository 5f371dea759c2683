"""Weights as safetensors: any program opens and memory-maps them, and nothing is unpickled.

What a model is, is a mapping of sections of tensors and of plain values, such as
``{"mae": {"head.bias": tensor}, "sampler": None}``. In the file that tensor is ``mae.head.bias``,
and the plain values are JSON in the metadata.

The library only reads here, and checks what it reads. Releases of it up to 0.6 hold Python's lock
and a second copy of all tensors while they write, for which a training would wait; and none of them
says by an ``errno`` that the disk is full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tats_fast.config import ConfigError

VALUES = "tats_fast"
"""Of a file's metadata: the plain values."""
_DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file: all of it or nothing, without Python's lock, and no second copy of
    a tensor that is contiguous. The same tensors give the same bytes, whatever their order.

    Args:
        tensors: on the CPU, of any shape and any dtype of ``_DTYPES``; they may share memory, also
            with the file that ``path`` is now.
        metadata: beside ``format: pt``.

    Raises:
        KeyError: a tensor of another dtype.
        OSError: the disk is full or fails.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    # The widest first, so that each tensor begins at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind, shape = _DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".writing_{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in ordered:
                file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write what a model is, for ``read_state``.

    Args:
        state: sections (by name, without a dot) of tensors as ``write_tensors`` takes them, and
            plain values that JSON can express.

    Raises:
        TypeError: neither of the two.
        OSError: as of ``write_tensors``.
    """
    sections = {key: part for key, part in state.items() if _is_section(part)}
    values = {key: value for key, value in state.items() if key not in sections}
    tensors = {f"{key}.{name}": t for key, part in sections.items() for name, t in part.items()}
    write_tensors(tensors, path, {VALUES: json.dumps(values)})


def read_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What ``write_state`` was given, with lists for tuples; of another program's safetensors all
    tensors by their names.

    Args:
        device: where the tensors shall be. On a CPU they are mapped: read from the file where they
            are used, and the file stays as it is when they are changed.

    Raises:
        ConfigError: missing, damaged or something else; one line.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            values = (file.metadata() or {}).get(VALUES)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors if values is None else _nested(tensors, json.loads(values))
    except FileNotFoundError:
        raise ConfigError(f"checkpoint file {path}: missing") from None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the library's own types, and what a hostile file leads to
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ConfigError(f"checkpoint file {path}: damaged, cannot be read ({reason})") from None


def _is_section(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )


def _nested(tensors: Mapping[str, Tensor], values: Any) -> dict[str, Any]:
    """Sections beside plain values. Raises ``TypeError`` or ``ValueError`` where they clash."""
    state = dict(values)
    for name, tensor in tensors.items():
        section, _, rest = name.partition(".")
        state.setdefault(section, {})[rest] = tensor
    return state
