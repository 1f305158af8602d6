"""The models that a user names: where they are, and whether they fit the tasks.

All of it is found out before anything is spent, from headers, JSON files and tokenisation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskpgm import models
from taskpgm.artefact import fingerprint
from taskpgm.tasks import check_vocabulary, encode

if TYPE_CHECKING:
    from taskpgm.stages.context import Context


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


def check_models(context: "Context") -> None:
    """Refuses a named base or proxy that the tasks do not fit.

    Raises:
      ValueError: names the key; a row is longer than the model's positions, the tokenizer cannot
        encode the examples, or it writes a token that the model has no embedding for.
    """
    config = context.config
    if config.affinity.matrix:
        return
    if config.base.path:
        check_model(context, context.base, f"base.path={config.base.path}")
    if config.proxy.path:
        check_model(context, context.proxy, f"proxy.path={config.proxy.path}")


def check_model(context: "Context", source: Source, where: str) -> None:
    """`check_models` of one model, which `where` names."""
    decoder = models.DecoderConfig.from_hf(source.path)
    length = context.config.tasks.length
    if length > decoder.max_position:
        raise ValueError(
            f"tasks.length={length}: the model of {where} has {decoder.max_position} positions; set"
            f" --config.tasks.length={decoder.max_position} or less"
        )
    tokenizer = context.tokenizer(source)
    larger = len(tokenizer) > decoder.vocab_size
    for task in context.tasks:
        # A tokenizer that fits its model is tried on one example: does it have EOS, a template?
        examples = (*task.train, *task.heldout, *task.test) if larger else task.train[:1]
        try:
            ids = encode(tokenizer, examples, length).ids
        except ValueError as error:
            raise ValueError(f"{where}: task {task.name}: {error}") from error
        check_vocabulary(tokenizer, ids, decoder.vocab_size, f"{where}: task {task.name}")
