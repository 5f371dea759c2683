"""The wheel: what is in it, what it says of itself, and that it works where nothing else is."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from environments import PYTHONS, build_wheel, make_environment, run
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from project import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel) -> Metadata:
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith("/METADATA"))
        return Metadata.from_email(content.read(name), validate=True)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel alone in a new environment; it finds its dependencies where those of this
    environment lie, but not this environment's tats_fast."""
    python = make_environment(sys.executable, tmp_path_factory.mktemp("environment"))
    run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel])
    folder = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    dependencies = Path(torch.__file__).parent.parent
    (Path(folder.strip()) / "dependencies.pth").write_text(f"{dependencies}\n")
    return python


def tats_fast(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run([python.parent / "tats-fast", *arguments], cwd=cwd, env=environment)


def test_it_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
    expected = {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside, pattern in (
            ("tats_fast", "tats_fast", "*.py"),
            ("kernels", "tats_fast/kernels", "*.py"),
            ("configs", "tats_fast/configs", "*.yaml"),
        )
        for path in (ROOT / folder).rglob(pattern)
    }
    assert names == expected | {"tats_fast/py.typed", "tats_fast/data/doctor_frame.mp4"}


def test_it_says_what_it_is(metadata):
    named = [line.rpartition(" ")[2] for line in metadata.classifiers if "Python :: 3." in line]
    assert tuple(named) == PYTHONS
    assert str(metadata.requires_python) == f">={PYTHONS[0]}"
    assert metadata.license_expression == "Apache-2.0" and metadata.license_files == ["LICENSE"]
    assert metadata.project_urls
    citation = (ROOT / "CITATION.cff").read_text()
    assert (
        f"version: {metadata.version}\n" in citation and metadata.project_urls["Paper"] in citation
    )


def test_gpu_extra_compiles_nothing(metadata):
    """FlashAttention 2 comes as source, which needs nvcc and torch: it is an extra of its own."""

    def packages(extra: str) -> set[str]:
        found = set()
        for line in metadata.requires_dist:
            need = Requirement(str(line))
            if (
                need.marker
                and "extra" in str(need.marker)
                and need.marker.evaluate({"extra": extra})
            ):
                inner = [packages(name) for name in need.extras] if need.name == "tats-fast" else []
                found |= set().union(*inner) if inner else {need.name}
        return found

    assert packages("gpu") == {"flash-attn-4", "nvidia-dali-cuda130", "deepspeed"}
    assert packages("flash2") == {"flash-attn"}
    assert {"pytest", "ruff", "deepspeed"} <= packages("dev")


@pytest.mark.slow
def test_it_trains_from_a_recipe_by_name_in_an_empty_folder(installed, tmp_path):
    where = run([installed, "-c", "import tats_fast; print(tats_fast.__file__)"], cwd=tmp_path)
    assert where.startswith(str(installed.parent.parent))
    assert "PyAV: yes" in tats_fast(installed, "doctor", cwd=tmp_path)
    assert "optim.base_lr: 0.008" in tats_fast(installed, "config", "quickstart", cwd=tmp_path)
    alone = ("generated.share=1", "data.train=null", "data.eval=null", "train.steps=2")
    words = ("pretrain", "--config", "quickstart", *alone, "train.batch_size=4", "device=cpu")
    tats_fast(installed, *words, cwd=tmp_path)
    assert (tmp_path / "runs/quickstart/checkpoints/step_000002/model.safetensors").is_file()


def test_hints_name_extras_that_there_are(metadata):
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "tats_fast").rglob("*.py")]
    texts = [path.read_text() for path in pages]
    named = {name for text in texts for name in re.findall(r"(?:tats-fast|\.)\[([\w,]+)\]'", text)}
    extras = {extra for names in named for extra in names.split(",")}
    assert {"deepspeed", "flash2", "flash4"} <= extras
    assert extras <= set(metadata.provides_extra)


def test_hints_need_no_index_that_has_the_package(installed, tmp_path):
    """``pip install 'tats-fast[deepspeed]'``: pip takes the extra from what is installed."""
    command = [installed, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
    said = run([*command, "tats-fast[deepspeed]"], cwd=tmp_path)
    assert "already satisfied: tats-fast[deepspeed]" in said
