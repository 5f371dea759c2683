"""What the scripts of benchmarks/ are made of, by subject; neither scripts nor records."""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Let a checkout run that is not installed: find tats_fast, and kernels/ inside it.
if find_spec("tats_fast") is None:
    sys.path.append(str(ROOT))
if find_spec("tats_fast.kernels") is None:
    import tats_fast

    tats_fast.__path__.append(str(ROOT))
