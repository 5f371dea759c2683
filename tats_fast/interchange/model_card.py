"""The README.md of an exported model: what is known is filled in, the rest is left as TODO."""

from __future__ import annotations

from operator import attrgetter

from tats_fast.config import FinetuneConfig, RunConfig
from tats_fast.data.files import shown
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
| clip | {model.num_frames} frames of {model.image_size} x {model.image_size} pixels, RGB, \
ImageNet mean and deviation |
| token | {model.tubelet_size} frames of {model.patch_size} x {model.patch_size} pixels; \
{model.num_tokens} tokens per clip |
| encoder | {model.depth} blocks, width {model.width}, {model.heads} heads |
{part_row}| layer norm | eps {weights.norm_eps:g} |

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
# (B, {model.num_frames}, 3, {model.image_size}, {model.image_size}) \
-> (B, {model.num_tokens}, {model.width})
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
# frames: a list of {model.num_frames} RGB pictures of one video, (H, W, 3) uint8 each; {sampling}
with torch.no_grad():
    logits = model(**processor(frames, return_tensors="pt")).logits  # (1, {classes})
probabilities = logits.softmax(-1)[0]
print(model.config.id2label[probabilities.argmax().item()])
```

`use_mean_pooling` is on: the classifier norms the mean of the tokens. Without that it would read
the first token alone."""

_CLASSES = """\
Encoder and linear head, as after fine-tuning.

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

# Settings that say how the weights came about; no paths, which are nobody's business.
_PRETRAINING = (
    *("seed", "masking.strategy", "masking.ratio", "masking.draws_per_clip", "data.stride"),
    *("train.batch_size (clips, over all processes)", "train.steps", "optim.base_lr"),
)
_POLICY = ("ppo.reward", "ppo.credit")
_FINE_TUNING = (
    *("seed", "data.stride (0 = one frame per segment)", "data.flip", "data.repeats"),
    *("data.clips (per test video)", "data.crops (per test clip)"),
    *("augment.rand_ops", "augment.rand_magnitude", "augment.erase", "augment.mixup"),
    *("augment.cutmix", "augment.smoothing", "augment.class_weights", "model.drop_path"),
    *("model.head_dropout", "train.batch_size (videos, over all processes)"),
    *("train.ema_decay", "optim.base_lr", "optim.layer_decay", "optim.weight_decay"),
)


def model_card(weights: Weights) -> str:
    """Markdown with the front matter that Hugging Face expects."""
    parts = _encoder_parts(weights) if weights.head is None else _classifier_parts(weights)
    return _TEMPLATE.format(
        **parts,
        trained_by=", trained by TATS-Fast" if weights.run else "",
        model=weights.model,
        weights=weights,
        training=_training(weights),
        version=__version__,
    )


def _encoder_parts(weights: Weights) -> dict[str, str]:
    """What the card of a pretrained model says."""
    model, contents, limits, part_row = weights.model, "The encoder alone.", _ENCODER_LIMITS, ""
    if weights.has_decoder:
        contents = "Encoder and decoder, as after pretraining."
        limits += _DECODER_LIMITS
        sizes = f"{model.decoder_depth} blocks, width {model.decoder_width}"
        part_row = f"| decoder | {sizes}, {model.decoder_heads} heads |\n"
    return {
        "tag": "masked-video-modeling",
        "kind": "transformer",
        "contents": contents,
        "part_row": part_row,
        "unknown": "the videos, the hardware, the results",
        "usage": _FEATURES.format(model=model) + (_POOL_OFF if weights.final_norm else _POOL_ON),
        "limits": limits,
    }


def _classifier_parts(weights: Weights) -> dict[str, str]:
    """What the card of a fine-tuned model says."""
    count, run, limits = len(weights.classes), weights.run, _CLASSIFIER_LIMITS
    clean = [" ".join(shown(name).split()) for name in weights.classes]
    names = "\n".join(f"{number} {name}" for number, name in enumerate(clean))
    sampling, scratch = "TODO: which ones", False
    if isinstance(run, FinetuneConfig):
        stride, scratch = run.data.stride, run.init_from is None
        if stride is None:
            sampling = f"{run.data.fps:g} per second"
        elif stride == 0:
            sampling = "one from each equal part of it"
        else:
            sampling = f"numbers n, n + {stride}, n + {2 * stride}, ..."
    if weights.head_norm_eps != HEAD_NORM_EPS:
        limits += _HEAD_EPS.format(fixed=HEAD_NORM_EPS, eps=weights.head_norm_eps)
    return {
        "tag": "video-classification",
        "kind": "classifier",
        "contents": _CLASSES.format(count=count, names=names),
        "part_row": f"| head | mean over tokens, norm, linear map to {count} classes |\n",
        "unknown": f"the videos, {'' if scratch else 'the pretraining, '}the hardware, the results",
        "usage": _CLASSIFICATION.format(model=weights.model, classes=count, sampling=sampling),
        "limits": limits,
    }


def _training(weights: Weights) -> str:
    run = weights.run
    if run is None:
        return f"No record of it came with the weights (from: {weights.source or 'unknown'})."
    rows: dict[str, object] = {}
    if isinstance(run, RunConfig):
        names = _PRETRAINING + (_POLICY if run.masking.strategy == "tats" else ())
        if run.train.init_from is not None:
            rows["started from"] = "other weights"
        if run.teacher.init_from is not None:
            rows["teacher"] = "features of a frozen encoder, beside pixels"
    else:
        names = (*_FINE_TUNING, "train.epochs" if run.train.steps is None else "train.steps")
        rows["started from"] = "random weights" if run.init_from is None else "a pretrained encoder"
    if run.data.fps is not None:
        names = ["data.fps" if name.startswith("data.stride") else name for name in names]
    rows |= {name: attrgetter(name.partition(" ")[0])(run) for name in names}
    if weights.ema:
        rows["these weights"] = f"their moving average, decay {run.train.ema_decay:g} per step"
    rows["steps done"] = "unknown" if weights.step is None else weights.step
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| setting | value |", "|---|---|", *table, ""])
