"""Uploading an export to the Hugging Face hub."""

import re
from pathlib import Path

from data.disks import one_line
from data.settings import RunStopped, require

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


def check_repository(name: str) -> None:
    """Raise `UserError` unless it is of the form USER/REPO."""
    require(
        _REPOSITORY.fullmatch(name) is not None,
        f"--push={name} is not of the form USER/REPO",
    )


def push(folder: Path, repository: str, is_public: bool) -> str:
    """Upload a folder, into a new repository if there is none yet.

    Returns:
        The repository's address.

    Raises:
        RunStopped: The hub cannot be reached, or refuses; the folder is kept.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    again = f"{folder} is complete: hf upload {repository} {folder} tries again"
    if get_token() is None:
        raise RunStopped(
            f"--push={repository} needs a token of the hub: hf auth login, or set HF_TOKEN; {again}"
        )
    disable_progress_bars()
    try:
        api = HfApi()
        address = api.create_repo(repository, private=not is_public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload an export")
    except Exception as error:  # each version of huggingface_hub has its own network errors
        reason = one_line(error)[:200]
        raise RunStopped(f"--push={repository} failed: {reason}; {again}") from error
    return str(address)
