"""Layer-wise learning-rate decay: the deeper a layer, the faster it learns (Clark et al. 2020,
"ELECTRA", appendix A; for pretrained vision transformers Bao et al. 2022, "BEiT", appendix).

Layer ids of a classifier with ``depth`` blocks: 0 patch embedding and positions, i + 1 block i,
depth + 1 final norm and head.
"""

from __future__ import annotations

from torch import nn

from tats_fast.models.classifier import VideoClassifier

FIRST = ("encoder.embed.", "encoder.positions")
BLOCKS = "encoder.blocks."
LAST = ("fc_norm.", "head.")


def layer_id(name: str, depth: int) -> int:
    """Layer of a parameter of ``VideoClassifier``, 0 to depth + 1.

    ``encoder.blocks.3.mlp.fc1.weight`` -> 4.

    Raises:
        ValueError: a name that belongs to no layer.
    """
    if name.startswith(FIRST):
        return 0
    if name.startswith(LAST):
        return depth + 1
    if name.startswith(BLOCKS):
        number = name.removeprefix(BLOCKS).split(".")[0]
        if number.isdigit() and int(number) < depth:
            return int(number) + 1
    raise ValueError(f"{name}: not a parameter of a classifier with {depth} blocks")


def lr_scale(layer: int, depth: int, decay: float) -> float:
    """decay^(depth + 1 - layer): 1 for the head, ``decay`` for the last block."""
    return decay ** (depth + 1 - layer)


def parameter_groups(
    module: VideoClassifier, weight_decay: float, layer_decay: float
) -> list[dict]:
    """An optimizer's groups, by layer and by whether weight decay applies, head last.

    Args:
        module: the classifier itself, not a wrapper, which would rename its parameters.
        weight_decay: of matrices; biases and norms have none. Frozen parameters are in no group.
        layer_decay: in (0, 1]; 1 gives every layer the same rate.

    Returns:
        ``params``, ``weight_decay`` and ``lr_scale`` each; who sets rates applies the scale.

    Raises:
        ValueError: ``layer_decay`` out of range.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}: expected more than 0 and at most 1")
    depth = len(module.encoder.blocks)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (layer_id(name, depth), parameter.ndim <= 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if plain else weight_decay,
            "lr_scale": lr_scale(layer, depth, layer_decay),
        }
        for (layer, plain), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
