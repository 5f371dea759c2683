"""Hooks of ``mkdocs build``: pages made from the code, and links that lead out of ``docs/``.

``settings.md`` comes from the dataclasses of the configuration, ``commands.md`` from the parser,
``recipes.md`` from the files of ``configs/``, ``index.md`` from the README.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tats_fast.cli import make_parser
from tats_fast.config import FinetuneConfig, RunConfig, load_config
from tats_fast.config.describe import meanings
from tats_fast.config.reading import build_config, flat
from tats_fast.config.recipes import recipes
from tats_fast.pretrain.planner import make_plan
from tats_fast.pretrain.planner_options import PlanOptions

ROOT = Path(__file__).resolve().parent.parent
VIDEOS = {"kinetics400": 240_000, "ssv2": 168_913, "ucf101": 9_537, "hmdb51": 3_570}
"""Training videos; of Kinetics-400 about those that can still be had, of the last two split 1."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and pictures that lie outside ``docs/``."""
    from mkdocs.structure.files import File

    pages = {"index.md": home(), "settings.md": settings(), "commands.md": commands()}
    pages["recipes.md"] = recipe_page()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    texts = [*pages.values(), *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    for target in {link[3] for text in texts for link in LINK.finditer(text) if link[1]}:
        if target.startswith("../"):
            source = ROOT / target.removeprefix("../")
            files.append(File.generated(config, inside(target), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pictures from where ``on_files`` put them; other files of the repository by their path."""

    def change(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if not target.startswith("../"):
            return link[0]
        if picture:
            return f"![{text}]({inside(target)})"
        path = target.removeprefix("../")
        return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    return LINK.sub(change, markdown)


def inside(target: str) -> str:
    """Where a picture of the repository lies in the site."""
    return "images/" + target.removeprefix("../").replace("/", "_")


def home() -> str:
    """The README, seen from ``docs/``."""

    def change(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        within = target.startswith("docs/") and not (ROOT / target).is_dir()
        return f"{picture}[{text}]({target.removeprefix('docs/') if within else f'../{target}'})"

    return LINK.sub(change, (ROOT / "README.md").read_text())


def settings() -> str:
    """Every key of both configurations, by section."""
    parts = [
        "# Settings\n\nEvery `key=value` of `pretrain` and `finetune`, in a YAML file or on the "
        "command line, made from the code. `tats-fast config NAME|FILE [key=value ...]` shows what "
        "a recipe makes of them, and what set it."
    ]
    for cls in (RunConfig, FinetuneConfig):
        parts.append(f"## tats-fast {cls.command}")
        rows: dict[str, list[list[str]]] = {}
        texts = meanings(cls)
        for key, default in flat(build_config({}, cls)).items():
            section = key.rpartition(".")[0]
            rows.setdefault(section, []).append([f"`{key}`", code(default), plain(texts[key])])
        for section, lines in rows.items():
            title = f"### {cls.command}: {section}" if section else f"### {cls.command}: the run"
            parts.append(f"{title}\n\n{table(['key', 'default', 'meaning'], lines)}")
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Every subcommand with its options."""
    parser = make_parser()
    (choices,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {action.dest: action.help for action in choices._choices_actions}
    parts = [
        "# Commands\n\n`tats-fast COMMAND --help` says the same. Exit codes: 0 done; 1 the work "
        "failed, said in one sentence; 2 wrong use or settings; 128 + n stopped by signal n, with "
        "the state saved."
    ]
    for name, command in choices.choices.items():
        lines = list(options(command))
        text = f"## tats-fast {name}\n\n{capital(summaries[name])}."
        if lines:
            text += f"\n\n{table(['option', '', 'meaning'], lines)}"
        parts.append(text)
    return "\n\n".join(parts) + "\n"


def options(command: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Rows of a command's table."""
    for action in command._actions:
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = "|".join(map(str, action.choices)) if action.choices else action.metavar
        shown = code(value) if action.option_strings and value else ""
        need = " (required)" if action.required and action.option_strings else ""
        yield [f"`{name}`", shown, plain((action.help or "") + need)]


def recipe_page() -> str:
    """Every file of ``configs/`` with what it says of itself and what decides its cost."""
    rows = []
    for name, path in recipes().items():
        command = "finetune" if name.startswith("finetune/") else "pretrain"
        tree = yaml.safe_load(path.read_text()) or {}
        if not tree.keys() & {"model", "init_from", "data"}:
            continue  # settings of DeepSpeed or a launcher
        train = tree.get("train", {})
        length = next((f"{train[key]} {key}" for key in ("epochs", "steps") if train.get(key)), "")
        batch = str(train.get("batch_size", ""))
        rows.append([f"`{name}`", command, batch, length, plain(summary(path))])
    head = ["recipe", "command", "train.batch_size", "length", "about"]
    return (
        "# Recipes\n\nBy name with `--config`, in a clone and in an installed package; every "
        "number has its source in the file, and the command to start it.\n\n"
        f"{table(head, rows)}\n\n## Hours and memory\n\n`tats-fast plan` for each recipe of "
        "pretraining on H100s, 64 clips per GPU and micro-batch, DDP. Hours assume 28% of the "
        "data sheet's rate, measured with ViT-B on one of them; loading and the exchange of "
        f"gradients are not in them ([planning.md](planning.md)).\n\n{costs()}\n"
    )


def costs() -> str:
    """Hours and memory of the recipes of pretraining."""
    rows = []
    for name, path in recipes().items():
        videos = next((count for data, count in VIDEOS.items() if data in name), None)
        if not name.startswith("pretrain/") or videos is None:
            continue
        config = load_config(path)
        plans = [
            make_plan(config, PlanOptions(model=config.model.preset, gpus=gpus, videos=videos))
            for gpus in (1, 8, 64)
        ]
        hours = [f"{h:.0f}" if (h := plan.hours) >= 10 else f"{h:.1f}" for plan in plans]
        rows.append([f"`{name}`", f"{videos:,}", *hours, f"{plans[1].memory.peak / 2**30:.0f} GiB"])
    return table(["recipe", "videos", "hours, 1 GPU", "8 GPUs", "64 GPUs", "memory of each"], rows)


def summary(path: Path) -> str:
    """The first paragraph of the comment at a file's head."""
    lines = []
    for line in path.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        lines.append(text)
    return " ".join(lines)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(escaped, row)) + " |" for row in lines)


def escaped(cell: str) -> str:
    """A cell whose bars separate nothing; in code they do not, and a backslash would be shown."""
    return re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or "\\|", cell)


def code(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def plain(text: str) -> str:
    """A docstring's paragraph as Markdown."""
    return text.replace("``", "`").replace("<", "&lt;")


def capital(text: str) -> str:
    """The first letter large."""
    return text[:1].upper() + text[1:]
