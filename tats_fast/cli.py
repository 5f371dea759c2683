"""The command ``tats-fast``."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from tats_fast.commands.datasets import MAKE_BENCHMARK, PREPARE, VERIFY
from tats_fast.commands.exchange import EXPORT, IMPORT
from tats_fast.commands.inspection import COMPARE, DOCTOR, REFERENCE, VISUALIZE
from tats_fast.commands.planning import PLAN
from tats_fast.commands.recognition import EVALUATE, EXTRACT, PROBE
from tats_fast.commands.settings import CONFIG
from tats_fast.commands.training import FINETUNE, PRETRAIN
from tats_fast.config import ConfigError, Failure
from tats_fast.config.options import add_arguments
from tats_fast.data.files import PrintableFormatter, printable
from tats_fast.version import __version__

LOGGER = logging.getLogger("tats_fast")
# What a disk or its owner says, and no mistake of ours: it has no traceback.
_NOT_OURS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE),
)
COMMANDS = (
    *(PLAN, PRETRAIN, FINETUNE, PROBE, EVALUATE, EXTRACT, VISUALIZE),
    *(COMPARE, REFERENCE, PREPARE, MAKE_BENCHMARK, VERIFY, EXPORT, IMPORT, CONFIG, DOCTOR),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    0 done; 1 the work failed, said in one sentence; 2 wrong use or configuration; 128 + n stopped
    by signal n with the state saved.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    flags = getattr(options, "flags", {})
    overrides = getattr(options, "overrides", None)
    for text in rest:
        # argparse gives up on key=value after an option; take those, refuse the rest.
        if overrides is None or text.startswith("-") or "=" not in text:
            parser.error(f"unrecognized argument: {text}")
        overrides.append(text)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    LOGGER.setLevel(logging.INFO)
    try:
        return options.run(options)
    except (ConfigError, Failure) as error:
        if isinstance(error, ConfigError) and os.environ.get("LOCAL_RANK", "0") not in ("", "0"):
            return 2  # what is wrong with settings is wrong for a node's first process too
        return _fail(with_flags(str(error), flags), 1 if isinstance(error, Failure) else 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has left, as in `tats-fast doctor | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        return _fail(f"{error.filename or 'writing a file'}: {error.strerror}", 1)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does, and not the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    parser = _Parser(
        prog="tats-fast",
        description="Masked video pretraining with a trajectory-aware, PPO-trained token sampler.",
    )
    parser.add_argument("--version", action="version", version=f"tats-fast {__version__}")
    add_local_rank(parser, None)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(command.name, help=command.help)
        for options in command.options:
            add_arguments(subparser, options)
        add_local_rank(subparser, argparse.SUPPRESS)
        if command.override is not None:
            text = f"for example {command.override}"
            subparser.add_argument("overrides", nargs="*", metavar="key=value", help=text)
        subparser.set_defaults(run=command.run)
    return parser


def add_local_rank(parser: argparse.ArgumentParser, default: Any) -> None:
    """``--local_rank``, which the deepspeed launcher puts behind the script or module it starts: on
    the program or on its command, of which the one given counts."""
    text = argparse.SUPPRESS
    parser.add_argument("--local_rank", "--local-rank", type=int, default=default, help=text)


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """A library's message in the words of a command line.

    ``batch_size=0: must be at least 1`` -> ``--batch-size=0: must be at least 1``

    Args:
        flags: what the command line calls an option, by its name in the library.
    """
    names = r"^\w+(?=[=:])|(?<=\s)\w+(?==)"
    return re.sub(names, lambda name: flags.get(name[0], name[0]), message)


def _fail(message: str, code: int) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
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
