"""Configuration: strict, typed, and every field is read."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from tats_fast.config import ConfigError, FinetuneConfig, RunConfig, load_config, save_config
from tats_fast.config.presets import PRESETS
from tats_fast.config.reading import build_config, to_dict

ROOT = Path(__file__).resolve().parent.parent.parent


def test_presets_and_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model:\n  preset: vit_small\n  depth: 3\ntrain:\n  steps: 5\n")
    config = load_config(path, ["train.steps=7", "optim.base_lr=1e-3", "data.scales=[1, 0.5]"])
    assert (config.model.width, config.model.depth, config.model.heads) == (384, 3, 6)
    assert config.train.steps == 7
    assert config.optim.base_lr == 1e-3  # YAML 1.1 reads "1e-3" as text
    assert config.data.scales == (1.0, 0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
    tokens = {"vit_giant": 2048}.get(preset, 1568)  # of 14 and 16 pixels a side
    assert build_config({"model": {"preset": preset}}).model.num_tokens == tokens


def test_resolved_config_round_trips(tmp_path):
    config = load_config(None, ["model.preset=vit_tiny", "masking.ratio=0.8", "train.steps=3"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert build_config(to_dict(config)) == config


BAD = {
    "masking.ratio=1.2": "masking.ratio=1.2: must be at least 0 and below 1",
    "model.image_size=225": "multiple of model.patch_size=16, for example 224",
    "model.num_frames=15": "multiple of model.tubelet_size=2, for example 16",
    "model.heads=7": "model.width=768: must be a multiple of model.heads=7, for example 770",
    "sampler.heads=7": "sampler.heads=7: must divide model.width=768",
    "data.repeats=3": "train.batch_size=256: must be divisible by data.repeats=3, for example 255",
    "data.repeats=0": "data.repeats=0",
    "data.timeout_s=0": "data.timeout_s=0",
    "data.backend=decord": "data.backend",
    "train.accumulation=3": "train.batch_size=256: must be divisible by train.accumulation=3",
    "masking.ratio=0.9999": "leaves 0 of 1568 tokens visible",
    "masking.ratio=0": "leaves 1568 of 1568 tokens visible",
    "train.bach_size=3": "train.bach_size=3: unknown key; did you mean train.batch_size?",
    "trian.steps=3": "did you mean train?",
    "masking.strategy=tast": "must be one of random, tube, frame, motion, motion_bins, everest, ",
    "train.steps=many": "train.steps=many: must be a whole number",
    "train.steps=2.5": "train.steps=2.5: must be a whole number",
    "data.flip=1": "data.flip=1: must be true or false",
    "optim.base_lr=fast": "optim.base_lr=fast: must be a number",
    "optim.base_lr=-1": "optim.base_lr=-1.0: must be above 0",
    "optim.base_lr=.nan": "optim.base_lr=nan: must be above 0",
    "optim.betas=[0.9]": "must be two numbers, such as",
    "data.scales=[1.5]": "data.scales=1.5: must be above 0 and at most 1",
    "distributed.zero_stage=4": "distributed.zero_stage=4: must be at least 0 and at most 3",
    "generated.share=1.5": "generated.share=1.5: must be at least 0 and at most 1",
    "generated.share=1": "train.steps=None: generated.share=1 leaves no list",
    "generated.area=0.6": "generated.area=0.6: must be at least 0.02 and at most 0.5",
    "generated.task=fly": "generated.task=fly: must be one of pan, object, spin",
    "ppo.epochs=0": "ppo.epochs=0: must be at least 1",
    "ppo.advantage_clip=.inf": "ppo.advantage_clip=inf: must be finite and above 0",
    "optim.grad_clip=.inf": "optim.grad_clip=inf: must be finite and at least 0",
    "masking.schedule=linear": "needs masking.start_ratio",
    "masking.start_ratio=0.5": "needs masking.schedule=linear or cosine",
    "model.preset=vit_gigantic": "model.preset=vit_gigantic: must be one of vit_tiny",
    "name=a/b": "must be a plain folder name",
    "model=5": "model=5: is a group of keys",
    "steps": "an override is key=value",
    "seed.x=1": "seed.x=1: unknown key|seed=",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_values_are_one_clear_line(override):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert any(part in message for part in BAD[override].split("|")), message
    assert "\n" not in message


def test_a_tube_needs_more_than_one_place():
    overrides = ["masking.ratio=0.5", "model.image_size=16"]
    load_config(None, overrides)
    with pytest.raises(ConfigError, match=r"masking\.strategy=tube: .* would hide nothing"):
        load_config(None, [*overrides, "masking.strategy=tube"])


@pytest.mark.parametrize(
    ("overrides", "reward"),
    [
        ([], "sparse_change"),
        (["ppo.reward=error"], "error"),
        (["ppo.credit=set"], "error"),
        (["model.tubelet_size=1"], "error"),
        (["teacher.init_from=folder"], "error"),
        (["teacher.init_from=folder", "ppo.reward=change_error"], "change_error"),
    ],
    ids=str,
)
def test_the_reward_that_a_run_has_is_the_one_it_says(overrides, reward):
    assert load_config(None, overrides).ppo.reward == reward


def test_adamae_has_the_attention_of_its_authors():
    def attention(*overrides):
        return load_config(None, [f"masking.strategy={overrides[0]}", *overrides[1:]]).sampler

    assert [attention(name).attention for name in ("tats", "adamae")] == ["trajectory", "joint"]
    assert attention("adamae", "sampler.attention=trajectory").attention == "trajectory"


def test_the_error_of_pixels_that_nothing_trains_is_no_reward():
    alone = ["teacher.init_from=folder", "teacher.pixels=0"]
    assert load_config(None, alone).ppo.reward == "error"
    with pytest.raises(ConfigError, match=r"ppo\.reward=change_error: .*teacher\.pixels=0"):
        load_config(None, [*alone, "ppo.reward=change_error"])


@pytest.mark.parametrize(
    "override",
    ["masking.strategy=motion", "masking.strategy=motion_bins"]
    + [f"ppo.reward={reward}" for reward in ("change_error", "sparse_change", "error_motion")],
)
def test_tokens_of_one_frame_have_no_motion_to_look_for(override):
    """Rewards and ranks would be 0 for all, and nobody would be told."""
    load_config(None, [override])
    with pytest.raises(ConfigError, match=rf"{override}: .*model\.tubelet_size=1"):
        load_config(None, ["model.tubelet_size=1", override])
    budget = ["masking.budget=adaptive", "masking.budget_by=motion"]
    with pytest.raises(ConfigError, match=r"masking\.budget_by=motion: .*model\.tubelet_size=1"):
        load_config(None, ["model.tubelet_size=1", "ppo.reward=error", *budget])
    load_config(None, ["model.tubelet_size=1", "ppo.reward=error"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: [1, 2]", "train=[1, 2]: is a group of keys"),
        ("train: {steps: 1, steps: 2}", "steps: given twice"),
        ("train: {steps: 1", "not valid YAML near line"),
        ("- a\n- b", "expected keys with values at the top level"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, text, expected):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"config file nowhere.yaml: No such file"):
        load_config("nowhere.yaml")


def test_world_size_must_divide_the_batch():
    config = load_config(None, ["train.batch_size=6", "train.accumulation=2"])
    config.check_world_size(3)
    with pytest.raises(
        ConfigError, match=r"train\.batch_size=6: must be divisible by world size 2"
    ):
        config.check_world_size(2)


def fields(cls: type, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, field name) of every leaf."""
    found = []
    for item in dataclasses.fields(cls):
        default = item.default_factory() if callable(item.default_factory) else None
        if dataclasses.is_dataclass(default):
            found += fields(type(default), f"{prefix}{item.name}.")
        else:
            found.append((prefix + item.name, item.name))
    return found


def test_every_field_is_read_outside_the_schema():
    read = set()
    for path in ROOT.glob("tats_fast/**/*.py"):
        if path.parent.name == "config" and path.name != "load.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    # mlp_ratio, heads, ...: an attribute of that name; the preset is read while loading.
    known = fields(RunConfig) + fields(FinetuneConfig)
    unread = [name for name, leaf in known if leaf not in read and leaf != "preset"]
    assert not unread, f"fields nobody reads: {unread}"


def test_every_field_is_documented():
    names = ("schema", "training", "finetune", "generated")
    trees = [ast.parse((ROOT / f"tats_fast/config/{name}.py").read_text()) for name in names]
    for cls in (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)):
        for here, following in zip(cls.body, [*cls.body[1:], None], strict=True):
            whole = cls.name in ("RunConfig", "FinetuneConfig")  # their fields are sections
            if isinstance(here, ast.AnnAssign) and not whole and here.target.id != "section":
                is_doc = isinstance(following, ast.Expr) and isinstance(
                    following.value, ast.Constant
                )
                assert is_doc, f"{cls.name}.{here.target.id} has no docstring"
