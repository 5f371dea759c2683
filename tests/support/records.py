"""Reading what a job left on record, for the tests of jobs and of the commands that run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in lines of JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_record(path: Path) -> dict[str, dict[str, Any]]:
    """The last outcome of every key in the record of a job."""
    return {line["key"]: line["outcome"] for line in read_lines(path)}
