"""Stage `embeddings`: where each task's prompts lie in the base's last layer. embeddings/TASK.npz.

Only where a row of `compare` uses them (SMART, Chameleon, the authors' clustered variant).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from taskpgm import models, training
from taskpgm.artefact import digest, read_arrays, recovery_hint
from taskpgm.multihost import end_if_asked, on_primary
from taskpgm.progress import Reporter
from taskpgm.stages.compare import parse
from taskpgm.stages.context import Context, spread
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits
from taskpgm.stages.matrix_file import save_arrays
from taskpgm.stages.mixture_inputs import EMBEDDINGS
from taskpgm.stages.stage_artefact import StageArtefact
from taskpgm.tasks import Example, Rows, Task

SECTIONS = ("embeddings",)
MADE = "embeddings"


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The embeddings of all tasks, if a row of `compare` uses them."""
    if any(EMBEDDINGS in parse(name, needs=False)[0].uses for name in context.config.compare):
        yield embeddings(context)


def embeddings(context: Context) -> "TaskEmbeddings":
    """The artefact that holds the embeddings."""
    settings = (context.config.embeddings.examples, context.config.tasks.length)
    read = [(task.name, task.train_hash) for task in context.tasks]
    return TaskEmbeddings(context.folder / MADE, digest(context.base.key, settings, read), context)


@dataclass(frozen=True)
class TaskEmbeddings(StageArtefact):
    """A file for each task; files from an interrupted run are kept."""

    def make(self) -> dict[str, Any]:
        context, section = self.context, self.context.config.embeddings
        config, params = context.load_model(context.base)
        with Reporter("embeddings", len(context.tasks), unit="task") as report:
            for done, task in enumerate(context.tasks, 1):
                path = self.folder / f"{task.name}.npz"
                if not on_primary(path.is_file)():
                    picked = examples_of(context, task)
                    rows = context.rows(context.base, picked, task.name)
                    each = embed_prompts(config, params, rows, batch_size=section.batch_size)
                    mean = each.mean(0).astype(np.float32)
                    save_arrays(path, embedding=mean, examples=np.array(len(each)))
                report.update(done, task.name)
                end_if_asked()
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.embeddings
        config, length = estimate.decoder(context.base), context.config.tasks.length
        rows = [estimate.packed(context.base, examples_of(context, x)).rows for x in context.tasks]
        batches = [-(-count // section.batch_size) for count in rows]
        tokens = sum(batches) * section.batch_size * length
        memory = training.forward_memory(
            config, rows=section.batch_size, length=length, mesh=estimate.mesh
        )
        # Nothing is unembedded.
        each = training.forward_flops_per_token(config, length)
        each -= 2.0 * config.hidden_size * config.vocab_size
        return Cost(
            f"{tokens:,} tokens of training prompts and answers with padding",
            tokens * each,
            FLOAT32 * config.hidden_size * len(context.tasks),
            memory,
            fits(estimate, memory, "embeddings.batch_size"),
            scored=tokens,
        )

    def summary(self) -> str:
        return f"of {len(self.context.tasks)} tasks"


def examples_of(context: Context, task: Task) -> list[Example]:
    """The training examples whose prompts are read, spread evenly over the split."""
    most = context.config.embeddings.examples or len(task.train)
    return [task.train[i] for i in spread(len(task.train), most)]


def embed_prompts(
    config: models.DecoderConfig, params: Any, rows: Rows, *, batch_size: int
) -> Float[np.ndarray, "m d"]:
    """Of each example the mean of the last hidden states, after the final norm, over the tokens of
    its prompt; of an example without a prompt, its first token's.

    float64; order and number of examples are those of `rows.example`.
    """
    count = int(rows.example.max()) + 1
    prompt = prompt_positions(rows)
    # Rounded up, so that tasks share a program.
    segments = -(-int(rows.segment_ids.max()) // 32) * 32
    total = np.zeros((count, config.hidden_size))
    for start in range(0, len(rows.tokens), batch_size):
        some = slice(start, start + batch_size)
        short = ((0, batch_size - len(rows.tokens[some])), (0, 0))
        batch = {
            "tokens": rows.tokens[some],
            "positions": rows.positions[some],
            "segment_ids": rows.segment_ids[some],
            "prompt": prompt[some].astype(np.float32),
        }
        batch = {name: np.pad(x, short) for name, x in batch.items()}
        sums = models.to_host(segment_sums(config, segments, params, training.put_batch(batch)))
        for row, example in enumerate(rows.example[some]):
            for segment in range(1, int(rows.segment_ids[start + row].max()) + 1):
                at = int(np.argmax(rows.segment_ids[start + row] == segment))
                total[example[at]] += sums[row, segment - 1]
    tokens = np.bincount(rows.example[prompt], minlength=count)
    return total / tokens[:, None]


def prompt_positions(rows: Rows) -> Any:
    """Whether a position holds a token that is read and not scored, one of a prompt, [r t]: the
    first of an example always, as nothing predicts it."""
    scored = np.zeros(rows.weights.shape, bool)
    # A weight stands where the next token of the same segment is predicted.
    scored[:, 1:] = rows.weights[:, :-1] > 0
    return (rows.example >= 0) & ~scored


@partial(jax.jit, static_argnums=(0, 1))
def segment_sums(
    config: models.DecoderConfig, segments: int, params: Any, batch: dict[str, jax.Array]
) -> Float[jax.Array, "b s d"]:
    """Hidden states summed over the prompt of each of a row's segments 1..s."""
    hidden: Any = models.Decoder(config).apply(
        {"params": params},
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        method="hidden",
    )
    member = jax.nn.one_hot(batch["segment_ids"] - 1, segments, dtype=jnp.float32)
    member = member * batch["prompt"][..., None]
    return jnp.einsum("bts,btd->bsd", member, hidden.astype(jnp.float32))


def read_embeddings(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """{"embeddings": [n, d]}, tasks in the order of `names`.

    Raises:
      ValueError: a file is missing or damaged; names it and the way out.
    """
    found = []
    for name in names:
        path = folder / MADE / f"{name}.npz"
        if not path.is_file():
            raise ValueError(f"{path} is missing: {recovery_hint(path)}")
        arrays = read_arrays(path)
        if "embedding" not in arrays:
            raise ValueError(f"{path} is damaged (no embedding): {recovery_hint(path)}")
        found.append(arrays["embedding"].astype(np.float64))
    return {"embeddings": np.stack(found)}
