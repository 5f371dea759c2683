"""Probes against scikit-learn, what they can and cannot learn, and the command."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from data_files import write_video
from models_exchanged import write_run
from project import TINY_MODEL

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError
from tats_fast.config.schema import PROBES
from tats_fast.data.labels import label_numbers, warn_of_odd_names
from tats_fast.data.lists import Video
from tats_fast.recognition.accuracy import top_accuracy
from tats_fast.recognition.options import FeatureSettings
from tats_fast.recognition.probe import probe_model
from tats_fast.recognition.probe_heads import (
    FITS,
    SWEEPS,
    AttentivePool,
    Rows,
    fit_attentive,
    fit_attentive_together,
    fit_knn,
    fit_linear,
    held_out_split,
    take,
    train_probe,
)


def blobs(count: int, spread: float, classes: int = 3, width: int = 6, dtype=torch.float64):
    """Gaussian classes around centres on the axes, off the origin and of unequal scales."""
    labels = torch.arange(count) % classes
    centres = 4 * torch.eye(classes, width, dtype=dtype)
    features = centres[labels] + spread * torch.randn(count, width, dtype=dtype) + 2
    return features * torch.linspace(0.5, 2, width, dtype=dtype), labels


def test_linear_has_scikit_learns_optimum():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(90, spread=2.5)
    decay = 0.01
    # Its objective is C sum(cross-entropy) + |W|^2 / 2.
    reference = linear_model.LogisticRegression(C=1 / (decay * 90), tol=1e-10, max_iter=5000)
    reference.fit(features.numpy(), labels.numpy())
    scores = fit_linear(features, labels, 3, weight_decay=decay, tolerance=1e-9)
    unseen, _ = blobs(40, spread=2.5)
    ours = scores(unseen).softmax(1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(unseen.numpy()), atol=1e-5)

    # With batch_norm: the same on standardised features.
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    scaler = preprocessing.StandardScaler().fit(features.numpy())
    reference.fit(scaler.transform(features.numpy()), labels.numpy())
    scores = fit_linear(features, labels, 3, weight_decay=decay, batch_norm=True, tolerance=1e-9)
    expected = reference.predict_proba(scaler.transform(unseen.numpy()))
    np.testing.assert_allclose(scores(unseen).softmax(1).numpy(), expected, atol=1e-5)


def test_linear_is_as_accurate_on_separable_features():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(60, spread=0.3, dtype=torch.float32)
    unseen, true = blobs(60, spread=0.3, dtype=torch.float32)
    reference = linear_model.LogisticRegression(max_iter=1000).fit(features, labels)
    assert reference.score(unseen, true) == 1
    for kind in ("linear", "linear_bn"):
        trained = train_probe(kind, features, labels, 3)
        assert top_accuracy(trained.scores(unseen), true) == trained.held_out == 1


@pytest.mark.parametrize("k", [1, 5, 40])
def test_knn_is_scikit_learns(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    features, labels = blobs(80, spread=3.0)
    unseen, _ = blobs(50, spread=3.0)
    reference = neighbors.KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07), algorithm="brute"
    ).fit(features.numpy(), labels.numpy())
    scores = fit_knn(features, labels, 3, k=k)(unseen)
    assert scores.argmax(1).tolist() == reference.predict(unseen.numpy()).tolist()
    votes = scores.clamp(min=0)  # no vote is -inf
    shares = (votes / votes.sum(1, keepdim=True)).numpy()
    np.testing.assert_allclose(shares, reference.predict_proba(unseen.numpy()), atol=1e-9)


def marked_tokens(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, 6, 16) tokens, one marked in channel 0. Channel 1 is the class's sign at the marked token
    and its opposite at another, so its mean says nothing."""
    labels = torch.randint(2, (count,))
    tokens = 0.5 * torch.randn(count, 6, 16)
    places = torch.rand(count, 6).argsort(1)[:, :2]
    rows, sign = torch.arange(count), 2.0 * labels - 1
    tokens[rows, places[:, 0], 0] += 4
    tokens[rows, places[:, 0], 1] += 3 * sign
    tokens[rows, places[:, 1], 1] -= 3 * sign
    return tokens, labels


def test_attentive_finds_what_the_mean_hides():
    tokens, labels = marked_tokens(300)
    unseen, true = marked_tokens(200)
    hyper = {"lr": 3e-3, "weight_decay": 1e-3}
    trained = train_probe("attentive", tokens, labels, 2, sweep=[hyper])
    assert top_accuracy(trained.scores(unseen), true) > 0.95 and trained.held_out > 0.95
    for kind in ("linear", "linear_bn"):
        blind = train_probe(kind, tokens.mean(1), labels, 2)
        # 200 coin flips: 0.65 is four deviations above one half.
        assert top_accuracy(blind.scores(unseen.mean(1)), true) < 0.65


def test_attentive_pooling_is_multi_head_attention():
    model = AttentivePool(128, 5)
    assert model.heads == 2
    reference = torch.nn.MultiheadAttention(128, 2, batch_first=True)
    # The query is used as it is, and keys have no bias.
    parts = (torch.eye(128), model.key.weight, model.value.weight)
    reference.in_proj_weight.data = torch.cat(parts)
    reference.in_proj_bias.data = torch.cat([torch.zeros(256), model.value.bias])
    reference.out_proj.load_state_dict(model.out.state_dict())
    tokens = torch.randn(3, 7, 128)
    x = model.norm(tokens)
    expected, _ = reference(model.query.expand(3, 1, -1), x, x)
    torch.testing.assert_close(model(tokens), model.classify(expected[:, 0]))


def test_attentive_is_deterministic_and_reads_rows():
    tokens, labels = marked_tokens(40)
    rows = torch.arange(0, 40, 2)
    hyper = {"lr": 1e-3, "weight_decay": 0.1, "epochs": 1}
    state = torch.random.get_rng_state()
    first = fit_attentive(tokens[rows], labels[rows], 2, **hyper)(tokens)
    assert torch.equal(state, torch.random.get_rng_state())
    second = fit_attentive(Rows(tokens, rows), labels[rows], 2, **hyper)
    assert torch.equal(first, second(tokens))
    assert torch.equal(first[rows], second(Rows(tokens, rows)))
    assert not torch.equal(first, fit_attentive(tokens, labels, 2, **hyper, seed=1)(tokens))


def test_attentive_probes_side_by_side_are_those_alone() -> None:
    several = [torch.randn(70, 6, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    labels = torch.arange(70) % 2
    several[1][:, 0, 0] += 3 * labels
    hyper = {"lr": 1e-2, "weight_decay": 0.1, "epochs": 1}
    together = fit_attentive_together(several, labels, 2, **hyper)
    for scores, tokens in zip(together, several, strict=True):
        alone = fit_attentive(tokens, labels, 2, **hyper)(tokens)
        torch.testing.assert_close(scores(tokens), alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0](several[0]), together[1](several[0]), atol=0.1)


def test_a_class_without_a_vote_is_among_nobodys_best():
    features = torch.eye(8)
    scores = fit_knn(features, torch.arange(8), 8, k=1)(features[:2])
    assert top_accuracy(scores, torch.tensor([0, 1]), 5) == 1
    assert top_accuracy(scores, torch.tensor([1, 0]), 5) == 0


def test_held_out_part_has_every_class_that_can_spare_one():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    fit, held = held_out_split(labels, seed=3)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(13))
    assert labels[held].tolist() == [0, 0, 1]
    assert torch.equal(held, held_out_split(labels, seed=3)[1])
    with pytest.raises(ValueError, match="nothing can be held out"):
        held_out_split(torch.arange(4), seed=0)


def test_windows_of_one_video_are_held_out_together():
    videos = torch.arange(20).repeat_interleave(3)
    labels = videos % 2
    fit, held = held_out_split(labels, 3, videos)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(60))
    assert len(held) == 12 and not set(videos[fit].tolist()) & set(videos[held].tolist())
    alone = held_out_split(labels[::3], 3)[1]
    assert sorted(set(videos[held].tolist())) == alone.tolist()


def test_the_best_on_the_held_out_part_is_chosen():
    features, labels = blobs(210, spread=4.0)
    fit, held = held_out_split(labels, seed=5)
    assert len(fit) == 168
    sweep = [{"k": k} for k in (1, 168, 20, 169)]  # the last is more than there are
    tops = [
        top_accuracy(fit_knn(features[fit], labels[fit], 3, **hyper)(features[held]), labels[held])
        for hyper in sweep[:3]
    ]
    assert tops[0] < max(tops) > tops[2]  # neither the first nor the last tried
    trained = train_probe("knn", features, labels, 3, seed=5, sweep=sweep)
    assert (trained.hyper, trained.held_out) == (sweep[tops.index(max(tops))], max(tops))


def test_some_rows_of_rows():
    rows = take(Rows(torch.arange(10)[:, None], torch.tensor([1, 3, 5, 7])), torch.tensor([3, 1]))
    assert len(rows) == 2 and rows[torch.tensor([0, 1])].tolist() == [[7], [3]]
    assert rows[:1].tolist() == [[7]]


def test_labels_become_numbers():
    def videos(*labels):
        return [Video("v.mp4", label) for label in labels]

    known, true, names = label_numbers(videos(30, 4, 4), videos(4))
    assert (known.tolist(), true.tolist(), names) == ([1, 0, 0], [0], ["4", "30"])
    known, true, names = label_numbers(videos("walk", "run", 12), videos(12, "walk"))
    assert (known.tolist(), true.tolist(), names) == ([2, 1, 0], [0, 2], ["12", "run", "walk"])
    for train, evaluated, message in (
        (videos(1, None), videos(1), "^train: v.mp4 has no label"),
        (videos(1, 2), videos(None), "^eval: v.mp4 has no label"),
        (videos(1, 2), videos(3), "^eval: the label 3 does not occur"),
        (videos(1, 1), videos(1), "every label is 1"),
        (videos(1, 2), [], "^eval: lists no video"),
    ):
        with pytest.raises(ConfigError, match=message):
            label_numbers(train, evaluated)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Lists of short videos of horizontal or vertical stripes, shifted by up to two pixels, with
    a broken file in each list, and a run with a random tiny encoder."""
    folder = tmp_path_factory.mktemp("stripes")
    generator = np.random.default_rng(0)

    def stripes(upright: bool, phase: int):
        line = np.where((np.arange(32) + phase) // 4 % 2 > 0, 220, 30).astype(np.uint8)
        image = np.broadcast_to(line[None] if upright else line[:, None], (32, 32))
        return lambda _frame: np.repeat(image[..., None], 3, axis=2)

    for name, count in (("train", 24), ("eval", 12)):
        lines = [f"{name}_broken.mp4 flat"]  # first, so that rows and lines differ
        for number in range(count):
            upright, file = number % 2 == 1, f"{name}_{number}.mp4"
            turn = stripes(upright, int(generator.integers(3)))
            write_video(folder / file, 8, width=32, height=32, turn=turn)
            lines.append(f"{file} {'upright' if upright else 'flat'}")
        (folder / f"{name}_broken.mp4").write_bytes(b"no video")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    write_run(folder / "run", tats_fast.create_model("vit_tiny", **TINY_MODEL))
    return folder


def command(dataset, out, **options):
    defaults = {
        "checkpoint": dataset / "run",
        "train": dataset / "train.txt",
        "eval": dataset / "eval.txt",
        "out": out,
        "stride": 1,
        "device": "cpu",
        "workers": 1,
    }
    pairs = {**defaults, **options}
    return ["probe", *(str(x) for key, value in pairs.items() for x in (f"--{key}", value))]


def test_command(dataset, tmp_path, capsys):
    assert main(command(dataset, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "24 videos (1 unreadable)" in printed and "12 (1 unreadable)" in printed
    record = json.loads((tmp_path / "probe.json").read_text())
    assert [result["kind"] for result in record["results"]] == list(PROBES)
    assert record["classes"] == ["flat", "upright"]
    assert record["bad_eval"][0][0].endswith("eval_broken.mp4")
    for result in record["results"]:
        assert result["kind"] in printed
        assert result["top1"] > 0.8 and result["top5"] is None, result


def test_clips_are_cut_as_in_training(dataset, tmp_path):
    """Without --stride the run's own counts, 4 in that of ``write_run``; set to 2, 2."""
    shutil.copytree(dataset / "run", tmp_path / "run")
    file = next((tmp_path / "run").rglob("config.yaml"))
    file.write_text(file.read_text().replace("stride: 4", "stride: 2"))
    for folder, stride in ((dataset / "run", 4), (tmp_path / "run", 2)):
        arguments = command(dataset, tmp_path / "out", kinds="knn", checkpoint=folder)
        position = arguments.index("--stride")
        assert main(arguments[:position] + arguments[position + 2 :]) == 0
        record = json.loads((tmp_path / "out" / "probe.json").read_text())
        assert record["options"]["stride"] == stride


@pytest.mark.parametrize("odd", ["-1", "0.5"])
def test_labels_that_look_like_other_numbers_are_said_to_be_names(caplog, odd):
    warn_of_odd_names([odd, "1"])
    (record,) = caplog.records
    assert f"train: {odd} is taken as the name of a class" in record.getMessage()
    caplog.clear()
    warn_of_odd_names(["0", "1"])
    assert not caplog.records


def test_odd_labels_are_spoken_of_once(dataset, tmp_path, caplog):
    for name in ("train", "eval"):
        lines = (dataset / f"{name}.txt").read_text().replace(" flat", " -1")
        (dataset / f"odd_{name}.txt").write_text(lines)
    lists = {name: dataset / f"odd_{name}.txt" for name in ("train", "eval")}
    assert main(command(dataset, tmp_path, kinds="knn", **lists)) == 0
    assert caplog.text.count("-1 is taken as the name of a class") == 1


def test_evaluation_labels_choose_nothing(dataset, tmp_path):
    encoder = tats_fast.load_encoder(dataset / "run")
    train = [Video(str(dataset / f"train_{n}.mp4"), n % 2) for n in range(12)]
    tested = [Video(str(dataset / f"eval_{n}.mp4"), n % 2) for n in range(12)]
    flipped = [Video(video.path, 1 - video.label) for video in tested]
    kinds = ("linear", "linear_bn", "knn")
    settings = FeatureSettings(stride=1)
    reports = [
        probe_model(encoder, train, x, kinds=kinds, settings=settings, cache=tmp_path)
        for x in (tested, flipped)
    ]
    for honest, other in zip(*(report.results for report in reports), strict=True):
        assert (honest.hyper, honest.held_out) == (other.hyper, other.held_out)
        assert honest.top1 == pytest.approx(1 - other.top1)
    assert not list(tmp_path.rglob("tokens.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "linear,svm"}, "--kinds=svm: must be one of linear"),
        ({"stride": -1}, "--stride=-1: must be at least 0"),
        ({"train": "nowhere.txt"}, "--train=nowhere.txt: no such file"),
        ({"checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(dataset, tmp_path, capsys, options, message):
    assert main(command(dataset, tmp_path, **options)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "probe.json").exists()


def test_a_list_without_labels_or_readable_files_is_refused(dataset, tmp_path, capsys):
    (dataset / "bare.txt").write_text("train_0.mp4\n")
    assert main(command(dataset, tmp_path, eval=dataset / "bare.txt")) == 2
    assert "train_0.mp4 has no label" in capsys.readouterr().err
    (dataset / "bad.txt").write_text("eval_broken.mp4 flat\n")
    assert main(command(dataset, tmp_path, eval=dataset / "bad.txt", kinds="knn")) == 2
    assert "--eval: no video could be read" in capsys.readouterr().err


def test_every_kind_has_a_sweep():
    assert set(SWEEPS) == set(FITS) == set(PROBES)
