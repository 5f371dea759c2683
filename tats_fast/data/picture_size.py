"""The size of a picture as its packet says, without decoding: VP9 and MJPEG, whose pictures may
change it at any time."""

from __future__ import annotations

from collections.abc import Callable

Size = tuple[int, int]
"""Width and height in pixels."""

UNKNOWN: Size = (0, 0)
"""What is no picture of the kind expected."""


def picture_sizes(codec: str) -> Callable[[bytes], set[Size]] | None:
    """For a codec in FFmpeg's names, what reads the sizes that a packet declares; None = nothing.

    A VP9 picture that refers to others may declare none: then it has their size.
    """
    return {"vp9": vp9_sizes, "mjpeg": mjpeg_sizes}.get(codec)


def mjpeg_sizes(packet: bytes) -> set[Size]:
    """The sizes in a packet's JPEG frame headers (ITU-T T.81, B.2.2)."""
    sizes: set[Size] = set()
    at = packet.find(b"\xff\xd8") + 2
    while 2 <= at <= len(packet) - 4:
        marker, length = packet[at + 1], int.from_bytes(packet[at + 2 : at + 4], "big")
        if packet[at] != 0xFF or marker == 0xDA:  # the picture itself begins
            break
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = packet[at + 5 : at + 7], packet[at + 7 : at + 9]
            sizes.add((int.from_bytes(width, "big"), int.from_bytes(height, "big")))
        at += 2 + length
    return sizes or {UNKNOWN}


def vp9_sizes(packet: bytes) -> set[Size]:
    """The sizes that the frames of a packet declare (VP9 bitstream specification 0.6, 7.2); of
    profile 0, which all 8-bit 4:2:0 is."""
    return {size for frame in _frames(packet) for size in _declared(frame)}


def _frames(packet: bytes) -> list[bytes]:
    """The frames of a superframe (annex B), or the packet as it is."""
    marker = packet[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = packet[-(2 + count * width) :]
    if marker >> 5 != 0b110 or len(index) != 2 + count * width or index[0] != marker:
        return [packet]
    frames, at = [], 0
    for number in range(count):
        size = int.from_bytes(index[1 + number * width :][:width], "little")
        frames.append(packet[at : at + size])
        at += size
    return [frame for frame in frames if frame]


def _declared(frame: bytes) -> list[Size]:
    """The size in an uncompressed header (6.2), if it declares one."""
    bits = _Bits(frame)
    if bits.read(2) != 2 or bits.read(2) != 0:
        return [UNKNOWN]
    if bits.read(1):  # shows an earlier frame
        return []
    is_inter, is_shown, is_resilient = bits.read(1), bits.read(1), bits.read(1)
    if not is_inter:
        bits.read(24)
        if bits.read(3) == 7:  # RGB, which profile 0 does not have
            return [UNKNOWN]
        bits.read(1)
        return [bits.size()]
    intra_only = 0 if is_shown else bits.read(1)
    bits.read(0 if is_resilient else 2)
    if intra_only:
        bits.read(24 + 8)
        return [bits.size()]
    bits.read(8 + 3 * 4)
    return [] if any(bits.read(1) for _ in range(3)) else [bits.size()]


class _Bits:
    """Reads big-endian bits of the head of a frame; behind its end are zeros."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:16].ljust(16, b"\0"), "big")
        self._left = 128

    def read(self, count: int) -> int:
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def size(self) -> Size:
        return self.read(16) + 1, self.read(16) + 1
