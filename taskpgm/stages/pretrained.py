"""Models that the user names, by folder or hub id: their local folders and their keys."""

from dataclasses import dataclass
from pathlib import Path

from taskpgm import models
from taskpgm.artefact import fingerprint


@dataclass(frozen=True)
class Source:
    """A pretrained model: its Hugging Face folder, and a key that identifies its content."""

    path: Path
    key: str


def pretrained(name: str, key: str, weights: bool = True) -> Source:
    """The model `name`, a folder or hub id; errors say that the config's `key` names it.

    weights: whether they have to be there. A plan needs none: without them the key is "".

    Raises:
      FileNotFoundError: no such model, or it has no weights.
      ValueError: its config.json or the headers of its weights show that it cannot be loaded.
    """
    folder = models.find_model(name, key, weights=weights)
    try:
        models.check_hf(folder)
    except (OSError, ValueError):
        if weights:
            raise
        return Source(folder, "")
    files = [file.name for file in folder.iterdir()]
    return Source(
        folder,
        fingerprint(folder, [f for f in files if f == "config.json" or f.endswith(".safetensors")]),
    )
