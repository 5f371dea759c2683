"""What DeepSpeed compiles at its first start, made beforehand: two minutes, which no test has.

    python tests/support/deepspeed_op.py

It lies in this environment: in the folder that all programs share, another clone's build would
replace it, and a lock that a killed build left there would stop the tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tats_fast.engine.extension_locks import settle_locks

OWN = Path(sys.prefix) / "torch_extensions"


def use_own_folder() -> None:
    """Let this process and those it starts compile into this environment, unless told where, or
    where there is none but the system's Python."""
    if sys.prefix != sys.base_prefix:
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(OWN))


if __name__ == "__main__":
    use_own_folder()
    settle_locks(OWN, patience=0)  # no other host uses it
    settle_locks()
    from deepspeed.comm.torch import build_shm_op

    build_shm_op()
