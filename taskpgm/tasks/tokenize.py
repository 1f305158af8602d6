"""Prompt and response -> token ids, and which of them are scored.

The text of a row is tokenised once, whole, and the boundary between prompt and response is found by
character offsets: prompt and response tokenised apart could give tokens that the whole text never
has. A token that straddles the boundary carries a part of the response, so it belongs to the
response and is scored. Offsets come from the `tokenizers` library, so a "fast" tokenizer is needed.

Special tokens follow one rule, in training, scoring and generation, for plain texts and for chats
(`token_ids`): the tokenizer prepends its own, unless the text already begins with the same token. A
response with nothing before it, not even a BOS, follows BOS, or EOS if the tokenizer has no BOS.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from taskpgm.tasks.chat import CLOCK, Turn, asks_for_the_date, render
from taskpgm.tasks.task import Example

if TYPE_CHECKING:  # importing transformers costs more than a second
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """m encoded examples. Every one has at least two tokens, and its first token is never a target.

    ids, scored: of each example, the tokens and whether each is scored, [l]. index: of each, its
    position in the input. dropped: how many did not fit (or were empty). truncated: how many lost
    the beginning of their prompt (or, as plain text, were split). notes: what was decided about
    special tokens and dates.
    """

    ids: list[Int32[np.ndarray, "l"]]
    scored: list[Bool[np.ndarray, "l"]]
    index: Int32[np.ndarray, "m"]
    dropped: int
    truncated: int
    notes: tuple[str, ...] = ()


class TextTokens(NamedTuple):
    """A text's tokens: ids [l]; the characters that each covers, offsets [l 2]; and `head`, the
    number of special tokens at the beginning (a BOS, the tokenizer's or the text's own)."""

    ids: Int64[np.ndarray, "l"]
    offsets: Int64[np.ndarray, "l 2"]
    head: int


def encode(
    tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example], max_length: int
) -> Encoded:
    """Tokenises examples. The response is scored, and the end-of-sequence token after it.

    An example longer than `max_length` loses the beginning of its prompt (a leading BOS stays),
    never a token of its response; if the response with one token of context does not fit, the
    example is dropped and counted. Chat rows go through the tokenizer's chat template: only
    assistant turns are scored, with their end-of-turn markers.

    Raises ValueError when the tokenizer has no EOS, no offsets, or (chat rows) no chat template.
    """
    _check_length(max_length)
    ids_list, scored_list, index, dropped, truncated = [], [], [], 0, 0
    for number, (ids, scored, head) in enumerate(_whole(tokenizer, examples)):
        kept = _fit(scored, head, max_length)
        if kept is None:
            dropped += 1
            continue
        truncated += len(kept) < len(ids)
        ids_list.append(ids[kept].astype(np.int32))
        scored_list.append(scored[kept])
        index.append(number)
    kept_as = np.array(index, np.int32)
    notes = special_notes(tokenizer, examples)
    return Encoded(ids_list, scored_list, kept_as, dropped, truncated, notes)


def encode_text(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int
) -> Encoded:
    """Tokenises plain text for pretraining: every token is scored, EOS ends each text.

    A text longer than `max_length` is split into pieces; each begins with the last token of the
    piece before as unscored context, so every token is predicted exactly once. Empty texts are
    dropped.
    """
    eos = _end_of_sequence(tokenizer)
    _check_length(max_length)
    ids_list, scored_list, index, dropped, truncated = [], [], [], 0, 0
    for number, (ids, _, head) in enumerate(tokenise(tokenizer, texts)):
        if len(ids) == head:
            dropped += 1
            continue
        ids = _closed(ids, eos).astype(np.int32)
        truncated += len(ids) > max_length
        for begin in range(0, len(ids) - 1, max_length - 1):
            piece = ids[begin : begin + max_length]
            scored = np.ones(len(piece), bool)
            scored[: max(head, 1) if begin == 0 else 1] = False
            ids_list.append(piece)
            scored_list.append(scored)
            index.append(number)
    return Encoded(ids_list, scored_list, np.array(index, np.int32), dropped, truncated)


def token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """A text's ids by the one rule for special tokens (see above)."""
    return tokenise(tokenizer, [text])[0].ids.tolist()


def prefix_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that stands for an empty context: BOS, or EOS if the tokenizer has no BOS."""
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) else _end_of_sequence(tokenizer)


def _whole(
    tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example]
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Per example, not truncated: ids [l], scored [l], and how many leading tokens must stay
    (BOS)."""
    eos = _end_of_sequence(tokenizer)
    texts, turns = [], []
    for example in examples:
        if example.messages is None:
            begin, end = len(example.prompt), len(example.prompt) + len(example.response)
            text, spoken = example.prompt + example.response, [Turn(begin, end, end)]
        else:
            text, spoken = render(tokenizer, example.messages)
        texts.append(text)
        turns.append(spoken)
    for (ids, offsets, head), spoken in zip(tokenise(tokenizer, texts), turns, strict=True):
        scored = _spoken(offsets, spoken)
        scored[:head] = False
        # What the template writes after the last end-of-turn marker is dropped.
        last = int(np.flatnonzero(scored)[-1]) + 1 if scored.any() else len(ids)
        scored = scored[:last]
        ids = _closed(ids[:last], eos)
        scored = np.append(scored, np.ones(len(ids) - last, bool))
        if scored[0]:  # nothing precedes the response
            ids = np.append(prefix_id(tokenizer), ids)
            scored, head = np.append(False, scored), 1
        yield ids, scored, head


def _closed(ids: np.ndarray, eos: int) -> np.ndarray:
    """The ids followed by EOS, unless they end in it already."""
    return ids if len(ids) and ids[-1] == eos else np.append(ids, eos)


def special_notes(
    tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example]
) -> tuple[str, ...]:
    """What is decided about special tokens and dates in these rows, for people to read. Cheap: of
    chats the first one tells how all begin."""
    notes = []
    chats = [example for example in examples if example.messages is not None]
    (probe,) = tokenise(tokenizer, ["a"])
    if probe.head:
        bos = str(tokenizer.convert_ids_to_tokens(int(probe.ids[probe.head - 1])))
        own = sum(x.messages is None and (x.prompt + x.response).startswith(bos) for x in examples)
        if chats and render(tokenizer, chats[0].messages or ())[0].startswith(bos):
            own += len(chats)
        if own:
            notes.append(
                f"{own} of {len(examples)} rows begin with a {bos} of their own: the tokenizer "
                "adds no second one"
            )
    if chats and asks_for_the_date(tokenizer):
        notes.append(f"the chat template writes the date: it is always {CLOCK:%d %b %Y}")
    return tuple(notes)


def _fit(scored: np.ndarray, head: int, max_length: int) -> np.ndarray | None:
    """The tokens to keep so that at most `max_length` are left: the prompt loses its beginning, but
    not the `head`; None if that is not enough, or would leave the response without context."""
    excess = max(0, len(scored) - max_length)
    prompt = int(scored.argmax()) - head
    if excess > prompt or (excess == prompt and head == 0):
        return None
    return np.r_[:head, head + excess : len(scored)]


def tokenise(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[TextTokens]:
    """The tokens of each text, with the special tokens that the tokenizer prepends.

    A special token that the text itself begins with is not prepended. Special tokens that the
    tokenizer appends are removed: the caller adds EOS.
    """
    if not texts:
        return []
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} gives no "
            "character offsets: use one that comes with a tokenizer.json (a fast tokenizer)"
        )
    batch = tokenizer(
        list(texts),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    results = []
    for ids, offsets, added in zip(
        batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True
    ):
        text = np.flatnonzero(np.array(added) == 0)
        begin, end = (int(text[0]), int(text[-1]) + 1) if len(text) else (len(ids), len(ids))
        start = 0
        if begin and begin < end and ids[begin] == ids[begin - 1]:
            start, begin = begin, begin + 1
        covered = np.array(offsets, np.int64).reshape(-1, 2)
        results.append(
            TextTokens(np.array(ids[start:end], np.int64), covered[start:end], begin - start)
        )
    return results


def _spoken(offsets: np.ndarray, turns: Sequence[Turn]) -> np.ndarray:
    """Which tokens are scored, [l]: those that cover a character of an answer, and those within
    its end-of-turn marker. A BOS is neither: its offsets are (0, 0)."""
    scored = np.zeros(len(offsets), bool)
    begins, ends = offsets[:, 0], offsets[:, 1]
    for begin, end, closed in turns:
        scored |= (ends > begin) & (begins < end)
        scored |= (begins >= end) & (ends <= closed) & (ends > begins)
    return scored


def _end_of_sequence(tokenizer: "PreTrainedTokenizerBase") -> int:
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError("the tokenizer has no end-of-sequence token: set its eos_token")
    return eos


def _check_length(max_length: int) -> None:
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}: a token and its context need at least 2")
