"""What a plan counts with: rows of models that do not exist yet, costs, what fits, and words.

Rows are packed as the run will pack them, of a sample where there are many; where there is no
tokenizer, tokens are estimated from bytes. FLOPs follow `training.flops_per_token`, memory
`training.estimate_memory`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from taskpgm import models, tasks
from taskpgm.evaluation import last_response
from taskpgm.models.generate import bucket
from taskpgm.stages.context import SAMPLE, Context, Source, spread
from taskpgm.stages.devices import Machine, mesh_shape, used_share
from taskpgm.training.memory import SHARE

BYTES_PER_TOKEN = 3.0  # of English text under a vocabulary of some ten thousand pieces
MOST_EXAMPLES = 100_000  # of a split of all tasks, more are not tokenized for a plan
FLOAT32 = 4


# --- Costs ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cost:
    """What making an artefact takes; None where a number makes no sense.

    Attributes:
      work: in words.
      flops: of matrix products. other_flops: of the rest, where that counts.
      disk: bytes written. memory: bytes on one device.
      problem: why it cannot be made like this, or not well, and which key mends it.
      done: (parts that are there, all parts), of an artefact in parts.
      share: of the devices that compute something of their own; `other_share` for `other_flops`.
      trained, scored: tokens that models are trained on, and only read or write; padding counts.
    """

    work: str
    flops: float | None = None
    disk: float | None = None
    memory: float | None = None
    problem: str | None = None
    done: tuple[int, int] | None = None
    other_flops: float = 0.0
    share: float = 1.0
    other_share: float = 1.0
    trained: int = 0
    scored: int = 0

    def seconds(self, on: Machine) -> float | None:
        """On a machine; None where that is not known."""
        if self.flops is None:
            return None
        return on.seconds(self.flops / self.share, self.other_flops / self.other_share)


class Split(NamedTuple):
    """The packed rows of some examples: how many positions of each are scored; and all tokens."""

    scored_of_row: tuple[int, ...]
    tokens: int

    @property
    def rows(self) -> int:
        return len(self.scored_of_row)

    @property
    def scored(self) -> int:
        return sum(self.scored_of_row)


class Prompts(NamedTuple):
    """Positions computed to read prompts, in whole batches padded to a bucket, and tokens that
    are written after them at most; and the longest row that they come to."""

    read: int
    written: int
    longest: int


class Estimate:
    """Sizes that several stages' costs need, of one run on one machine."""

    def __init__(self, context: Context, on: Machine):
        self.context = context
        self.machine = on
        self.mesh, self.mesh_problem = mesh_shape(context.config, on.count)
        self._splits: dict[tuple[Any, str], list[Split]] = {}

    def decoder(self, source: Source) -> models.DecoderConfig:
        """The architecture of a model that may not exist yet."""
        return self.context.decoder(source)

    def split(self, source: Source, name: str) -> list[Split]:
        """Every task's "train", or its and every target's "heldout" or "test" examples, as rows of
        a model's tokens."""
        key = (source.path, name)
        if key not in self._splits:
            of = self.context.tasks if name == "train" else self.context.judged
            each = [getattr(task, name) for task in of]
            self._splits[key] = [self.packed(source, examples) for examples in each]
        return self._splits[key]

    @property
    def adapter_rows(self) -> list[int]:
        """How many packed rows each task's training split has with the proxy's tokenizer."""
        return [part.rows for part in self.split(self.context.proxy, "train")]

    def scored_share(self, source: Source) -> float:
        """Of all positions of the training rows, those that are scored."""
        split, length = self.split(source, "train"), self.context.config.tasks.length
        return sum(x.scored for x in split) / sum(x.rows * length for x in split)

    def packed(self, source: Source, examples: Sequence[tasks.Example]) -> Split:
        """`split` of one task."""
        length = self.context.config.tasks.length
        picked = self._sample(examples)
        scale = len(examples) / max(1, len(picked))
        encoded = self._encode(source, picked)
        if encoded is None or not encoded.ids:
            asked, answers = map(sum, zip(*map(_bytes, examples), strict=True))
            tokens = int((asked + answers) / BYTES_PER_TOKEN) + len(examples)
            scored = min(tokens, int(answers / BYTES_PER_TOKEN) + len(examples))
            rows = max(1, -(-tokens // length))
            return Split((-(-scored // rows),) * rows, tokens)
        rows = tasks.pack(encoded, length)
        scored = (rows.weights > 0).sum(1).tolist()
        count = math.ceil(len(scored) * scale)
        return Split(
            tuple(scored[i % len(scored)] for i in range(count)),
            int(sum(map(len, encoded.ids)) * scale),
        )

    def _sample(self, examples: Sequence[tasks.Example]) -> list[tasks.Example]:
        most = max(SAMPLE, MOST_EXAMPLES // len(self.context.tasks))
        return [examples[i] for i in spread(len(examples), most)]

    def _encode(self, source: Source, examples: Sequence[tasks.Example]) -> tasks.Encoded | None:
        """None where there is no tokenizer that can; the checks say why."""
        try:
            tokenizer = self.context.tokenizer(source)
            return tasks.encode(tokenizer, examples, self.context.config.tasks.length)
        except (ValueError, OSError):
            return None

    @cached_property
    def tokens_per_example(self) -> float:
        """As `Context.tokens_per_example`, where there may be no tokenizer."""
        try:
            return self.context.tokens_per_example
        except (ValueError, OSError):
            trains = self.split(self.context.base, "train")
            sizes = self.context.sizes
            return float(np.mean([x.tokens / n for x, n in zip(trains, sizes, strict=True)]))

    def prompts(self, examples: int, new_tokens: int, batch_size: int) -> Prompts:
        """To answer `examples` of every task's test prompts (0: all), as `evaluation` does it."""
        lengths, asked, picked = [], 0, 0
        for task in self.context.judged:
            chosen = task.test[: examples or None]
            some = self._sample(chosen)
            asked, picked = asked + len(chosen), picked + len(some)
            encoded = self._encode(self.context.base, some)
            if encoded is None:
                lengths += [int(_bytes(x)[0] / BYTES_PER_TOKEN) + 1 for x in some]
            else:
                lengths += [last_response(np.asarray(x)) for x in encoded.scored]
        lengths = sorted(filter(None, lengths))
        if not lengths:
            return Prompts(0, 0, 0)
        batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
        scale = asked / picked
        buckets = [bucket(batch[-1]) for batch in batches]
        return Prompts(
            round(scale * batch_size * sum(buckets)),
            round(scale * batch_size * len(batches) * new_tokens),
            buckets[-1] + bucket(new_tokens),
        )

    def used(self, rows: int, group: int = 1) -> float:
        """The share of the devices that work on so many rows of so many models side by side."""
        return used_share(self.mesh, rows, group)


def _bytes(example: tasks.Example) -> tuple[int, int]:
    """Of what is asked and of what is answered."""
    turns = example.messages or ()
    answers = sum(len(said) for role, said in turns if role == "assistant")
    asked = sum(len(said) for role, said in turns if role != "assistant")
    return asked + len(example.prompt), answers + len(example.response)


# --- What fits -----------------------------------------------------------------------------------
def fits(estimate: Estimate, memory: float, keys: str) -> str | None:
    """None where `memory` bytes fit a device; else what does not, and which keys mend it."""
    limit = SHARE * estimate.machine.memory
    if memory <= limit:
        return None
    return f"needs {size(memory)} of a device that has {size(limit)} to give: change {keys}"


def idle(estimate: Estimate, share: float, rows: int, key: str) -> str | None:
    """None where all devices work; else that some repeat what others do, and which key mends it."""
    if share >= 1:
        return None
    split = estimate.mesh["data"] * estimate.mesh["fsdp"]
    return (
        f"{rows} rows do not divide over {split} devices (mesh.data x mesh.fsdp), so that all "
        f"compute the same: make {key} a multiple of {split}, or use mesh.task"
    )


# --- Words ---------------------------------------------------------------------------------------
def amount(x: float | None) -> str:
    """1.2e+15 FLOPs, or nothing."""
    return "" if x is None else f"{x:.1e}"


def size(x: float | None) -> str:
    """Bytes in the unit that suits."""
    if x is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if x < 1024:
            return f"{x:.1f} {unit}"
        x /= 1024
    return f"{x:.1f} TiB"


def hours(seconds: float | None) -> str:
    """2.53 h, 0.0012 h, or nothing where it is not known."""
    if seconds is None:
        return ""
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds / 3600:.4f} h"
