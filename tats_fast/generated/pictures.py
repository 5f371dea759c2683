"""Freely licensed pictures that installed packages bring along, as textures.

Nothing is downloaded and nothing of them is in this repository. matplotlib's is in the public
domain, scikit-image's likewise or CC0, scikit-learn's are CC BY 2.0: name their author,
danielbuechele (china) and vultilion (flower), where videos made of them are passed on.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tats_fast.config import ConfigError

FILES = {
    "matplotlib": ("mpl-data/sample_data", ("grace_hopper.jpg",)),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": ("data", ("astronaut.png", "brick.png", "coffee.png", "grass.png", "gravel.png")),
}
"""Folder inside a package, and its pictures."""
TILES = 4
"""Rows and columns of an atlas of pieces."""
PIECE = (0.3, 1.0)
"""Side of a piece over the short side of its picture."""
TRACE = 0.25
"""Deviation of the noise that stays, over that of the picture."""


def installed_pictures() -> list[Path]:
    """The pictures of ``FILES`` that are here; looked up without importing their packages."""
    found = []
    for package, (folder, names) in FILES.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            found += [path for name in names if (path := Path(place) / folder / name).is_file()]
    return found


def lay_pictures(
    atlas: Tensor, share: float, generator: torch.Generator, key: str = "textures"
) -> None:
    """Cover about ``share`` of an atlas (``textures.noise_atlas``), in place, with random pieces of
    pictures, each as lightness and two differences of colours of mean 0 and deviation 1. A trace of
    the noise stays, for a blue sky that moves looks like one that rests.

    Args:
        key: what the message calls the option that asks for them.

    Raises:
        ConfigError: no picture is installed.
    """
    paths = installed_pictures()
    if not paths:
        raise ConfigError(
            f"{key}: no installed package brings pictures; pip install scikit-learn, or use "
            f"{key}=noise"
        )
    pictures = [_read(path).to(atlas.device) for path in paths]
    side = atlas.shape[-1] // TILES
    draws = torch.rand((TILES, TILES, 6), generator=generator, device=generator.device).tolist()
    for row in range(TILES):
        for column in range(TILES):
            covered, which, *cut = draws[row][column]
            if covered < share:
                piece = _piece(pictures[int(which * len(pictures))], cut, side)
                down, along = (slice(n * side, (n + 1) * side) for n in (row, column))
                atlas[:, down, along] = piece + TRACE * atlas[:, down, along]


def _read(path: Path) -> Tensor:
    """(3, H, W) fp32."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def _piece(picture: Tensor, cut: list[float], side: int) -> Tensor:
    """A square of (3, H, W) at a random place and scale, resized: (3, side, side)."""
    height, width = picture.shape[1:]
    scale, down, along, mirror = cut
    edge = int(min(height, width) * (PIECE[0] + (PIECE[1] - PIECE[0]) * scale))
    top, left = int(down * (height - edge)), int(along * (width - edge))
    piece = picture[None, :, top : top + edge, left : left + edge]
    piece = F.interpolate(piece, (side, side), mode="bilinear", antialias=True)[0]
    red, green, blue = piece.flip(-1) if mirror < 0.5 else piece
    channels = torch.stack([red + green + blue, red - green, blue - (red + green) / 2])
    mean, deviation = channels.mean((1, 2), keepdim=True), channels.std((1, 2), keepdim=True)
    return (channels - mean) / deviation.clamp_min(1)  # a grey picture has no colours
