"""NVDEC through DALI against PyAV: the same frames and crops; colours may differ by a matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed")

from data_files import numbers, write_video

from tats_fast.config import DataConfig
from tats_fast.data.dali import dali_problem
from tats_fast.data.lists import Video
from tats_fast.data.loader import make_loader
from tats_fast.data.order import StreamBatches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(dali_problem() is not None, reason=str(dali_problem())),
]
FRAMES, SIZE = 8, 64


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    # NVDEC has a smallest frame: 144 x 144 is above it for every codec.
    size = {"width": 176, "height": 144}
    made = [
        write_video(folder / "h264.mp4", 60, options={"g": "12"}, **size),
        write_video(folder / "b frames.mp4", 60, options={"bf": "3", "g": "250"}, **size),
        write_video(folder / "vp9.webm", 60, "libvpx-vp9", **size),
        write_video(folder / "short.mp4", 5, **size),
        write_video(folder / "10 bit.mp4", 30, "libx265", pix_fmt="yuv420p10le", **size),
    ]
    return [Video(str(path)) for path in made]


def load(videos, device, **config):
    data = replace(DataConfig(stride=2, workers=2), **config)
    order = StreamBatches(len(videos), 3, 5, stop_sample=30)
    return list(make_loader(videos, data, FRAMES, SIZE, 3, order, device))


@pytest.mark.parametrize("repeats", [1, 2])
def test_nvdec_cuts_what_pyav_cuts(videos, repeats):
    options = {"repeats": repeats, "flip": True, "scales": (1.0,)}
    gpu = load(videos, "cuda", backend="dali", **options)
    host = load(videos, "cpu", backend="pyav", **options)
    for one, two in zip(gpu, host, strict=True):
        assert one.clips.device.type == "cuda" and one.clips.dtype == torch.uint8
        assert one.keys == two.keys and one.bad == two.bad
        clips = one.clips.cpu()
        for a, b in zip(clips, two.clips, strict=True):
            assert numbers(a.numpy()) == numbers(b.numpy())
        assert (clips.int() - two.clips.int()).abs().float().mean() < 6
    assert {batch.on_host for batch in gpu} == {1}  # the 10-bit file alone


def test_auto_decodes_on_the_gpu(videos):
    assert all(batch.clips.device.type == "cuda" for batch in load(videos, "cuda"))


def test_a_damaged_file_costs_itself_only(videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    raw = bytearray(Path(videos[0].path).read_bytes())
    middle = raw.index(b"mdat") + 200
    raw[middle : middle + 400] = b"\xff" * 400
    broken.write_bytes(raw)
    listed = [*videos, Video(str(broken))]
    for batch in load(listed, "cuda", backend="dali"):
        assert len(batch.clips) == 5
        assert {path for path, _ in batch.bad} <= {str(broken)}
