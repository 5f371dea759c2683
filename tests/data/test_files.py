"""Names of files in the text that people read."""

from __future__ import annotations

import errno
import io
import logging
import os
from pathlib import Path

import pytest

from tats_fast.cli import main
from tats_fast.data.files import LineFile, PrintableFormatter, shown

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


def test_lines_wait_for_a_disk_that_is_full(tmp_path, monkeypatch, caplog):
    lines = LineFile(tmp_path / "lines.txt")
    lines.append(["one"])
    with monkeypatch.context() as full:

        class Full(io.FileIO):
            def write(self, data):
                super().write(bytes(data)[:2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(Path, "open", lambda path, mode: Full(path, mode))
        lines.append(["two", "three"])
        lines.append(["four"])
    assert lines.path.read_text() == "one\n"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(lines.path) in warning and "No space left on device" in warning
    lines.append([os.fsdecode(b"caf\xe9")])
    assert lines.path.read_bytes() == b"one\ntwo\nthree\nfour\ncaf\xe9\n"
