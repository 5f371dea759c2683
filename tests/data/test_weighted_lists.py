"""Several lists by weight: shares of draws, passes of each list, exact resume."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
import torch
from data_files import write_video

from tats_fast.config import ConfigError, load_config, read_saved, save_config
from tats_fast.config.schema import RunConfig
from tats_fast.data.cutter import ClipCutter, Task
from tats_fast.data.lists import Video
from tats_fast.data.order import ClipKey, ClipStream, Part, StreamBatches, parts_of
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer

SIZES = (3, 12, 5)


@pytest.mark.parametrize(
    ("sizes", "weights", "draws"),
    [
        ((10, 90), (1, 1), (50, 50)),
        ((10, 90), (10, 90), (10, 90)),
        ((3, 3, 4), (1, 1, 1), (4, 3, 3)),
        ((1, 1), (1e9, 1), (1, 1)),  # nobody is left out
        ((1, 9), (1e-9, 1e-9), (5, 5)),
        ((7,), (0.3,), (7,)),
    ],
)
def test_weights_are_shares_of_a_pass(sizes, weights, draws):
    parts = parts_of(sizes, weights)
    assert sorted(part.draws for part in parts) == sorted(draws)
    assert tuple(part.videos for part in parts) == sizes


def test_every_pass_has_the_shares_and_every_list_its_own_passes():
    parts = parts_of(SIZES, (1, 1, 2))
    assert parts == [Part(3, 5), Part(12, 5), Part(5, 10)]
    stream = ClipStream(20, 7, parts)
    keys = [stream[sample] for sample in range(20 * 12)]
    assert len(set(keys)) == len(keys)  # no draw of random numbers is used twice
    bounds = (0, 3, 15, 20)
    lists = [[k for k in keys if low <= k.index < high] for low, high in pairwise(bounds)]
    for part, own in zip(parts, lists, strict=True):
        for start in range(0, len(own) - part.videos + 1, part.videos):
            whole = own[start : start + part.videos]
            assert {key.epoch for key in whole} == {start // part.videos}
            assert len({key.index for key in whole}) == part.videos
    for epoch in range(12):
        drawn = Counter(key.index >= 15 for key in keys[20 * epoch : 20 * epoch + 20])
        assert drawn[True] == 10
    first, second = ([key.index >= 15 for key in keys[20 * e : 20 * e + 20]] for e in (0, 1))
    assert first != second  # dealt anew in each pass


def test_one_list_is_what_it_was():
    plain, single = ClipStream(9, 4), ClipStream(9, 4, parts_of([9], [3.0]))
    assert [plain[n] for n in range(40)] == [single[n] for n in range(40)]
    with pytest.raises(ValueError, match="expected parts of 9 videos"):
        ClipStream(9, 4, [Part(3, 3), Part(5, 6)])


def test_ranks_and_resuming_change_nothing():
    parts = parts_of(SIZES, (1, 1, 2))
    whole = [key for batch in StreamBatches(20, 1, 8, stop_sample=80, parts=parts) for key in batch]
    ranks = [
        list(StreamBatches(20, 1, 8, rank, 2, 2, start_sample=40, stop_sample=80, parts=parts))
        for rank in range(2)
    ]
    together = [
        key
        for step in range(5)
        for rank in ranks
        for m in rank[2 * step : 2 * step + 2]
        for key in m
    ]
    assert together == whole[40:]


def test_who_stands_in_is_of_the_same_list():
    videos = [
        Video(f"{part}-{n}", part=part) for part, size in enumerate(SIZES) for n in range(size)
    ]
    config = load_config(None, ["name=x"]).data
    cutter = ClipCutter(videos, config, 2, 8, seed=3, rows=1)
    for index in (0, 2, 3, 14, 15, 19):
        for attempt in range(1, 30):
            stand_in = cutter.index(Task(ClipKey(0, index), 0, attempt))
            assert videos[stand_in].part == videos[index].part


LISTS = "data.train=[{list: a.txt, weight: 2}, {list: b.txt}]"


def test_lists_survive_the_file(tmp_path):
    config = load_config(None, [LISTS])
    assert [(entry.list, entry.weight) for entry in config.data.train] == [
        ("a.txt", 2),
        ("b.txt", 1),
    ]
    save_config(config, tmp_path / "c.yaml")
    assert read_saved(tmp_path / "c.yaml", RunConfig) == config


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", "data.train=[]: needs at least one list"),
        ("[{weight: 2}]", "data.train[0]={'weight': 2}: needs list=..."),
        (
            "[{list: a, wieght: 2}]",
            "data.train[0].wieght=2: unknown key; did you mean data.train[0].weight?",
        ),
        ("[{list: a, weight: 0}]", "data.train: weight=0.0: must be above 0"),
        ("[{list: a, weight: many}]", "data.train[0].weight=many: must be a number"),
        ("[a.txt, b.txt]", "data.train[0]=a.txt: is a group of keys: list, weight"),
        ("[{list: 3}]", "data.train[0].list=3: must be text (quote it if it looks like a number)"),
        ("3", "data.train=3: must be text (quote it if it looks like a number)"),
    ],
)  # fmt: skip
def test_wrong_lists_are_one_sentence(value, words):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"data.train={value}"])
    assert str(caught.value) == words


def test_a_run_on_two_lists_resumes_bit_for_bit(run_config, tmp_path, caplog):
    for name, count in (("a", 3), ("b", 6)):
        (tmp_path / name).mkdir()
        for n in range(count):
            write_video(tmp_path / name / f"{n}.mp4", 12)
    lists = [{"list": str(tmp_path / "a"), "weight": 2.0}, {"list": str(tmp_path / "b")}]

    settings = {"log_every": 1, "checkpoint_every": 2, "keep_checkpoints": 3}
    metrics = tmp_path / "run/metrics.jsonl"

    def losses(**train) -> list:
        config = run_config(data={"train": lists}, train={**settings, **train})
        Trainer(config, World(0, 1, torch.device("cpu"))).run()
        return [json.loads(line)["loss_recon"] for line in metrics.read_text().splitlines()]

    caplog.set_level("INFO")
    whole = losses()
    assert f"draws 66.7% of {tmp_path}/a (3); 33.3% of {tmp_path}/b (6)" in caplog.text
    assert losses(resume=str(tmp_path / "run/checkpoints/step_000002")) == whole
    assert len(whole) == 6 and len((tmp_path / "run/superseded/metrics.jsonl").read_text()) > 0
