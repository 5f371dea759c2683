"""One line of a Triton kernel changed, and its op made of the changed file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tats_fast.kernels import dispatch

FUSED = Path(dispatch.__file__).parent / "fused"
PARTS = ("trajectory_attention_bwd", "grad_tokens", "grad_weights")
"""What the files of the gradients give to those of the forward passes."""


def op_of(file: str) -> str:
    """The op that a file of ``kernels/fused`` is for, or the one behind its name and a colon."""
    if ":" in file:
        return file.partition(":")[2]
    return "policy_logprob" if file == "policy" else file.removesuffix("_backward")


@contextmanager
def broken(file: str, old: str, new: str, folder: Path) -> Iterator[None]:
    """Inside, level ``triton`` runs ``kernels/fused/<file>.py`` with ``old`` replaced by ``new``,
    written to the test's own ``folder``."""
    file = file.partition(":")[0]
    source = (FUSED / f"{file}.py").read_text()
    assert old in source, "the kernel has changed: choose another break"
    path = folder / f"{file}.py"
    # Operators of a name of their own: the right ones are registered already.
    path.write_text(source.replace(old, new).replace('"tats_fast::', f'"tats_fast_{folder.name}::'))
    registered = {op: dict(levels) for op, levels in dispatch._registry.items()}
    name = f"tats_fast.kernels.fused.broken_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    user = sys.modules[f"tats_fast.kernels.fused.{file.removesuffix('_backward')}"]
    kept = {part: getattr(user, part) for part in PARTS if hasattr(user, part)}
    try:
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # registers itself over the right one,
        for part in kept:  # or is used by the file that does
            if hasattr(module, part):
                setattr(user, part, getattr(module, part))
        yield
    finally:
        for part, right in kept.items():
            setattr(user, part, right)
        dispatch._registry.update(registered)
        del sys.modules[name]
