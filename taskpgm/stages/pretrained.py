"""The models that a user names: where they are, by folder or hub id, and what identifies them."""

from dataclasses import dataclass
from pathlib import Path

from taskpgm import models
from taskpgm.artefact import fingerprint


@dataclass(frozen=True)
class Source:
    """A pretrained model as a Hugging Face folder: where it is, and a key that identifies it."""

    path: Path
    key: str


def pretrained(name: str, key: str) -> Source:
    """The model that the config's `key` names, by folder or hub id, identified by what is in it.

    Raises:
      FileNotFoundError: there is none, or it has no weights.
      ValueError: not a model that can be loaded, as its config.json and headers tell.
    """
    folder = models.find_model(name, key)
    models.check_hf(folder)
    files = [file.name for file in folder.iterdir()]
    return Source(
        folder,
        fingerprint(folder, [f for f in files if f == "config.json" or f.endswith(".safetensors")]),
    )
