"""Eight virtual CPU devices for all tests, so that sharding is tested without an accelerator."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's: every worker has a core
# A program is compiled once for all tests, for the workers that run them and for the processes that
# they start. What takes less than a fifth of a second is compiled faster than it is found.
cache = Path(__file__).parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Most of the tests' time is compilation of small programs, which takes a quarter as long without
# LLVM's optimisations and the emitters of fused loops. (JAX 0.12 has no other emitters, and ignores
# the option.) As users have it: the quickstart, or all with JAX_DISABLE_MOST_OPTIMIZATIONS=0.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
    # Not a flag of its own: XLA ends at once where it does not know a flag, but not an option.
    flags = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

# A commit passes always or never. `pytest --hypothesis-profile=default` draws other examples.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that import torch, which takes seconds, are not read where their tests are not run."""
    unwanted = "not torch" in config.option.markexpr and collection_path.stem.endswith("torch")
    return True if unwanted else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests come first, so that no worker ends with one of them alone."""
    ranks = {}
    for item in items:
        marks = [item.get_closest_marker(name) for name in ("pipeline", "slow")]
        rank = next((i for i, mark in enumerate(marks) if mark), len(marks))
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A file's programs go with it: of all files together they are gigabytes to look through."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """made_once(name, make) -> a folder that make(folder) has filled.

    The first worker that asks for a name makes it, the others wait and read the same folder: tests
    leave it as it is.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return once
