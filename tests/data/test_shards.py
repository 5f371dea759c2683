"""Tar shards read where they lie, and still images: as clips, in lists, through the loader."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_video

from tats_fast.cli import main
from tats_fast.config import ConfigError, DataConfig
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.loader import make_loader
from tats_fast.data.opening import DecodeError
from tats_fast.data.order import StreamBatches
from tats_fast.data.shards import Member, shard_paths, stretch_of
from tats_fast.data.video import load_clip
from tats_fast.data.workers.record import stamp
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer
from tats_fast.report.visualize import expand_videos

CLIPS = sorted((Path(__file__).parents[2] / "demo/clips/train").glob("*.mp4"))[:4]


def pack(shard: Path, members: dict[str, bytes | Path]) -> Path:
    shard.parent.mkdir(exist_ok=True)
    with tarfile.open(shard, "w") as tar:
        for name, content in members.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return shard


@pytest.fixture
def shards(tmp_path) -> str:
    first, second, third, fourth = CLIPS
    pack(
        tmp_path / "s/08.tar",
        {
            "0.mp4": first,
            "0.cls": b"3\n",
            "._0.mp4": b"\0",
            "sub/1.mp4": second,
            "sub/1.json": b'{"label": "brush", "fps": 30}',
        },
    )
    pack(tmp_path / "s/09.tar", {"2.mp4": third, "2.jpg": b"a thumbnail", "readme.txt": b"hello"})
    pack(tmp_path / "s/10.tar", {"a/" + "long" * 40 + ".mp4": fourth, "x.cls": b"1"})
    return str(tmp_path / "s/{08..10}.tar")


def test_shards_are_videos_with_labels(shards, tmp_path):
    names = ["08.tar/0.mp4", "08.tar/sub/1.mp4", "09.tar/2.mp4", f"10.tar/a/{'long' * 40}.mp4"]
    labels = [3, "brush", None, None]
    expected = [Video(str(tmp_path / "s" / n), x) for n, x in zip(names, labels, strict=True)]
    assert read_videos(shards) == expected
    assert read_videos(tmp_path / "s") == expected  # a folder of shards
    (tmp_path / "list.txt").write_text("s/08.tar 7\ns/09.tar 8\n")
    got = read_videos(tmp_path / "list.txt")
    assert [(v.path, v.label) for v in got] == [
        *((v.path, v.label) for v in expected[:2]),
        (expected[2].path, 8),  # where a member has no label its line's counts
    ]
    shutil.copy(CLIPS[0], tmp_path / "s/loose.mp4")  # a folder's own videos come first
    assert [v.path for v in read_videos(tmp_path / "s")] == [str(tmp_path / "s/loose.mp4")]


def test_a_list_may_name_members(shards, tmp_path):
    """As the lists of ``verify`` do."""
    videos = read_videos(shards)
    (tmp_path / "list.txt").write_text("".join(f"{video.path} 1\n" for video in videos[:2]))
    assert read_videos(tmp_path / "list.txt") == [Video(video.path, 1) for video in videos[:2]]
    (tmp_path / "list.txt").write_text("s/08.tar/gone.mp4\n")
    with pytest.raises(ConfigError, match="none of 1 listed paths exists"):
        read_videos(tmp_path / "list.txt")


def test_verify_looks_into_shards(shards, tmp_path):
    pack(tmp_path / "s/11.tar", {"bad.mp4": b"no video"})
    (tmp_path / "list.txt").write_text("s/08.tar\ns/11.tar\n")
    out = tmp_path / "verified"
    arguments = ["--list", str(tmp_path / "list.txt"), "--out", str(out), "--workers", "1"]
    for _ in range(2):  # the second call finds all on record
        assert main(["verify", *arguments]) == 1
    assert [(Path(v.path).name, v.label) for v in read_videos(out / "good.txt")] == [
        ("0.mp4", 3),
        ("1.mp4", "brush"),
    ]
    bad = (out / "bad.txt").read_text().splitlines()
    assert bad == [f"{tmp_path}/s/11.tar/bad.mp4\tnot a video container"]
    assert len((out / "verify.jsonl").read_text().splitlines()) == 3


def test_a_member_decodes_to_the_bytes_of_its_file(shards):
    for video, clip in zip(read_videos(shards), CLIPS, strict=True):
        assert np.array_equal(load_clip(video.path, 8, 2, 32), load_clip(str(clip), 8, 2, 32))
        assert stamp(video.path)[0] == os.path.getsize(clip)


def test_a_picture_may_take_a_shard(shards):
    videos = [video.path for video in read_videos(shards)]
    assert expand_videos([shards, videos[0]]) == [*videos, videos[0]]


def test_a_member_is_a_file_of_its_own(shards):
    path = read_videos(shards)[1].path
    with Member(stretch_of(path), "x") as file:
        assert file.read() == CLIPS[1].read_bytes()
        assert file.seek(-4, os.SEEK_END) == len(CLIPS[1].read_bytes()) - 4
        assert len(file.read(100)) == 4 and file.read(1) == b""
        file.seek(2)
        assert file.read(6) == CLIPS[1].read_bytes()[2:8] and file.tell() == 8


def loaded(videos, workers=0, **batches):
    order = StreamBatches(len(videos), 1, **{"global_batch": 2, "stop_sample": 12, **batches})
    data = DataConfig(stride=2, backend="pyav", workers=workers)
    return list(make_loader(videos, data, 4, 32, 5, order))


def test_the_loader_takes_members_as_files_and_resumes(shards):
    videos = read_videos(shards)
    whole = loaded(videos)
    files = loaded([Video(str(clip)) for clip in CLIPS])
    again = loaded(videos, workers=1, start_sample=6)
    for one, two in zip([*whole, *again], [*files, *whole[3:]], strict=True):
        assert one.keys == two.keys and torch.equal(one.clips, two.clips)


def test_a_bad_member_costs_its_own_clip(tmp_path):
    shard = pack(tmp_path / "s/0.tar", {"a.mp4": CLIPS[0], "b.mp4": b"no video", "c.mp4": b""})
    good = [Video(str(clip)) for clip in CLIPS]
    videos = [*good, *read_videos(shard), Video(str(shard) + "/gone.mp4")]
    batches = loaded(videos, workers=1, stop_sample=24)
    assert {(os.path.basename(path), why) for batch in batches for path, why in batch.bad} == {
        ("b.mp4", "not a video container"),
        ("c.mp4", "empty file"),
        ("gone.mp4", "missing"),
    }


def test_a_shard_that_ends_early_costs_what_is_gone(shards, tmp_path):
    shard = tmp_path / "s/08.tar"
    videos = read_videos(shards)
    os.truncate(shard, stretch_of(videos[1].path).start + 50)
    assert load_clip(videos[0].path, 4, 1, 16).any()
    with pytest.raises(DecodeError):
        load_clip(videos[1].path, 4, 1, 16)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b"no tar" * 1000), "is no tar file"),
        (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(2000)), "is compressed"),
        (lambda p: pack(p, {"a.txt": b"x"}), "holds no video"),
        (lambda p: pack(p, {"a.mp4": b"x", "a.json": b"{"}), "a.json is not JSON"),
        (lambda p: pack(p, {"a.mp4": b"x", "a.cls": b"\xff"}), "a.cls is not text"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_what_is_no_shard_is_one_sentence(tmp_path, make, words, listed):
    make(tmp_path / "0.tar")
    (tmp_path / "list.txt").write_text("0.tar\n")
    with pytest.raises(ConfigError, match=r"data\.train=.*0\.tar.*") as caught:
        read_videos(tmp_path / ("list.txt" if listed else "0.tar"))
    assert (words in str(caught.value)) or (listed and words == "no such file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./0", "../0", "/0", "a/../0", "a//0"])
def test_names_of_members_are_cleaned(tmp_path, name):
    """As ``tar cf 0.tar ./*`` writes them; none leads out of the shard."""
    shard = pack(tmp_path / "s/0.tar", {f"{name}.mp4": CLIPS[0], f"{name}.cls": b"1"})
    (video,) = read_videos(shard)
    assert video == Video(str(shard / ("a/0.mp4" if name == "a//0" else "0.mp4")), 1)
    assert load_clip(video.path, 2, 1, 16).any()


def test_braces(tmp_path):
    for name in ("a-8-0", "a-8-1", "a-9-0", "a-9-1"):
        (tmp_path / f"{name}.tar").touch()
    spec = str(tmp_path / "a-{8..9}-{0..1}.tar")
    assert [Path(p).stem for p in shard_paths(spec, "k")] == ["a-8-0", "a-8-1", "a-9-0", "a-9-1"]
    with pytest.raises(ConfigError, match=r"no such file: .*a-8-2\.tar and 1 more"):
        shard_paths(str(tmp_path / "a-{8..9}-{0..2}.tar"), "k")
    with pytest.raises(ConfigError, match=r"\{3\.\.1\} runs backwards"):
        shard_paths("{3..1}.tar", "k")


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.bmp", "d 100%d.png"])
def test_an_image_is_a_clip_that_stands_still(tmp_path, name):
    codec = {"png": ("png", "rgb24"), "jpg": ("mjpeg", "yuvj420p"), "bmp": ("bmp", "bgr24")}
    kind, pixels = codec[name.lower().rpartition(".")[2]]
    made = write_video(tmp_path / f"x.{name.lower().rpartition('.')[2]}", 1, kind, pix_fmt=pixels)
    made.rename(tmp_path / name)
    (tmp_path / "list.txt").write_text(f"{name}\t3\n")
    (video,) = read_videos(tmp_path / "list.txt")
    assert video == Video(str(tmp_path / name), 3)
    clip = load_clip(video.path, 6, 4, 32)
    assert clip.shape == (6, 32, 32, 3) and (clip == clip[:1]).all()
    shard = pack(tmp_path / "s/0.tar", {"a.png" if kind == "png" else "a.jpg": tmp_path / name})
    (member,) = read_videos(shard)
    assert np.array_equal(load_clip(member.path, 6, 4, 32), clip)
    batches = loaded([video, Video(str(CLIPS[0]))], workers=1)
    assert not any(batch.bad for batch in batches)


def test_what_pretends_to_be_an_image_is_none(tmp_path):
    shutil.copy(CLIPS[0], tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes(b"ffconcat version 1.0\nfile a.jpg\n")
    for name in ("a.jpg", "b.png"):
        with pytest.raises(DecodeError, match="not an image"):
            load_clip(str(tmp_path / name), 4, 1, 16)


def test_a_run_trains_on_shards_and_images(run_config, tmp_path, shards):
    write_video(tmp_path / "still.png", 1, "png", pix_fmt="rgb24")
    (tmp_path / "list.txt").write_text("still.png\ns/08.tar\ns/09.tar\n")
    data = {"train": str(tmp_path / "list.txt")}
    config = run_config("shards", train={"steps": 3, "log_every": 1}, data=data)
    Trainer(config, World(0, 1, torch.device("cpu"))).run()
    rows = (tmp_path / "shards/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 3 and json.loads(rows[-1])["skipped_clips"] == 0
