"""Prompt and response -> token ids, and which of them are scored.

The text of a row is tokenised once, whole, and the boundary between prompt and response is read
from character offsets: two tokenisations joined would give tokens that the model never meets. A
token that straddles the boundary carries a part of the response, so it belongs to the response and
is scored. Offsets come from the `tokenizers` library, so a "fast" tokenizer is needed.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from taskpgm.tasks.chat import render
from taskpgm.tasks.task import Example

if TYPE_CHECKING:  # importing transformers costs more than a second
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """m encoded examples. Every one has at least two tokens, and its first token is never a target.

    ids, scored: per example, the tokens and whether each is scored, [l]. index: its place in what
    was encoded. dropped: how many could not fit (or were empty). truncated: how many lost the
    beginning of their prompt (or, as plain text, were split).
    """

    ids: list[Int32[np.ndarray, "l"]]
    scored: list[Bool[np.ndarray, "l"]]
    index: Int32[np.ndarray, "m"]
    dropped: int
    truncated: int


def encode(
    tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example], max_length: int
) -> Encoded:
    """Tokenises examples; response tokens and the end-of-sequence token that closes them are
    scored.

    An example longer than `max_length` loses the beginning of its prompt (a leading BOS stays),
    never a token of its response; if the response with one token of context does not fit, the
    example is dropped and counted. Chat rows go through the tokenizer's chat template: only
    assistant turns are scored, with the mark that ends them.

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
    return Encoded(ids_list, scored_list, np.array(index, np.int32), dropped, truncated)


def encode_text(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int
) -> Encoded:
    """Tokenises plain text for pretraining: every token is scored, EOS ends each text.

    A text longer than `max_length` becomes several pieces; each begins with the last token of the
    one before it as unscored context, so every token is predicted exactly once. Empty texts are
    dropped.
    """
    eos = _end_of_sequence(tokenizer)
    _check_length(max_length)
    ids_list, scored_list, index, dropped, truncated = [], [], [], 0, 0
    for number, (ids, _, head) in enumerate(_tokenise(tokenizer, texts, True)):
        if len(ids) == head:
            dropped += 1
            continue
        ids = np.append(ids, eos).astype(np.int32)
        truncated += len(ids) > max_length
        for begin in range(0, len(ids) - 1, max_length - 1):
            piece = ids[begin : begin + max_length]
            scored = np.ones(len(piece), bool)
            scored[: max(head, 1) if begin == 0 else 1] = False
            ids_list.append(piece)
            scored_list.append(scored)
            index.append(number)
    return Encoded(ids_list, scored_list, np.array(index, np.int32), dropped, truncated)


def load_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    """The tokenizer in a Hugging Face folder (or of that name on the hub)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"no tokenizer at {path}: it needs tokenizer.json and tokenizer_config.json ({reason})"
        ) from error


def _whole(
    tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example]
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Per example, however long: ids [l], scored [l], and how many leading tokens must stay
    (BOS)."""
    eos = _end_of_sequence(tokenizer)
    chats = [render(tokenizer, e.messages) for e in examples if e.messages is not None]
    texts = [e.prompt + e.response for e in examples if e.messages is None]
    # A chat template has written its own BOS; plain text gets the tokenizer's.
    tokenised_chats = zip(
        chats, _tokenise(tokenizer, [text for text, _ in chats], False), strict=True
    )
    tokenised_texts = iter(_tokenise(tokenizer, texts, True))
    for example in examples:
        if example.messages is None:
            ids, offsets, head = next(tokenised_texts)
            begin = len(example.prompt)
            scored = _inside(offsets, [(begin, begin + len(example.response))])
            ids, scored = np.append(ids, eos), np.append(scored, True)
        else:
            (_, turns), (ids, offsets, head) = next(tokenised_chats)
            scored = _inside(offsets, turns)
            # What the template writes after the last answer and its mark is cut off.
            end = int(np.flatnonzero(scored)[-1]) + 1
            ids, scored = ids[:end], scored[:end]
            if ids[-1] != eos:
                ids, scored = np.append(ids, eos), np.append(scored, True)
        if scored[0]:  # nothing stands before the response: BOS, or failing that EOS, must
            bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            ids, scored, head = np.append(bos, ids), np.append(False, scored), 1
        yield ids, scored, head


def _fit(scored: np.ndarray, head: int, max_length: int) -> np.ndarray | None:
    """Which tokens to keep so that at most `max_length` are left: the prompt loses its beginning,
    but not the `head`; None if that is not enough, or would leave the response without context."""
    excess = max(0, len(scored) - max_length)
    prompt = int(scored.argmax()) - head
    if excess > prompt or (excess == prompt and head == 0):
        return None
    return np.r_[:head, head + excess : len(scored)]


def _tokenise(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Per text: token ids [l], the characters each covers [l 2], and how many leading tokens are
    not text (BOS). With `special` the tokenizer adds its own special tokens; those it puts at the
    end are taken off again, since the caller closes the text itself."""
    if not texts:
        return []
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} tells no "
            "character offsets: use one that comes with a tokenizer.json (a fast tokenizer)"
        )
    batch = tokenizer(
        list(texts),
        add_special_tokens=special,
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
        begin, end = (text[0], text[-1] + 1) if len(text) else (len(ids), len(ids))
        if not special and ids and ids[0] == tokenizer.bos_token_id:
            begin = 1
        offsets = np.array(offsets, np.int64).reshape(-1, 2)
        results.append((np.array(ids[:end], np.int64), offsets[:end], int(begin)))
    return results


def _inside(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which tokens cover a character of a span, [l]. BOS covers none: its offsets are (0, 0)."""
    inside = np.zeros(len(offsets), bool)
    for begin, end in spans:
        inside |= (offsets[:, 1] > begin) & (offsets[:, 0] < end)
    return inside


def _end_of_sequence(tokenizer: "PreTrainedTokenizerBase") -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token: set its eos_token")
    return tokenizer.eos_token_id


def _check_length(max_length: int) -> None:
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}: a token and its context need at least 2")
