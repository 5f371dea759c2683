"""Ops in processes of their own (``ops.py --isolate``): one runs until a CUDA error, the next goes
on with what is left, so that an error costs its implementation and no other."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts.isolate import run_child


def measure_isolated(
    record: dict[str, Any], options: Any, save: Callable[[], None]
) -> tuple[bool, str | None]:
    """Fill ``record``; ``save`` is called after every process.

    Returns:
        Whether everything was right, and the first failure.
    """
    deadline = time.monotonic() + options.isolate
    pending = [(op, tuple(options.implementations)) for op in options.ops]
    first: str | None = None
    while pending:
        implementations = pending[0][1]
        together = [op for op, names in pending if names == implementations]
        if len(together) < len(pending):  # the rest of an op that failed goes alone
            together = together[:1]
        left = max(1.0, deadline - time.monotonic())
        # The first writes to the record itself: what it has counts even if this process is killed.
        file = None if record["ops"] or not options.json else Path(options.json)
        written, problem = _one(options, together, implementations, left, file)
        for key in ("ops", "floors"):
            for op, cases in written.get(key, {}).items():
                _merge(record[key].setdefault(op, {}), cases)
        record["config"] |= {k: v for k, v in written.get("config", {}).items() if k == "ceilings"}
        first = first or problem
        lost = written.get("lost")
        done = [op for op in together if written.get("floors", {}).get(op)]
        unfinished = [op for op in together if op not in done]
        pending = [(op, names) for op, names in pending if op not in together]
        if unfinished:
            broken, *untouched = unfinished
            rest = tuple(n for n in implementations if not lost or n != lost["implementation"])
            pending = [(op, implementations) for op in untouched] + pending
            if lost and lost["op"] == broken and lost["implementation"] != "reference":
                pending.insert(0, (broken, rest))
            else:
                entry = {"process": {"failed": problem or "wrote no record"}}
                _merge(record["ops"].setdefault(broken, {}), dict.fromkeys(options.cases, entry))
                record["floors"].setdefault(broken, {})
        save()
        if time.monotonic() >= deadline:
            break
    return first is None, first


def _merge(into: dict[str, Any], cases: dict[str, Any]) -> None:
    for case, entries in cases.items():
        into[case] = into.get(case, {}) | entries


def _one(
    options: Any, ops: list[str], implementations: tuple[str, ...], limit: float, file: Path | None
) -> tuple[dict[str, Any], str | None]:
    """What one process wrote, and why it failed, if it did."""
    values = {
        **{"op": ",".join(ops), "case": ",".join(options.cases)},
        **{"impl": ",".join(implementations), "device": options.device, "dtype": options.dtype},
        **{"batch": options.batch, "steps": options.steps, "warmup": options.warmup},
        "seed": options.seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = file or Path(folder) / "record.json"
        arguments = [f"--{key}={value}" for key, value in values.items()]
        problem = run_child("ops.py", [*arguments, "--keep-going", f"--json={file}"], limit)
        try:
            return json.loads(file.read_text()), problem
        except (OSError, ValueError):
            return {}, problem or "wrote no record"
