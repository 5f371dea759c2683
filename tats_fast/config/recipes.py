"""The recipes of configs/ by name, in a clone and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def recipes() -> dict[str, Path]:
    """File of each recipe by name, such as ``quickstart`` and ``finetune/ucf101_vit_base``."""
    inside, beside = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    folder = inside if inside.is_dir() else beside
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }


def find_config(given: str | Path, command: str) -> Path:
    """The file meant: ``given`` itself where there is one, or else the recipe of that name.

    ``ssv2_vit_base`` is ``pretrain/ssv2_vit_base`` to ``tats-fast pretrain``, and so is
    ``configs/pretrain/ssv2_vit_base.yaml`` where that folder is not at hand.

    Args:
        command: subcommand whose recipes come first.
    """
    path, names = Path(given), recipes()
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if not path.exists():
        for candidate in (f"{command}/{name}", name):
            if candidate in names:
                return names[candidate]
    return path
