"""What the numbers of a benchmark hold for: the command, the day, the machine, the versions."""

import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine(packages: Iterable[str]) -> dict[str, str]:
    """Of this process, as lines to print; of a matrix's path in the command its name alone."""
    import jax

    script, *given = sys.argv
    shown = [Path(a).name if a.endswith(".npy") else a for a in given]
    return {
        "command": " ".join(["python", f"experiments/{Path(script).name}", *shown]),
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{_processor()}, {os.cpu_count()} cores; "
        f"jax on {jax.devices()[0].device_kind}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {_version(name)}" for name in packages),
    }


def header(title: str, machine: Mapping[str, str]) -> list[str]:
    """The first lines of a report in Markdown."""
    lines = [f"# {title}", "", f"`{machine['command']}`", ""]
    return lines + [f"- {key}: {value}" for key, value in machine.items() if key != "command"]


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
