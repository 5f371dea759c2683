"""Named encoder/decoder sizes. Base, large and huge follow VideoMAE's published models, giant the
ViT-g of VideoMAE V2 (Wang et al. 2023): patches of 14 pixels, MLPs 48/11 as wide as their block."""

PRESETS: dict[str, dict[str, int | float]] = {
    "vit_tiny": {
        "width": 192,
        "depth": 12,
        "heads": 3,
        "decoder_width": 96,
        "decoder_depth": 4,
        "decoder_heads": 3,
    },
    "vit_small": {
        "width": 384,
        "depth": 12,
        "heads": 6,
        "decoder_width": 192,
        "decoder_depth": 4,
        "decoder_heads": 3,
    },
    "vit_base": {
        "width": 768,
        "depth": 12,
        "heads": 12,
        "decoder_width": 384,
        "decoder_depth": 4,
        "decoder_heads": 6,
    },
    "vit_large": {
        "width": 1024,
        "depth": 24,
        "heads": 16,
        "decoder_width": 512,
        "decoder_depth": 12,
        "decoder_heads": 8,
    },
    "vit_huge": {
        "width": 1280,
        "depth": 32,
        "heads": 16,
        "decoder_width": 640,
        "decoder_depth": 12,
        "decoder_heads": 8,
    },
    "vit_giant": {
        "patch_size": 14,
        "width": 1408,
        "depth": 40,
        "heads": 16,
        "decoder_width": 512,
        "decoder_depth": 4,
        "decoder_heads": 8,
        "mlp_ratio": 48 / 11,
    },
}
