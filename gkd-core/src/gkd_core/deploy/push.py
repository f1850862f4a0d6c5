"""Publishing of an export in a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gkd_core.errors import ConfigError


def check_push(repository: str) -> None:
    """Refuse to push where it cannot succeed, before anything is exported.

    Raises:
        ConfigError: The name is none of a repository, nobody is logged in, or the hub is switched
            off.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        reason = str(error).rstrip(".")
        raise ConfigError(f"--push {repository}: {reason}. Give it as OWNER/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"--push {repository} needs the hub, which HF_HUB_OFFLINE switches off. Unset it, or "
            "omit --push"
        )
    if get_token() is None:
        raise ConfigError(
            f"--push {repository} needs to know who you are: log in once with `hf auth login`, or "
            "set HF_TOKEN. gkd keeps no token"
        )


def push_export(place: Path, repository: str) -> str:
    """Upload the files of an export; return the address of the repository.

    A repository that is not there is made, private. Files that it has and the export does not stay.
    The token is that of huggingface_hub's own store.

    Args:
        place: The directory of the export.
        repository: The name of the repository, `OWNER/NAME`.

    Raises:
        ConfigError: The hub refuses, or cannot be reached.
    """
    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            folder_path=place, repo_id=made.repo_id, commit_message="Upload an export of gkd"
        )
    except Exception as error:  # of the client, of its connection, or of a file
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"the export was written to {place}, but not pushed to {repository}: {reason}. Try "
            f"again with `hf upload {repository} {place}`"
        ) from error
    return str(made)
