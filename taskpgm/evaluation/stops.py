"""Where a generated text ends: the model's end-of-sequence ids, and a request's stop strings."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taskpgm.models import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_ids(
    config: DecoderConfig, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str] = ()
) -> tuple[int, ...]:
    """The ids that end a text: the tokenizer's EOS, those that the model's config.json and
    generation_config.json name, and stop strings that are one special token."""
    ends = config.eos_token_id
    named = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
    own = tokenizer.eos_token_id
    own = (own,) if isinstance(own, int) else ()
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    marks = [tokenizer.convert_tokens_to_ids(stop) for stop in stops]
    marks = [mark for mark in marks if isinstance(mark, int) and mark in special]
    ids = {*named, *marks, *own}
    return tuple(sorted(i for i in ids if i < config.vocab_size))


def stopped(
    tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]
) -> Callable[[Sequence[list[int]]], list[bool]]:
    """Which of some continuations hold a stop string, for `generate`."""

    def check(rows: Sequence[list[int]]) -> list[bool]:
        texts = [tokenizer.decode(row) for row in rows]
        return [any(stop in text for stop in stops) for text in texts]

    return check


def text_before(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], stops: Sequence[str]
) -> str:
    """What a continuation says before the first stop string, without special tokens.

    Stop strings may be special tokens, or hold some: they are looked for before those are left out.
    """
    written = str(tokenizer.decode(list(ids)))
    kept = cut(written, stops)
    if len(kept) == len(written):
        kept = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    else:
        for token in tokenizer.all_special_tokens:
            kept = kept.replace(token, "")
    return cut(kept, stops)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops`."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
