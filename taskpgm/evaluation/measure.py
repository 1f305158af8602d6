"""What a model is worth on test rows: loss and exact match of every task.

Loss is teacher-forced: nats per scored token, every model on the same packed rows. Exact match is
free-running: the greedy continuation of the prompt, cut at end-of-sequence, equals the response
(both stripped). Nothing here is random, so the same model gives the same numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from taskpgm.evaluation.stops import stop_ids
from taskpgm.models import DecoderConfig
from taskpgm.models.generate import generate
from taskpgm.models.scoring import score_model
from taskpgm.progress import counted
from taskpgm.tasks import Example, Rows, Task, encode
from taskpgm.tasks.tokenize import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Report = dict[str, Any]


class Prompt(NamedTuple):
    """One generation to make: the ids to continue and the text that would be right."""

    task: int
    example: int
    ids: list[int]
    response: str


def evaluate(
    config: DecoderConfig,
    params: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    rows: Sequence[Rows],
    *,
    lora: Any = None,
    batch_size: int,
    max_new_tokens: int,
    exact_match_examples: int | None = None,
) -> dict[str, Report]:
    """Judges one model by the test rows of every task.

    Args:
      config, params, lora: the model; `lora` is one adapter (no leading axis) or None.
      tasks: their test examples are what `rows` holds.
      rows: one `Rows` per task, all of the same length t, packed from `task.test`.
      batch_size: rows (and prompts) a step.
      max_new_tokens: a generation that is not finished by then does not match.
      exact_match_examples: at most so many examples of each task are generated, the first ones;
        None for all, 0 for none.

    Returns:
      per task: "loss" (nats per scored token), "exact_match" (share in [0, 1]; None when nothing
      was generated), "examples" and "tokens" (how many the loss is over), "generated" (how many the
      match is over), "predictions" (list: the answer to each of the first test examples, None
      where one did not fit).

    Raises:
      ValueError: rows and tasks do not fit together, or a task has no scored token.
    """
    loss = task_losses(config, params, tasks, rows, lora=lora, batch_size=batch_size)
    prompts = _prompts(config, tokenizer, tasks, rows, max_new_tokens, exact_match_examples)
    texts = _continue(config, params, tokenizer, prompts, lora, batch_size, max_new_tokens)

    predictions: list[list[str | None]] = [
        [None] * len(task.test[:exact_match_examples]) for task in tasks
    ]
    generated, matched = np.zeros((2, len(tasks)), int)
    for prompt, text in zip(prompts, texts, strict=True):
        predictions[prompt.task][prompt.example] = text
        generated[prompt.task] += 1
        matched[prompt.task] += text.strip() == prompt.response.strip()
    return {
        task.name: {
            **loss[task.name],
            "exact_match": float(matched[i] / generated[i]) if generated[i] else None,
            "generated": int(generated[i]),
            "predictions": predictions[i],
        }
        for i, task in enumerate(tasks)
    }


def task_losses(
    config: DecoderConfig,
    params: Any,
    tasks: Sequence[Task],
    rows: Sequence[Rows],
    *,
    lora: Any = None,
    batch_size: int,
) -> dict[str, Report]:
    """Loss of one model on every task: {task: {"loss", "examples", "tokens"}}.

    The rows are of any split: test rows judge, held-out rows choose (learning curves). All tasks'
    rows go through one compiled program; sums over examples are float64.
    """
    if len(rows) != len(tasks):
        raise ValueError(f"{len(rows)} sets of rows for {len(tasks)} tasks")
    together, task_of = _concatenate(rows)
    log_likelihood, tokens = score_model(
        config, params, together, len(task_of), lora=lora, batch_size=batch_size
    )
    nats = np.bincount(task_of, -log_likelihood, len(tasks))
    scored = np.bincount(task_of, tokens, len(tasks)).astype(int)
    examples = np.bincount(task_of, minlength=len(tasks))
    for task, count in zip(tasks, scored, strict=True):
        if count == 0:
            raise ValueError(f"task {task.name!r}: no token to score")
    return {
        task.name: {
            "loss": float(nats[i] / scored[i]),
            "examples": int(examples[i]),
            "tokens": int(scored[i]),
        }
        for i, task in enumerate(tasks)
    }


def _concatenate(rows: Sequence[Rows]) -> tuple[Rows, np.ndarray]:
    """All tasks' rows as one, examples renumbered through; and the task of each example [m]."""
    counts = [int(part.example.max(initial=-1)) + 1 for part in rows]
    starts = np.cumsum([0, *counts[:-1]])
    fields = [np.concatenate(field) for field in zip(*rows, strict=True)]
    together = Rows(*fields)._replace(
        example=np.concatenate(
            [
                np.where(part.example >= 0, part.example + start, -1).astype(np.int32)
                for part, start in zip(rows, starts, strict=True)
            ]
        )
    )
    return together, np.repeat(np.arange(len(rows)), counts)


def _prompts(
    config: DecoderConfig,
    tokenizer: Any,
    tasks: Sequence[Task],
    rows: Sequence[Rows],
    max_new_tokens: int,
    limit: int | None,
) -> list[Prompt]:
    """The ids before the (last) response of each test example, from the same tokenisation as
    in training, so that the boundary is the same."""
    room = config.max_position - max_new_tokens
    if room < 1:
        raise ValueError(
            f"evaluation.max_new_tokens={max_new_tokens} leaves no room for a prompt: "
            f"the model has {config.max_position} positions"
        )
    prompts = []
    for i, (task, part) in enumerate(zip(tasks, rows, strict=True)):
        examples = task.test[:limit]
        encoded = encode(tokenizer, examples, part.tokens.shape[1])
        for ids, scored, index in zip(encoded.ids, encoded.scored, encoded.index, strict=True):
            example = examples[int(index)]
            start = last_response(np.asarray(scored))
            if start > 0:
                prompt = [int(token) for token in ids[max(0, start - room) : start]]
                prompts.append(Prompt(i, int(index), prompt, asked(example)[1]))
    return prompts


def answers_cut_off(
    tokenizer: "PreTrainedTokenizerBase", tasks: Sequence[Task], max_new_tokens: int
) -> list[str]:
    """One line for every task most of whose test answers are longer than what is generated: their
    exact match is near 0 whatever the model has learnt."""
    lines = []
    for task in tasks:
        answers = [asked(example)[1] for example in task.test]
        # The end has to be written too.
        sizes = [len(tokens.ids) - tokens.head + 1 for tokens in tokenise(tokenizer, answers)]
        longer = sum(size > max_new_tokens for size in sizes)
        if 2 * longer > len(sizes):
            lines.append(
                f"{task.name}: {longer} of {len(sizes)} test answers are longer than "
                f"evaluation.max_new_tokens={max_new_tokens} and cannot match (their median is "
                f"{int(np.median(sizes))} tokens): raise it"
            )
    return lines


def asked(example: Example) -> tuple[str, str]:
    """(what comes before the last answer, that answer) as text."""
    if example.messages is None:
        return example.prompt, example.response
    before = "\n".join(f"{role}: {text}" for role, text in example.context)
    return before, example.messages[len(example.context)][1]


def last_response(scored: np.ndarray) -> int:
    """Where the last run of scored tokens begins."""
    return int(np.flatnonzero(scored & ~np.concatenate([[False], scored[:-1]]))[-1])


def _continue(
    config: DecoderConfig,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    lora: Any,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Greedy continuations, in the order of `prompts`.

    Prompts of all tasks are batched by length, and the last batch is filled up, so that there are
    as many compiled programs as lengths' buckets, whatever the number of tasks.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
    texts = [""] * len(prompts)
    starts = range(0, len(order), batch_size)
    for start in counted(starts, "answers", len(starts), unit="step"):
        chosen = order[start : start + batch_size]
        ids = [prompts[i].ids for i in chosen]
        ids += ids[-1:] * (batch_size - len(ids))
        outputs = generate(
            config,
            params,
            ids,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids(config, tokenizer),
            lora=lora,
        )
        for i, output in zip(chosen, outputs, strict=False):
            texts[i] = tokenizer.decode(output, skip_special_tokens=True)
    return texts
