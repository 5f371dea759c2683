"""What a video file may be and how much it may ask for, wherever one is opened."""

from __future__ import annotations

DEMUXERS = (
    *("avi", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpeg", "mpegts", "mpegvideo"),
    *("flv", "asf", "ogg", "gif"),
)
"""FFmpeg's readers of the containers whose endings ``lists.VIDEO_SUFFIXES`` names. No other is
used: some follow references to other files and the network (playlists, concat), or take a text or
a still image for a video."""

MAX_PIXELS = 8192 * 4352
"""Pixels of a picture (8K). FFmpeg refuses larger ones before it takes memory for them and keeps up
to 17 pictures, however many there are in the file: so this bounds what a file can ask for."""


def stream_limits() -> dict[str, str]:
    """Options of a decoder."""
    return {"max_pixels": str(MAX_PIXELS)}


def container_limits() -> dict[str, str]:
    """Options of a container."""
    # The names of one reader are a list themselves, and each of them is enough.
    return {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "file"}
