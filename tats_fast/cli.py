"""The command ``tats-fast``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from tats_fast.commands import (
    doctor,
    evaluate,
    export,
    extract,
    finetune,
    importer,
    prepare,
    pretrain,
    probe,
    verify,
    visualize,
)
from tats_fast.commands.running import add_local_rank
from tats_fast.config import ConfigError
from tats_fast.version import __version__

LOGGER = logging.getLogger("tats_fast")
COMMANDS = (
    *(pretrain, finetune, probe, evaluate, extract, visualize),
    *(prepare, verify, export, importer, doctor),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    0 done; 1 the work failed, said in one sentence; 2 wrong use or configuration; 128 + n stopped
    by signal n with the state saved.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    overrides = getattr(options, "overrides", None)
    for text in rest:
        # argparse gives up on key=value after an option; take those, refuse the rest.
        if overrides is None or text.startswith("-") or "=" not in text:
            parser.error(f"unrecognized argument: {text}")
        overrides.append(text)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    LOGGER.setLevel(logging.INFO)
    try:
        return options.run(options)
    except ConfigError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has left, as in `tats-fast doctor | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code = _known_failure(error)
        if code is None:
            raise
        return _fail(str(error), code)


def make_parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    parser = argparse.ArgumentParser(
        prog="tats-fast",
        description="Masked video pretraining with a trajectory-aware, PPO-trained token sampler.",
    )
    parser.add_argument("--version", action="version", version=f"tats-fast {__version__}")
    add_local_rank(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _known_failure(error: Exception) -> int | None:
    """Exit code of a failure whose message is meant for the user; None = a defect, show it all."""
    from tats_fast.data.bad_files import TooManyBadFiles
    from tats_fast.data.video import DecodeError

    known: tuple[type[Exception], ...] = (DecodeError, TooManyBadFiles)
    if "tats_fast.engine.loop" in sys.modules:
        known += (sys.modules["tats_fast.engine.loop"].NonFiniteLoss,)
    return 1 if isinstance(error, known) else None


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def run_and_exit(arguments: Sequence[str] | None = None) -> None:
    """``main``, then the end of the process: the entry of the installed commands."""
    code = main(arguments)
    if "torch.distributed" in sys.modules:
        from tats_fast.engine.distributed import end_process

        end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()
