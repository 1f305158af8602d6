"""The machine that a plan is for: how many devices, what each can do, and how a mesh lies on it."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from taskpgm import training

GIB = 2**30
MFU = 0.4  # of a device's peak that is planned with


@dataclass(frozen=True)
class Machine:
    """Devices that a plan is for.

    Attributes:
      peak: dense bf16 FLOPs a second of all of them; None where it is not known.
      vector: float32 FLOPs a second of all, outside of matrix products; None likewise.
      memory: bytes of one device. host_memory: bytes of the host, or of all hosts.
      kind: "gpu", "tpu" or "cpu".
    """

    name: str
    count: int
    peak: float | None
    vector: float | None
    memory: float
    host_memory: float
    kind: str

    def seconds(self, products: float, others: float = 0.0) -> float | None:
        """For so many FLOPs of matrix products and others, at MFU of both peaks."""
        if self.peak is None or self.vector is None:
            return None
        return (products / self.peak + others / self.vector) / MFU


# Of one device: peak FLOPs a second of bf16 matrix products, and of other float32 operations; GiB
# of its memory, and of its host's per device. Sources: NVIDIA's data sheets of H200, H100 and A100,
# SXM (dense BF16, FP32); cloud.google.com/tpu/docs for v4 to v6e (host memory of a VM over its
# chips). Of TPUs no sheet has the second figure: it is that of 8 x 128 lanes of 4 units a core at
# about 1.5 GHz. A CPU core: 16 float32 multiply-adds a cycle at 2.5 GHz, whatever they are for.
DEVICES = {
    "h200": (989e12, 67e12, 141, 256),
    "h100": (989e12, 67e12, 80, 256),
    "a100": (312e12, 19.5e12, 80, 128),
    "v4": (275e12, 12e12, 32, 100),
    "v5e": (197e12, 6e12, 16, 48),
    "v5p": (459e12, 12e12, 95, 112),
    "v6e": (918e12, 6e12, 32, 180),
    "cpu": (80e9, 80e9, 4, 4),
}


def machine(name: str | None) -> Machine:
    """`h100x8`, `v5e-64`, `cpu2`; None is the machine at hand.

    Raises:
      ValueError: no such device; names those that are known.
    """
    if name is None:
        return machine_at_hand()
    found = re.fullmatch(r"(v\d+[a-z]?|[a-z]+(?:\d{3})?)(?:[x-]?(\d{1,6}))?", name.lower())
    kind, count = (found[1], int(found[2] or 1)) if found else ("", 0)
    if kind not in DEVICES or count < 1:
        raise ValueError(
            f"--device={name}: name one of {', '.join(DEVICES)} and how many, as in h100x8, v5e-64 "
            "or cpu2"
        )
    peak, vector, memory, host = DEVICES[kind]
    peaks = (peak * count, vector * count)
    if kind == "cpu":  # its cores are one device, whose memory is the host's
        bytes_of = (memory * count * GIB, host * count * GIB)
        return Machine(f"{count} CPU cores", 1, *peaks, *bytes_of, "cpu")
    family = "tpu" if kind.startswith("v") else "gpu"
    return Machine(f"{count} x {kind}", count, *peaks, memory * GIB, host * count * GIB, family)


def machine_at_hand() -> Machine:
    """The devices that JAX sees here; its peaks are None where the table has no such device."""
    device, count, backend = jax.devices()[0], len(jax.devices()), jax.default_backend()
    kind = device.device_kind.lower().replace(" lite", "e")
    known = next((figures for name, figures in DEVICES.items() if name in kind), None)
    units = (os.cpu_count() or 1) if backend == "cpu" else count
    return Machine(
        f"{count} x {device.device_kind}" + f" of {units} cores" * (backend == "cpu"),
        count,
        None if known is None else known[0] * units,
        None if known is None else known[1] * units,
        training.device_memory(),
        training.host_memory(),
        backend,
    )


def mesh_shape(config: Any, count: int) -> tuple[dict[str, int], str | None]:
    """Sizes of the mesh's axes over `count` devices; and what is wrong with it, if anything is."""
    sizes = dict(config.mesh.to_dict())
    fixed = math.prod(size for size in sizes.values() if size != -1)
    for name, size in sizes.items():
        if size == -1:
            sizes[name] = max(1, count // fixed)
    if math.prod(sizes.values()) != count:
        text = ", ".join(f"mesh.{name}={size}" for name, size in config.mesh.to_dict().items())
        return sizes, f"{text} do not multiply to {count} devices: set one of them to -1"
    return sizes, None


def used_share(mesh: dict[str, int], rows: int, group: int = 1) -> float:
    """Of the devices, the share that computes something of its own: an axis that does not divide
    evenly is not split, and then those devices all compute the same (`models.sharding`)."""
    split = mesh["data"] * mesh["fsdp"]
    parts = (split if rows % split == 0 else 1) * mesh["tensor"]
    parts *= mesh["task"] if group % mesh["task"] == 0 else 1
    return parts / math.prod(mesh.values())
