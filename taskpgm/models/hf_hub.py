"""Where the model is that a user names: a folder, or a model of the Hugging Face hub."""

import re
from pathlib import Path

from taskpgm.models.hf_folder import refuse_other_formats

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
# What of a repository is read; never pickles, never code.
DESCRIPTION = ["*.json", "*.jinja", "tokenizer.model", "merges.txt"]
WEIGHTS = ["model*.safetensors"]


def find_model(name: str | Path, key: str, weights: bool = True) -> Path:
    """The folder of a model: `name` itself, or the hub's model of that name in the local cache.

    A hub id (`org/model`, or `org/model@revision`) is downloaded by huggingface_hub into its cache
    unless it is there; offline (also HF_HUB_OFFLINE=1) the cache alone is asked. `key` names the
    config's key in errors. weights: whether they are downloaded too.

    Raises FileNotFoundError if it is neither, ValueError for weights of another format; both lines
    name the way out.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        refuse_other_formats(path)
        return path
    if path.is_file():
        refuse_other_formats(path)
        raise ValueError(
            f"--config.{key}={name}: a file; name the folder with config.json and *.safetensors"
        )
    if not HUB_ID.fullmatch(str(name)):
        raise FileNotFoundError(
            f"--config.{key}={name}: no such model folder; put a Hugging Face checkpoint there"
            " (config.json and *.safetensors) or name a model of the hub"
        )
    return _from_hub(str(name), key, DESCRIPTION + (WEIGHTS if weights else []))


def _from_hub(name: str, key: str, patterns: list[str]) -> Path:
    # Imported here: a run on a folder needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(repo, revision=revision or None, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"--config.{key}={name}: neither a folder nor a model that the hub or its local cache"
            f" gives ({reason})"
        ) from error
    return Path(folder)
