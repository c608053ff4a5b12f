"""A checkpoint on the Hugging Face hub, when the user asks for it."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from linearpatch.errors import ConfigError, StorageError

log = logging.getLogger(__name__)


def check_repository(repository: str) -> None:
    """Reject early what could only fail after hours: a bad name, no login, an offline machine.

    Raises:
        ConfigError: says what to do.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"push_to_hub={repository} is not the name of a repository, such as me/my-model.") from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"push_to_hub={repository}, but HF_HUB_OFFLINE is set. Unset it, or leave push_to_hub out.")
    if get_token() is None:
        raise ConfigError(f"push_to_hub={repository}, but nobody is logged in to the hub. Run: hf auth login")


def push(folder: Path, repository: str) -> str:
    """Upload a checkpoint; a repository that doesn't exist is created as a private one.

    Returns:
        Address of the upload.

    Raises:
        StorageError: the hub rejects or can't be reached. The folder stays as it is.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        address = str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by linearpatch"))
    except Exception as error:  # network, permission, quota: the hub's client has an exception for each
        raise StorageError(
            f"{folder} is saved, but can't be pushed to {repository}: {error} Run the same command again (nothing is "
            f"computed twice), or: hf upload {repository} {folder}"
        ) from error
    log.info("pushed to %s", address)
    return address
