"""The README.md of an exported model: what is known is filled in, the rest is left as TODO."""

from __future__ import annotations

from tats_fast.config import FinetuneConfig, RunConfig
from tats_fast.interchange.weights import Weights
from tats_fast.models.classifier import HEAD_NORM_EPS
from tats_fast.version import __version__

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: video-classification
tags:
- video
- {tag}
- videomae
license: other
license_name: todo
---

# TODO: name of the model

TODO: choose a licence, here and in the header. The licence of the training videos matters too.

## What it is

A video {kind} with VideoMAE's architecture{trained_by}. {contents}

| | |
|---|---|
| clip | {frames} frames of {size} x {size} pixels, RGB, ImageNet mean and deviation |
| token | {tubelet} frames of {patch} x {patch} pixels; {tokens} tokens per clip |
| encoder | {depth} blocks, width {width}, {heads} heads |
{part_row}| layer norm | eps {eps:g} |

## How it was trained

{training}
TODO: {unknown}.

## How to use it

{usage}

## Limits

{limits}
- Positions are computed for the clip size in `config.json`; another size needs training to be good.
- It has learned whatever bias its training videos have. TODO: say what is known.

Exported by TATS-Fast {version}.
"""

_FEATURES = """\
```python
from transformers import VideoMAEModel

model = VideoMAEModel.from_pretrained("PATH")
# (B, {frames}, 3, {size}, {size}) -> (B, {tokens}, {width})
features = model(pixel_values).last_hidden_state
```

"""

_POOL_OFF = """\
`use_mean_pooling` is off, because the encoder ends in a norm that has to be loaded. To fine-tune,
turn it on, or the classifier reads the first token alone:
`VideoMAEForVideoClassification.from_pretrained("PATH", use_mean_pooling=True, num_labels=...)`.
It then has a new norm after the mean in place of the encoder's."""

_POOL_ON = """\
`use_mean_pooling` is on: the encoder ends without a norm, and the classifier norms the mean of the
tokens."""

_ENCODER_LIMITS = """\
- There is no classifier in it: features only, until it is fine-tuned."""

_DECODER_LIMITS = """
- Transformers fixes the epsilon of the decoder's last norm at 1e-5, training used 1e-6:
  reconstructions differ where the decoder's features are very small. The encoder is not
  affected."""

_CLASSIFICATION = """\
```python
import torch
from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessor

processor = VideoMAEImageProcessor.from_pretrained("PATH")
model = VideoMAEForVideoClassification.from_pretrained("PATH").eval()
# frames: a list of {frames} RGB pictures of one video, (H, W, 3) uint8 each; {sampling}
with torch.no_grad():
    logits = model(**processor(frames, return_tensors="pt")).logits  # (1, {classes})
probabilities = logits.softmax(-1)[0]
print(model.config.id2label[probabilities.argmax().item()])
```

`use_mean_pooling` is on: the classifier norms the mean of the tokens. Without that it would read
the first token alone."""

_CLASSES = """

<details><summary>The {count} classes, by id</summary>

```
{names}
```

</details>"""

_CLASSIFIER_LIMITS = """\
- It answers with one of its classes whatever a video shows.
- The same pixels give the same logits as in training's own code. Frames that other code decodes
  and scales differ a little in colour and by up to a pixel in their crop, and so does the
  answer."""

_HEAD_EPS = """
- Transformers fixes the epsilon of the norm before the classifier at {fixed:g}, training used
  {eps:g}: logits differ a little."""


def model_card(weights: Weights) -> str:
    """Markdown with the front matter that Hugging Face expects."""
    model = weights.model
    tag, kind = "masked-video-modeling", "transformer"
    if weights.head is not None:
        tag, kind = "video-classification", "classifier"
    return _TEMPLATE.format(
        tag=tag,
        kind=kind,
        trained_by=", trained by TATS-Fast" if weights.run else "",
        contents=_contents(weights),
        frames=model.num_frames,
        size=model.image_size,
        tubelet=model.tubelet_size,
        patch=model.patch_size,
        tokens=model.num_tokens,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        part_row=_part_row(weights),
        eps=weights.norm_eps,
        training=_training(weights),
        unknown=_unknown(weights),
        usage=_usage(weights),
        limits=_limits(weights),
        version=__version__,
    )


def _contents(weights: Weights) -> str:
    if weights.head is not None:
        rows = (f"{i} {' '.join(name.split())}" for i, name in enumerate(weights.classes))
        classes = _CLASSES.format(count=len(weights.classes), names="\n".join(rows))
        return f"Encoder and linear head, as after fine-tuning.{classes}"
    if weights.has_decoder:
        return "Encoder and decoder, as after pretraining."
    return "The encoder alone."


def _part_row(weights: Weights) -> str:
    """The table's row of what follows the encoder, if anything does."""
    model = weights.model
    if weights.head is not None:
        return f"| head | mean over tokens, norm, linear map to {len(weights.classes)} classes |\n"
    if weights.has_decoder:
        sizes = f"{model.decoder_depth} blocks, width {model.decoder_width}"
        return f"| decoder | {sizes}, {model.decoder_heads} heads |\n"
    return ""


def _unknown(weights: Weights) -> str:
    scratch = isinstance(weights.run, FinetuneConfig) and weights.run.init_from is None
    pretrained = "the pretraining, " if weights.head is not None and not scratch else ""
    return f"the videos, {pretrained}the hardware, the results"


def _usage(weights: Weights) -> str:
    model = weights.model
    if weights.head is not None:
        return _CLASSIFICATION.format(
            frames=model.num_frames, classes=len(weights.classes), sampling=_sampling(weights.run)
        )
    usage = _FEATURES.format(
        frames=model.num_frames, size=model.image_size, tokens=model.num_tokens, width=model.width
    )
    return usage + (_POOL_OFF if weights.final_norm else _POOL_ON)


def _sampling(run: RunConfig | FinetuneConfig | None) -> str:
    """Which frames of a video a classifier was trained on."""
    if not isinstance(run, FinetuneConfig):
        return "TODO: which ones"
    if run.data.stride == 0:
        return "one from each equal part of it"
    return f"numbers n, n + {run.data.stride}, n + {2 * run.data.stride}, ..."


def _limits(weights: Weights) -> str:
    if weights.head is None:
        return _ENCODER_LIMITS + (_DECODER_LIMITS if weights.has_decoder else "")
    limits = _CLASSIFIER_LIMITS
    if weights.head_norm_eps != HEAD_NORM_EPS:
        limits += _HEAD_EPS.format(fixed=HEAD_NORM_EPS, eps=weights.head_norm_eps)
    return limits


def _training(weights: Weights) -> str:
    if weights.run is None:
        return f"No record of it came with the weights (from: {weights.source or 'unknown'})."
    if isinstance(weights.run, FinetuneConfig):
        rows = _fine_tuning_rows(weights.run)
    else:
        rows = _pretraining_rows(weights.run)
    rows["steps done"] = "unknown" if weights.step is None else weights.step
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| setting | value |", "|---|---|", *table, ""])


# Settings that say how the weights came about; no paths, which are nobody's business.


def _pretraining_rows(run: RunConfig) -> dict[str, object]:
    rows: dict[str, object] = {
        "seed": run.seed,
        "masking.strategy": run.masking.strategy,
        "masking.ratio": run.masking.ratio,
        "ppo.reward": run.ppo.reward,
        "ppo.credit": run.ppo.credit,
        "data.stride": run.data.stride,
        "train.batch_size (clips, over all processes)": run.train.batch_size,
        "train.steps": run.train.steps,
        "optim.base_lr": run.optim.base_lr,
    }
    if run.masking.strategy != "tats":
        rows = {name: value for name, value in rows.items() if not name.startswith("ppo.")}
    return rows


def _fine_tuning_rows(run: FinetuneConfig) -> dict[str, object]:
    data, augment, optim, train = run.data, run.augment, run.optim, run.train
    length = {"train.epochs": train.epochs} if train.steps is None else {"train.steps": train.steps}
    return {
        "started from": "random weights" if run.init_from is None else "a pretrained encoder",
        "seed": run.seed,
        "data.stride (0 = one frame per segment)": data.stride,
        "data.flip": data.flip,
        "data.repeats": data.repeats,
        "test views": f"{data.clips} clips x {data.crops} crops",
        "RandAugment": f"{augment.rand_ops} operations, magnitude {augment.rand_magnitude:g}",
        "augment.erase": augment.erase,
        "augment.mixup": augment.mixup,
        "augment.cutmix": augment.cutmix,
        "augment.smoothing": augment.smoothing,
        "augment.class_weights": augment.class_weights,
        "model.drop_path": run.model.drop_path,
        "model.head_dropout": run.model.head_dropout,
        "train.batch_size (videos, over all processes)": train.batch_size,
        **length,
        "train.ema_decay": train.ema_decay,
        "optim.base_lr": optim.base_lr,
        "optim.layer_decay": optim.layer_decay,
        "optim.weight_decay": optim.weight_decay,
    }
