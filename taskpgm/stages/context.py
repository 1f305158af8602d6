"""What the stages share: the config, the workdir, and what is loaded from them once."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taskpgm import models, training
from taskpgm.stages import workdir as wd
from taskpgm.tasks import Example, Rows, Task, encode, load_tasks, load_tokenizer, pack


def say(stage: str, text: str) -> None:
    """One line about a stage, from the first process only."""
    if jax.process_index() == 0:
        print(f"{stage:>10}  {text}", flush=True)


@dataclass(frozen=True)
class Source:
    """A pretrained model as a Hugging Face folder: where it is, and a key that identifies it."""

    path: Path
    key: str


class Context:
    """A run: its config and workdir, and lazily what several stages need.

    Keys (see `workdir.py`) chain forward only: tasks -> base -> adapters -> affinity -> mixture ->
    runs -> evaluation.
    """

    def __init__(self, config: ConfigDict, folder: Path, command: Sequence[str]):
        self.config = config
        self.folder = folder
        self.command = list(command)
        self._tokenizers = {}
        self._said: set[str] = set()  # what was said of examples, said once

    # --- Tasks ---------------------------------------------------------------------------------
    @cached_property
    def tasks(self) -> list[Task]:
        """All tasks, with at most `tasks.max_heldout` and `tasks.max_test` rows to measure by."""
        section = self.config.tasks
        loaded = load_tasks(
            section.source,
            heldout_fraction=section.heldout_fraction,
            test_fraction=section.test_fraction,
            seed=self.config.seed,
        )
        most_heldout, most_test = section.max_heldout or None, section.max_test or None
        return [
            replace(task, heldout=task.heldout[:most_heldout], test=task.test[:most_test])
            for task in loaded
        ]

    @cached_property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Training examples per task, [n]."""
        return np.array([len(task.train) for task in self.tasks])

    @cached_property
    def tasks_key(self) -> str:
        return wd.digest(self.config.seed, [(t.name, t.content_hash) for t in self.tasks])

    # --- Models --------------------------------------------------------------------------------
    @cached_property
    def base(self) -> Source:
        """The model that every mixture fine-tunes."""
        if self.config.base.path:
            return pretrained(self.config.base.path)
        key = wd.digest(self.config.embedded.to_dict(), self.config.tasks.length, self.tasks_key)
        return Source(self.folder / "base", key)

    @cached_property
    def proxy(self) -> Source:
        """What single-task models start from: the base, unless the config names another."""
        return pretrained(self.config.proxy.path) if self.config.proxy.path else self.base

    @cached_property
    def mesh(self) -> Mesh:
        return training.make_mesh(self.config.mesh.to_dict())

    def load_model(self, source: Source) -> tuple[models.DecoderConfig, dict]:
        """A model's config and its parameters, sharded over the mesh as they are read."""
        section = self.config.base
        with self.reading(source):
            config, params = models.load_hf(source.path, dtype=section.param_dtype, mesh=self.mesh)
        return self.decoder_config(config), params

    @contextmanager
    def reading(self, source: Source) -> Iterator[None]:
        """Inside, the files of a model are read: what is wrong with one that a stage has made ends
        in the way out."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            if self.folder not in source.path.parents:
                raise
            raise ValueError(f"{error}; {wd.way_out(source.path)}") from error

    def decoder_config(self, config: models.DecoderConfig) -> models.DecoderConfig:
        """How the model is run here: precision, recomputation, attention."""
        section = self.config.base
        return replace(
            config,
            dtype=section.dtype,
            param_dtype=section.param_dtype,
            remat=section.remat,
            attention=section.attention,
        )

    def tokenizer(self, source: Source):
        """The tokenizer of a model, read once; where it has no chat template, the config's."""
        if source not in self._tokenizers:
            with self.reading(source):
                tokenizer = load_tokenizer(source.path)
            template = self.config.tasks.chat_template
            if template and not tokenizer.chat_template:
                tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
            self._tokenizers[source] = tokenizer
        return self._tokenizers[source]

    # --- Rows ----------------------------------------------------------------------------------
    def rows(self, source: Source, examples: Sequence[Example], name: str) -> Rows:
        """Packed rows of some examples of the task `name`.

        Raises:
          ValueError: no example fits a row.
        """
        length = self.config.tasks.length
        encoded = encode(self.tokenizer(source), examples, length)
        if not encoded.ids:
            raise ValueError(
                f"task {name}: none of its {len(examples)} responses fits into "
                f"tasks.length={length} tokens: raise it or drop the task"
            )
        for note in encoded.notes:
            if (text := f"{name}: {note}") not in self._said:
                self._said.add(text)
                say("tasks", text)
        for count, what in (
            (encoded.dropped, "examples dropped: their responses do not fit"),
            (encoded.truncated, "prompts lost their beginnings"),
        ):
            text = f"{name}: {count} of {len(examples)} {what} (tasks.length={length})"
            if count and text not in self._said:
                self._said.add(text)
                say("tasks", text)
        return pack(encoded, length)

    def seed_of(self, *names: str) -> int:
        """A seed of its own for each purpose, from `config.seed` and names."""
        return zlib.crc32("/".join((str(self.config.seed), *names)).encode())


def on_mesh(stage: Callable[[Context], None]) -> Callable[[Context], None]:
    """A stage that runs a model: all processes run its programs together, on the run's mesh, which
    is in force for what has to know it (`models/splash.py`). The others are `on_primary`."""

    @wraps(stage)
    def run(context: Context) -> None:
        with jax.set_mesh(context.mesh):
            stage(context)

    return run


def pretrained(path: str) -> Source:
    """A Hugging Face folder that the user names, identified by what is in it.

    Raises:
      FileNotFoundError: no such folder, or no weights in it.
      ValueError: not a model that can be loaded, as its config.json and headers tell.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path}: no such model folder; put a Hugging Face checkpoint there "
            "(config.json and *.safetensors) or set --config.base.path"
        )
    files = [f.name for f in folder.iterdir()]
    names = [name for name in files if name == "config.json" or name.endswith(".safetensors")]
    if not any(name.endswith(".safetensors") for name in names):
        raise FileNotFoundError(f"{path}: no *.safetensors in this model folder")
    models.check_hf(folder)
    return Source(folder, wd.fingerprint(folder, names))
