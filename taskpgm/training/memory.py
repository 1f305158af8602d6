"""Memory of a training step by formula, and how many tasks fit a device side by side.

Weights, gradients and Adam's two moments are counted exactly. Activations are those that a layer
keeps for its backward pass, per token: without recomputation the inputs and outputs of its matrices
and norms and the attention probabilities; with `remat="full"` its input alone, plus one layer being
recomputed; `"dots"` keeps the outputs of matrices. It is an estimate: the compiler fuses, pads and
reorders. What it says is compared with `compiled.memory_analysis()` in the tests.
"""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp

from taskpgm.models import DecoderConfig
from taskpgm.training.flops import matrices, mean_context, num_adapter_params

FLOAT32 = 4
LOGIT_ROWS = 1024  # rows of logits alive at a time, as in `make_train_step`
# A fifth is left for what a formula does not know: fragmentation, collectives, compiled programs.
USABLE = 0.8


class Memory(NamedTuple):
    """Bytes of one training step, over all devices that share it."""

    base: float  # weights that are there once
    trained: float  # trained weights, gradients and two moments, of all tasks of a group
    activations: float  # of all tasks of a group

    @property
    def total(self) -> float:
        return sum(self)


def estimate_memory(
    config: DecoderConfig, *, mode: str = "full", rows: int, length: int, group: int = 1
) -> Memory:
    """Bytes for `group` models side by side, each on `rows` rows of `length` tokens a step."""
    weight, act = (jnp.dtype(x).itemsize for x in (config.param_dtype, config.dtype))
    if mode == "lora":
        base, each = weight * config.num_params, num_adapter_params(config)
    else:
        base, each = 0.0, config.num_params
    # The weight, its gradient, and Adam's two moments, which have the weight's type.
    trained = each * weight * 4.0
    shapes = matrices(config)
    outputs = sum(o for _, o in shapes.values())
    probabilities = config.num_heads * 2 * mean_context(length, config.sliding_window)
    layer = {
        "none": outputs + sum(i for i, _ in shapes.values()) + 4 * config.hidden_size
        + 2 * config.intermediate_size + probabilities,
        "dots": outputs + 2 * config.hidden_size,
        "full": config.hidden_size,
    }  # fmt: skip
    kept = config.num_layers * layer[config.remat]
    recomputed = 0 if config.remat == "none" else layer["none"]
    logits = 2 * FLOAT32 * config.vocab_size * LOGIT_ROWS
    activations = group * rows * length * act * (kept + recomputed) + logits
    return Memory(base, group * trained, activations)


def device_memory() -> float:
    """Bytes that one device reports; on a CPU, the half of the machine's memory."""
    reported = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return reported or 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def group_size(
    config: DecoderConfig,
    *,
    mode: str,
    rows: int,
    length: int,
    count: int,
    memory: float | None = None,
    devices: int = 1,
) -> int:
    """How many of `count` tasks to train side by side: as many as fit, in groups of like size.

    Args:
      rows, length: the batch of each task. memory: bytes of one device; None: what it reports.
      devices: how many share a group's tasks (the mesh axis `task`).

    Raises:
      ValueError: not even one fits.
    """
    room = USABLE * (device_memory() if memory is None else memory)

    def fits(group: int) -> bool:
        need = estimate_memory(config, mode=mode, rows=rows, length=length, group=group)
        return need.total <= room

    if not fits(1):
        need = estimate_memory(config, mode=mode, rows=rows, length=length).total / USABLE
        raise ValueError(
            f"adapters: one task alone takes about {need / 2**30:.1f} GiB and a device has "
            f"{room / USABLE / 2**30:.1f}: lower adapters.batch_size or tasks.length, set "
            "base.remat=full, or shard the base over more devices (mesh.fsdp)"
        )
    most = max(g for g in range(1, count + 1) if fits(g)) * devices
    groups = -(-count // most)
    return min(count, -(-count // groups))
