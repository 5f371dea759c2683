"""Models on the Hugging Face hub: fetched into its cache, and uploaded.

Only what ``export_hugging_face`` writes and reads: nothing on the hub is executed.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from tats_fast.config import ConfigError, Failure

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A model's files that are read here.
_FILES = ["config.json", "model*.safetensors"]


def is_hub_name(path: str) -> bool:
    """Whether ``path`` can only mean a repository such as ``org/name``: nothing lies there, and its
    first part is no folder here."""
    return (
        _REPO.fullmatch(path) is not None
        and not Path(path).exists()
        and not Path(path).parts[0].endswith((".", ".."))
        and not Path(Path(path).parts[0]).exists()
    )


def fetch(repo: str, key: str) -> Path:
    """The folder of a repository in the hub's cache, which is filled first where something is
    missing; without a network, or under ``HF_HUB_OFFLINE=1``, what it has counts.

    Args:
        key: what messages call ``repo``.

    Raises:
        ConfigError: huggingface_hub is not installed, or there is no such model; one line.
    """
    hub = _hub(f"{key}={repo}: nothing there, and looking on the Hugging Face hub")
    try:
        return Path(hub.snapshot_download(repo, allow_patterns=_FILES))
    except Exception as error:  # of the network, of the hub, of the disk: types of three libraries
        raise ConfigError(
            f"{key}={repo}: nothing there, and not to be had from the Hugging Face hub or its "
            f"cache ({_first_line(error)})"
        ) from None


def require_upload(repo: str, key: str) -> None:
    """Before the work: that ``upload`` has what it needs on this machine.

    Raises:
        ConfigError: no name of a repository, huggingface_hub is not installed, or no token; one
            line.
    """
    if _REPO.fullmatch(repo) is None:
        raise ConfigError(f"{key}={repo}: must be owner/name, as the Hugging Face hub has it")
    if not _hub(f"{key}={repo}: uploading").get_token():
        raise ConfigError(f"{key}={repo}: no token; run hf auth login, or set HF_TOKEN")


def upload(folder: Path, repo: str) -> str:
    """Upload all files of ``folder`` to a model's repository as one commit; a new repository is
    private. Returns its address.

    Raises:
        Failure: the hub refuses or cannot be reached; one line.
    """
    api = _hub("uploading").HfApi()
    try:
        api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="tats-fast export")
    except Exception as error:
        raise Failure(
            f"{repo}: not uploaded to the Hugging Face hub ({_first_line(error)}); "
            f"the files are in {folder}"
        ) from None
    return f"{api.endpoint}/{repo}"


def _hub(purpose: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            f"{purpose} needs huggingface_hub: pip install 'tats-fast[hub]'"
        ) from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:160]}" if lines else type(error).__name__
