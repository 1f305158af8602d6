"""Public benchmarks by lm-evaluation-harness: MMLU, BIG-Bench Hard, its other tasks, and your own.

`lm_eval` is an optional extra, `pip install 'taskpgm[eval]'`, imported only where it is needed. Its
tasks' data come from the Hugging Face hub; tasks of your own are YAML files on disk. Such a file
may name Python functions (`!function`), and lm_eval runs them: use only files that you trust.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskpgm.evaluation.harness import HarnessModel
from taskpgm.models import DecoderConfig
from taskpgm.progress import counted

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

INSTALL = (
    "evaluation.harness: lm_eval is not installed: pip install 'taskpgm[eval]' (an optional extra)"
)

# The examples in the context that papers report, where they differ from what the task says.
FEWSHOT: Mapping[str, int] = {"mmlu": 5}


def check_harness(tasks: Sequence[str], path: str | Path | None = None) -> None:
    """Makes sure, before anything is spent, that benchmarks can be run: lm_eval is installed, it
    has these tasks, and their data can be had (which loads them; they are cached).

    path: a folder of task YAML files of your own, or one such file.

    Raises ModuleNotFoundError, ValueError or OSError with one line that names the task.
    """
    manager = task_manager(tasks, path)
    for task in tasks:
        try:
            manager.load([task])
        except Exception as error:  # the hub's, the data sets library's and YAML's have no parent
            raise unavailable(task, error) from error


def run_harness(
    config: DecoderConfig,
    params: Any,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[str],
    *,
    path: str | Path | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat_template: bool = False,
) -> dict[str, dict[str, float]]:
    """Runs benchmarks of lm-evaluation-harness.

    Args:
      tasks: names of tasks or groups that the harness has, or that are in `path`.
      path: a folder of task YAML files of your own, or one such file.
      batch_size: rows of texts, or prompts, at a time.
      num_fewshot: examples in the context; None: what `FEWSHOT` or the task says.
      limit: at most so many examples of each task; None: all.
      chat_template: whether prompts are chats, written by the tokenizer's template.

    Returns:
      {task or group: {metric: value}}, numbers only, as the harness names them.

    Raises:
      ModuleNotFoundError: lm_eval is not installed.
      ValueError: the harness has no such task.
      OSError: a task's data cannot be had; says which.
    """
    manager = task_manager(tasks, path)
    from lm_eval.evaluator import simple_evaluate

    model = harness_model(config, params, tokenizer, batch_size=batch_size)
    results: dict[str, dict[str, float]] = {}
    for task in counted(tasks, "benchmarks", len(tasks), unit="task"):
        try:
            found = simple_evaluate(
                model=model,
                tasks=[task],
                num_fewshot=FEWSHOT.get(task) if num_fewshot is None else num_fewshot,
                limit=limit,
                task_manager=manager,
                apply_chat_template=chat_template,
                log_samples=False,
                bootstrap_iters=0,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise unavailable(task, error) from error
        assert found is not None  # it is None on all processes but the first, and this is one
        for key, metrics in {**found.get("results", {}), **found.get("groups", {})}.items():
            numbers = {
                metric: float(value)
                for metric, value in metrics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            results.setdefault(key, {}).update(numbers)
    return results


def task_manager(tasks: Sequence[str], path: str | Path | None) -> "TaskManager":
    """One that knows all of these tasks. Raises ValueError for a name that none knows."""
    _require_harness()
    if path:
        folder = Path(path).expanduser()
        if not folder.exists():
            raise FileNotFoundError(f"evaluation.harness_path: no such file or folder: {path}")
        own = str((folder.parent if folder.is_file() else folder).resolve())
        manager = _indexed(own, False)
        if all(manager.match_tasks([task]) for task in tasks):
            return manager
    manager = _indexed(own if path else None, True)
    for task in tasks:
        if not manager.match_tasks([task]):
            near = difflib.get_close_matches(task, manager.all_tasks, 3)
            hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"evaluation.harness: lm_eval has no task {task!r}{hint}")
    return manager


def harness_model(
    config: DecoderConfig, params: Any, tokenizer: "PreTrainedTokenizerBase", *, batch_size: int = 8
) -> "LM":
    """A `HarnessModel` that is one of the harness's own language models, for `simple_evaluate`.

    Raises ModuleNotFoundError: lm_eval is not installed."""
    _require_harness()
    from lm_eval.api.model import LM

    kind = type("TaskpgmLM", (HarnessModel, LM), {"like_hf": True})
    return kind(config, params, tokenizer, batch_size=batch_size)


def _require_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error


@lru_cache(maxsize=8)
def _indexed(folder: str | None, include_defaults: bool) -> "TaskManager":
    """Cached: the harness's own tasks are thousands of files, which take seconds to index."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=include_defaults)


def unavailable(task: str, error: Exception) -> OSError:
    """What is raised where the data of a task cannot be had."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return OSError(f"evaluation.harness: {task!r}: its data cannot be had ({reason[:300]})")
