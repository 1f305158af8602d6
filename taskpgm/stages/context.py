"""What all stages share: the config, the workdir, and tasks and models loaded from them."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taskpgm import models, progress, training
from taskpgm.artefact import MARK, digest, recovery_hint
from taskpgm.evaluation import answers_cut_off
from taskpgm.stages.decoders import embedded_config, embedded_text, with_template
from taskpgm.stages.pretrained import Source, pretrained
from taskpgm.tasks import (
    Example,
    Rows,
    Task,
    encode,
    load_targets,
    load_tasks,
    load_tokenizer,
    pack,
    special_notes,
)
from taskpgm.tasks.messages import printable

EMBEDDED = "stdlib"  # tasks.source where nobody names another
SAMPLE = 64  # examples of a task from which its mean number of tokens is estimated


def say(stage: str, text: str) -> None:
    """Prints a line about a stage, in the primary process only."""
    progress.said()
    if jax.process_index() == 0:
        print(f"{stage:>10}  {printable(text)}", flush=True)


class Context:
    """A run: its config and workdir, and what several stages need, loaded when first used.

    Keys (see `taskpgm.artefact`) chain forward only: tasks -> base -> adapters -> affinity ->
    mixture -> runs -> evaluation.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: Path,
        command: Sequence[str],
        *,
        planning: bool = False,
    ):
        """planning: only what `--dry_run` needs is read and fetched, which is no weights."""
        self.config: Any = config  # its keys are attributes, which a type checker cannot know
        self.folder = folder
        self.command = list(command)
        self.planning = planning
        self._tokenizers = {}
        self._said: set[str] = set()  # notes on examples that were printed already

    @property
    def weights_only(self) -> bool:
        """Whether there is a matrix and no data: then weights and page follow, and no model."""
        return weights_only(self.config)

    # --- Tasks ---------------------------------------------------------------------------------
    @cached_property
    def judged(self) -> list[Task]:
        """All tasks that are mixed, then the targets, with at most `tasks.max_heldout` held-out and
        `tasks.max_test` test rows.

        Raises:
          ValueError: a target has the name of another task.
        """
        section = self.config.tasks
        with progress.Work("reading the tasks"):
            loaded = load_tasks(
                section.source,
                heldout_fraction=section.heldout_fraction,
                test_fraction=section.test_fraction,
                seed=self.config.seed,
            )
            if section.targets:
                loaded += load_targets(section.targets, seed=self.config.seed)
                names = [task.name for task in loaded]
                if twice := [name for name in names if names.count(name) > 1]:
                    told = f"{twice[0]!r} is the name of another task: rename one"
                    raise ValueError(f"tasks.targets={section.targets}: {told}")
        loaded.sort(key=lambda task: task.target)
        most_heldout, most_test = section.max_heldout or None, section.max_test or None
        return [
            replace(task, heldout=task.heldout[:most_heldout], test=task.test[:most_test])
            for task in loaded
        ]

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks that are mixed."""
        return [task for task in self.judged if not task.target]

    @cached_property
    def targets(self) -> list[Task]:
        """The tasks that are judged and not mixed."""
        return [task for task in self.judged if task.target]

    @cached_property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Training examples per task, [n]."""
        return np.array([len(task.train) for task in self.tasks])

    @cached_property
    def tasks_key(self) -> str:
        return digest(self.config.seed, [(t.name, t.content_hash) for t in self.tasks])

    @cached_property
    def judged_key(self) -> str:
        """`tasks_key` for what depends on the targets too."""
        return digest(self.tasks_key, [(t.name, t.content_hash) for t in self.targets])

    # --- Models --------------------------------------------------------------------------------
    @cached_property
    def base(self) -> Source:
        """The model that every mixture fine-tunes."""
        if self.config.base.path:
            return pretrained(self.config.base.path, "base.path", weights=not self.planning)
        key = digest(self.config.embedded.to_dict(), self.config.tasks.length, self.tasks_key)
        return Source(self.folder / "base", key)

    @cached_property
    def proxy(self) -> Source:
        """The model that single-task models start from: the base, unless the config names one."""
        path = self.config.proxy.path
        if not path:
            return self.base
        return pretrained(path, "proxy.path", weights=not self.planning)

    @cached_property
    def mesh(self) -> Mesh:
        return training.make_mesh(self.config.mesh.to_dict())

    def load_model(self, source: Source) -> tuple[models.DecoderConfig, dict]:
        """A model's config and its parameters, sharded over the mesh as they are read."""
        section = self.config.base
        with self.reading(source), progress.Work("reading the model"):
            config, params = models.load_hf(source.path, dtype=section.param_dtype, mesh=self.mesh)
        return self.decoder_config(config), params

    @contextmanager
    def reading(self, source: Source) -> Iterator[None]:
        """Inside, errors of reading a model that this run has made end in a recovery hint."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            if self.folder not in source.path.parents:
                raise
            raise ValueError(f"{error}; {recovery_hint(source.path)}") from error

    @cached_property
    def embedded(self) -> tuple[list[str], Any]:
        """What the embedded base is pretrained on, and its tokenizer: the same each time."""
        documentation, tokenizer = embedded_text(self)
        return documentation, with_template(tokenizer, self.config.tasks.chat_template)

    def decoder(self, source: Source) -> models.DecoderConfig:
        """The architecture of a model, also of an embedded base that is not there yet."""
        if self.is_there(source):
            with self.reading(source):
                return self.decoder_config(models.DecoderConfig.from_hf(source.path))
        return self.decoder_config(embedded_config(self.config, self.embedded[1]))

    def is_there(self, source: Source) -> bool:
        """False for an embedded base that is still to be pretrained."""
        if source != self.base or self.config.base.path:
            return True
        try:
            return json.loads((source.path / MARK).read_text(encoding="utf-8"))["key"] == source.key
        except (OSError, ValueError, TypeError, KeyError):
            return False

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
        """The tokenizer of a model, read once, with the config's chat template if it has none."""
        if source not in self._tokenizers:
            if not self.is_there(source):
                return self.embedded[1]
            with self.reading(source):
                tokenizer = load_tokenizer(source.path)
            self._tokenizers[source] = with_template(tokenizer, self.config.tasks.chat_template)
        return self._tokenizers[source]

    def tokenizer_notes(self, task: Task) -> tuple[str, ...]:
        """What the base's tokenizer decides about a task's rows; nothing while the base that this
        run trains is not there."""
        try:
            if not self.is_there(self.base):
                return ()
        except (OSError, ValueError):  # there is no such model, which a plan says elsewhere
            if self.planning:
                return ()
            raise
        rows = (*task.train, *task.heldout, *task.test)
        return special_notes(self.tokenizer(self.base), rows)

    # --- Rows ----------------------------------------------------------------------------------
    def rows(self, source: Source, examples: Sequence[Example], name: str) -> Rows:
        """Examples of the task `name`, packed into rows.

        Raises:
          ValueError: no example fits a row.
        """
        length = self.config.tasks.length
        with progress.Work(f"tokens of {name}"):
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

    @cached_property
    def answers_cut_off(self) -> list[str]:
        """A line for each task with answers longer than `evaluation.max_new_tokens`."""
        most = self.config.evaluation.max_new_tokens
        return answers_cut_off(self.tokenizer(self.base), self.judged, most)

    def say_answers_cut_off(self) -> None:
        """Reports them once."""
        for line in self.answers_cut_off:
            if line not in self._said:
                self._said.add(line)
                say("tasks", line)

    @cached_property
    def test_rows(self) -> list[Rows]:
        """Test examples of every task and target, packed for the base's tokenizer."""
        self.say_answers_cut_off()
        return [self.rows(self.base, task.test, task.name) for task in self.judged]

    @cached_property
    def tokens_per_example(self) -> float:
        """Mean tokens of a training example with the base's tokenizer: a mean over tasks, each
        estimated from at most SAMPLE evenly spaced examples. It depends on no mixture."""
        means = []
        for task in self.tasks:
            picked = [task.train[i] for i in spread(len(task.train), SAMPLE)]
            ids = encode(self.tokenizer(self.base), picked, self.config.tasks.length).ids
            means.append(np.mean([len(x) for x in ids]) if ids else self.config.tasks.length)
        return float(np.mean(means))

    def seed_of(self, *names: str) -> int:
        """A seed for one purpose, from `config.seed` and the names of the purpose."""
        return zlib.crc32("/".join((str(self.config.seed), *names)).encode())


def weights_only(config: Any) -> bool:
    """`Context.weights_only`. The embedded suite, the default, does not count as given."""
    return bool(config.affinity.matrix) and config.tasks.source == EMBEDDED


def spread(size: int, most: int) -> list[int]:
    """At most `most` indices below `size`, evenly spaced, the first one 0."""
    return [int(i * size / most) for i in range(most)] if size > most else list(range(size))
