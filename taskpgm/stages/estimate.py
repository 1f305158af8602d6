"""Estimates for a plan: devices, models that do not exist yet, tokens, and whether memory suffices.

Tokens are counted exactly if the tokenizer exists already, and are else estimated from bytes. FLOPs
are those of `training.flops_per_token`, memory is that of `training.estimate_memory`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from taskpgm import models, tasks, training
from taskpgm.stages.context import SAMPLE, Context, Source, embedded_config, spread
from taskpgm.training.memory import SHARE

BYTES_PER_TOKEN = 3.0  # of English text under a vocabulary of some ten thousand pieces
EMBEDDED_BYTES_PER_TOKEN = 1.5  # of the embedded suite, whose answers are words and digits
MOST_EXAMPLES = 100_000  # more than these are not tokenised for a plan, but estimated
FLOAT32 = 4
GIB = 2**30
MFU = 0.4  # the model FLOPs utilisation that a plan assumes


# --- Devices -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """The devices of a plan: peak in dense bf16 FLOP/s of all, memory in bytes of one device."""

    name: str
    count: int
    peak: float | None
    memory: float
    host_memory: float


# Of one device: peak dense bf16 FLOP/s, GiB of memory, GiB of host memory per device. From the
# vendors' data sheets: NVIDIA H100/H200/A100 SXM; cloud.google.com/tpu/docs (v4, v5e, v5p, v6e:
# host memory of a VM over its chips). A CPU core: 16 float32 multiply-adds per cycle at 2.5 GHz.
DEVICES = {
    "h200": (989e12, 141, 256),
    "h100": (989e12, 80, 256),
    "a100": (312e12, 80, 128),
    "v4": (275e12, 32, 100),
    "v5e": (197e12, 16, 48),
    "v5p": (459e12, 95, 112),
    "v6e": (918e12, 32, 180),
    "cpu": (80e9, 4, 4),
}


def machine(name: str | None) -> Machine:
    """The machine that a name like `h100x8`, `v5e-64` or `cpu2` means; None means this machine.

    Raises:
      ValueError: no such device; lists the known ones.
    """
    if name is None:
        device, count = jax.devices()[0], len(jax.devices())
        return Machine(
            f"{count} x {device.device_kind}",
            count,
            training.peak_flops(),
            training.device_memory(),
            training.host_memory(),
        )
    found = re.fullmatch(r"(v\d+[a-z]?|[a-z]+(?:\d{3})?)(?:[x-]?(\d+))?", name.lower())
    kind, count = (found[1], int(found[2] or 1)) if found else ("", 0)
    if kind not in DEVICES or count < 1:
        raise ValueError(
            f"--device={name}: name one of {', '.join(DEVICES)} and how many, as in h100x8, v5e-64 "
            "or cpu2"
        )
    peak, memory, host = DEVICES[kind]
    if kind == "cpu":  # its cores are one device, whose memory is the host's
        return Machine(f"{count} CPU cores", 1, peak * count, memory * count * GIB, host * GIB)
    return Machine(f"{count} x {kind}", count, peak * count, memory * GIB, host * count * GIB)


def mesh_shape(config: Any, count: int) -> tuple[dict[str, int], str | None]:
    """Sizes of the mesh's axes over `count` devices, and what is wrong with them, or None."""
    sizes = dict(config.mesh.to_dict())
    fixed = math.prod(size for size in sizes.values() if size != -1)
    for name, size in sizes.items():
        if size == -1:
            sizes[name] = max(1, count // fixed)
    if math.prod(sizes.values()) != count:
        text = ", ".join(f"mesh.{name}={size}" for name, size in config.mesh.to_dict().items())
        return sizes, f"{text} do not multiply to {count} devices: set one of them to -1"
    return sizes, None


# --- Costs ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cost:
    """What it takes to make an artefact; None where a number makes no sense.

    Attributes:
      work: in words.
      trained, scored: tokens that models are trained on, and only read; padding counts.
      disk: bytes written. memory: bytes on one device.
      problem: why it cannot be made with this config, and which key to change.
      done: (finished parts, all parts), of an artefact that has parts.
    """

    work: str
    flops: float | None = None
    disk: float | None = None
    memory: float | None = None
    problem: str | None = None
    done: tuple[int, int] | None = None
    trained: int = 0
    scored: int = 0


# Tokens that a model reads for a benchmark with lm_eval's default prompts: requests x tokens each.
HARNESS = {
    "mmlu": 4 * 14_042 * 110,  # each of four answers to a question; no examples before it
    "bbh": 6_511 * (900 + 512),  # three worked examples, then a generated chain of thought
    "gsm8k": 1_319 * (900 + 256),  # five worked examples
    "hellaswag": 4 * 10_042 * 110,
    "arc_challenge": 4 * 1_172 * 40,
    "arc_easy": 4 * 2_376 * 40,
    "truthfulqa_mc2": 5_882 * 150,
    "winogrande": 2 * 1_267 * 30,
}


def harness_tokens(names: Sequence[str]) -> tuple[int, list[str]]:
    """Tokens of the named benchmarks together, and the names whose size is unknown."""
    return sum(HARNESS.get(name, 0) for name in names), [n for n in names if n not in HARNESS]


@dataclass(frozen=True)
class Tokens:
    """Tokens of one split: all tokens of each task, and the scored ones of all tasks together."""

    by_task: tuple[int, ...]
    scored: int

    def padded(self, length: int, batch_size: int) -> int:
        """Tokens computed with padding: whole rows in whole batches, task by task."""
        rows = [max(1, -(-count // length)) for count in self.by_task]
        return sum(-(-count // batch_size) * batch_size for count in rows) * length


class Estimate:
    """Sizes that the costs of several stages need, for one run on one machine."""

    def __init__(self, context: Context, on: Machine):
        self.context = context
        self.machine = on
        self.mesh, self.mesh_problem = mesh_shape(context.config, on.count)

    def decoder(self, source: Source) -> models.DecoderConfig:
        """The architecture of a model that may not exist yet."""
        if (source.path / "config.json").is_file():
            return self.context.decoder_config(models.DecoderConfig.from_hf(source.path))
        return self.context.decoder_config(embedded_config(self.context))

    def count(self, source: Source, examples: Sequence[tasks.Example]) -> tuple[int, int]:
        """Tokens of some examples (prompts, responses, EOS), and how many of them are scored."""
        section = self.context.config
        if (source.path / "tokenizer.json").is_file() and len(examples) <= MOST_EXAMPLES:
            encoded = tasks.encode(self.context.tokenizer(source), examples, section.tasks.length)
            return sum(map(len, encoded.ids)), sum(int(x.sum()) for x in encoded.scored)
        embedded = source == self.context.base and not section.base.path
        each = EMBEDDED_BYTES_PER_TOKEN if embedded else BYTES_PER_TOKEN
        turns = [turn for x in examples for turn in x.messages or ()]
        answers = sum(len(x.response) for x in examples)
        answers += sum(len(said) for role, said in turns if role == "assistant")
        asked = sum(len(x.prompt) for x in examples)
        asked += sum(len(said) for role, said in turns if role != "assistant")
        return int((asked + answers) / each) + len(examples), int(answers / each) + len(examples)

    @cached_property
    def adapter_rows(self) -> list[int]:
        """How many packed rows each task's training split has with the proxy's tokenizer."""
        length, proxy = self.context.config.tasks.length, self.context.proxy
        counts = [self.count(proxy, task.train)[0] for task in self.context.tasks]
        return [max(1, -(-count // length)) for count in counts]

    def split(self, source: Source, name: str) -> Tokens:
        """`count` of every task's and target's "heldout" or "test" examples."""
        each = [self.count(source, getattr(task, name)) for task in self.context.judged]
        return Tokens(tuple(count for count, _ in each), sum(scored for _, scored in each))

    @cached_property
    def tokens_per_example(self) -> float:
        """As `Context.tokens_per_example`, for a tokenizer that may not exist yet."""
        means = []
        for task in self.context.tasks:
            picked = [task.train[i] for i in spread(len(task.train), SAMPLE)]
            means.append(self.count(self.context.base, picked)[0] / len(picked))
        return float(np.mean(means))

    def generated(self, examples: int, new_tokens: int) -> int:
        """Tokens read and generated to answer `examples` test prompts of every task (0: all)."""
        whole, read, answers = self.split(self.context.base, "test").by_task, 0.0, 0
        for task, count in zip(self.context.judged, whole, strict=True):
            asked = min(examples or len(task.test), len(task.test))
            read += count * asked / max(1, len(task.test))
            answers += asked
        return int(read) + answers * new_tokens


def fits(estimate: Estimate, memory: float, keys: str) -> str | None:
    """None if `memory` bytes fit a device; else what is needed, and which keys to change."""
    limit = SHARE * estimate.machine.memory
    if memory <= limit:
        return None
    return f"needs {size(memory)} of a device that has {size(limit)} to give: change {keys}"


# --- Words ---------------------------------------------------------------------------------------
def amount(x: float | None) -> str:
    """A number of FLOPs like 1.2e+15; "" for None."""
    return "" if x is None else f"{x:.1e}"


def size(x: float | None) -> str:
    """A number of bytes in a readable unit; "" for None."""
    if x is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if x < 1024:
            return f"{x:.1f} {unit}"
        x /= 1024
    return f"{x:.1f} TiB"


def hours(flops: float | None, on: Machine) -> str:
    """Hours of computing at MFU of the machine's peak; "" if that is unknown."""
    if flops is None or on.peak is None:
        return ""
    return f"{flops / (MFU * on.peak) / 3600:.2f} h"
