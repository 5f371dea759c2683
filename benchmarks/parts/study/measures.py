"""What is measured of a cell: probes of the frozen encoder, fine-tuning with few labels, the loss
under a fixed mask, and what the strategy looks at.

Legend: M clips, N tokens, C width, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from parts.study.clips import CHUNK, LabelledClips, ProbeSet
from parts.study.spec import Cell
from parts.study.training import CellRun, fit_classifier
from tats_fast import kernels
from tats_fast.engine.precision import autocast
from tats_fast.masking import split_tokens, visible_tokens
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.patchify import motion_energy, normalised_video, patchify
from tats_fast.pretrain.held_out import MASK_SEED
from tats_fast.recognition.accuracy import top_accuracy
from tats_fast.recognition.probe_heads import fit_attentive_together, train_probe
from tats_fast.rl.metrics import lift, policy_metrics

SWEEPS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"weight_decay": decay} for decay in (1e-2, 1e-3, 1e-4)],
    "linear_bn": [{"weight_decay": decay} for decay in (1e-1, 1e-2, 1e-3)],
    "knn": [{"k": 5}, {"k": 20}],
    "attentive": [{"lr": 1e-3, "weight_decay": 0.1}],
}
"""Hyper-parameters tried, chosen on a part of the training clips."""
DRAWS = 8
FEATURE_CHUNK = 256
FINETUNE_STEPS = 200
LOSS_CLIPS = 256


@torch.no_grad()
def token_features(encoder: VideoEncoder, clips: Tensor, bf16: bool) -> Tensor:
    """All tokens' features (M, N, C), fp32 on the encoder's device."""
    encoder.eval()
    parts = []
    for chunk in clips.split(FEATURE_CHUNK):
        with autocast(chunk.device, bf16):
            parts.append(encoder(normalised_video(chunk)).float())
    encoder.train()
    return torch.cat(parts)


def probe(
    kind: str,
    known: Tensor,
    labels: Tensor,
    videos: Tensor | None,
    asked: Tensor,
    answers: Tensor,
    classes: int,
) -> float:
    """Top-1 in percent of a probe; runs in a process of its own."""
    torch.set_num_threads(1)
    trained = train_probe(kind, known, labels, classes, sweep=SWEEPS[kind], videos=videos)
    return 100 * top_accuracy(trained.scores(asked), answers)


def start_probes(
    pool: ProcessPoolExecutor,
    runs: list[CellRun],
    sets: dict[str, ProbeSet],
    attentive: list[CellRun],
) -> list[dict[str, Future]]:
    """Probes of every run's encoder as it is now, by ``set_kind``.

    Those of mean features are fitted on other cores. Attentive ones, which want all tokens, are
    fitted here and now, on the encoders' device and together, for the runs of ``attentive``.
    """
    jobs: list[dict[str, Future]] = [{} for _ in runs]
    for name, (train, test, classes) in sets.items():
        bf16, kept = train.clips.device.type == "cuda", []
        for one, own in zip(runs, jobs, strict=True):
            kinds = one.cell.study.probes[name].get("kinds", one.cell.study.kinds)
            known, asked = (token_features(one.encoder, part.clips, bf16) for part in (train, test))
            fitted = known.mean(1).cpu(), train.labels, train.videos
            means = *fitted, asked.mean(1).cpu(), test.labels
            for kind in kinds:
                if kind != "attentive":
                    own[f"{name}_{kind}"] = pool.submit(probe, kind, *means, len(classes))
                elif one in attentive:
                    kept.append((own, known, asked))
        if kept:
            known, asked = ([entry[i] for entry in kept] for i in (1, 2))
            results = attentive_probes(known, asked, sets[name])
            for (own, *_), result in zip(kept, results, strict=True):
                own[f"{name}_attentive"] = Future()
                own[f"{name}_attentive"].set_result(result)
    return jobs


def attentive_probes(known: list[Tensor], asked: list[Tensor], clips: ProbeSet) -> list[float]:
    """Top-1 in percent of one query's attention over all tokens (M, N, C) of each encoder."""
    train, test, classes = clips
    labels, (sweep,) = train.labels.to(known[0].device), SWEEPS["attentive"]
    fitted = fit_attentive_together(known, labels, len(classes), **sweep)
    return [
        100 * top_accuracy(scores(tokens).cpu(), test.labels)
        for scores, tokens in zip(fitted, asked, strict=True)
    ]


@torch.no_grad()
def looks(run: CellRun, part: LabelledClips) -> dict[str, float]:
    """The loss under one fixed random mask, and where the truth is known how much more of what
    moves the strategy's draws show than chance would, with the policy's shape."""
    learner, config = run.learner, run.config
    model, clips = config.model, part.clips[:LOSS_CLIPS]
    visible = visible_tokens("random", model, config.masking.ratio)
    masks, draws = (torch.Generator(clips.device).manual_seed(MASK_SEED) for _ in range(2))
    patches = patchify(clips, model.tubelet_size, model.patch_size)
    motion = motion_energy(patches, model.tubelet_size)
    with autocast(clips.device, learner.bf16):
        split = split_tokens("random", model, patches, None, visible, masks)
        tokens = learner.mae.embed(patches)
        prediction = learner.mae.decode(learner.mae.encode(tokens, split), split)
        error = kernels.masked_mse(prediction, patches, split.masked)
        policy = None if learner.sampler is None else learner.sampler(tokens)
    values = {"loss": error.mean()}
    if policy is not None:
        values |= policy_metrics(policy.log_p, policy.entropy)
    if part.moving is not None:
        truth, strategy = part.moving[:LOSS_CLIPS], config.masking.strategy
        log_p = None if policy is None else policy.log_p
        if run.cell.oracle is None:
            masks_drawn = [
                split_tokens(strategy, model, patches, log_p, visible, draws, tokens).visible_mask
                for _ in range(DRAWS)
            ]
            values["lift"] = torch.stack([lift(truth, mask) for mask in masks_drawn]).mean()
            values["difference_lift"] = torch.stack(
                [lift(motion, mask) for mask in masks_drawn]
            ).mean()
    return {name: value.item() for name, value in values.items()}


def finetune(cell: Cell, encoder: VideoEncoder, part: ProbeSet, shots: int) -> float:
    """Top-1 in percent after fine-tuning all of the encoder on ``shots`` clips per class."""
    train, test, classes = part
    rows = torch.cat([(train.labels == k).nonzero()[:shots, 0] for k in range(len(classes))])
    device = train.clips.device
    clips, labels = train.clips[rows.to(device)], train.labels[rows]
    torch.manual_seed(cell.seed)
    classifier = VideoClassifier(cell.config.model, len(classes), device.type)
    state = {k: v.detach().clone() for k, v in encoder.state_dict().items()}
    classifier.load_encoder(state)
    generator = torch.Generator().manual_seed(cell.seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        size = min(len(rows), CHUNK)
        for _ in itertools.count():
            picks = torch.randperm(len(rows), generator=generator)[:size]
            yield clips[picks.to(device)], labels[picks]

    fit_classifier(classifier.to(device), batches(), FINETUNE_STEPS, cell, device)
    return accuracy(classifier, test)


def chance(part: LabelledClips) -> float:
    """Top-1 in percent of always answering the most frequent class."""
    return 100 * part.labels.bincount().max().item() / len(part.labels)


@torch.no_grad()
def accuracy(classifier: VideoClassifier, part: LabelledClips) -> float:
    """Top-1 in percent."""
    bf16 = part.clips.device.type == "cuda"
    answers = []
    for chunk in part.clips.split(CHUNK):
        with autocast(chunk.device, bf16):
            answers.append(classifier(normalised_video(chunk)).float().cpu())
    return 100 * top_accuracy(torch.cat(answers), part.labels)
