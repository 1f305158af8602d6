"""A chat -> the text its tokenizer's template writes, and where in it the assistant speaks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[tuple[str, str]]
) -> tuple[str, list[tuple[int, int]]]:
    """The whole chat as one text, and the (begin, end) characters of every assistant turn in it.

    A turn is the content and the mark that closes it (what the model must write to stop), without
    the white space after that mark. The header that opens a turn belongs to the prompt. The turns
    are found by rendering the chat before and through each of them; where a template writes an
    early turn differently once more is said, its content is searched for from where they part.

    Raises ValueError when the template is missing, refuses the chat, or changes what was said.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, and a row is a chat: give the tokenizer one, or "
            "the rows a prompt and a response"
        )
    text = _apply(tokenizer, messages, False)
    turns, cursor = [], 0
    for number, (role, content) in enumerate(messages):
        said = content.strip()
        if role == "assistant" and said:
            before = _apply(tokenizer, messages[:number], True) if number else ""
            through = _apply(tokenizer, messages[: number + 1], False)
            cursor = max(cursor, _common(text, before))
            begin = text.find(said, cursor)
            if begin < 0:
                raise ValueError(f"the chat template does not keep what was said: {said[:40]!r}")
            end = begin + len(said)
            mark = through[through.rfind(said) + len(said) :].rstrip()
            end += len(mark) if text.startswith(mark, end) else 0
            turns.append((begin, end))
            cursor = end
        elif said:
            # Past what others said, so that an answer which repeats the question is not found
            # there.
            found = text.find(said, cursor)
            cursor = cursor if found < 0 else found + len(said)
    if not turns:
        raise ValueError("a chat has no assistant turn with text in it: nothing can be scored")
    return text, turns


def _apply(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[tuple[str, str]], prompted: bool
) -> str:
    chat = [{"role": role, "content": content} for role, content in messages]
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompted)
    except Exception as error:  # jinja's own errors, and whatever a template raises by name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        roles = ", ".join(role for role, _ in messages)
        raise ValueError(f"the chat template refuses a chat of {roles}: {reason}") from error


def _common(text: str, prefix: str) -> int:
    """How many leading characters the two share."""
    if text.startswith(prefix):
        return len(prefix)
    return next(
        (i for i, (a, b) in enumerate(zip(text, prefix, strict=False)) if a != b),
        min(len(text), len(prefix)),
    )
