"""Every wrong input that a user may give to every command: one line on stderr, exit code 1 or 2, no
traceback, and nothing written."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import string
from pathlib import Path

import pytest
import torch
import yaml
from project import ROOT, TINY_MODEL

from tats_fast.cli import main

PRETRAIN = "pretrain --config $run "
FINETUNE = "finetune --config $tune "
PROBE = "probe --checkpoint $pre --train $labels --eval $labels --out new "
EVALUATE = "evaluate --checkpoint $fine --list $labels --out new "
EXTRACT = "extract-features --checkpoint $pre --videos $clips --out new "
VISUALIZE = "visualize --checkpoint $pre --video $clip --out new "
PREPARE = "prepare ucf101 --annotations $empty --videos $clips --out new "
VERIFY = "verify --list $labels --out new "
BENCHMARK = "make-benchmark motion --out new "
EXPORT = "export --checkpoint $pre --to huggingface --out new "

# A command line (the last value of an option counts), and what its one line must say.
CASES = [
    ("", "the following arguments are required: command"),
    ("pretrian", "invalid choice: 'pretrian'"),
    ("pretrain --confg x", "unrecognized argument: --confg"),
    ("doctor now", "unrecognized argument: now"),
    # configuration files
    ("pretrain --config gone.yaml", "config file gone.yaml: No such file or directory"),
    ("pretrain --config quickstrat", "did you mean quickstart?"),
    ("pretrain --config $empty", "Is a directory"),
    ("pretrain --config $binary", "not a text file"),
    ("pretrain --config $notyaml", "not valid YAML near line 3"),
    ("pretrain --config $list_yaml", "expected keys with values at the top level"),
    ("pretrain --config $twice_yaml", "seed: given twice (line 1)"),
    ("pretrain --config $empty_file", "data.train=None: give a list file"),
    ("pretrain --config $tune", "augment="),
    ("finetune --config $run", "a key of tats-fast pretrain alone"),
    # settings
    (PRETRAIN + "steps", "an override is key=value"),
    (PRETRAIN + "train.stepz=3", "train.stepz=3: unknown key; did you mean train.steps?"),
    (PRETRAIN + "steps=3", "did you mean train.steps?"),
    (PRETRAIN + "train.steps=-1", "train.steps=-1: must be at least 1"),
    (PRETRAIN + "train.steps=many", "train.steps=many: must be a whole number"),
    (PRETRAIN + "train.steps=1.5", "train.steps=1.5: must be a whole number"),
    (PRETRAIN + "train.steps=true", "train.steps=True: must be a whole number"),
    (PRETRAIN + "train.steps=[", "not a readable value"),
    (PRETRAIN + "data.flip=maybe", "data.flip=maybe: must be true or false"),
    (PRETRAIN + "masking.ratio=1.5", "masking.ratio=1.5"),
    (PRETRAIN + "masking.ratio=.nan", "masking.ratio=nan"),
    (PRETRAIN + "masking.strategy=tatz", "did you mean tats?"),
    (PRETRAIN + "model=3", "model=3: is a group of keys"),
    (PRETRAIN + "model.preset=vit_gigantic", "model.preset=vit_gigantic"),
    (PRETRAIN + "model.heads=3", "model.heads=3"),
    (PRETRAIN + "model.image_size=33", "model.image_size=33"),
    (PRETRAIN + "optim.betas=[.9]", "must be two numbers"),
    (PRETRAIN + "optim.base_lr=-1", "optim.base_lr=-1.0: must be above 0"),
    (PRETRAIN + "train.loggers=tensorbord", "must be one of tensorboard, wandb, mlflow"),
    (PRETRAIN + "train.precision=fp8", "train.precision=fp8"),
    (PRETRAIN + "train.accumulation=3", "train.batch_size=2: must be divisible by"),
    (PRETRAIN + "seed=-1", "seed=-1: must be 0 or more"),
    (PRETRAIN + "name=a/b", "name='a/b': must be a plain folder name"),
    (PRETRAIN + "device=tpu", "device=tpu: must be one of auto, cpu, cuda"),
    (PRETRAIN + "device=cuda", "cuda"),
    (PRETRAIN + "generated.share=2", "generated.share=2.0"),
    (PRETRAIN + "eval.probe_every=1", "eval.probe_train=None"),
    (PRETRAIN + "distributed.zero_stage=4", "distributed.zero_stage=4"),
    # data
    (PRETRAIN + "data.train=null", "data.train=None: give a list file"),
    (PRETRAIN + "data.train=gone.txt", "data.train=gone.txt: no such file"),
    (PRETRAIN + "data.train=$empty_file", "lists no video"),
    (PRETRAIN + "data.train=$empty", "no video in this folder or below"),
    (PRETRAIN + "data.train=$clip", "not a text file; give a list file or a folder"),
    (PRETRAIN + "data.train=$lost", "none of 2 listed paths exists"),
    (PRETRAIN + "data.train=gone-{0..3}.tar", "no such file: gone-0.tar and 3 more"),
    (PRETRAIN + "data.train=$no_tar", "is no tar file"),
    (PRETRAIN + "'data.train=[{list: a, wieght: 1}]'", "did you mean data.train[0].weight?"),
    (PRETRAIN + "'data.train=[{list: gone.txt}]'", "data.train=gone.txt: no such file"),
    (PRETRAIN + "data.root=gone", "data.root=gone: no such folder"),
    (PRETRAIN + "data.root=$clip", "no such folder"),
    (PRETRAIN + "data.eval=gone.txt", "data.eval=gone.txt: no such file"),
    (PRETRAIN + "data.quarantine=gone.txt", "data.quarantine=gone.txt"),
    (PRETRAIN + "data.backend=gpu", "data.backend=gpu: must be one of auto, dali, pyav"),
    (PRETRAIN + "data.workers=-1", "data.workers=-1: must be at least 0"),
    (PRETRAIN + "data.stride=0", "data.stride=0: must be at least 1"),
    (PRETRAIN + "data.fps=8", "set data.stride=null"),
    (PRETRAIN + "data.stride=null data.fps=-8", "data.fps=-8.0: must be above 0"),
    # where to write, where from
    (PRETRAIN + "output_dir=$text", "text.txt is a file; give a folder"),
    (PRETRAIN + "output_dir=/proc/runs", "/proc/runs"),
    (PRETRAIN + "train.resume=gone", "train.resume=gone"),
    (PRETRAIN + "train.resume=$fine_step", "train.resume="),
    (PRETRAIN + "train.resume=$hurt_step", "damaged"),
    (PRETRAIN + "train.init_from=gone", "train.init_from=gone"),
    (PRETRAIN + "train.init_from=$text", "text.txt: no file of torch.save"),
    (PRETRAIN + "train.init_from=$hurt", "damaged"),
    # fine-tuning
    (FINETUNE + "init_from=gone", "init_from=gone"),
    (FINETUNE + "init_from=$hurt", "damaged"),
    (FINETUNE + "init_from=$binary", "binary.pt: no file of torch.save"),
    (FINETUNE + "model.preset=vit_tiny", "init_from has its own sizes"),
    (FINETUNE + "masking.ratio=.5", "a key of tats-fast pretrain alone"),
    (FINETUNE + "data.train=$unlabelled", "has no label"),
    (FINETUNE + "data.train=$one_class", "expected two or more"),
    (FINETUNE + "data.eval=$strange", "the label jump does not occur in data.train"),
    (FINETUNE + "data.eval=$fractional", "does not occur in data.train"),
    (FINETUNE + "data.eval=$negative", "the label -1 does not occur in data.train"),
    (FINETUNE + "data.classes=gone.txt", "data.classes=gone.txt"),
    (FINETUNE + "data.classes=$one_name", "expected two or more lines"),
    (FINETUNE + "augment.mixup=5", "augment.mixup=5"),
    (FINETUNE + "data.area=[1,.5]", "the lesser first"),
    (FINETUNE + "train.resume=$pre_step", "train.resume="),
    # probe
    ("probe --train $labels --eval $labels", "the following arguments are required: --checkpoint"),
    (PROBE + "--checkpoint gone", "gone"),
    (PROBE + "--checkpoint $empty", "neither a checkpoint folder"),
    (PROBE + "--checkpoint $text", "text.txt"),
    (PROBE + "--checkpoint $hurt", "damaged"),
    (PROBE + "--train gone.txt", "--train=gone.txt: no such file"),
    (PROBE + "--train $unlabelled", "has no label"),
    (PROBE + "--train $one_class", "expected two or more"),
    (PROBE + "--eval $strange", "the label jump does not occur in train"),
    (PROBE + "--kinds svm", "--kinds=svm: must be one of"),
    (PROBE + "--stride -1", "--stride=-1: must be at least 0"),
    (PROBE + "--stride 2 --fps 8", "--fps=8.0: frames are taken by time or every --stride=2"),
    (PROBE + "--stride two", "argument --stride: invalid int value: 'two'"),
    (PROBE + "--batch-size 0", "--batch-size=0: must be at least 1"),
    (PROBE + "--timeout nan", "--timeout=nan: must be above 0"),
    (PROBE + "--device tpu", "invalid choice: 'tpu'"),
    (PROBE + "--device cuda", "cuda"),
    (PROBE + "--out $text", "--out="),
    (PROBE + "--root gone", "--root=gone: no such folder"),
    # evaluate
    (EVALUATE + "--checkpoint gone", "gone"),
    (EVALUATE + "--checkpoint $pre", "checkpoint"),
    (EVALUATE + "--checkpoint $hurt", "damaged"),
    (EVALUATE + "--list gone.txt", "--list=gone.txt: no such file"),
    (EVALUATE + "--list $unlabelled", "has no label"),
    (EVALUATE + "--list $strange", "the label jump of"),
    (EVALUATE + "--list $fractional", "the label 0.5 of"),
    (EVALUATE + "--list $negative", "the label -1 of"),
    (EVALUATE + "--list $beyond", "the label 7 of"),
    (EVALUATE + "--clips 0", "--clips=0: must be at least 1"),
    (EVALUATE + "--out $text", "--out="),
    # extract-features
    (EXTRACT + "--checkpoint gone", "gone"),
    (EXTRACT + "--videos gone", "--videos=gone: no such file"),
    (EXTRACT + "--videos $empty_file", "lists no video"),
    (EXTRACT + "--videos $clip", "not a text file"),
    (EXTRACT + "--format pickle", "invalid choice: 'pickle'"),
    (EXTRACT + "--hop 0", "--hop=0: must be at least 1"),
    (EXTRACT + "--hop 2 --stride 0", "leave one of them out"),
    (EXTRACT + "--out $text", "text.txt"),
    (EXTRACT + "model.width=64", "model.width=64"),
    # visualize
    (VISUALIZE + "--checkpoint gone", "gone"),
    (VISUALIZE + "--checkpoint $fine", "checkpoint"),
    ("visualize --checkpoint $pre --video gone.mp4 --out new", "gone.mp4"),
    ("visualize --checkpoint $pre --video $not_video --out new", "not a video container"),
    ("visualize --checkpoint $pre --video $empty --out new", "no video in this folder"),
    (VISUALIZE + "--out $text", "text.txt"),
    (VISUALIZE + "--seed -1", "seed"),
    # compare, reference
    ("compare gone $pre", "gone"),
    ("compare $pre gone.json", "gone.json"),
    ("compare $pre $text", "text.txt"),
    ("compare $pre $notyaml", "notyaml.yaml"),
    ("compare $empty $pre", "empty"),
    ("reference gone --made-by x --out new.json", "gone"),
    ("reference $empty --made-by x --out new.json", "empty"),
    ("reference $pre --made-by x --out $text/new.json", "text.txt"),
    # prepare, verify, make-benchmark
    (PREPARE, "empty"),
    (PREPARE + "--annotations gone", "gone"),
    (PREPARE + "--videos gone", "gone"),
    (PREPARE + "--split 9", "--split=9"),
    (PREPARE + "--workers 0", "--workers=0: must be at least 1"),
    ("prepare ucf11 --videos $clips --out new", "invalid choice: 'ucf11'"),
    ("prepare ucf101 --videos $clips --out new", "annotations"),
    ("prepare folder --videos $empty --out new", "no video"),
    ("prepare folder --videos $clips --out $text", "text.txt"),
    ("prepare folder --videos $clips --out new --quarantine gone.txt", "gone.txt"),
    (VERIFY + "--list gone.txt", "--list=gone.txt: no such file"),
    (VERIFY + "--list $empty_file", "lists no video"),
    ("verify --out new", "--list"),
    (VERIFY + "--mode slow", "invalid choice: 'slow'"),
    (VERIFY + "--workers 0", "--workers=0: must be at least 1"),
    (VERIFY + "--min-share 2", "--min-share=2.0"),
    (VERIFY + "--timeout -1", "--timeout=-1.0"),
    (VERIFY + "--out $text", "text.txt"),
    (BENCHMARK + "--task walk", "invalid choice: 'walk'"),
    (BENCHMARK + "--area 2", "--area=2.0"),
    (BENCHMARK + "--clips 0", "--clips=0: must be at least 1"),
    (BENCHMARK + "--side 0", "--side=0"),
    (BENCHMARK + "--out $text", "text.txt"),
    # export, import, config, plan
    (EXPORT + "--checkpoint gone", "gone"),
    (EXPORT + "--checkpoint $binary", "binary"),
    (EXPORT + "--checkpoint $hurt", "damaged"),
    (EXPORT + "--to tensorflow", "invalid choice: 'tensorflow'"),
    (EXPORT + "--out $text", "text.txt"),
    (EXPORT + "--to onnx --out new.txt", "onnx"),
    ("import --from gone.pth --out new.safetensors", "gone.pth"),
    ("import --from $text --out new.safetensors", "text.txt"),
    ("import --from $empty --out new.safetensors", "empty"),
    ("import --from $pre --out $text/new.safetensors", "text.txt"),
    ("import --from $pre --out new.pt", "out=new.pt: weights are written as safetensors"),
    # a file that would run code when it is unpickled, to every command that reads one
    *(
        (line.format(place), words)
        for place, words in {"$hostile": "refused: ", "$posing": "cannot be read"}.items()
        for line in (
            *(PRETRAIN + "train.init_from={}", FINETUNE + "init_from={}"),
            *(PROBE + "--checkpoint {}", EVALUATE + "--checkpoint {}"),
            *(EXTRACT + "--checkpoint {}", EXPORT + "--checkpoint {}"),
            "import --from {} --out new.safetensors",
        )
    ),
    (PRETRAIN + "train.resume=$hostile_pre", "refused: "),
    (FINETUNE + "train.resume=$hostile_fine", "refused: "),
    (PRETRAIN + "train.resume=$posing", "cannot be read"),
    (FINETUNE + "train.resume=$posing", "cannot be read"),
    (VISUALIZE + "--checkpoint $posing", "cannot be read"),
    ("config gone", "gone"),
    ("config quickstart train.stepz=3", "did you mean train.steps?"),
    ("config quickstart train.steps=0", "train.steps=0: must be at least 1"),
    ("plan --gpus 0", "--gpus=0: must be at least 1"),
    ("plan --model vit_x", "vit_x"),
    ("plan --chip B200", "invalid choice: 'B200'"),
    ("plan --batch -4", "--batch=-4"),
    ("plan data.stride=0", "data.stride=0"),
]


class Hostile:
    """Reading it with pickle writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, Path]:
    """A folder with what commands need and much that they cannot use, by name."""
    folder = tmp_path_factory.mktemp("place")
    clips = folder / "clips"
    clips.mkdir()
    for clip in sorted((ROOT / "demo/clips/train").glob("*.mp4"))[:4]:
        shutil.copy(clip, clips)
    names = sorted(path.name for path in clips.iterdir())
    files = {
        "labels.txt": [f"clips/{name} {n % 2}" for n, name in enumerate(names)],
        "unlabelled.txt": [f"clips/{name}" for name in names],
        "one_class.txt": [f"clips/{name} 1" for name in names],
        "strange.txt": [f"clips/{names[0]} jump", f"clips/{names[1]} 0"],
        "fractional.txt": [f"clips/{names[0]} 0.5", f"clips/{names[1]} 1"],
        "negative.txt": [f"clips/{names[0]} -1", f"clips/{names[1]} 1"],
        "beyond.txt": [f"clips/{names[0]} 7"],
        "lost.txt": ["gone/a.mp4 0", "gone/b.mp4 1"],
        "one_name.txt": ["only"],
        "empty_file.txt": [],
        "text.txt": ["hello"],
        "not_video.mp4": ["hello"],
        "no_tar.tar": ["hello" * 300],
        "notyaml.yaml": ["a: b", "c: [1, 2"],
        "list_yaml.yaml": ["- a"],
        "twice_yaml.yaml": ["seed: 1", "seed: 2"],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / "binary.pt").write_bytes(bytes(range(256)) * 8)
    (folder / "empty").mkdir()
    common = {"output_dir": str(folder / "runs"), "device": "cpu"}
    train = {"batch_size": 2, "steps": 1, "loggers": ["tensorboard"], "precision": "fp32"}
    run = {
        **common,
        **{"name": "pre", "model": TINY_MODEL, "masking": {"ratio": 0.75}},
        "data": {"train": str(clips), "workers": 0, "stride": 1},
        "train": {**train, "image_every": 0},
    }
    labels = str(folder / "labels.txt")
    tune = {
        **common,
        **{"name": "fine", "init_from": str(folder / "runs/pre"), "train": train},
        "data": {
            "train": labels,
            "eval": labels,
            "workers": 0,
            "stride": 1,
            "clips": 1,
            "crops": 1,
        },
        "augment": {"rand_ops": 0},
    }
    for name, tree in (("run", run), ("tune", tune)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    assert main(["pretrain", "--config", str(folder / "run.yaml")]) == 0
    assert main(["finetune", "--config", str(folder / "tune.yaml")]) == 0
    # From here on a run of another name: what is wrong must not touch it either.
    for name, tree in (("run", run), ("tune", tune)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**tree, "name": "new"}))
    shutil.copytree(folder / "runs/pre", folder / "hurt")
    (step,) = (folder / "hurt/checkpoints").iterdir()
    weights = step / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200] + bytes(200))
    torch.save({"mae": Hostile(folder / "touched"), "sampler": None}, folder / "hostile.pth")
    for source, name, file in (
        ("pre", "hostile_pre", "trainer.pt"),
        ("fine", "hostile_fine", "trainer.pt"),
        ("pre", "posing", "model.safetensors"),
    ):
        shutil.copytree(folder / "runs" / source, folder / name)
        (hostile,) = (folder / name / "checkpoints").iterdir()
        (hostile / "manifest.json").unlink()  # whoever writes such a file writes its checksum, too
        shutil.copy(folder / "hostile.pth", hostile / file)
    return {
        **{path.stem: path for path in folder.iterdir()},
        **{"clip": clips / names[0], "pre": folder / "runs/pre", "fine": folder / "runs/fine"},
        "pre_step": folder / "runs/pre/checkpoints/step_000001",
        "fine_step": folder / "runs/fine/checkpoints/step_000001",
        **{"hurt_step": step, "folder": folder},
    }


def tree_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file, by path."""
    found = {}
    for path in folder.rglob("*"):
        status = path.stat()
        found[str(path)] = (status.st_size, status.st_mtime_ns) if path.is_file() else (0, 0)
    return found


def test_the_table_is_large_enough():
    assert len({line for line, _ in CASES}) == len(CASES) >= 83


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_a_wrong_input_is_one_line(place, capfd, monkeypatch, line, words):
    monkeypatch.chdir(place["folder"])
    monkeypatch.delenv("COLUMNS", raising=False)
    names = {name: os.path.relpath(path, place["folder"]) for name, path in place.items()}
    before = tree_of(place["folder"])
    capfd.readouterr()
    try:
        code = main(shlex.split(string.Template(line).substitute(names)))
    except SystemExit as left:
        code = left.code
    said = capfd.readouterr().err.splitlines()
    after = tree_of(place["folder"])
    for path in sorted(after.keys() - before.keys(), reverse=True):  # the next case starts alike
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    assert code in (1, 2)
    errors = [text for text in said if text.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], said
    assert "Traceback" not in "".join(said)
    assert said == errors, "more than one line"
    assert after == before, sorted(after.keys() ^ before.keys())
