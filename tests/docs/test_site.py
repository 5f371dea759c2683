"""The site of the documentation: built strictly, with every command and setting."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from models_exchanged import randomize, write_run
from project import ROOT, TINY_MODEL

import tats_fast
from tats_fast.cli import COMMANDS


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_option_has_a_row(pages: ModuleType) -> None:
    text = pages.commands()
    assert all(f"## tats-fast {command.name}\n" in text for command in COMMANDS)
    assert "| `--checkpoint` | `PATH` |" in text and "SUPPRESS" not in text


def test_bars_in_cells_separate_nothing(pages: ModuleType) -> None:
    assert pages.table(["a", "b"], [["`NAME|FILE`", "one|two"]]).endswith(
        "| `NAME|FILE` | one\\|two |"
    )
    assert "`none|optimizer|weights`" in pages.commands()


def test_every_setting_has_a_meaning(pages: ModuleType) -> None:
    rows = [line.split(" | ") for line in pages.settings().splitlines() if line.startswith("| `")]
    assert len(rows) > 150 and ["| `seed`", "`0`"] in [row[:2] for row in rows]
    assert [row[0] for row in rows if not row[2].rstrip(" |")] == []


def test_every_recipe_is_told_of(pages: ModuleType) -> None:
    text = pages.recipe_page()
    assert (
        "| `quickstart` | pretrain |" in text and "| `finetune/ssv2_vit_base` | finetune |" in text
    )


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[plan](plan.md)", "[plan](plan.md)"),
        ("[record](../benchmarks/records/a)", "record (`benchmarks/records/a`)"),
        ("[`mixing.py`](../tats_fast/mixing.py)", "`tats_fast/mixing.py`"),
        ("![bars](../benchmarks/a/b.png)", "![bars](images/benchmarks_a_b.png)"),
    ],
)
def test_links_that_leave_the_pages(pages: ModuleType, link: str, expected: str) -> None:
    assert pages.on_page_markdown(link, None) == expected


def test_links_to_files_have_their_files(pages: ModuleType) -> None:
    """The site shows what lies outside of it as a path, which mkdocs does not look for."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("demo/*.md")]
    found += ROOT.glob("benchmarks/records/*/*.md")
    links = [(page, link[3]) for page in found for link in pages.LINK.finditer(page.read_text())]
    links = [(page, link.partition("#")[0]) for page, link in links if "://" not in link]
    assert len(links) > 150
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    for source in re.findall(r'<img[^>]* src="([^"]+)"', home):
        assert (tmp_path / "site" / source).exists()
    assert "cdn" not in home and "googleapis" not in home


def test_the_first_pages_snippet_runs(tmp_path: Path, monkeypatch) -> None:
    shape = {**TINY_MODEL, "num_frames": 8, "image_size": 32}
    write_run(tmp_path / "runs/demo", randomize(tats_fast.create_model("vit_tiny", **shape), 0.1))
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    config = names["encoder"].config
    assert names["features"].shape == (1, config.num_tokens, config.width)
