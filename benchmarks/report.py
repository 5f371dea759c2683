"""The GPU tables of docs/benchmarks.md, from committed records of gpu_suite.py.

    python benchmarks/report.py benchmarks/records/NAME --update docs/benchmarks.md

Prints them, or writes them between the page's markers. Of several records (stage a, stage b) the
last that has a file gives it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from parts import ROOT, bench
from parts.suite.summary import page

from tats_fast.config import ConfigError


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("records", nargs="+", metavar="RECORD", help="folders written by gpu_suite.py")
    add("--update", metavar="FILE.md", help="replace what stands between the page's markers")
    return parser


def run(options: Any) -> int:
    """Print or write."""
    folders = [Path(name) for name in options.records]
    for folder in folders:
        if not (folder / "summary.md").is_file():
            raise ConfigError(f"{folder}: no record of gpu_suite.py (it would hold summary.md)")
    absolute = [folder.resolve() for folder in folders]
    named = [str(p.relative_to(ROOT) if p.is_relative_to(ROOT) else p.name) for p in absolute]
    tables = f"Record: {', '.join(f'`{name}`' for name in named)}\n\n{page(folders)}"
    if options.update is None:
        print(tables)
    else:
        bench.put_between(options.update, "report.py", tables)
    return 0


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
