"""Pretraining entry: ``deepspeed tats_fast/train.py --config FILE [key=value ...]``, or plain
``python`` or ``torchrun`` in place of ``deepspeed``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and __package__ is None:
    # As a script this file's folder comes first on the path and would shadow other packages.
    sys.path.pop(0)

try:
    from tats_fast.cli import run_and_exit
except ImportError as error:
    if (error.name or "").split(".")[0] != "tats_fast":
        raise
    sys.exit("error: tats_fast is not installed; run: pip install -e . (in the repository)")

if __name__ == "__main__":
    run_and_exit(["pretrain", *sys.argv[1:]])
