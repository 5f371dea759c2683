"""The Dockerfile, read: stages, what it copies, installs and runs, and what it must not hold."""

from __future__ import annotations

import json
import re

import pytest
from project import ROOT

from tats_fast.cli import COMMANDS

tomllib = pytest.importorskip("tomllib")  # Python 3.11
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(instruction, argument) in order, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def arguments(instructions, word: str) -> list[str]:
    return [rest for name, rest in instructions if name == word]


def test_stages_build_on_each_other(instructions):
    known = {"ARG", "FROM", "RUN", "ENV", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} == known
    stages = [
        re.fullmatch(r"(\S+) AS (\w+)", rest).groups() for rest in arguments(instructions, "FROM")
    ]
    assert stages == [("${BASE}", "python"), ("python", "wheel"), ("python", "run")]
    base = arguments(instructions, "ARG")[0]
    assert re.fullmatch(r"BASE=nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu24\.04", base)
    assert instructions[0][0] == "ARG"  # before the first stage, for the first FROM
    names = {name for _, name in stages}
    for copied in arguments(instructions, "COPY"):
        assert set(re.findall(r"--from=(\w+)", copied)) <= names


def test_what_is_copied_is_here_and_reaches_the_builder(instructions):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for copied in arguments(instructions, "COPY"):
        if copied.startswith("--from"):
            continue
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists() and f"!{source}" in ignored, source
    # All that setup.py makes the wheel of.
    copied = " ".join(arguments(instructions, "COPY"))
    needed = ("pyproject.toml", "setup.py", PROJECT["readme"], "tats_fast", "kernels", "configs")
    assert all(f"{name} " in copied for name in needed)


def test_extras_and_commands_exist(instructions):
    extras = re.findall(r"\.whl\)\[([\w,]+)\]", " ".join(arguments(instructions, "RUN")))
    assert extras and set(extras[0].split(",")) <= set(PROJECT["optional-dependencies"])
    assert "gpu" in extras[0].split(",")
    (entry,) = (json.loads(rest) for rest in arguments(instructions, "ENTRYPOINT"))
    (command,) = (json.loads(rest) for rest in arguments(instructions, "CMD"))
    assert entry[0] in PROJECT["scripts"]
    assert command[0] in {known.name for known in COMMANDS}
    assert re.search(r"^ARG TORCH=torch>=2\.11$", (ROOT / "Dockerfile").read_text(), re.M)


def test_it_runs_as_nobody_in_particular_and_holds_no_secret(instructions):
    users = arguments(instructions, "USER")
    assert users and users[-1] not in ("root", "0")
    assert f" {users[-1]} " in " ".join(arguments(instructions, "RUN"))
    text = (ROOT / "Dockerfile").read_text().lower()
    for word in ("token", "password", "secret", "api_key", "index-url", "http://", "https://"):
        assert word not in text, word


def test_any_user_may_write_what_compilers_keep(instructions):
    """Docker gives a user that the image does not know the home /, where nobody may write."""
    ran = instructions[instructions.index(("FROM", "python AS run")) :]
    assert "HOME=/tmp" in arguments(ran, "ENV")


def test_the_page_has_the_commands():
    page = (ROOT / "docs" / "install.md").read_text()
    section = page.split("## A container")[1].split("\n## ")[0]
    assert "docker build -t tats-fast ." in section and "--gpus all" in section
    assert "--shm-size" in section
