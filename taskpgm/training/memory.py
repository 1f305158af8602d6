"""Bytes of a training step on one device, by formula; and how many tasks fit side by side.

A rough estimate, to plan groups and to warn before a run; it decides nothing while one is running.
With e the bytes of the compute dtype, the backward pass keeps per layer and token of a device

    remat none: e * (4 d + 3 q + 3 k + 3 f) + attention's weights, 4 * heads * length
    remat dots: e * (3 d + q + 2 k + 2 f)        (results of matrix products with weights)
    remat full: e * d                            (a layer's input), and one layer's `none` at a time

d hidden size, q and k widths of queries and of keys, f of the MLP (2 f and f without a gate). Rows
longer than a block of queries keep no scores, but have one block's three times in float32. To this
come the parameters, the trained part once more as gradients and twice as moments, all float32, and
one chunk of logits three times in float32. The compiler's own figures on a CPU were within 20% of
this for a Llama of 6 layers and width 256, full and LoRA, lengths 128 and 1024, each remat, but for
one: a third lower than it, full at length 128 with remat full.
"""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from taskpgm.models import DecoderConfig
from taskpgm.models.attention import BLOCK
from taskpgm.training.flops import num_adapter_params
from taskpgm.training.step import ON_A_CPU

SHARE = 0.85  # of a device's memory that is planned with; the rest is the allocator's


class Memory(NamedTuple):
    """Bytes on one device. `params` are frozen ones, which only adapters have."""

    params: float
    trained: float
    gradients: float
    moments: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(self)


def estimate_memory(
    config: DecoderConfig,
    *,
    rows: int,
    length: int,
    group: int = 1,
    accumulate: int = 1,
    chunk: int = 1024,
    mesh: Mapping[str, int] | None = None,
) -> Memory:
    """Bytes on one device for a step on `rows` rows of `length` per task, `group` tasks at once.

    mesh: sizes by axis (`Mesh.shape`); none is one device.
    """
    axes = {"task": 1, "data": 1, "fsdp": 1, "tensor": 1} | dict(mesh or {})
    e, stored = np.dtype(_name(config.dtype)).itemsize, np.dtype(_name(config.param_dtype)).itemsize
    split = axes["fsdp"] * axes["tensor"]
    here = math.ceil(group / axes["task"])
    base = config.num_params * stored / split
    count = num_adapter_params(config) if config.lora else config.num_params
    trained = count * (4 if config.lora else stored) / split
    local = math.ceil(rows / accumulate / (axes["data"] * axes["fsdp"]))
    alone = math.prod(axes.values()) == 1 and jax.default_backend() == "cpu"
    computing = min(here, max(ON_A_CPU)) if alone else here  # at most
    tokens = computing * local * length
    kept = _kept(config, length, e)
    layers = config.num_layers
    if config.remat == "full":
        activations = layers * kept["full"] + kept["none"]
    elif config.remat == "dots":
        activations = layers * kept["dots"] + kept["none"]
    else:
        activations = layers * kept["none"]
    if length > BLOCK:
        activations += 3 * 4 * config.num_heads * BLOCK
    lines = min(chunk, tokens)
    vocabulary = config.vocab_size / axes["tensor"]
    # The gradient of the unembedding is summed on each device before it is split over fsdp.
    unembedding = 4 * config.hidden_size * vocabulary if config.lora is None else 0
    return Memory(
        params=base if config.lora else 0.0,
        trained=here * trained,
        gradients=computing * count * 4 / split,
        moments=2 * here * count * 4 / split,
        activations=tokens * activations / axes["tensor"] + 2 * tokens * config.hidden_size * e,
        logits=12 * lines * vocabulary + computing * unembedding,
    )


def forward_memory(
    config: DecoderConfig,
    *,
    rows: int,
    length: int,
    group: int = 1,
    mesh: Mapping[str, int] | None = None,
) -> float:
    """Bytes on one device for a forward pass of `group` models on the same rows, nothing kept.

    The base (none without adapters), two groups of models, one of them on its way, and what one
    layer has in hand: attention's scores thrice, with its inputs, or the MLP's. On a CPU the models
    of a group follow each other. Within 10% of the compiler's figure there, at widths of 256.
    """
    axes = {"fsdp": 1, "tensor": 1} | dict(mesh or {})
    e, stored = np.dtype(_name(config.dtype)).itemsize, np.dtype(_name(config.param_dtype)).itemsize
    computing = 1 if jax.default_backend() == "cpu" else group
    base = config.num_params * stored / (axes["fsdp"] * axes["tensor"]) if config.lora else 0
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    scores = 3 * 4 * config.num_heads * min(length, BLOCK)
    attention = scores + e * (2 * config.hidden_size + q + 2 * kv)
    mlp = e * (2 * config.hidden_size + (2 if config.gated_mlp else 1) * config.intermediate_size)
    tokens = computing * rows * length
    return base + 2 * group * model_bytes(config) + tokens * max(attention, mlp)


def model_bytes(config: DecoderConfig) -> float:
    """Of one single-task model: its adapter, which is float32, or all its weights."""
    if config.lora:
        return 4.0 * num_adapter_params(config)
    return float(config.num_params * np.dtype(_name(config.param_dtype)).itemsize)


def _kept(config: DecoderConfig, length: int, e: int) -> dict[str, int]:
    """Bytes per token and layer by remat policy."""
    d, q = config.hidden_size, config.num_heads * config.head_dim
    kv, f = config.num_kv_heads * config.head_dim, config.intermediate_size
    gates = 3 if config.gated_mlp else 2
    keys = length if length <= BLOCK else 0
    weights = (4 if e == 4 else 4 + e) * config.num_heads * keys
    return {
        "none": e * (4 * d + 3 * q + 3 * kv + gates * f) + weights,
        "dots": e * (3 * d + q + 2 * kv + (gates - 1) * f),
        "full": e * d,
    }


def _name(dtype: str):
    return jax.numpy.dtype(dtype)


def group_size(config: DecoderConfig, tasks: int, available: float | None = None, **kwargs) -> int:
    """How many of `tasks` adapters (or models) train side by side in `available` bytes of a device.

    A multiple of the mesh's task axis where there are as many; kwargs as for `estimate_memory`.

    Raises:
      ValueError: when not even one fits.
    """
    available = device_memory() if available is None else available
    step = dict(kwargs.get("mesh") or {}).get("task", 1)
    best = 0
    for group in range(step, step * math.ceil(tasks / step) + 1, step):
        if estimate_memory(config, group=group, **kwargs).total > SHARE * available:
            break
        best = group
    if not best:
        need = estimate_memory(config, group=step, **kwargs).total / 2**30
        raise ValueError(
            f"one {'adapter' if config.lora else 'model'} at a time needs {need:.2f} GiB of a "
            f"device, and it has {SHARE * available / 2**30:.2f} GiB: use fewer rows, a shorter "
            "length, remat, more devices on fsdp, or set adapters.memory (GiB) if it has more"
        )
    return best


def device_memory() -> int:
    """Bytes of one device: what it reports, or on a CPU the host's memory among its devices."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host_memory() // jax.local_device_count()


def host_memory() -> int:
    """Bytes of this machine's memory, or of what a container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total
