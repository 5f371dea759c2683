"""Names of files in the text that people read."""

from __future__ import annotations

import logging
import os

import pytest

from tats_fast.cli import main
from tats_fast.data.files import PrintableFormatter, shown

RED = "\x1b[31mred\x1b]0;title\x07\r.mp4"


def test_what_a_terminal_would_obey_is_shown_instead():
    assert shown(RED) == "\\x1b[31mred\\x1b]0;title\\x07\\x0d.mp4"
    assert shown("two\nlines \x9b1m \u202eback") == "two\\x0alines \\x9b1m \\u202eback"
    assert shown("ünï (c) 日本.mp4") == "ünï (c) 日本.mp4"
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\ufffd"


def test_messages_and_errors_are_printable(capsys):
    record = logging.LogRecord("x", logging.WARNING, "", 0, "skipped %s\nand so on", (RED,), None)
    text = PrintableFormatter("%(levelname)s: %(message)s").format(record)
    assert text == f"WARNING: skipped {shown(RED)}\nand so on"
    assert main(["verify", "--out=out", f"--list={RED}"]) == 2
    error = capsys.readouterr().err
    assert shown(RED) in error and "\x1b" not in error


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_verify_and_prepare_print_no_escapes(tmp_path, capsys, mode):
    folder = tmp_path / "\x1b[31m"
    folder.mkdir()
    (folder / "a.mp4").write_text("no video")
    assert main(["verify", f"--root={folder}", f"--out={folder}/out", f"--mode={mode}"]) == 1
    assert main(["prepare", "folder", f"--videos={folder}", f"--out={folder}/lists"]) == 1
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
