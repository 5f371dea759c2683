"""The official files of each benchmark, read into one form: ``READERS[dataset](folder, split)``.

Not here: opening videos, or writing lists.
"""

from collections.abc import Callable

from tats_fast.prepare.layouts.annotations import Annotations, Row
from tats_fast.prepare.layouts.folder import read_folder
from tats_fast.prepare.layouts.hmdb51 import read_hmdb51
from tats_fast.prepare.layouts.index import VideoIndex
from tats_fast.prepare.layouts.kinetics import read_kinetics400
from tats_fast.prepare.layouts.ssv2 import read_ssv2
from tats_fast.prepare.layouts.ucf101 import read_ucf101

READERS: dict[str, Callable[[str, int], Annotations]] = {
    "ssv2": read_ssv2,
    "kinetics400": read_kinetics400,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
}
"""Reader of the annotation files in a folder, for an official split number (1, 2 or 3).

Each raises ``ConfigError`` for a missing or damaged file.
"""

__all__ = ["READERS", "Annotations", "Row", "VideoIndex", "read_folder"]
