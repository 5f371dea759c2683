"""Imports go one way, and importing costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
# Each part may import these others of the package, and nothing else of it.
MODELS = {"config", "kernels", "models"}
ALLOWED = {
    "config": set(),
    "weights_file": {"config"},
    "run_folder": {"config"},
    "models": {"config", "kernels", "run_folder", "weights_file"},
    "interchange": {"config", "models", "data", "run_folder", "version", "weights_file"},
    "masking": MODELS,
    "rl": MODELS,
    "data": {"config"},
    "generated": {"config"},
    "prepare": {"config", "data", "generated"},
    "recognition": MODELS | {"data", "interchange", "run_folder"},
    "report": MODELS
    | {"masking", "rl", "data", "interchange", "recognition", "run_folder", "version"},
    "engine": {"config", "data", "run_folder", "weights_file"},
    "pretrain": MODELS
    | {"masking", "rl", "data", "generated", "interchange", "recognition", "report", "engine"}
    | {"run_folder"},
    "finetune": MODELS | {"data", "interchange", "recognition", "engine", "run_folder"},
}
OPTIONAL = {"deepspeed", "flash_attn", "nvidia", "onnx", "onnxscript", "triton", "transformers"}
HEAVY = {"av", "matplotlib", "PIL", "rich", "tensorboard"}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at top level) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module, id(node) in top))
            if node.module == "tats_fast":
                found += [(f"tats_fast.{a.name}", id(node) in top) for a in node.names]
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    folder = ROOT / "tats_fast" / package
    for path in [*folder.rglob("*.py"), *folder.parent.glob(f"{package}.py")]:
        for module, _ in imports(path):
            parts = module.split(".")
            if parts[0] == "tats_fast" and len(parts) > 1 and parts[1] != package:
                assert parts[1] in ALLOWED[package], f"{path.name} imports {module}"


def test_the_map_says_what_is_enforced():
    """CONTRIBUTING.md's table: every folder, and what it may import."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Map")[1].split("\n\n")[1]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    allowed = {}
    for names, _, imports in rows:
        for name in re.findall(r"`tats_fast/(\w+)", names):
            allowed[name] = set(imports.replace("nothing", "").replace(",", " ").split())
    commands = allowed.pop("commands")
    assert commands == {"all", "of", "the", "above"}
    assert allowed == {name: modules - {name} for name, modules in ALLOWED.items()}
    folders = {path.parent.name for path in (ROOT / "tats_fast").glob("*/__init__.py")}
    assert folders - {"commands"} <= set(ALLOWED)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(PAGES)])
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:tats_fast|kernels|benchmarks|tests|configs|demo)/[\w/]+\.\w+)`", text)
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing <= {"kernels/fused/my_op.py"}  # of "Add an op"


@pytest.mark.parametrize("folder", ["kernels", "tats_fast"])
def test_every_folder_says_what_belongs_there_and_what_does_not(folder):
    for path in (ROOT / folder).rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert docstring.count("\n\n") >= 1, path


def test_no_file_is_too_long_to_read():
    for folder in ("tats_fast", "kernels", "benchmarks", "tests", "demo"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_kernels_import_nothing_of_the_package():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not [m for m, _ in imports(path) if m.split(".")[0] == "tats_fast"], path


def test_nobody_imports_the_bare_name_kernels():
    for path in [*ROOT.glob("tats_fast/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        assert not [m for m, _ in imports(path) if m.split(".")[0] == "kernels"], path


def test_optional_packages_are_imported_where_they_are_used():
    for path in [*ROOT.glob("tats_fast/**/*.py"), *ROOT.glob("kernels/*.py")]:
        top = {m.split(".")[0] for m, is_top in imports(path) if is_top}
        assert not top & OPTIONAL, path
        if path.name != "pixels.py" and path.name != "video.py":
            assert not top & HEAVY, path


def test_no_module_shadows_another_package():
    """``deepspeed tats_fast/train.py`` puts tats_fast/ first on sys.path."""
    names = {path.stem for path in (ROOT / "tats_fast").iterdir()} - {"__init__", "__pycache__"}
    installed = {"torch", "numpy", "einops", "yaml", "av", "rich", "triton", "deepspeed", "PIL"}
    assert not names & (set(sys.stdlib_module_names) | installed)


def test_import_touches_nothing():
    code = """
import os, sys
before = set(sys.modules)
import tats_fast
new = {m.split('.')[0] for m in set(sys.modules) - before}
assert 'torch' not in new, new
import tats_fast.kernels, tats_fast.models, tats_fast.rl, tats_fast.masking, tats_fast.data
import tats_fast.cli
import torch
assert not torch.cuda.is_initialized()
for name in ('deepspeed', 'flash_attn', 'av', 'matplotlib', 'rich', 'tensorboard', 'PIL'):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("engine.loop", ("models", "masking", "rl", "interchange", "pretrain", "finetune")),
        ("finetune.trainer", ("masking", "rl", "pretrain", "report")),
        ("pretrain.trainer", ("finetune",)),
        ("recognition.evaluate", ("engine", "masking", "rl", "report")),
        ("data.video", ("models", "engine")),
    ],
)
def test_a_part_loads_only_what_it_needs(module, absent):
    """What the import test allows, seen in a process: nothing comes in by way of a third module."""
    code = f"""
import sys, tats_fast.{module}
loaded = {{name.split(".")[1] for name in sys.modules if name.startswith("tats_fast.")}}
assert not loaded & set({absent!r}), loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_environment_is_not_read_at_import(monkeypatch):
    code = "import os; os.environ['TATS_KERNELS'] = 'nonsense'; import tats_fast.kernels"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_our_kernels_folder_does_not_fool_transformers():
    """From the repository's root a bare ``import kernels`` finds our folder; Transformers has an
    optional dependency of that name and must go on thinking what it would think elsewhere."""
    code = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
        ).stdout
        for folder in (ROOT, ROOT.parent)
    }
    assert len(answers) == 1
