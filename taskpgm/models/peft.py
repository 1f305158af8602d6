"""Adapters as PEFT folders: adapter_config.json and adapter_model.safetensors, out and in.

GPT-2 holds q, k and v in one matrix c_attn, on which PEFT puts one adapter. Ours are separate, so
they leave side by side: A = [Aq, Ak, Av] and a block diagonal B, with rank and alpha three times
ours (the same scale). Coming in, each takes A and its own columns of B, without idle components.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from taskpgm.artefact import open_atomic
from taskpgm.models import hf_keys
from taskpgm.models.config import DENSE_NAMES, DecoderConfig, LoraConfig
from taskpgm.models.decoder import init_lora
from taskpgm.models.hf_export import to_host
from taskpgm.models.hf_folder import read_json
from taskpgm.models.hf_names import NAMES, flat_shapes
from taskpgm.models.peft_patterns import check_patterns, of_module
from taskpgm.models.safetensors_file import (
    DTYPES,
    read_header,
    read_tensor,
    write_file,
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
Matrix = Float[np.ndarray, "i o"]


class Module(NamedTuple):
    """One of their modules, and what it holds of ours: path -> its first and last output column."""

    name: str  # {i} stands for the layer
    inputs: int
    outputs: int
    ours: dict[str, tuple[int, int]]

    @property
    def target(self) -> str:
        """What names it in target_modules: GPT-2's two c_proj need their parent too."""
        parent, last = self.name.split(".")[-2:]
        return f"{parent}.{last}" if last == "c_proj" else last


def modules(config: DecoderConfig) -> list[Module]:
    """Every module of the architecture that can carry an adapter."""
    found: dict[str, Module] = {}
    for leaf, like in flat_shapes(config).items():
        *_, dense, kind = ("", *leaf.split("/"))
        if dense not in DENSE_NAMES or kind != "kernel":
            continue
        source = NAMES[config.architecture].table[leaf]
        name, (_, inputs, width) = source.name.removesuffix(".weight"), like.shape
        module = found.get(name, Module(name, inputs, 0, {}))
        first = (source.part or 0) * width
        ours = {**module.ours, leaf.removesuffix("/kernel"): (first, first + width)}
        found[name] = Module(name, inputs, module.outputs + width, ours)
    return list(found.values())


# ---------------------------------------------------------------- out


def save_peft(path: str | Path, config: DecoderConfig, lora, base_name: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads onto the model `base_name`.

    With many hosts all must call it, and the first writes. adapter_config.json comes last.
    """
    settings, folder = config.lora, Path(path)
    if settings is None:
        raise ValueError("save_peft: config.lora is None, so there is no adapter to save")
    flat = {leaf: to_host(x).astype(np.float32) for leaf, x in flatten_dict(lora, sep="/").items()}
    tensors, targets, patterns = {}, [], {}
    for module in modules(config):
        ours = [leaf for leaf in module.ours if f"{leaf}/a" in flat]
        if not ours:
            continue
        targets.append(module.target)
        if len(ours) > 1:
            patterns[module.target] = len(ours)
        for i in range(config.num_layers):
            a = np.concatenate([flat[f"{leaf}/a"][i] for leaf in ours], axis=1)
            b = np.zeros((a.shape[1], module.outputs), np.float32)
            for k, leaf in enumerate(ours):
                first, last = module.ours[leaf]
                b[k * settings.rank : (k + 1) * settings.rank, first:last] = flat[f"{leaf}/b"][i]
            name = PREFIX + module.name.format(i=i)
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": targets,
        "rank_pattern": {name: n * settings.rank for name, n in patterns.items()},
        "alpha_pattern": {name: n * settings.alpha for name, n in patterns.items()},
        "bias": "none",
        "fan_in_fan_out": config.architecture == "gpt2",
    }
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    shapes = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    write_file(folder / WEIGHTS, shapes, tensors.__getitem__, {"format": "pt"})
    with open_atomic(folder / CONFIG) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


# ---------------------------------------------------------------- in


def load_peft(path: str | Path, config: DecoderConfig) -> tuple[LoraConfig, Any]:
    """(LoraConfig, lora) of a PEFT folder of LoRA adapters for a model of this config.

    Modules of different rank are padded to one rank, other scales are folded into B: the logits are
    those of `peft`. Raises FileNotFoundError or ValueError, naming file and key, for what cannot be
    expressed so (DoRA, trained biases, other modules, some layers only).
    """
    folder = Path(path)
    raw = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder}: no {WEIGHTS}; an adapter folder of PEFT holds one")
    entries = read_header(folder / WEIGHTS)
    plain = float(raw.get("lora_alpha", 8)) / raw["r"]
    rank, found = 1, {}
    for module in modules(config):
        layers = [PREFIX + module.name.format(i=i) for i in range(config.num_layers)]
        if not any(f"{name}.lora_{x}.weight" in entries for name in layers for x in "AB"):
            continue
        pairs = []
        for name in layers:
            r = int(of_module(raw, "rank_pattern", name.removeprefix(PREFIX)) or raw["r"])
            a = _take(folder, entries, f"{name}.lora_A.weight", (r, module.inputs)).T
            b = _take(folder, entries, f"{name}.lora_B.weight", (module.outputs, r)).T
            scale = _scale(raw, name.removeprefix(PREFIX), r)
            pairs.append((a, b * np.float32(scale / plain)))
        if len(module.ours) == 1:
            found[next(iter(module.ours))] = pairs
            rank = max(rank, *(a.shape[1] for a, _ in pairs))
            continue
        for leaf, (first, last) in module.ours.items():
            own = [_used_first(a, b[:, first:last]) for a, b in pairs]
            used = max(number for *_, number in own)
            if used or not any(b.any() for _, b in pairs):  # else it was never adapted
                found[leaf] = [(a, b) for a, b, _ in own]
                rank = max(rank, used)
    if entries:
        raise ValueError(f"{folder / WEIGHTS}: tensor {min(entries)} cannot be taken over")
    if not found:
        raise ValueError(f"{folder / WEIGHTS}: holds no adapter")
    dense = {leaf.split("/")[-1] for leaf in found}
    settings = LoraConfig(
        rank=rank,
        alpha=plain * rank,
        dropout=float(raw.get("lora_dropout", 0.0)),
        targets=tuple(name for name in DENSE_NAMES if name in dense),
    )
    lora = {}
    for leaf, pairs in found.items():
        lora[f"{leaf}/a"] = jnp.stack([_fit(a.T, rank).T for a, _ in pairs])
        lora[f"{leaf}/b"] = jnp.stack([_fit(b, rank) for _, b in pairs])
    return settings, unflatten_dict(lora, sep="/")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an adapter folder of PEFT holds one")
    raw = read_json(path)
    for key in ("peft_type", "r"):
        if key not in raw:
            raise ValueError(f"{path}: not the config of a LoRA adapter ({key} is missing)")
    hf_keys.check_fixed(raw, hf_keys.ADAPTER_FIXED, str(path))
    init = raw.get("init_lora_weights", True)
    if init not in hf_keys.ADAPTER_INITS:
        raise ValueError(
            f"{path}: init_lora_weights = {json.dumps(init)} is not supported, since the base's"
            " weights may belong to the adapter; save it with PEFT's"
            " path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        )
    known = {"init_lora_weights", *hf_keys.ADAPTER, *hf_keys.ADAPTER_FIXED}
    for key, value in raw.items():
        if value and key not in known | hf_keys.ADAPTER_WITHOUT_EFFECT:
            raise ValueError(
                f"{path}: {ascii(key)[1:-1]} = {json.dumps(value)} is not a known key of LoRA; it"
                " may make the adapter another function"
            )
    hf_keys.check(raw, hf_keys.ADAPTER, str(path))
    check_patterns(raw, str(path))
    return raw


def _take(folder: Path, entries: dict, name: str, shape: tuple[int, int]) -> Matrix:
    """Remove a tensor from the entries and read it, in float32."""
    entry = entries.pop(name, None)
    if entry is None:
        raise ValueError(f"{folder / WEIGHTS}: tensor {name} is missing")
    if entry.shape != shape or entry.dtype not in DTYPES:
        raise ValueError(
            f"{folder / WEIGHTS}: tensor {name} is {entry.dtype} {list(entry.shape)}, which does"
            f" not fit {list(shape)}"
        )
    tensor = read_tensor(entry).astype(np.float32)
    if not np.isfinite(tensor).all():
        raise ValueError(f"{folder / WEIGHTS}: tensor {name} holds NaN or infinite numbers")
    return tensor


def _scale(raw: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / rank of one module, as alpha_pattern and use_rslora (arXiv 2312.03732) change it."""
    alpha = of_module(raw, "alpha_pattern", name) or raw.get("lora_alpha", 8)
    return alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def _used_first(
    a: Float[np.ndarray, "i r"], b: Float[np.ndarray, "r o"]
) -> tuple[Float[np.ndarray, "i r"], Float[np.ndarray, "r o"], int]:
    """The components of a fused adapter, those that reach these outputs first, and their number."""
    used = np.any(b != 0, axis=1)
    order = np.argsort(~used, kind="stable")
    return a[:, order], b[order], int(used.sum())


def _fit(x: Float[np.ndarray, "r o"], rank: int) -> Float[np.ndarray, "{rank} o"]:
    """Cut off or fill up with zeros to `rank` rows."""
    return np.pad(x[:rank], ((0, max(0, rank - len(x))), (0, 0)))


def fit_lora(config: DecoderConfig, settings: LoraConfig, lora: Any) -> Any:
    """The same adapter in the shape that `config.lora` asks for, so that it stacks with others.

    A smaller rank is filled up with zeros, another scale is folded into B, and a matrix that has
    no adapter gets a zero B. Raises ValueError for a larger rank or matrices that the config does
    not adapt, naming them.
    """
    wanted = config.lora
    assert wanted is not None
    if settings.rank > wanted.rank:
        raise ValueError(
            f"its rank {settings.rank} is above {wanted.rank}, the lora.rank of the config"
        )
    extra = [name for name in settings.targets if name not in wanted.targets]
    if extra:
        raise ValueError(f"it adapts {extra[0]}, which is not in the lora.targets of the config")
    given: dict[str, Any] = flatten_dict(lora, sep="/")
    tree = jax.eval_shape(lambda key: init_lora(config, key), jax.random.key(0))
    shapes: dict[str, Any] = flatten_dict(tree, sep="/")
    fitted = {}
    for leaf, like in shapes.items():
        x = given.get(leaf)
        if x is None:
            fitted[leaf] = jnp.zeros(like.shape, like.dtype)
            continue
        x = x * (settings.scale / wanted.scale) if leaf.endswith("/b") else x
        fitted[leaf] = jnp.pad(x, [(0, n - m) for n, m in zip(like.shape, x.shape, strict=True)])
    return unflatten_dict(fitted, sep="/")
