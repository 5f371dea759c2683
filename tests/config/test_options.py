"""Options written down once: their command line, what it gives, and their bounds."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tats_fast.cli import COMMANDS, main, with_flags
from tats_fast.config import ConfigError
from tats_fast.config.options import Options, add_arguments, chosen, cores, follow, option


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    batch_size: int = option(16, "clips at once", at_least=1)
    share: float = option(0.5, at_least=0, at_most=1)
    timeout: float | None = option(None, "seconds", above=0, metavar="S")
    kinds: tuple[str, ...] = option(("a", "b"), unset="all", choices=("a", "b"), metavar="A,B")


@dataclass(frozen=True, kw_only=True)
class Command(Settings):
    source: str = option(help="where from", flag="--from", metavar="DIR")
    form: str = option("npy", choices=("npy", "pt"))
    full: bool = option(False, "all of it")
    workers: int = option(cores, "processes", unset="one per core", at_least=1)
    batch_size: int | None = follow(Settings, "batch_size", "as trained")
    computed: int = 7  # no option


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Command)
    return parser.parse_args(arguments)


def test_what_is_not_given_has_the_default_of_its_field(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = chosen(Command, parse("--from", "~/in"))
    assert options == Command(source=str(tmp_path / "in"), workers=cores())
    assert (options.batch_size, options.share, options.kinds) == (None, 0.5, ("a", "b"))
    arguments = "--from x --share 1 --kinds b,a --full --form pt --batch-size 3 --timeout 2"
    expected = {"share": 1.0, "kinds": ("b", "a"), "form": "pt", "batch_size": 3, "timeout": 2.0}
    assert chosen(Command, parse(*arguments.split())) == Command(source="x", full=True, **expected)


def test_the_first_source_with_a_value_counts():
    class Trained:
        batch_size, share = 5, 0.25

    assert chosen(Settings, parse("--from", "x"), None, Trained()).batch_size == 5
    options = chosen(Settings, parse("--from", "x", "--share", "0"), Trained())
    assert (options.batch_size, options.share) == (5, 0)
    assert chosen(Settings, None).batch_size == 16


def test_of_two_options_that_exclude_each_other_the_first_source_decides():
    @dataclass(frozen=True, kw_only=True)
    class Either(Options):
        every: int | None = option(None, instead_of="rate")
        rate: float | None = option(None, instead_of="every")

    @dataclass(frozen=True)
    class Given:
        every: int | None = None
        rate: float | None = None

    assert chosen(Either, Given(rate=2.0), Given(every=3)) == Either(rate=2.0)
    assert chosen(Either, Given(), Given(every=3)) == Either(every=3)
    assert chosen(Either, Given(every=1, rate=2.0), Given(every=3)) == Either(every=1, rate=2.0)


def test_required_options_and_choices_are_argparses(capsys):
    for arguments, message in (
        ([], "required: --from"),
        (["--from", "x", "--form", "zip"], "invalid choice: 'zip'"),
        (["--from", "x", "--batch-size", "many"], "invalid int value"),
    ):
        with pytest.raises(SystemExit):
            parse(*arguments)
        assert message in capsys.readouterr().err


def test_help_says_defaults_and_nothing_of_other_fields():
    parser = argparse.ArgumentParser(prog="command")
    add_arguments(parser, Command)
    text = " ".join(parser.format_help().split())
    for part in (
        "--batch-size N clips at once (default: as trained, or 16)",
        "--timeout S seconds --",
        "--kinds A,B (default: all)",
        "--full all of it --",
        "--workers N processes (default: one per core)",
    ):
        assert part in text, part
    assert "computed" not in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"share": 1.5}, "share=1.5: must be at least 0 and at most 1"),
        ({"share": float("nan")}, "share=nan: must be at least 0 and at most 1"),
        ({"timeout": 0.0}, "timeout=0.0: must be above 0"),
        ({"timeout": float("inf")}, "timeout=inf: must be finite and above 0"),
        ({"timeout": float("-inf")}, "timeout=-inf: must be above 0"),
        ({"share": float("inf")}, "share=inf: must be at least 0 and at most 1"),
        ({"kinds": ("a", "c")}, "kinds=c: must be one of a, b"),
        ({"kinds": ()}, "kinds=: must be one of a, b"),
    ],
)
def test_values_out_of_bounds_are_one_plain_sentence(values, message):
    with pytest.raises(ConfigError) as caught:
        Settings(**values)
    assert str(caught.value) == message


def test_an_option_that_follows_another_has_its_bounds():
    with pytest.raises(ConfigError, match="batch_size=0: must be at least 1"):
        Command(source="x", batch_size=0)


def test_cores_are_shared_by_the_processes_of_a_launcher(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(9))
    assert cores() == 9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cores() == 1


def test_messages_get_the_names_of_the_command_line():
    flags = parse("--from", "x").flags
    for message, expected in (
        ("batch_size=0: too low", "--batch-size=0: too low"),
        ("source: nothing there", "--from: nothing there"),
        ("share=1: with form=pt it must be 0", "--share=1: with --form=pt it must be 0"),
        ("data.share=1: no, /a/form=pt", "data.share=1: no, /a/form=pt"),
        ("nothing of source here: share: 1", "nothing of source here: share: 1"),
    ):
        assert with_flags(message, flags) == expected


def test_help_loads_neither_pytorch_nor_pyav():
    code = """
import sys
from tats_fast.cli import make_parser
make_parser().format_help()
heavy = {'torch', 'av', 'numpy', 'PIL'} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_has_a_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command.name} " in listed
        with pytest.raises(SystemExit) as stop:
            main([command.name, "--help"])
        assert stop.value.code == 0
