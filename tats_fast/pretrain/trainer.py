"""Pretraining: autoencoder and sampler in the training loop; holds no maths of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tats_fast.config import ConfigError, RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.data.eval_clips import load_eval_clips
from tats_fast.data.loader import ClipBatch, resolved_backend
from tats_fast.engine.logs import RunLog, SilentLog
from tats_fast.engine.loop import TrainingLoop
from tats_fast.engine.videos import Loader, listed_videos
from tats_fast.masking import visible_tokens
from tats_fast.models import MaskedAutoencoder
from tats_fast.models.attention import choose_backend
from tats_fast.pretrain.flops import training_step
from tats_fast.pretrain.generated import GeneratedLoader, Stream, uneven_teaching
from tats_fast.pretrain.graph import make_step
from tats_fast.pretrain.held_out import (
    held_out_metrics,
    random_mask_loss,
    true_motion_lifts,
)
from tats_fast.pretrain.learner import Learner, kernel_levels, make_learner
from tats_fast.pretrain.plan import plan_step
from tats_fast.pretrain.probing import Prober
from tats_fast.pretrain.step import StepPlan
from tats_fast.report.pictures import mask_strips

LOGGER = logging.getLogger("tats_fast")
HELD_OUT, PROBES = "loss_recon_random", "probe_unreadable"
"""Keys by which the two kinds of lines in eval.jsonl are told apart."""


class Trainer(TrainingLoop):
    """One pretraining run."""

    config: RunConfig
    learner: Learner
    columns = (
        ("loss_recon", "loss", ".4f"),
        ("entropy_frac", "entropy", ".3f"),
        ("motion_lift", "lift", ".3f"),
    )
    next_commands = (
        "tats-fast probe --checkpoint {run} --train TRAIN.txt --eval VAL.txt",
        "tats-fast visualize --checkpoint {run} --video FILE --out page",
    )

    def make_learner(self) -> Learner:
        config = self.config
        self.eval_clips = self._load_eval_clips()
        self.prober = Prober.of(config) if self.world.is_main else None
        learner = make_learner(config, self.world, resumes=self.resume_from is not None)
        self.step = make_step(learner)
        return learner

    def clip_shape(self) -> tuple[int, int]:
        return self.config.model.num_frames, self.config.model.image_size

    def loader(self) -> Loader:
        config, world = self.config, self.world
        if not config.generated_per_step:
            return super().loader()
        uneven = uneven_teaching(config, world.size)
        if uneven and config.masking.strategy in LEARNED_STRATEGIES and world.is_main:
            LOGGER.warning("%s", uneven)
        return GeneratedLoader(
            super().loader() if self.videos else None,
            Stream(config, world.rank, world.device),
            config.generated_per_step // (world.size * config.train.accumulation),
            first=self.position.step * config.train.accumulation,
        )

    def describe(self) -> list[str]:
        config, masking, model = self.config, self.config.masking, self.config.model
        visible = visible_tokens(masking.strategy, model, masking.ratio)
        shared = f" on average, shared out by {masking.budget_by}"
        draws = f", {masking.draws_per_clip} draws per clip" * (masking.draws_per_clip > 1)
        device = self.world.device.type
        return [
            *self.describe_run(f"{len(self.videos)} videos{self._generated()}", "clips"),
            f"masking {masking.strategy}: {visible} of {model.num_tokens} tokens visible "
            f"(ratio {masking.ratio:g}){shared if masking.budget == 'adaptive' else ''}{draws}; "
            f"{masking.decoder_keep_ratio:.0%} of the others rebuilt",
            *self._teacher(),
            f"attention {choose_backend(model.attention, device)}, "
            f"kernels {'+'.join(kernel_levels(device))}, "
            f"decoding {resolved_backend(config.data.backend, device)} "
            f"with {config.data.workers} worker(s), {config.data.repeats} clip(s) per window",
        ]

    def _teacher(self) -> list[str]:
        teacher = self.config.teacher
        if teacher.init_from is None:
            return []
        return [
            f"teacher {teacher.init_from}: loss and reward are {teacher.pixels:g} x the pixels' "
            f"error + {teacher.weight:g} x its features'"
        ]

    def _generated(self) -> str:
        """Shares as they come out: whole clips of every batch, pans of every micro-batch."""
        config, made = self.config, self.config.generated
        count = config.generated_per_step
        if count == 0:
            none = f" and no generated clip, as generated.share={made.share:g} of a batch is none"
            return none if made.share else ""
        micro = count // (self.world.size * config.train.accumulation)
        pans = round(made.pans * micro) / micro
        tasks = f"{pans:.0%} pan, others {made.task}" if pans else made.task
        return f" and {count / config.train.batch_size:.0%} generated clips ({tasks})"

    def train_step(self, batches: list[ClipBatch]) -> dict[str, Tensor]:
        self._planned = self._plan()
        return self.step([b.clips for b in batches], self._planned)

    def row(self) -> dict[str, Any]:
        plan = self._planned
        return {
            "lr": plan.lr,
            "lr_sampler": plan.lr * self.config.ppo.lr_scale,
            "mask_ratio": 1 - plan.visible / self.config.model.num_tokens,
            "strategy": "random (warm-up)" if plan.warmup else self.config.masking.strategy,
        }

    def flop_per_clip(self) -> float:
        return training_step(self.config, self._planned.visible, self._planned.warmup)

    def _plan(self) -> StepPlan:
        return plan_step(self.config, self.position.step, self.total_steps)

    def _load_eval_clips(self) -> Tensor | None:
        """Held-out clips, on the first process alone (weights are the same on all)."""
        config = self.config
        if config.data.eval is None or not self.world.is_main:
            return None
        videos = listed_videos(config.data, "eval", self.world.is_main)
        model = config.model
        clips = load_eval_clips(
            videos,
            config.train.eval_clips,
            model.num_frames,
            config.data.stride,
            model.image_size,
            fps=config.data.fps,
            workers=max(1, config.data.workers),
            timeout=2 * config.data.timeout_s,  # as the loader's
        )
        for path, reason in clips.bad:
            LOGGER.warning("held-out video left out, it cannot be decoded: %s (%s)", path, reason)
        if len(clips.clips) == 0:
            raise ConfigError(f"data.eval={config.data.eval}: none of its videos can be decoded")
        return clips.clips.to(self.world.device)

    def evaluations(self) -> list[str]:
        every, step = self.config.train.eval_every, self.position.step
        passes = self.config.eval.probe_every
        held_out = step == 0 or self.finished or (every and step % every == 0)
        due = [HELD_OUT] if held_out and self.config.data.eval is not None else []
        if step > 0 and passes > 0 and self.due_after_passes(passes):
            due.append(PROBES)
        return due

    def evaluate(self, due: Sequence[str], log: RunLog | SilentLog) -> None:
        values: dict[str, Any] = {}
        probed: dict[str, Any] = {}
        text, words = "", ""
        with self.learner.whole_mae() as mae:
            if mae is not None and HELD_OUT in due:
                values, text = self._measure(mae)
            if mae is not None and PROBES in due:
                probed, words = self.prober.measure(mae)
        if self.learner.average is not None:
            # The first process has measured alone; where weights are gathered, the others would
            # wait for it in an exchange that gives up within minutes.
            self.world.barrier()
            with self.learner.whole_mae(averaged=True) as mae:
                if mae is not None and HELD_OUT in due:
                    loss = random_mask_loss(self.config, mae, self.eval_clips, self.learner.bf16)
                    values[f"{HELD_OUT}_ema"] = loss
                    text += f"; loss {loss:.4f} with the average"
                if mae is not None and PROBES in due:
                    average, more = self.prober.measure(mae)
                    probed |= {f"{key}_ema": top for key, top in average.items() if key != PROBES}
                    words += f"; of the average, {more}"
        for row, said in ((values, text), (probed, words)):
            if row:
                log.evaluation({"step": self.position.step, **row}, said)

    def _measure(self, mae: MaskedAutoencoder) -> tuple[dict[str, Any], str]:
        """Of the held-out clips, and what to say of it."""
        learner = self.learner
        values = held_out_metrics(self.config, mae, learner.sampler, self.eval_clips, learner.bf16)
        values |= true_motion_lifts(self.config, mae, learner.sampler, learner.bf16)
        text = f"held-out: loss {values[HELD_OUT]:.4f} under the fixed random mask"
        lift = values.get("motion_lift_sampler")
        if lift is not None:
            text += f", motion lift of the sampler {lift:.2f}"
        if (truth := values.get("true_motion_lift_sampler")) is not None:
            text += f", on generated clips {truth:.2f} of what truly moves"
        return values, text

    def picture(self, log: RunLog | SilentLog) -> None:
        every = self.config.train.image_every
        if not every or self.config.data.eval is None or not self.due(every):
            return
        with self.learner.whole_mae() as mae:
            if mae is not None:
                clips = self.eval_clips[:4]
                for i, strip in enumerate(
                    mask_strips(self.config, mae, self.learner.sampler, clips)
                ):
                    log.image(f"sampled_masks/clip_{i}", strip, self.position.step)
