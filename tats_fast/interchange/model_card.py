"""The README.md of an exported model: what is known is filled in, the rest is left as TODO."""

from __future__ import annotations

from tats_fast.config import RunConfig
from tats_fast.interchange.weights import Weights
from tats_fast.version import __version__

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: video-classification
tags:
- video
- masked-video-modeling
- videomae
license: other
license_name: todo
---

# TODO: name of the model

TODO: choose a licence, here and in the header. The licence of the training videos matters too.

## What it is

A video transformer with VideoMAE's architecture{trained_by}. {contents}

| | |
|---|---|
| clip | {frames} frames of {size} x {size} pixels, RGB, ImageNet mean and deviation |
| token | {tubelet} frames of {patch} x {patch} pixels; {tokens} tokens per clip |
| encoder | {depth} blocks, width {width}, {heads} heads |
{decoder_row}| layer norm | eps {eps:g} |

## How it was trained

{training}
TODO: the videos, the hardware, the results.

## How to use it

```python
from transformers import VideoMAEModel

model = VideoMAEModel.from_pretrained("PATH")
# (B, {frames}, 3, {size}, {size}) -> (B, {tokens}, {width})
features = model(pixel_values).last_hidden_state
```

{pooling}

## Limits

- There is no classifier in it: features only, until it is fine-tuned.
- Positions are computed for the clip size in `config.json`; another size needs training to be good.
- Transformers fixes the epsilon of the decoder's last norm at 1e-5, training used 1e-6:
  reconstructions differ where the decoder's features are very small. The encoder is not affected.
- It has learned whatever bias its training videos have. TODO: say what is known.

Exported by TATS-Fast {version}.
"""

_POOL_OFF = """\
`use_mean_pooling` is off, because the encoder ends in a norm that has to be loaded. To fine-tune,
turn it on, or the classifier reads the first token alone:
`VideoMAEForVideoClassification.from_pretrained("PATH", use_mean_pooling=True, num_labels=...)`.
It then has a new norm after the mean in place of the encoder's."""

_POOL_ON = """\
`use_mean_pooling` is on: the encoder ends without a norm, and the classifier norms the mean of the
tokens."""


def model_card(weights: Weights) -> str:
    """Markdown with the front matter that Hugging Face expects."""
    model = weights.model
    decoder = (
        f"{model.decoder_depth} blocks, width {model.decoder_width}, {model.decoder_heads} heads"
    )
    return _TEMPLATE.format(
        trained_by=", trained by TATS-Fast" if weights.run else "",
        contents=(
            "Encoder and decoder, as after pretraining."
            if weights.has_decoder
            else "The encoder alone."
        ),
        frames=model.num_frames,
        size=model.image_size,
        tubelet=model.tubelet_size,
        patch=model.patch_size,
        tokens=model.num_tokens,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        decoder_row=f"| decoder | {decoder} |\n" if weights.has_decoder else "",
        eps=weights.norm_eps,
        training=_training(weights),
        pooling=_POOL_OFF if weights.final_norm else _POOL_ON,
        version=__version__,
    )


def _training(weights: Weights) -> str:
    if weights.run is None:
        return f"The weights come from elsewhere ({weights.source or 'unknown'})."
    return "\n".join(["| setting | value |", "|---|---|", *_rows(weights.run, weights.step), ""])


def _rows(run: RunConfig, step: int | None) -> list[str]:
    """Settings that say how the weights came about; no paths, which are nobody's business."""
    rows = {
        "seed": run.seed,
        "masking.strategy": run.masking.strategy,
        "masking.ratio": run.masking.ratio,
        "ppo.reward": run.ppo.reward,
        "ppo.credit": run.ppo.credit,
        "data.stride": run.data.stride,
        "train.batch_size (per process)": run.train.batch_size,
        "train.steps": run.train.steps,
        "optim.base_lr": run.optim.base_lr,
        "steps done": "unknown" if step is None else step,
    }
    if run.masking.strategy != "tats":
        rows = {name: value for name, value in rows.items() if not name.startswith("ppo.")}
    return [f"| {name} | {value} |" for name, value in rows.items()]
