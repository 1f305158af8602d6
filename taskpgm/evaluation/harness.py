"""A model for lm-evaluation-harness (EleutherAI): MMLU, BIG-Bench Hard and its other tasks.

`lm_eval` is an optional extra, `pip install 'taskpgm[eval]'`, imported only where it is needed; its
tasks come from the Hugging Face hub, so that a machine without it can run only tasks whose YAML
files lie in a folder of your own (`include_path`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskpgm.evaluation.loglikelihood import Window, padded_length, rolling_windows, score_windows
from taskpgm.models import DecoderConfig, to_host
from taskpgm.models.generate import generate

NAME = "taskpgm"  # what the harness knows the model by
INSTALL = "lm_eval is not installed: pip install 'taskpgm[eval]' (an optional extra)"

# The names in configs, the harness's own, and the examples in the context that papers report.
# BIG-Bench Hard's own prompts hold their 3 examples, so nothing is added to them.
SUITES: Mapping[str, tuple[str, int | None]] = {"mmlu": ("mmlu", 5), "bbh": ("bbh", None)}


class HarnessModel:
    """What the harness asks of a model, for (config, params, tokenizer); no lm_eval in here.

    `register` makes it a subclass of the harness's own base class. Requests are anything with
    `.args`, as the harness has them.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Any,
        tokenizer: Any,
        *,
        lora: Any = None,
        batch_size: int = 8,
        max_length: int | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.config, self.params, self.lora = config, params, lora
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length = min(max_length or config.max_position, config.max_position)
        self.max_new_tokens = max_new_tokens

    @property
    def prefix_id(self) -> int:
        """What the first token of a text is conditioned on."""
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.tokenizer.chat_template if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """(nats of the continuation given the context, whether greedy decoding would give it)."""
        windows = [self._window(*request.args) for request in requests]
        return self._score(windows)

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Nats of whole texts: each token once, in windows with as much context as fits."""
        owner, windows = [], []
        for i, request in enumerate(requests):
            ids = self._encode(request.args[0])
            pieces = list(rolling_windows(ids, self.prefix_id, self.max_length))
            owner += [i] * len(pieces)
            windows += pieces
        nats = [score for score, _ in self._score(windows)]
        return np.bincount(owner, nats, minlength=len(requests)).astype(float).tolist()

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Greedy (or, where a request says so, sampled) continuations, cut before a stop string."""
        settings = [_generation(request.args[1], self.max_new_tokens) for request in requests]
        ids = [self._encode(request.args[0]) or [self.prefix_id] for request in requests]
        texts = [""] * len(requests)
        # One batch has one setting; within a setting, prompts of like length stand together.
        order = sorted(range(len(ids)), key=lambda i: (settings[i][:2], len(ids[i]), i))
        for batch in _batches(order, self.batch_size, key=lambda i: settings[i][:2]):
            longest, temperature = settings[batch[0]][:2]
            room = self.max_length - longest
            if room < 1:
                raise ValueError(
                    f"max_gen_toks={longest} leaves no room for a prompt in {self.max_length} "
                    "positions: ask for fewer"
                )
            prompts = [ids[i][-room:] for i in batch]
            outputs = generate(
                self.config,
                self.params,
                prompts + prompts[-1:] * (self.batch_size - len(prompts)),
                max_new_tokens=longest,
                stop_ids=(self.tokenizer.eos_token_id,),
                lora=self.lora,
                temperature=temperature,
                key=jax.random.key(batch[0]) if temperature > 0 else None,
            )
            for i, output in zip(batch, outputs, strict=False):
                text = self.tokenizer.decode(output, skip_special_tokens=True)
                texts[i] = cut(text, settings[i][2])
        return texts

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _window(self, context: str, continuation: str) -> Window:
        """Context and continuation from one tokenisation; spaces at the seam go to the right."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = self._encode(stripped)
        targets = self._encode(stripped + continuation)[len(before) :]
        if not targets:  # the seam fell inside a token
            targets = self._encode(continuation)
        whole = [self.prefix_id, *before, *targets]
        return Window(whole[:-1][-self.max_length :], targets[-self.max_length :])

    def _score(self, windows: Sequence[Window]) -> list[tuple[float, bool]]:
        """Scores windows of like length together: one program per padded length."""
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(windows)
        order = sorted(range(len(windows)), key=lambda i: (len(windows[i].inputs), i))
        length = {i: padded_length(len(windows[i].inputs), self.max_length) for i in order}
        for batch in _batches(order, self.batch_size, key=length.__getitem__):
            shape = (self.batch_size, length[batch[0]])
            inputs, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
            read, scored = np.zeros(shape, np.int32), np.zeros(shape, bool)
            for row, i in enumerate(batch):
                end, first = len(windows[i].inputs), -len(windows[i].targets)
                inputs[row, :end] = windows[i].inputs
                read[row, :end] = 1
                targets[row, end + first : end] = windows[i].targets
                scored[row, end + first : end] = True
            nats, greedy = score_windows(
                self.config, self.params, self.lora, inputs, read, targets, scored
            )
            for i, value, same in zip(batch, to_host(nats), to_host(greedy), strict=False):
                scores[i] = (float(value), bool(same))
        return scores


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops`."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _generation(kwargs: Mapping[str, Any], default: int) -> tuple[int, float, tuple[str, ...]]:
    """(new tokens, temperature, stop strings) of a request."""
    stops = kwargs.get("until") or ()
    stops = (stops,) if isinstance(stops, str) else tuple(stop for stop in stops if stop)
    longest = kwargs.get("max_gen_toks") or kwargs.get("max_new_tokens") or default
    sampled = kwargs.get("do_sample", False)
    return int(longest), float(kwargs.get("temperature", 1.0)) if sampled else 0.0, stops


def _batches(order: Sequence[int], size: int, key: Callable[[int], Any]) -> Iterator[list[int]]:
    """Runs of at most `size` neighbours with one key."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == size or key(batch[0]) != key(i)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def register() -> type:
    """The class that lm_eval knows as "taskpgm".

    Raises:
      ModuleNotFoundError: lm_eval is not installed; says how to.
    """
    try:
        from lm_eval.api import registry
        from lm_eval.api.model import LM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error
    if NAME in registry.model_registry:
        return registry.get_model(NAME)
    return registry.register_model(NAME)(type("TaskpgmLM", (HarnessModel, LM), {}))


def run_harness(
    config: DecoderConfig,
    params: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    lora: Any = None,
    batch_size: int = 8,
    max_length: int | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Runs benchmarks of lm-evaluation-harness.

    Args:
      tasks: "mmlu", "bbh" (with the settings of `SUITES`) or any task the harness has.
      num_fewshot: examples in the context; None: what `SUITES` or the task says.
      limit: only so many examples of each task.
      include_path: a folder of further task YAML files.

    Returns:
      {task or group: {metric: value}}, numbers only, as the harness names them.

    Raises:
      ModuleNotFoundError: lm_eval is not installed.
      ValueError: the harness has no such task.
      OSError: a task's data cannot be had; says which.
    """
    model = register()(
        config, params, tokenizer, lora=lora, batch_size=batch_size, max_length=max_length
    )
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([SUITES.get(task, (task, None))[0]]):
            raise ValueError(f"evaluation.harness: lm_eval has no task {task!r}")
    results: dict[str, dict[str, float]] = {}
    for task in tasks:
        name, shots = SUITES.get(task, (task, None))
        try:
            found = simple_evaluate(
                model=model,
                tasks=[name],
                num_fewshot=shots if num_fewshot is None else num_fewshot,
                limit=limit,
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=0,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise OSError(f"benchmark {task!r}: its data cannot be had ({error})") from error
        for key, metrics in {**found["results"], **found.get("groups", {})}.items():
            numbers = {
                metric: float(value)
                for metric, value in metrics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            results.setdefault(key, {}).update(numbers)
    return results
