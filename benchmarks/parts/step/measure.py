"""One batch size: build the paths, let them pass the gate, time them, say what they are."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from parts import bench, ceilings
from parts.isolate import is_cuda_error
from parts.ops.timing import steps_ms
from parts.step.paths import PATHS, TOLERANCES, Contender, disagreements, load_clips, make_contender
from parts.step.peer import Peer
from parts.step.record import describe_batch, gate_line, results, summary
from tats_fast.config import ConfigError, RunConfig
from tats_fast.config.reading import to_dict
from tats_fast.engine.peak import peak_tflops
from tats_fast.engine.precision import wants_bf16
from tats_fast.masking import visible_tokens
from tats_fast.pretrain.flops import training_step

STAGE_STEPS = 5
"""At most this many untimed steps per path for stages and memory; fewer where --steps is less."""
Measured = tuple[dict[str, Any], dict[str, Any]]
"""``config`` and ``paths`` of a record."""


class NothingRan(bench.Failed):
    """No path could run, or one met numbers that are not finite; ``paths`` says what each did."""

    def __init__(self, message: str, paths: dict[str, Any]) -> None:
        super().__init__(message)
        self.paths = paths


def enter(
    names: Sequence[str],
    config: RunConfig,
    device: torch.device,
    clips: torch.Tensor,
    keep_going: bool = False,
) -> tuple[dict[str, Contender | Peer], dict[str, dict[str, str]]]:
    """Build the paths and let each pass the gate.

    Returns:
        contenders after their first step, and the entries of those that do not take part:
        ``skipped`` where torch.compile fails, a package is missing or the GPU is too small for the
        path, ``failed`` (with ``keep_going``) where the path does.

    Raises:
        Failed: a path computes something else.
        NothingRan: a CUDA error, after which nothing can run in this process.
    """
    contenders: dict[str, Contender | Peer] = {}
    others: dict[str, dict[str, str]] = {}
    baseline: dict[str, float] = {}
    for name in names:
        try:
            contender = make_contender(PATHS[name], config, device, clips)
            contender.take_first_step()
        except torch.OutOfMemoryError:
            others[name] = {"skipped": f"out of GPU memory at batch {config.train.batch_size}"}
            torch.cuda.empty_cache()
        except ConfigError:
            raise
        except ImportError as error:
            others[name] = {"skipped": f"{error.name} is not installed"}
        except Exception as error:
            reason = bench.first_line(error)
            if is_cuda_error(error):
                others[name] = {"failed": reason}
                lost = f"path {name}: {reason}; --isolate lets the other paths run"
                raise NothingRan(lost, others) from error
            if device.type in PATHS[name].compiled:
                others[name] = {"skipped": f"torch.compile failed: {reason}"}
            elif keep_going:
                others[name] = {"failed": reason}
            else:
                raise
        else:
            wrong = differs(name, contender.first, baseline, "bf16" if contender.bf16 else "fp32")
            if not wrong:
                contenders[name] = contender
                if contender.compared:
                    baseline = baseline or contender.first
            elif keep_going:
                others[name] = {"failed": wrong[:160]}
            else:
                raise bench.Failed(f"{wrong} (nothing was timed)")
    return contenders, others


def differs(
    name: str, first: dict[str, float], baseline: dict[str, float], precision: str
) -> str | None:
    """What is wrong with a path's first step; None where it agrees with the baseline's, or is
    exempt and finite."""
    expected = baseline if PATHS[name].compared and baseline else first
    differences = disagreements(first, expected, precision)
    return (
        f"path {name} disagrees with the baseline: {'; '.join(differences)}"
        if differences
        else None
    )


def gflop_per_clip(config: RunConfig) -> float:
    """Model FLOP of one step and clip, 10^9."""
    return training_step(config) / 1e9


def settings_of(options: Any, config: RunConfig, source: str, device: torch.device) -> dict:
    """The record's ``config`` for one batch size."""
    precision = "bf16" if wants_bf16(config.train.precision, device) else "fp32"
    losses, norms = TOLERANCES[precision]
    peak, peak_source = peak_of(options, device, precision)
    return {
        "device": device.type,
        "batch": config.train.batch_size,
        "steps": options.steps,
        "warmup": options.warmup,
        "precision": precision,
        "inner_epochs": config.ppo.epochs,
        "tokens": config.model.num_tokens,
        "visible": visible_tokens(config.masking.strategy, config.model, config.masking.ratio),
        "clips": source,
        "tolerance_losses": losses,
        "tolerance_grad_norms": norms,
        "step_gflop_per_clip": gflop_per_clip(config),
        "peak_tflops": peak,
        "peak_source": peak_source,
        "data_sheet_tflops": peak_tflops(device, precision),
        "run": to_dict(config),
    }


def peak_of(options: Any, device: torch.device, precision: str) -> tuple[float | None, str | None]:
    """What MFU is relative to, TFLOP/s, and how we know: ``--peak-tflops``, else on a GPU a product
    measured in this process."""
    if options.peak_tflops:
        return options.peak_tflops, "--peak-tflops"
    if device.type != "cuda":
        return None, None
    top = ceilings.here(device, ceilings.DTYPES[precision])
    return top.rate / 1e12, top.source


def measure(
    options: Any, config: RunConfig, names: Sequence[str], device: torch.device
) -> Measured:
    """``config`` and ``paths`` of one batch size: gate, time, inspect, print.

    Raises:
        Failed: a path computes something else, or (NothingRan) none could run.
    """
    batch = config.train.batch_size
    clips, source = load_clips(config.model, batch, config.seed)
    settings = settings_of(options, config, source, device)
    print(describe_batch(settings), flush=True)
    clips = clips.to(device)
    contenders, others = enter(names, config, device, clips, options.keep_going)
    for name, entry in others.items():
        print(f"{' '.join(*entry.items())} (path {name})")
    if not contenders:
        raise NothingRan(f"no path could run at batch {batch}", others)
    first = {name: contender.first for name, contender in contenders.items()}
    print(gate_line({n: f for n, f in first.items() if PATHS[n].compared}, settings) + "\n")
    settings["paths"] = {
        name: {
            **contender.settings(),
            "compared": contender.compared,
            "step_gflop_per_clip": gflop_per_clip(contender.config),
            "first_step": contender.first,
        }
        for name, contender in contenders.items()
    }
    calls = {name: contender.step for name, contender in contenders.items()}
    times = steps_ms(calls, device, options.steps, options.warmup)
    memory = {name: contender.peak_memory_mb() for name, contender in contenders.items()}
    spent = [
        {name: contender.stages() for name, contender in contenders.items()}
        for _ in range(min(options.steps, STAGE_STEPS))
    ]
    paths = dict.fromkeys(names) | others
    for name, contender in contenders.items():
        if torch.stack(contender.skipped).any():
            problem = {"failed": "a step was skipped as not finite"}
            raise NothingRan(f"path {name}: {problem['failed']}", others | {name: problem})
        stages = {stage: median(turn[name][stage] for turn in spent) for stage in spent[0][name]}
        loss = contender.first["loss_recon"]
        peak = {"peak_mem_mb": memory[name], "planned_mem_mb": contender.planned_memory_mb()}
        paths[name] = summary(name, times[name], stages, peak, loss, settings)
    print(results(settings, paths) + "\n", flush=True)
    return settings, paths
