"""A model for lm-evaluation-harness (EleutherAI), which asks it for likelihoods and texts.

In `benchmarks.py`, which brings both together, the numbers are those of the harness's own model for
transformers (`hf`): the same tokens, the same truncation, the same stops. Nothing of lm_eval is
imported here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from taskpgm.evaluation.loglikelihood import Window, rolling_windows, score_windows
from taskpgm.evaluation.stops import stop_ids, stopped, text_before
from taskpgm.models import DecoderConfig
from taskpgm.models.generate import generate
from taskpgm.progress import Work
from taskpgm.tasks import check_vocabulary
from taskpgm.tasks.chat import apply_template
from taskpgm.tasks.tokenize import TextTokens, prefix_id, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Setting(NamedTuple):
    """What a request for a text asks for: requests with one setting can share a batch."""

    max_new_tokens: int
    temperature: float
    stops: tuple[str, ...]


class HarnessModel:
    """What the harness asks of a model, for (config, params, tokenizer).

    Requests are anything with `.args`, as the harness has them. batch_size: prompts that are
    continued together, and rows of packed texts that are scored together. max_new_tokens: where a
    request names no length.

    The boundary between context and continuation is that of training: both are one text, and a
    token that carries some of the continuation belongs to it. With `like_hf` it is `hf`'s: white
    space that ends a context is scored too. They differ where that is a token of its own, as the
    line break that ends a chat's last header.
    """

    like_hf = False

    def __init__(
        self,
        config: DecoderConfig,
        params: Any,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int = 8,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens

    @property
    def max_length(self) -> int:
        return self.config.max_position

    @cached_property
    def prefix_id(self) -> int:
        """What an empty context is."""
        return prefix_id(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.tokenizer.get_chat_template() if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat; where the template refuses it, without its system message, as the
        harness's own model does."""
        messages = [(message["role"], message["content"]) for message in chat_history]
        write = partial(
            apply_template,
            self.tokenizer,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        try:
            return write(messages)
        except ValueError:
            shorter = [message for message in messages if message[0] != "system"]
            if len(shorter) == len(messages):
                raise
            return write(shorter)

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """(nats of the continuation given the context, whether greedy decoding would give it)."""
        return self._score(self._windows([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Nats of whole texts: each token once, in windows with as much context as fits."""
        owner, windows = [], []
        texts = self._tokenise([request.args[0] for request in requests])
        for i, (ids, _offsets, head) in enumerate(texts):
            prefix = int(ids[head - 1]) if head else self.prefix_id
            pieces = list(rolling_windows(ids[head:].tolist(), prefix, self.max_length))
            owner += [i] * len(pieces)
            windows += pieces
        nats = [score for score, _ in self._score(windows)]
        totals = np.zeros(len(requests))
        np.add.at(totals, owner, nats)
        return totals.tolist()

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Greedy (or, where a request says so, sampled) continuations, cut before a stop string."""
        settings = [_setting(request.args[1], self.max_new_tokens) for request in requests]
        encoded = self._tokenise([request.args[0] for request in requests])
        prompts = [tokens.ids.tolist() or [self.prefix_id] for tokens in encoded]
        texts = [""] * len(requests)
        # Prompts of like length stand together.
        order = sorted(range(len(prompts)), key=lambda i: (settings[i], len(prompts[i]), i))
        with Work("answers", len(prompts), unit="prompt") as work:
            for batch in _batches(order, self.batch_size, key=settings.__getitem__):
                setting = settings[batch[0]]
                outputs = self._continue([prompts[i] for i in batch], setting, seed=batch[0])
                for i, output in zip(batch, outputs, strict=True):
                    texts[i] = text_before(self.tokenizer, output, setting.stops)
                work.done += len(batch)
        return texts

    def _tokenise(self, texts: list[str]) -> list[TextTokens]:
        """The tokens of each text. Raises ValueError for one that the model does not embed."""
        tokens = tokenise(self.tokenizer, texts)
        ids = [each.ids for each in tokens]
        check_vocabulary(self.tokenizer, ids, self.config.vocab_size, "harness")
        return tokens

    def _continue(self, prompts: list[list[int]], setting: Setting, seed: int) -> list[list[int]]:
        room = self.max_length - setting.max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_gen_toks={setting.max_new_tokens} leaves no room for a prompt in "
                f"{self.max_length} positions: ask for fewer"
            )
        prompts = [prompt[-room:] for prompt in prompts]
        outputs = generate(
            self.config,
            self.params,
            prompts + prompts[-1:] * (self.batch_size - len(prompts)),
            max_new_tokens=setting.max_new_tokens,
            stop_ids=stop_ids(self.config, self.tokenizer, setting.stops),
            temperature=setting.temperature,
            key=jax.random.key(seed) if setting.temperature > 0 else None,
            finished=stopped(self.tokenizer, setting.stops) if setting.stops else None,
        )
        return outputs[: len(prompts)]

    def _window(self, context: str, continuation: str) -> Window:
        return self._windows([(context, continuation)])[0]

    def _windows(self, pairs: Sequence[tuple[str, str]]) -> list[Window]:
        if self.like_hf:
            return self._windows_of_hf(pairs)
        windows = []
        texts = self._tokenise([context + answer for context, answer in pairs])
        for (context, _), (ids, offsets, head) in zip(pairs, texts, strict=True):
            inside = np.flatnonzero(offsets[:, 1] > len(context))
            first = max(head, int(inside[0]) if len(inside) else len(ids))
            windows.append(self._window_of(ids[:first].tolist(), ids[first:].tolist()))
        return windows

    def _windows_of_hf(self, pairs: Sequence[tuple[str, str]]) -> list[Window]:
        moved = []
        for context, continuation in pairs:
            stripped = context.rstrip()
            moved.append((stripped, context[len(stripped) :] + continuation))
        texts = dict.fromkeys(text for a, b in moved for text in (a, a + b, b))
        tokens = dict(zip(texts, self._tokenise(list(texts)), strict=True))
        windows = []
        for context, continuation in moved:
            before = tokens[context].ids.tolist()
            targets = tokens[context + continuation].ids.tolist()[len(before) :]
            if not targets:  # the seam fell inside a token
                alone = tokens[continuation]
                targets = alone.ids.tolist()[alone.head :]
            windows.append(self._window_of(before, targets))
        return windows

    def _window_of(self, before: list[int], targets: list[int]) -> Window:
        if not before and targets[:1] == [self.prefix_id]:  # the text brings it
            targets = targets[1:]
        read = [*(before or [self.prefix_id]), *targets]
        return Window(read[:-1][-self.max_length :], targets[-self.max_length :])

    def _score(self, windows: Sequence[Window]) -> list[tuple[float, bool]]:
        nats, greedy = score_windows(self.config, self.params, windows, batch_size=self.batch_size)
        return list(zip(nats.tolist(), greedy.tolist(), strict=True))


def _setting(kwargs: Mapping[str, Any], default: int) -> Setting:
    stops = kwargs.get("until") or ()
    stops = (stops,) if isinstance(stops, str) else tuple(stop for stop in stops if stop)
    longest = kwargs.get("max_gen_toks") or kwargs.get("max_new_tokens") or default
    sampled = kwargs.get("do_sample", False)
    temperature = float(kwargs.get("temperature", 1.0)) if sampled else 0.0
    return Setting(int(longest), temperature, stops)


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
