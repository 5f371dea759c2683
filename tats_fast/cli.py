"""The command ``tats-fast``. Heavy imports wait until a subcommand needs them."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError, RunConfig, load_config, parse_overrides
from tats_fast.version import __version__

LOGGER = logging.getLogger("tats_fast")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    0 done; 1 the work failed, said in one sentence; 2 wrong use or configuration; 128 + n stopped
    by signal n with the state saved.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    overrides = getattr(options, "overrides", None)
    for text in rest:
        # argparse gives up on key=value after an option; take those, refuse the rest.
        if overrides is None or text.startswith("-") or "=" not in text:
            parser.error(f"unrecognized argument: {text}")
        overrides.append(text)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    LOGGER.setLevel(logging.INFO)
    try:
        return options.run(options)
    except ConfigError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has left, as in `tats-fast doctor | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code = _known_failure(error)
        if code is None:
            raise
        return _fail(str(error), code)


def make_parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    parser = argparse.ArgumentParser(
        prog="tats-fast",
        description="Masked video pretraining with a trajectory-aware, PPO-trained token sampler.",
    )
    parser.add_argument("--version", action="version", version=f"tats-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    pretrain = commands.add_parser("pretrain", help="train autoencoder and sampler")
    pretrain.add_argument("--config", metavar="FILE", help="YAML file; none = all defaults")
    pretrain.add_argument(
        "--local_rank",
        "--local-rank",
        type=int,
        default=None,
        help=argparse.SUPPRESS,  # appended by the deepspeed launcher
    )
    pretrain.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example train.steps=100"
    )
    pretrain.set_defaults(run=_pretrain)

    visualize = commands.add_parser("visualize", help="page of masks, heat maps, reconstructions")
    visualize.add_argument("--checkpoint", required=True, help="checkpoint folder or run folder")
    visualize.add_argument(
        "--video",
        required=True,
        action="append",
        help="video, folder of videos or list file; may be repeated",
    )
    visualize.add_argument("--out", default="report", help="folder to write (default: report)")
    visualize.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    visualize.add_argument("--seed", type=int, default=0, help="seed of the draws")
    visualize.set_defaults(run=_visualize)

    _add_prepare(commands)

    _add_verify(commands)

    _add_probe(commands)

    _add_export(commands)

    _add_import(commands)

    doctor = commands.add_parser("doctor", help="what this machine can run, and why not the rest")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser("prepare", help="lists and small copies from official files")
    datasets = ("ssv2", "kinetics400", "ucf101", "hmdb51", "folder")
    prepare.add_argument("dataset", choices=datasets, help="whose official files, or any folder")
    prepare.add_argument("--annotations", metavar="DIR", help="official files (not for folder)")
    prepare.add_argument("--videos", metavar="DIR", required=True, help="searched recursively")
    prepare.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    prepare.add_argument("--split", type=int, help="of ucf101 and hmdb51: 1, 2 or 3 (default: 1)")
    prepare.add_argument("--quarantine", metavar="FILE", help="bad files to leave out")
    prepare.add_argument("--hash", action="store_true", help="SHA-256 of each file")
    prepare.add_argument(
        "--transcode",
        nargs="?",
        const="h264",
        choices=("h264", "vp9", "mjpeg"),
        help="list small copies with many keyframes instead (default: h264)",
    )
    for name, text in (
        ("--short-side", "pixels of a copy's short side at most (default: 256)"),
        ("--gop", "frames from keyframe to keyframe in a copy (default: 16)"),
        ("--quality", "of copies: CRF or quantiser, smaller is better"),
        ("--workers", "processes (default: one per core)"),
    ):
        prepare.add_argument(name, type=int, metavar="N", help=text)
    prepare.set_defaults(run=_prepare)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser("verify", help="find the files that cannot be trained on")
    verify.add_argument("--list", metavar="FILE", help="list file, as data.train")
    verify.add_argument(
        "--root", metavar="DIR", help="where a list's paths start; without a list: all videos below"
    )
    verify.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    verify.add_argument(
        "--mode",
        default="quick",
        choices=("quick", "full"),
        help="decode the first frame and the last keyframe (default), or every frame",
    )
    verify.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    verify.add_argument(
        "--timeout", type=float, metavar="S", help="seconds per file (default: 60 quick, 600 full)"
    )
    verify.add_argument(
        "--min-share",
        type=float,
        default=0.5,
        metavar="X",
        help="share of its claimed length below which a file is bad (default: 0.5)",
    )
    verify.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="frames that a clip spans, (model.num_frames - 1) * data.stride + 1 (default: 61)",
    )
    verify.set_defaults(run=_verify)


def _add_probe(commands: argparse._SubParsersAction) -> None:
    probe = commands.add_parser("probe", help="classify videos by a model's frozen features")
    probe.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="run, checkpoint folder or file"
    )
    probe.add_argument("--train", metavar="LIST", required=True, help="list file with labels")
    probe.add_argument("--eval", metavar="LIST", required=True, help="list file with labels")
    probe.add_argument("--root", metavar="DIR", help="where the lists' paths start")
    probe.add_argument(
        "--kinds",
        metavar="A,B",
        help="some of linear,linear_bn,knn,attentive (default: all)",
    )
    probe.add_argument("--out", metavar="DIR", default="probe", help="folder to write")
    probe.add_argument("--cache", metavar="DIR", help="where features are kept (OUT/features)")
    probe.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    for name, default, text in (
        ("--stride", 4, "frames from one to the next; 0 = one per segment of the whole video"),
        ("--grid", 7, "attentive: tokens are averaged to at most N x N places per token-frame"),
        ("--batch-size", 16, "clips encoded at once"),
        ("--seed", 0, "of the held-out part and the attentive probe"),
    ):
        help_text = f"{text} (default: {default})"
        probe.add_argument(name, type=int, metavar="N", default=default, help=help_text)
    probe.add_argument(
        "--workers", type=int, metavar="N", help="decoding processes (default: one per core)"
    )
    probe.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds per video (default: 60)"
    )
    _add_model_overrides(probe)
    probe.set_defaults(run=_probe)


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="weights for another library, with a model card")
    export.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="run, checkpoint folder or file"
    )
    export.add_argument("--to", required=True, choices=("huggingface",), help="format")
    export.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    _add_model_overrides(export)
    export.set_defaults(run=_export)


def _add_import(commands: argparse._SubParsersAction) -> None:
    importer = commands.add_parser("import", help="weights of Transformers or VideoMAE's own code")
    importer.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        required=True,
        help="folder of Transformers' VideoMAE, or a .pth of VideoMAE, VideoMAE V2 or AdaMAE",
    )
    importer.add_argument(
        "--out", metavar="PATH", required=True, help="file ending in .pt, or checkpoint folder"
    )
    _add_model_overrides(importer)
    importer.set_defaults(run=_import)


def _add_model_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example model.image_size=112"
    )


def _pretrain(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    config = resolve_engine(config, by_deepspeed=options.local_rank is not None)

    from tats_fast.engine.distributed import join_world
    from tats_fast.engine.trainer import Stopped, Trainer

    world = join_world(config, options.local_rank)
    if not world.is_main:
        LOGGER.setLevel(logging.ERROR)
    try:
        Trainer(config, world).run()
    except Stopped as stop:
        LOGGER.warning("%s; the same command continues it", stop)
        return 128 + stop.signum
    return 0


def resolve_engine(config: RunConfig, by_deepspeed: bool) -> RunConfig:
    """Settle ``distributed.engine=auto``: DeepSpeed under its launcher, except for stage 0."""
    distributed = config.distributed
    if distributed.engine != "auto":
        return config
    engine = "deepspeed" if by_deepspeed and distributed.zero_stage > 0 else "ddp"
    return dataclasses.replace(config, distributed=dataclasses.replace(distributed, engine=engine))


def _visualize(options: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import pick_device
    from tats_fast.report.visualize import write_report

    device = pick_device(options.device)
    page = write_report(
        options.checkpoint, options.video, Path(options.out), seed=options.seed, device=str(device)
    )
    print(f"wrote {page}")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from tats_fast.prepare.prepare import Options, Recipe, prepare

    names = ("short_side", "gop", "quality")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if chosen and options.transcode is None:
        raise ConfigError(f"--{next(iter(chosen)).replace('_', '-')}: only with --transcode")
    return prepare(
        Options(
            dataset=options.dataset,
            videos=os.path.expanduser(options.videos),
            out=os.path.expanduser(options.out),
            annotations=options.annotations and os.path.expanduser(options.annotations),
            split=options.split,
            recipe=options.transcode and Recipe(options.transcode, **chosen),
            quarantine=options.quarantine and os.path.expanduser(options.quarantine),
            with_hash=options.hash,
            workers=len(os.sched_getaffinity(0)) if options.workers is None else options.workers,
        )
    )


def _verify(options: argparse.Namespace) -> int:
    from tats_fast.prepare.verify import VerifyOptions, default_window, listed_videos, verify

    settings = VerifyOptions(
        mode=options.mode,
        workers=len(os.sched_getaffinity(0)) if options.workers is None else options.workers,
        timeout=options.timeout,
        min_share=options.min_share,
        window=default_window() if options.frames is None else options.frames,
    )
    videos = listed_videos(options.list, options.root)
    return 1 if verify(videos, Path(options.out).expanduser(), settings, options.list) else 0


def _probe(options: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import pick_device
    from tats_fast.recognition.probe import KINDS, ProbeOptions, run_probe

    overrides = _model_overrides(options.overrides)
    device = pick_device(options.device)
    kinds = KINDS if options.kinds is None else tuple(options.kinds.split(","))
    names = ("checkpoint", "train", "eval", "root", "out", "cache")
    numbers = ("stride", "grid", "batch_size", "timeout", "seed")
    chosen = ProbeOptions(
        kinds=kinds,
        workers=len(os.sched_getaffinity(0)) if options.workers is None else options.workers,
        **{name: getattr(options, name) for name in names + numbers},
    )
    return run_probe(chosen, device, overrides)


def _export(options: argparse.Namespace) -> int:
    from tats_fast.interchange import export_hugging_face, read_weights

    weights = read_weights(options.checkpoint, _model_overrides(options.overrides))
    print(f"wrote {export_hugging_face(weights, Path(options.out).expanduser())}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from tats_fast.interchange import read_weights, save_weights

    weights = read_weights(options.source, _model_overrides(options.overrides), key="--from")
    out = save_weights(weights, Path(options.out).expanduser())
    for note in weights.notes:
        LOGGER.info("%s", note)
    part = "encoder and decoder" if weights.has_decoder else "encoder"
    print(f"wrote {out}: {part}, from {weights.source}")
    return 0


def _model_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["model.heads=6"]`` -> ``{"heads": 6}``."""
    parsed = parse_overrides(overrides)
    for key, value in parsed.items():
        if not key.startswith("model."):
            raise ConfigError(f"{key}={value}: only model.* has a meaning here")
    return {key.removeprefix("model."): value for key, value in parsed.items()}


def _doctor(_options: argparse.Namespace) -> int:
    from tats_fast.doctor import report_lines

    print("\n".join(report_lines()))
    return 0


def _known_failure(error: Exception) -> int | None:
    """Exit code of a failure whose message is meant for the user; None = a defect, show it all."""
    from tats_fast.data import DecodeError, TooManyBadFiles

    known: tuple[type[Exception], ...] = (DecodeError, TooManyBadFiles)
    if "tats_fast.engine.trainer" in sys.modules:
        known += (sys.modules["tats_fast.engine.trainer"].NonFiniteLoss,)
    return 1 if isinstance(error, known) else None


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def run_and_exit(arguments: Sequence[str] | None = None) -> None:
    """``main``, then the end of the process: the entry of the installed commands."""
    code = main(arguments)
    if "torch.distributed" in sys.modules:
        from tats_fast.engine.distributed import end_process

        end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()
