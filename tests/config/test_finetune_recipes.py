"""Every shipped fine-tuning recipe, resolved, against the numbers that were published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from data_files import numbers, write_video
from labelled_files import write_labelled
from models_exchanged import write_run
from project import TINY_MODEL

import tats_fast
from tats_fast.config import ConfigError, load_config, load_finetune_config
from tats_fast.data.cutter import ClipCutter, Task
from tats_fast.data.lists import Video
from tats_fast.data.order import ClipKey
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import lr_at, set_lr
from tats_fast.finetune.layer_decay import parameter_groups
from tats_fast.finetune.trainer import Finetuner
from tats_fast.models.classifier import VideoClassifier
from tats_fast.recognition.scores import Views

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = ROOT / "configs"
FINETUNE = CONFIGS / "finetune"


@dataclass(frozen=True)
class Recipe:
    """Rates are base x videos / 256; the embedding's is the head's x layer decay^13."""

    batch: int
    epochs: int
    first: float
    peak: float
    last: float
    peak_embed: float
    layer_decay: float
    drop_path: float
    head_dropout: float
    stride: int
    flip: bool
    clips: int
    one_gpu: int


RECIPES = {
    #              batch epochs first  peak   last  embedding decay path drop stride flip clips one
    "ssv2": Recipe(512, 50, 2e-6, 1e-3, 2e-6, 2.37573e-5, 0.75, 0.1, 0.0, 0, False, 2, 32),
    "kinetics400": Recipe(512, 100, 2e-6, 2e-3, 2e-6, 4.75145e-5, 0.75, 0.1, 0.0, 4, True, 5, 32),
    "ucf101": Recipe(128, 100, 5e-9, 2.5e-4, 5e-6, 2.42223e-6, 0.7, 0.2, 0.5, 4, True, 5, 8),
    "hmdb51": Recipe(128, 50, 5e-9, 5e-4, 5e-6, 4.84445e-6, 0.7, 0.2, 0.5, 4, True, 10, 8),
}
TRANSFERS = {f"{name}_from_kinetics400": RECIPES[name] for name in ("ucf101", "hmdb51")}
ALL = {**RECIPES, **TRANSFERS}
FILES = {name: FINETUNE / f"{name}_vit_base.yaml" for name in ALL}


def test_every_recipe_is_in_the_table():
    recipes = set(FINETUNE.glob("*.yaml")) - {FINETUNE / "quickstart.yaml"}
    assert recipes == set(FILES.values())


@pytest.mark.parametrize("name", ALL)
def test_training(name):
    recipe, config = ALL[name], load_finetune_config(FILES[name])
    model, optim, train, augment = config.model, config.optim, config.train, config.augment
    assert (model.image_size, model.num_frames) == (224, 16)
    assert (model.drop_path, model.head_dropout) == (recipe.drop_path, recipe.head_dropout)
    assert (train.batch_size, train.epochs) == (recipe.batch, recipe.epochs)
    assert optim.warmup_frac * train.epochs == pytest.approx(5)
    assert (optim.betas, optim.weight_decay, optim.grad_clip) == ((0.9, 0.999), 0.05, 0.0)
    assert (augment.rand_ops, augment.rand_magnitude, augment.rand_deviation) == (4, 7.0, 0.5)
    assert (augment.erase, augment.smoothing) == (0.25, 0.1)
    assert (augment.mixup, augment.cutmix, augment.switch) == (0.8, 1.0, 0.5)
    assert (augment.class_weights, train.ema_decay) == ("none", 0.0)


@pytest.mark.parametrize("name", ALL)
def test_learning_rates(name, tiny_config):
    """Those that the optimizer of a twelve-block classifier gets, as ViT-B has."""
    recipe, config = ALL[name], load_finetune_config(FILES[name])
    assert recipe.layer_decay == config.optim.layer_decay
    classifier = VideoClassifier(tiny_config(model={"depth": 12}).model, 4)
    groups = parameter_groups(classifier, config.optim.weight_decay, config.optim.layer_decay)
    optimizer = torch.optim.AdamW(groups)
    steps = 1_000_000  # fine enough to meet the peak
    warm = round(config.optim.warmup_frac * steps)

    def rates(step: int) -> tuple[float, float]:
        set_lr(optimizer, lr_at(config.optim, step, steps, config.train.batch_size))
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        return rate[id(classifier.encoder.embed.proj.weight)], rate[id(classifier.head.weight)]

    assert rates(0)[1] == pytest.approx(recipe.first)
    assert rates(warm) == pytest.approx((recipe.peak_embed, recipe.peak), rel=1e-5)
    assert rates(steps - 1)[1] == pytest.approx(recipe.last)


@pytest.mark.parametrize("name", ALL)
def test_sampling(name):
    recipe, data = ALL[name], load_finetune_config(FILES[name]).data
    assert (data.stride, data.flip, data.repeats) == (recipe.stride, recipe.flip, 2)
    assert (data.area, data.aspect) == ((0.08, 1.0), (0.75, 1.3333))
    views = Views(stride=data.stride, clips=data.clips, crops=data.crops)
    assert len(views.frames(300, 16)) == recipe.clips
    assert views.crops == 3


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A video of 160 frames that show their numbers."""
    return write_video(tmp_path_factory.mktemp("numbered") / "video.mp4", 160)


@pytest.mark.parametrize("name", RECIPES)
def test_clips_that_are_cut(name, numbered):
    """Two clips of one random window, or of one random frame in each of 16 segments."""
    whole = ["data.area=[1,1]", "data.aspect=[1,1]", "data.flip=false"]
    config = load_finetune_config(FILES[name], whole)
    cutter = ClipCutter([Video(str(numbered))], config.data, config.model.num_frames, 64, 0, 1)
    seen = []
    for epoch in range(4):
        assert cutter(Task(ClipKey(epoch, 0), 0)) is None
        first, second = (numbers(clip) for clip in cutter.rows[0])
        assert first == second
        seen.append(tuple(first))
    assert len(set(seen)) > 1  # random
    for frames in seen:
        if name == "ssv2":
            assert [frame // 10 for frame in frames] == list(range(16))
        else:
            assert {b - a for a, b in pairwise(frames)} == {4}


@pytest.mark.parametrize("name", ALL)
def test_one_gpu_and_eight_have_the_same_batch(name):
    """The file is for eight GPUs; its comment names the accumulation for one."""
    path, override = FILES[name], f"train.accumulation={ALL[name].one_gpu}"
    eight, one = load_finetune_config(path), load_finetune_config(path, [override])
    assert f"On one: {override}," in path.read_text()
    eight.check_world_size(8)
    one.check_world_size(1)
    assert eight.train.batch_size == one.train.batch_size
    assert eight.train.batch_size // (8 * eight.train.accumulation) == 16
    assert one.train.batch_size // one.train.accumulation == 16
    assert eight.clips_per_step == 2 * eight.train.batch_size


@pytest.mark.parametrize(("name", "epochs"), [("ssv2", 30), ("kinetics400", 75)])
def test_the_longer_scripts_of_the_comments(name, epochs):
    """384 videos after 2400 or 1600 epochs of pretraining, base rate 5e-4, 5 epochs of warm-up."""
    comment = [line for line in FILES[name].read_text().splitlines() if line.startswith("# ")]
    words = " ".join(line.removeprefix("# ").rstrip(".") for line in comment).split()
    start = words.index("train.batch_size=384")
    overrides = [word for word in words[start : start + 4] if "=" in word]
    config = load_finetune_config(FILES[name], overrides)
    config.check_world_size(8)
    assert config.optim.base_lr * config.train.batch_size / 256 == 7.5e-4
    assert config.train.epochs == epochs
    assert config.optim.warmup_frac * epochs == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_starts_from_the_run_of_a_pretraining_recipe(name):
    config = load_finetune_config(FILES[name])
    source = "kinetics400" if name in TRANSFERS else name
    pretraining = load_config(CONFIGS / "pretrain" / f"{source}_vit_base.yaml")
    assert config.init_from == f"{pretraining.output_dir}/{pretraining.name}"
    assert config.name != pretraining.name
    assert f"configs/pretrain/{source}_vit_base.yaml" in FILES[name].read_text()
    assert (config.model.image_size, config.model.num_frames) == (
        pretraining.model.image_size,
        pretraining.model.num_frames,
    )


def test_run_names_differ():
    names = {load_finetune_config(path).name for path in FILES.values()}
    assert len(names) == len(FILES)
    assert not names & {load_config(p).name for p in CONFIGS.glob("pretrain/*.yaml")}


@pytest.mark.parametrize("name", TRANSFERS)
def test_a_transfer_differs_in_its_encoder_only(name):
    own, transfer = (FILES[n].read_text().splitlines() for n in (name.split("_")[0], name))
    keys = [[line for line in lines if line and line[0] != "#"] for lines in (own, transfer)]
    differing = [b.split(":")[0] for a, b in zip(*keys, strict=True) if a != b]
    assert differing == ["name", "init_from"]


@pytest.mark.parametrize("path", FILES.values(), ids=lambda path: path.stem)
def test_every_number_names_its_source(path):
    for line in path.read_text().splitlines():
        if line.startswith(("  ", "init_from")):
            assert "  # [V]" in line or "  # [D]" in line, line


@pytest.mark.parametrize("name", ["hmdb51", "hmdb51_from_kinetics400"])
def test_what_is_from_memory_says_so(name):
    lines = FILES[name].read_text().splitlines()
    marked = {line.split(":")[0].strip() for line in lines if "from memory: check" in line}
    assert marked >= {"base_lr", "batch_size", "epochs", "layer_decay", "drop_path", "clips"}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_each_file_is_for_one_command(path):
    right, wrong, command = load_config, load_finetune_config, "pretrain"
    if path.parent == FINETUNE:
        right, wrong, command = wrong, right, "finetune"
    right(path)
    with pytest.raises(ConfigError) as caught:
        wrong(path)
    assert f"a key of tats-fast {command} alone" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ssv2", "ucf101"])
def test_a_recipe_trains_and_is_tested(name, demo_clips, tmp_path):
    """Segments and windows: the file itself with a small encoder, one step on real videos."""
    train, held_out = write_labelled(demo_clips, tmp_path)
    write_run(tmp_path / "encoder", tats_fast.create_model("vit_tiny", **TINY_MODEL))
    settings = {
        "init_from": tmp_path / "encoder",
        "output_dir": tmp_path,
        "device": "cpu",
        "model.image_size": 32,
        "model.num_frames": 8,
        "data.train": train,
        "data.eval": held_out,
        "data.workers": 0,
        "train.batch_size": 4,
        "train.accumulation": 2,
        "train.steps": 1,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    config = load_finetune_config(FILES[name], overrides)
    run = Finetuner(config, World(0, 1, torch.device("cpu")))
    words = "batch 4 = 1 processes x 2 micro-batches x 2 videos, 2 clip(s) of each;"
    assert words in "\n".join(run.describe())
    run.run()
    assert (run.folder / "evaluation" / "evaluation.json").exists()
    [trained], [tested] = (
        [json.loads(line) for line in (run.folder / file).read_text().splitlines()]
        for file in ("metrics.jsonl", "eval.jsonl")
    )
    assert tested["views"] == 3 * ALL[name].clips
    explained = (ROOT / "docs" / "metrics.md").read_text()
    assert [key for key in {**trained, **tested} if f"| `{key}` |" not in explained] == []
