"""Learning curves of single-task models: the loss of each on its own held-out examples."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from taskpgm.affinity.scores import per_example
from taskpgm.models import DecoderConfig
from taskpgm.models.scoring import decoder_forward, score_examples
from taskpgm.tasks import Rows


def own_losses(
    config: DecoderConfig,
    params: Any,
    models: Any,
    rows: Sequence[Rows],
    num_examples: Sequence[int],
    *,
    batch_size: int,
    normalize: str = "token",
) -> Float[np.ndarray, " g"]:
    """Mean loss of each model of a group on its own task: a point of its learning curve.

    Args:
      config, params: the base; `params` may be None where models are whole.
      models: adapters if config.lora, else parameters, stacked on a leading axis g.
      rows, num_examples: packed held-out rows of each model's task, and their examples.
      batch_size: rows of a forward pass.
      normalize: "token" or "sequence", as in `likelihoods`.

    Returns:
      Means over examples of the loss by response token or by response, nats.

    >>> import jax.numpy as jnp
    >>> from taskpgm.models import init_params
    >>> from taskpgm.tasks import Encoded, pack
    >>> config = DecoderConfig("llama", 32, 8, 8, 1, 1, 1, 8, 16)  # a tiny model of 32 tokens
    >>> weights = init_params(config, jax.random.key(0))
    >>> models = jax.tree.map(lambda x: 0 * jnp.stack([x, x]), weights)  # they know nothing
    >>> ids, scored = np.array([5, 6, 7], np.int32), np.array([False, True, True])
    >>> rows = pack(Encoded([ids], [scored], np.array([0], np.int32), 0, 0), 4)
    >>> loss = own_losses(config, None, models, [rows, rows], [1, 1], batch_size=1)
    >>> (loss / np.log(32)).round(6)
    array([1., 1.])
    """
    forward, found = decoder_forward(config), []
    for i, (part, count) in enumerate(zip(rows, num_examples, strict=True)):
        own = jax.tree.map(lambda x, i=i: x[i : i + 1], models)
        values, tokens = score_examples(forward, params, own, part, count, batch_size=batch_size)
        found.append(-per_example(values[0], tokens, normalize).mean())
    return np.array(found)
