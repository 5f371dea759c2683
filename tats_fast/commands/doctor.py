"""``tats-fast doctor``."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    doctor = commands.add_parser("doctor", help="what this machine can run, and why not the rest")
    doctor.set_defaults(run=_doctor)


def _doctor(_options: argparse.Namespace) -> int:
    from tats_fast.doctor import report_lines

    print("\n".join(report_lines()))
    return 0
