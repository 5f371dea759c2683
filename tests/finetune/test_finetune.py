"""Fine-tuning on real video files: learns, generalises, resumes bit by bit, and its details."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from labelled_files import NAMES, write_frames, write_labelled
from models_exchanged import write_run
from project import TINY_MODEL
from run_checks import RefuseToWait, assert_identical, weights

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError, load_finetune_config
from tats_fast.data.labels import class_ids
from tats_fast.data.lists import read_videos
from tats_fast.engine.distributed import World
from tats_fast.engine.finite import NonFiniteLoss
from tats_fast.finetune.step import augmented, finetune_step
from tats_fast.finetune.trainer import Finetuner
from tats_fast.recognition.scores import Views, class_scores

CPU = World(0, 1, torch.device("cpu"))
PLAIN = ["augment.rand_ops=0", "augment.erase=0", "augment.mixup=0", "augment.cutmix=0"]
EXACT = [*PLAIN, "augment.smoothing=0", "model.drop_path=0"]


@pytest.fixture(scope="module")
def labelled(demo_clips, tmp_path_factory):
    """Lists of a tiny labelled set."""
    return write_labelled(demo_clips, tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run with one checkpoint of a tiny autoencoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    write_run(folder, tats_fast.create_model("vit_tiny", **TINY_MODEL))
    return folder


@pytest.fixture
def config(labelled, pretrained, tmp_path):
    def make(*overrides, name="run", steps=6):
        train, held_out = labelled
        settings = {
            "name": name,
            "output_dir": tmp_path,
            "device": "cpu",
            "init_from": pretrained,
            "data.train": train,
            "data.eval": held_out,
            "data.stride": 1,
            "data.workers": 0,
            "data.clips": 2,
            "optim.base_lr": 0.064,
            "train.precision": "fp32",
            "optim.layer_decay": 0.9,
            "train.batch_size": 8,
            "train.steps": steps,
            "train.log_every": 2,
            "train.checkpoint_every": 2,
            "train.eval_epochs": 0,
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        return load_finetune_config(None, [*lines, *overrides])

    return make


def top1(classifier, path):
    """Share of a list's videos whose class is predicted right, one view each."""
    videos = read_videos(path)
    views = Views(stride=1, clips=1, crops=1)
    scored = class_scores(classifier, videos, views, batch_size=8, workers=1, timeout=60)
    true = class_ids(videos, classifier.classes)
    return (scored.probabilities.argmax(1) == true).float().mean().item()


def test_overfits_and_generalises(config, labelled, tmp_path):
    run = Finetuner(config(*PLAIN, "data.area=[0.5,1]", "data.flip=true", steps=160), CPU)
    run.run()
    classifier = tats_fast.load_classifier(tmp_path / "run")
    assert classifier.classes == NAMES
    train, held_out = labelled
    assert top1(classifier, train) == 1.0
    assert top1(classifier, held_out) >= 0.75  # parts of the same clips, never seen; chance .25
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["train_top1"] > 0.9
    assert rows[-1]["epoch"] == 160 * 8 / 16


@pytest.mark.parametrize(
    "extra", [[], ["train.ema_decay=0.8"], ["data.repeats=2", "data.stride=0"]]
)
def test_resume_is_bit_identical(config, tmp_path, extra):
    """With drop path, mixing and RandAugment, all of which draw."""
    Finetuner(config(*extra, "model.head_dropout=0.5", name="straight"), CPU).run()
    halves = config(*extra, "model.head_dropout=0.5", name="halves")
    Finetuner(halves, CPU).run()
    # Take the run back to its middle, as a kill after step 4 would have left it.
    (tmp_path / "halves" / "checkpoints" / "step_000006").rename(tmp_path / "taken_away")
    torch.manual_seed(999)
    second = Finetuner(halves, CPU)
    assert second.position.step == 4
    second.run()
    assert_identical(weights(tmp_path / "straight", 6), weights(tmp_path / "halves", 6))


def test_a_resumed_run_has_its_classes_in_their_order(config, tmp_path):
    """Otherwise the head would go on with other labels, and nothing would say so."""
    Finetuner(config(), CPU).run()
    (tmp_path / "classes.txt").write_text("\n".join(reversed(NAMES)) + "\n")
    again = config(f"data.classes={tmp_path / 'classes.txt'}")
    with pytest.raises(ConfigError, match=f"class 0 is {NAMES[0]}.*now {NAMES[-1]}.*name="):
        Finetuner(again, CPU)


def test_accumulation_changes_nothing(config, tmp_path):
    for name, pieces in (("whole", 1), ("pieces", 4)):
        Finetuner(config(*EXACT, f"train.accumulation={pieces}", name=name), CPU).run()
    whole, pieces = (weights(tmp_path / name, 6)["model"] for name in ("whole", "pieces"))
    for name, value in whole["classifier"].items():
        torch.testing.assert_close(pieces["classifier"][name], value, rtol=1e-3, atol=1e-5)


def test_average_follows_the_weights_and_is_the_model(config, tmp_path):
    run = Finetuner(config("train.ema_decay=0.8"), CPU)
    assert run.describe()[-1].endswith("26% of it will be starting weights")  # .8 ** 6
    expected = {name: p.detach().clone() for name, p in run.learner.module.named_parameters()}
    step = run.train_step

    def follow(batches):
        metrics = step(batches)
        for name, parameter in run.learner.module.named_parameters():
            expected[name] = 0.8 * expected[name] + 0.2 * parameter.detach()
        return metrics

    run.train_step = follow
    run.run()
    saved = weights(tmp_path / "run", 6)
    raw = dict(run.learner.module.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(saved["model"]["classifier"][name], value, rtol=1e-5, atol=1e-7)
        assert torch.equal(saved["trainer"]["weights"][name], raw[name])
    assert not torch.equal(saved["model"]["classifier"]["head.weight"], raw["head.weight"])


def test_last_evaluation_is_the_commands(config, tmp_path):
    """All views after the last step; ``tats-fast evaluate`` on the run finds the same."""
    Finetuner(config("train.eval_epochs=1"), CPU).run()
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [(row["step"], row["views"]) for row in rows] == [(2, 1), (4, 1), (6, 6)]
    first = (run / "evaluation" / "predictions.csv").read_text()
    assert main(["evaluate", "--checkpoint", str(run), "--device", "cpu"]) == 0
    assert (run / "evaluation" / "predictions.csv").read_text() == first
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert record["accuracy"]["top1"] == rows[-1]["top1"]


def test_a_stand_in_brings_its_own_label(config, tmp_path, monkeypatch):
    """Videos of one grey level per class, one of them unreadable: whatever stands in for it, level
    and label go together."""
    lines = []
    for number in range(4):
        path = tmp_path / f"{number}.mp4"
        write_frames(path, [np.full((64, 64, 3), 40 + 50 * number, np.uint8)] * 12)
        lines.append(f"{path}\tlevel{number}")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((tmp_path / "0.mp4").read_bytes()[:100])
    lines.append(f"{broken}\tlevel0")
    listed = tmp_path / "grey.txt"
    listed.write_text("\n".join(lines) + "\n")
    run = Finetuner(
        config(f"data.train={listed}", "data.eval=null", "data.repeats=2", steps=20), CPU
    )
    seen = []

    def look(learner, clips, labels, step, lr):
        for batch, label in zip(clips, labels, strict=True):
            levels = batch.float().mean(dim=(1, 2, 3, 4)).unflatten(0, (-1, 2))
            seen.extend(zip(levels.tolist(), label.tolist(), strict=True))
        return {"loss": torch.zeros(()), "train_top1": torch.zeros(()), "skipped": torch.zeros(())}

    monkeypatch.setattr("tats_fast.finetune.trainer.finetune_step", look)
    run.run()
    assert run.position.skipped_clips > 10  # the stand-in happened
    for levels, label in seen:
        assert levels == pytest.approx([40 + 50 * label] * 2, abs=3)


def learner(config, *overrides):
    return Finetuner(config(*overrides), CPU).learner


def test_every_frame_is_augmented_alike(config):
    """A still clip stays still through RandAugment, mixup and cutmix."""
    still = torch.randint(0, 256, (6, 1, 32, 32, 3), dtype=torch.uint8).expand(-1, 8, -1, -1, -1)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    made = learner(config, "augment.erase=0")
    plain, changed = learner(config, *PLAIN), 0
    for seed in range(5):
        made.generator.manual_seed(seed)
        video, targets = augmented(made, still, labels, np.random.default_rng(seed))
        assert torch.equal(video, video[:, :, :1].expand_as(video))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        changed += not torch.equal(video, augmented(plain, still, labels, None)[0])
    assert changed == 5


def test_repeats_carry_their_videos_label(config):
    made = learner(config, *PLAIN, "augment.smoothing=0.2")
    clips = torch.zeros(6, 8, 32, 32, 3, dtype=torch.uint8)
    _, targets = augmented(made, clips, torch.tensor([3, 0, 2]), np.random.default_rng(0))
    assert targets.argmax(1).tolist() == [3, 3, 0, 0, 2, 2]
    assert targets.max(1).values.tolist() == pytest.approx([0.85] * 6)  # .8 + .2 / 4


def test_class_weights_balance_the_loss(config, labelled, tmp_path):
    lines = labelled[0].read_text().splitlines()
    uneven = tmp_path / "uneven.txt"
    uneven.write_text("\n".join(lines[:4] + lines[4:5] + lines[8:10] + lines[12:13]) + "\n")
    made = learner(config, f"data.train={uneven}", "augment.class_weights=balanced", *EXACT)
    # 8 videos of 4 classes with 4, 1, 2 and 1.
    assert made.class_weights.tolist() == [0.5, 2.0, 1.0, 2.0]
    clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3])
    metrics = finetune_step(made, [clips], [labels], 0, 0.0)
    # The head starts with nearly equal logits: log 4 per clip, times the mean weight 5.5 / 4.
    assert metrics["loss"].item() == pytest.approx(1.375 * np.log(4), rel=1e-2)


def test_layers_learn_at_their_rates(config):
    made = learner(config, "optim.layer_decay=0.5")
    clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8)
    finetune_step(made, [clips], [torch.tensor([0, 1, 2, 3])], 0, 0.8)
    rates = {
        id(parameter): group["lr"]
        for group in made.runner.optimizer.param_groups
        for parameter in group["params"]
    }
    names = ("encoder.embed.proj.weight", "encoder.blocks.0.mlp.fc1.bias", "head.weight")
    parameters = dict(made.module.named_parameters())
    # Depth 2: the head 1, the blocks 0.5 and 0.25, the embedding 0.125 of the rate.
    assert [rates[id(parameters[n])] for n in names] == pytest.approx([0.1, 0.2, 0.8])


def test_non_finite_losses_are_skipped_then_stop(config, tmp_path):
    run = Finetuner(config("train.max_skipped=3", "train.ema_decay=0.5"), CPU)
    before = {name: p.detach().clone() for name, p in run.learner.module.named_parameters()}
    for value in run.learner.average.values.values():
        value.add_(1)  # so that a step would move it
    forward = run.learner.runner.forward
    run.learner.runner.forward = lambda video: forward(video) * float("nan")
    with pytest.raises(NonFiniteLoss, match="3 steps in a row"):
        run.run()
    for name, parameter in run.learner.module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(run.learner.average.values[name], before[name] + 1)
    assert len((tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()) == 3


def test_bf16_computes_near_fp32_and_keeps_fp32_weights(config):
    clips = [torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8)]
    losses = []
    for precision in ("fp32", "bf16"):
        made = learner(config, *EXACT, f"train.precision={precision}")
        torch.nn.init.normal_(made.module.head.weight)  # else every loss is log 4
        metrics = finetune_step(made, clips, [torch.tensor([0, 1, 2, 3])], 0, 1e-3)
        losses.append(metrics["loss"].item())
        assert {p.dtype for p in made.module.parameters()} == {torch.float32}
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


def test_no_step_waits_for_the_device(config, monkeypatch):
    """Nor copies Python numbers there, which on a GPU waits for all that is queued."""
    tensor = torch.tensor

    def from_host(*args, device=None, **kwargs):
        assert device is None, "torch.tensor(..., device=...) waits for a GPU"
        return tensor(*args, **kwargs)

    made = learner(config, "train.ema_decay=0.9", "optim.grad_clip=1", "train.accumulation=2")
    clips = [torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8) for _ in range(2)]
    labels = [torch.tensor([0, 1]), torch.tensor([2, 3])]  # two clips of each video
    monkeypatch.setattr(torch, "tensor", from_host)
    with RefuseToWait():
        finetune_step(made, clips, labels, 0, 0.1)


def test_starts_from_nothing_by_preset(config):
    made = Finetuner(
        config("init_from=null", "model.preset=vit_tiny", "model.image_size=32"), CPU
    ).learner
    sizes = made.module.encoder.config
    assert (sizes.width, sizes.depth, sizes.image_size, sizes.num_frames) == (192, 12, 32, 16)


def test_takes_the_encoder_at_another_clip_size(config, pretrained):
    made = learner(config, "model.image_size=48", "model.num_frames=4")
    assert made.module.encoder.config.num_tokens == 2 * 36
    expected = tats_fast.load_encoder(pretrained).state_dict()
    for name, value in made.module.encoder.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["data.train=null"], "data.train=None"),
        (["init_from=null"], "init_from=None: give a pretrained run"),
        (["init_from=no/such/run"], "init_from=no/such/run"),
        (["model.image_size=33"], "for example 32"),
        (["data.classes=no/such/file"], "data.classes=no/such/file: No such file"),
        (["model.attention=flash"], "FlashAttention runs on CUDA only"),
    ],
)
def test_bad_settings_stop_before_any_work(config, tmp_path, overrides, part):
    with pytest.raises(ConfigError) as caught:
        Finetuner(config(*overrides), CPU)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.preset=vit_base", "init_from has its own sizes"),
        ("data.area=[1,0.5]", "data.area=[1.0, 0.5]: must be two numbers"),
        ("data.stride=-1", "data.stride=-1: must be at least 0"),
        ("augment.mixup=0.01", "augment.mixup=0.01: 0, or 0.1 to 2"),
        ("optim.layer_decay=0", "optim.layer_decay=0.0: must be above 0"),
        ("train.ema_decay=1", "train.ema_decay=1.0: must be at least 0 and below 1"),
        ("train.accumulation=3", "train.batch_size=8: must be divisible by train.accumulation=3"),
        ("data.repeat=2", "data.repeat=2: unknown key; did you mean data.repeats?"),
        ("masking.ratio=0.9", "masking={'ratio': 0.9}: a key of tats-fast pretrain alone"),
    ],
)
def test_impossible_values_are_one_clear_line(config, override, part):
    with pytest.raises(ConfigError) as caught:
        config(override)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_labels_must_fit(config, labelled, tmp_path):
    names = tmp_path / "classes.txt"
    listed = tmp_path / "list.txt"
    lines = labelled[0].read_text().splitlines()
    listed.write_text("\n".join(line.split("\t")[0] for line in lines))
    with pytest.raises(ConfigError, match=r"data\.train: .* has no label"):
        Finetuner(config(f"data.train={listed}"), CPU)
    listed.write_text("\n".join(lines[:3]))
    with pytest.raises(ConfigError, match=r"data\.train: every label is hmdb51_climb"):
        Finetuner(config(f"data.train={listed}", "data.eval=null"), CPU)
    listed.write_text("\n".join(lines[:8]))
    with pytest.raises(ConfigError, match=r"data\.eval: the label surveillance"):
        Finetuner(config(f"data.train={listed}"), CPU)
    names.write_text("\n".join(NAMES[:3]) + "\n")
    with pytest.raises(ConfigError, match="surveillance_nofi086"):
        Finetuner(config(f"data.classes={names}"), CPU)
    names.write_text("one\none\n")
    with pytest.raises(ConfigError, match="one appears twice"):
        Finetuner(config(f"data.classes={names}"), CPU)


def test_classes_beside_the_list_are_taken(config, labelled, tmp_path):
    """As ``tats-fast prepare`` leaves them: integer labels, and a class without training video."""
    lines = [line.split("\t") for line in labelled[0].read_text().splitlines()]
    listed = tmp_path / "train.txt"
    listed.write_text("\n".join(f"{path}\t{1 + NAMES.index(name)}" for path, name in lines))
    (tmp_path / "classes.txt").write_text("nothing\n" + "\n".join(NAMES) + "\n")
    run = Finetuner(config(f"data.train={listed}", "data.eval=null"), CPU)
    assert run.learner.module.classes == ("nothing", *NAMES)
    assert run.labels.unique().tolist() == [1, 2, 3, 4]
    assert "names from" in "\n".join(run.describe())


def test_other_kinds_of_checkpoint_are_refused_in_one_line(config, pretrained, tmp_path, capsys):
    with pytest.raises(ConfigError, match="no checkpoint of tats-fast finetune"):
        Finetuner(config(f"train.resume={pretrained}"), CPU)
    Finetuner(config(name="run"), CPU).run()
    arguments = [f"data.train={tmp_path}", f"output_dir={tmp_path}", "name=run", "device=cpu"]
    sizes = [f"model.{key}={value}" for key, value in TINY_MODEL.items()]
    write_frames(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 9)
    assert main(["pretrain", *arguments, *sizes]) == 2
    assert "no checkpoint of tats-fast pretrain" in capsys.readouterr().err
