"""Tests the project, as a wheel, under every supported Python that is found here.

Each environment has the oldest dependencies that the ranges of pyproject.toml allow, or the newest.

    python tests/support/matrix.py        # eight environments, a few minutes each
    python tests/support/matrix.py --pythons 3.12 --dependencies newest
    python tests/support/matrix.py --here  # this Python and its torch with oldest others, as in CI
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from environments import PYTHONS, Failed, build_wheel, interpreter, make_environment, run
from project import ROOT

SHOWN = ("torch", "av", "numpy", "transformers")
# What differs between releases: reading settings and videos, the command line with real training,
# Transformers' models, pictures. Not the arithmetic, which is torch's.
TIER = (
    *("tests/config", "tests/data", "tests/commands", "tests/report/test_visualize.py"),
    "tests/pretrain/test_generated.py",
    *("tests/models/test_mae.py", "tests/interchange/test_interchange.py"),
)
_ENOUGH = (
    "-q",
    "-m",
    "not slow and not gpu and not interpret",
    "-p",
    "no:cacheprovider",
    "--timeout=120",
)


@dataclass(frozen=True)
class Leg:
    """One environment and what became of it."""

    python: str
    dependencies: str
    versions: tuple[str, ...]
    outcome: str
    seconds: float
    passed: bool


def main() -> int:
    options = _options()
    if options.here:
        options.pythons = [f"{sys.version_info.major}.{sys.version_info.minor}"]
        options.dependencies, options.torch = ["oldest"], f"torch=={metadata.version('torch')}"
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        legs = []
        for python in options.pythons:
            base = sys.executable if options.here else interpreter(python)
            if base is None:
                print(f"Python {python} is not here", flush=True)
                continue
            for dependencies in options.dependencies:
                print(f"Python {python}, {dependencies} dependencies ...", flush=True)
                legs.append(_leg(python, base, dependencies, wheel, options.torch))
                print("\n".join(table(legs[-1:])), flush=True)
    print("\n".join(table(legs)))
    return 0 if legs and all(leg.passed for leg in legs) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=PYTHONS, choices=PYTHONS)
    kinds = ("oldest", "newest")
    parser.add_argument("--dependencies", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--torch", help="a requirement in place of the oldest or newest torch")
    parser.add_argument("--here", action="store_true", help="the environment that costs least")
    return parser.parse_args()


def _leg(version: str, base: str, dependencies: str, wheel: Path, torch: str | None) -> Leg:
    start, versions = time.monotonic(), ("?",) * len(SHOWN)
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = make_environment(base, Path(folder))
            _install(python, version, dependencies, wheel, torch)
            versions = _versions(python)
            outcome, passed = _test(python), True
        except Failed as failure:
            print(failure, flush=True)
            outcome, passed = "failed", False
    return Leg(version, dependencies, versions, outcome, time.monotonic() - start, passed)


def _install(python: Path, version: str, dependencies: str, wheel: Path, torch: str | None) -> None:
    pip = [python, "-m", "pip", "install", "-q", "--prefer-binary"]
    pins = oldest(version) if dependencies == "oldest" else []
    if torch is not None:
        pins = [torch, *(pin for pin in pins if not pin.startswith("torch="))]
    if pins:
        run([*pip, *pins])
    run([*pip, f"{wheel}[test]"])


def oldest(version: str) -> list[str]:
    """Of each direct dependency the oldest release in range that has a wheel for this Python."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-header"]
    command += ["--annotation-style", "line", "--resolution", "lowest-direct"]
    command += ["--only-binary", ":all:", "--extra", "test", "--python-version", version]
    lines = run([*command, ROOT / "pyproject.toml"]).splitlines()
    return [line.split()[0] for line in lines if "tats-fast (" in line]


def _versions(python: Path) -> tuple[str, ...]:
    code = f"from importlib.metadata import version as v; print(*map(v, {SHOWN}))"
    return tuple(run([python, "-c", code]).split())


def _test(python: Path) -> str:
    """The last line of pytest, once the command line works. Not ``-m pytest``, for which the
    repository would come before the installed wheel."""
    run([python.parent / "tats-fast", "doctor"], cwd=python.parent)
    output = run([python.parent / "pytest", *_ENOUGH, *TIER], cwd=ROOT)
    return output.strip().splitlines()[-1].strip("= ")


def table(legs: list[Leg]) -> list[str]:
    """The legs as a table of Markdown."""
    head = ["Python", "dependencies", *SHOWN, "outcome", "minutes"]
    rows = [
        [leg.python, leg.dependencies, *leg.versions, leg.outcome, f"{leg.seconds / 60:.1f}"]
        for leg in legs
    ]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


if __name__ == "__main__":
    sys.exit(main())
