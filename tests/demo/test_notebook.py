"""demo/first_look.ipynb: a notebook without outputs whose cells run, one after the other."""

from __future__ import annotations

import ast
import json

from PIL import Image
from project import ROOT

NOTEBOOK = ROOT / "demo" / "first_look.ipynb"


def run_cell(source: str, names: dict) -> object:
    """What a notebook shows of a cell: the value of its last expression, or None."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_the_cells_run(tmp_path, monkeypatch):
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "demo").symlink_to(ROOT / "demo")  # as in a clone, and nothing is written there
    monkeypatch.chdir(folder)
    names: dict = {}
    shown = []
    for cell in cells:
        source = "".join(cell["source"]).replace("STEPS = 30", "STEPS = 4")
        shown.append(run_cell(source, names))
    assert names["STEPS"] == 4
    _, clip, _, features, masks, picture = shown
    assert tuple(clip[0]) == (8, 32, 32, 3) and tuple(features) == (1, 64, 96)
    assert set(masks) == {"sampler", "random", "motion"}
    assert {count for count, _ in masks.values()} == {16}
    assert isinstance(picture, Image.Image) and min(picture.size) > 100
