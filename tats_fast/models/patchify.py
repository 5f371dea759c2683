"""Clips to space-time patches and back. Legend: B clips, T frames, F = T / tubelet token-frames,
P = (S / patch)^2 tokens per frame, N = F*P, D = tubelet * patch * patch * 3.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def patchify(clips: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """Cut clips into patches, once: the same patches are the embedding's input and the target.

    Token (f, s) has index f*P + s, s counts row by row; a patch is laid out (time, height, width,
    colour). With 16 frames of 32x32, tubelet 2 and patch 16, token 5 = (frame 1, s 1) holds
    frames 2-3, rows 0-15, columns 16-31.

    Args:
        clips: (B, T, H, W, 3), any dtype (uint8 stays uint8: one byte per pixel).

    Returns:
        (B, N, D), contiguous.

    Raises:
        ValueError: sides that the patch or the tubelet does not divide.
    """
    _, frames, height, width, channels = clips.shape
    if channels != 3 or frames % tubelet_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"clips of shape {tuple(clips.shape)} do not divide into tubelets of {tubelet_size} "
            f"frames and patches of {patch_size} pixels with 3 colours"
        )
    return rearrange(
        clips,
        "b (f t) (i p) (j q) c -> b (f i j) (t p q c)",
        t=tubelet_size,
        p=patch_size,
        q=patch_size,
    )


def normalised_video(clips: Tensor) -> Tensor:
    """Clips (B, T, S, S, 3) uint8 RGB -> video (B, 3, T, S, S) fp32 with ImageNet's mean and
    deviation, as encoders and classifiers take it."""
    # Filled there and not copied from here, for which a GPU would finish its queue first.
    mean, std = (
        torch.stack([torch.full((), value, device=clips.device) for value in colours])
        for colours in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return ((clips.float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)


def unpatchify(patches: Tensor, tubelet_size: int, patch_size: int, image_size: int) -> Tensor:
    """Inverse of ``patchify``: (B, N, D) -> (B, T, S, S, 3)."""
    side = image_size // patch_size
    return rearrange(
        patches,
        "b (f i j) (t p q c) -> b (f t) (i p) (j q) c",
        i=side,
        j=side,
        t=tubelet_size,
        p=patch_size,
        q=patch_size,
    )


def motion_energy(patches: Tensor, tubelet_size: int) -> Tensor:
    """Temporal-difference energy of each token: mean squared frame difference inside its tubelet.

    Args:
        patches: (B, N, D), uint8 or float in [0, 1].

    Returns:
        (B, N) fp32, in squared units of the [0, 1] range; zeros for a tubelet of one frame.
    """
    pixels = patches.unflatten(-1, (tubelet_size, -1))
    if tubelet_size == 1:
        return torch.zeros(patches.shape[:2], device=patches.device)
    scale = 1 / 255 if patches.dtype == torch.uint8 else 1.0
    difference = (pixels[:, :, 1:].float() - pixels[:, :, :-1].float()) * scale
    return difference.square().mean(dim=(-2, -1))


def roughness(patches: Tensor, patch_size: int) -> Tensor:
    """Spatial texture of each token: mean squared difference of horizontally neighbouring pixels.

    Returns (B, N) fp32; with it a sampler that merely likes texture can be told from one that
    follows motion.
    """
    pixels = patches.unflatten(-1, (-1, patch_size, 3))
    scale = 1 / 255 if patches.dtype == torch.uint8 else 1.0
    difference = (pixels[..., 1:, :].float() - pixels[..., :-1, :].float()) * scale
    return difference.square().mean(dim=(-3, -2, -1))


def patches_and_statistics(
    clips: Tensor, tubelet_size: int, patch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``patchify`` and ``token_statistics``: clips (B, T, H, W, 3) -> patches (B, N, D), motion
    energy and roughness (B, N)."""
    patches = patchify(clips, tubelet_size, patch_size)
    return patches, *token_statistics(patches, tubelet_size, patch_size)


def token_statistics(patches: Tensor, tubelet_size: int, patch_size: int) -> tuple[Tensor, Tensor]:
    """``motion_energy`` and ``roughness``, (B, N) fp32 each; one function, so that a compiler can
    read the pixels once for both."""
    return motion_energy(patches, tubelet_size), roughness(patches, patch_size)
