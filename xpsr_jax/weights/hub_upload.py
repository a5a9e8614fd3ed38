"""Uploads a model folder to the hub."""

from pathlib import Path

from xpsr_jax.errors import UserError, listed
from xpsr_jax.weights import hub
from xpsr_jax.weights.hub_errors import explained
from xpsr_jax.weights.model_card import CARD
from xpsr_jax.weights.sampling_defaults import INDEX
from xpsr_jax.weights.sources import SUBFOLDERS


def upload_folder(folder: Path, name: str, *, private: bool = False, message: str = "Upload a model") -> str:
    """Uploads the files of a model folder to the hub, without any other files in it; returns the URL of its page.

    Args:
      name: owner/name, or owner/name@branch. The repository is created if it does not exist.
      private: whether a newly created repository is private.
      message: commit message.

    Raises UserError: it is not a model folder, the name is not valid, or the hub refuses or cannot be reached.
    """
    found = hub.parsed(name)
    if found is None or found.inside or found.is_pinned:
        raise UserError(f"{name} is not a name to upload to: use owner/name, or owner/name@branch")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name a model folder, as `xpsr convert` and `xpsr train` write it")
    parts = [sub for sub in SUBFOLDERS.values() if (folder / sub).is_dir()]
    if not parts or not (folder / INDEX).is_file():
        inside = listed(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise UserError(
            f"{folder} is not a model folder: expected {INDEX} and subfolders such as unet/; found {inside}"
        )
    if not (folder / CARD).is_file():
        raise UserError(
            f"{folder} has no {CARD}, which the hub shows as the model's page; write one, or convert the folder again"
        )
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(found.repository, private=private, exist_ok=True)
        if found.revision is not None:
            api.create_branch(found.repository, branch=found.revision, exist_ok=True)
        api.upload_folder(
            repo_id=found.repository,
            folder_path=folder,
            revision=found.revision,
            allow_patterns=[INDEX, CARD, "LICENSE*", *(f"{part}/*" for part in parts)],
            commit_message=message,
        )
    except Exception as error:
        raise explained(error, name, writing=True) from error
    return str(url)
