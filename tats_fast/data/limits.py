"""What a video or image file may be and how much it may ask for, wherever one is opened."""

from __future__ import annotations

VIDEO_SUFFIXES = (
    *(".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg"),
    *(".3gp", ".ts", ".flv", ".wmv", ".ogv", ".gif"),
)
"""File name endings, lower case, that make a file of a folder a video."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""File name endings, lower case, that make a listed file an image."""

DEMUXERS = (
    *("avi", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpeg", "mpegts", "mpegvideo"),
    *("flv", "asf", "ogg", "gif"),
)
"""FFmpeg's readers of the containers whose endings ``VIDEO_SUFFIXES`` names. No other is
used: some follow references to other files and the network (playlists, concat), or take a text or
a still image for a video."""

IMAGE_DEMUXERS = ("jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe")
"""The same for ``IMAGE_SUFFIXES``. They know a file by its content; FFmpeg's ``image2`` would go by
the name, and take some names for patterns of many files."""

MAX_PIXELS = 8192 * 4352
"""Pixels of a picture (8K). FFmpeg refuses larger ones before it takes memory for them and keeps up
to 17 pictures, however many there are in the file: so this bounds what a file can ask for."""


def stream_limits() -> dict[str, str]:
    """Options of a decoder."""
    return {"max_pixels": str(MAX_PIXELS)}


def is_image(path: str) -> bool:
    """Whether a path names an image, by its ending."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def container_limits(image: bool = False) -> dict[str, str]:
    """Options of a container: of a video's, or of an image."""
    # The names of one reader are a list themselves, and each of them is enough.
    readers = IMAGE_DEMUXERS if image else DEMUXERS
    return {"format_whitelist": ",".join(readers), "protocol_whitelist": "file"}
