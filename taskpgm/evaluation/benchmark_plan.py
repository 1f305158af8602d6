"""Benchmarks before any of their data is loaded, for `--dry_run`: could it be had, and how much?

What the well-known ones read and write is a table. Tasks of your own are counted from their files,
four bytes a token, which are not loaded. Both are about right, no more.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskpgm.evaluation.benchmarks import FEWSHOT, task_manager, unavailable
from taskpgm.evaluation.loglikelihood import row_length
from taskpgm.models.generate import bucket

BYTES_PER_TOKEN = 4
NEW_TOKENS = 256  # where a task that generates does not say how many
ANSWERS = 4  # of a multiple choice, where each is read on its own
FILES = (
    "json",
    "csv",
    "parquet",
    "text",
    "arrow",
    "pandas",
)  # data sets that are files of a format


class Benchmark(NamedTuple):
    """questions: of all parts. parts: the tasks that a limit holds for. example: tokens of a
    question with its answer, which is also a worked example. shots: worked examples before each.
    reads: texts that are read for a question. new: tokens that are written for it."""

    questions: int
    parts: int
    example: float
    shots: int
    reads: int = 1
    new: int = 0


# By lm_eval's default prompts, read off its task files and the data sets' cards: tokens are about.
# Four answers of one token after one question are one read.
BENCHMARKS = {
    "mmlu": Benchmark(14_042, 57, 110, 0),
    "bbh": Benchmark(6_511, 27, 300, 3, new=512),
    "gsm8k": Benchmark(1_319, 1, 180, 5, new=256),
    "hellaswag": Benchmark(10_042, 1, 110, 0, reads=4),
    "arc_challenge": Benchmark(1_172, 1, 40, 0, reads=4),
    "arc_easy": Benchmark(2_376, 1, 40, 0, reads=4),
    "truthfulqa_mc2": Benchmark(817, 1, 150, 0, reads=7),
    "winogrande": Benchmark(1_267, 1, 30, 0, reads=2),
}


class HarnessTokens(NamedTuple):
    """Positions computed to read texts and prompts, padding counted, and tokens written."""

    read: int
    written: int
    unknown: tuple[str, ...]  # benchmarks that are not counted


def harness_tokens(
    tasks: Sequence[str],
    path: str = "",
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> HarnessTokens:
    """Tokens of some benchmarks; arguments as of `run_harness`."""
    read = written = 0
    unknown = []
    for task in tasks:
        found = [BENCHMARKS[task]] if task in BENCHMARKS and not path else own_sizes(task, path)
        if not found:
            unknown.append(task)
        for one in found:
            shots = FEWSHOT.get(task, one.shots) if num_fewshot is None else num_fewshot
            count = one.questions if limit is None else min(one.questions, limit * one.parts)
            length = max(1, round(one.example * (1 + shots)))
            if one.new:
                # Whole batches of prompts, padded to a power of two.
                prompts = -(-count // batch_size) * batch_size
                read += prompts * bucket(length)
                written += prompts * one.new
            else:
                row = row_length(length)
                rows = -(-count * one.reads // max(1, row // length))
                # A batch is at most so many rows, and no more than there are: powers of two.
                batch = min(batch_size, 1 << (rows - 1).bit_length())
                read += -(-rows // batch) * batch * row
    return HarnessTokens(read, written, tuple(unknown))


def own_sizes(task: str, path: str) -> list[Benchmark]:
    """Of a task, or of each task of a group, whose data are files here; else none."""
    try:
        settings = list(leaves(task, path))
    except (ImportError, ValueError, OSError):
        return []
    return [one for one in map(_size, settings) if one]


def leaves(task: str, path: str | Path | None) -> Iterator[dict[str, Any]]:
    """The settings of a task, or of every task of a group or a tag, by name. Nothing is loaded.

    Raises as `run_harness` for what lm_eval does not know.
    """
    index = task_manager([task], path).task_index
    pending: list[Any] = [task]
    while pending:
        name = pending.pop()
        settings = name if isinstance(name, dict) else {}
        name = settings.get("task", settings.get("group", name))
        entry = index.get(name) if isinstance(name, str) else None
        settings = {**((entry.cfg if entry else None) or {}), **settings}
        inside = settings.get("task")
        tagged = [
            other for other, each in index.items() if isinstance(name, str) and name in each.tags
        ]
        if isinstance(inside, list):
            pending += inside
        elif settings.get("dataset_path") or settings.get("custom_dataset"):
            yield settings
        else:
            pending += [other for other in tagged if other != name]


def data_files(settings: Mapping[str, Any]) -> list[str]:
    """The files that a task's data are, if they are files."""
    if settings.get("dataset_path") not in FILES:
        return []
    files = (settings.get("dataset_kwargs") or {}).get("data_files") or []
    files = list(files.values()) if isinstance(files, Mapping) else [files]
    flat = [name for part in files for name in (part if isinstance(part, list) else [part])]
    return [str(name) for name in flat]


def _size(settings: Mapping[str, Any]) -> Benchmark | None:
    files = [Path(name) for name in data_files(settings)]
    files = [path for path in files if path.is_file()]
    if not files:
        return None
    test = (settings.get("dataset_kwargs") or {}).get("data_files")
    split = settings.get("test_split") or settings.get("validation_split")
    if isinstance(test, Mapping) and isinstance(test.get(split), str):
        files = [Path(test[split])]
    size = sum(path.stat().st_size for path in files)
    lines = max(1, sum(path.read_bytes().count(b"\n") for path in files))
    generated = settings.get("output_type") == "generate_until"
    new = (settings.get("generation_kwargs") or {}).get("max_gen_toks", NEW_TOKENS)
    return Benchmark(
        lines,
        1,
        max(1.0, size / lines / BYTES_PER_TOKEN),
        int(settings.get("num_fewshot") or 0),
        ANSWERS if settings.get("output_type") == "multiple_choice" else 1,
        int(new) if generated else 0,
    )


# --- Could the data be had? ----------------------------------------------------------------------
def look_for_data(tasks: Sequence[str], path: str | Path | None = None) -> Iterator[Exception]:
    """What `check_harness` would raise, as far as that is known without loading any data: files are
    looked for, and of a data set on the hub it is asked whether the cache or the hub has it."""
    try:
        task_manager(tasks, path)
    except (ImportError, ValueError, OSError) as error:
        yield error
        return
    for task in tasks:
        names = set()
        for settings in leaves(task, path):
            missing = [name for name in data_files(settings) if is_absent(name)]
            if missing:
                yield unavailable(task, FileNotFoundError(f"no such file: {missing[0]}"))
                break
            name = settings.get("dataset_path")
            if name and name not in FILES and not Path(name).exists():
                names.add(name)
        for reason in filter(None, map(_missing_on_hub, sorted(names))):
            yield unavailable(task, OSError(reason))
            break


def is_absent(name: str) -> bool:
    """Whether a data file is a path where there is nothing; of addresses nobody knows."""
    return "://" not in name and "*" not in name and not Path(name).expanduser().exists()


def _missing_on_hub(name: str) -> str | None:
    """Why neither the cache nor the hub has a data set, if so. Asks for its description alone."""
    # Imported here: most runs have no benchmarks.
    from datasets import config
    from huggingface_hub import HfApi, constants

    cached = [
        Path(config.HF_DATASETS_CACHE) / name.replace("/", "___"),
        Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}",
    ]
    if any(folder.exists() for folder in cached):
        return None
    if constants.HF_HUB_OFFLINE:
        return f"{name} is not in the cache, and HF_HUB_OFFLINE is set"
    try:
        HfApi().dataset_info(name, timeout=10.0)
    except Exception as error:  # of the hub, of the client that it is asked by, or of the network
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"{name} is not in the cache, and the hub does not give it: {first}"
    return None
