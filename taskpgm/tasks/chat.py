"""A chat -> the text that its template renders, and the spans of the assistant's turns in it."""

import os
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[tuple[str, str]]

# Some templates write today's date, by `strftime_now`. A row's tokens must not change from day to
# day, so `strftime_now` always returns this date: the default of Llama's templates.
CLOCK = datetime(2024, 7, 26)
DIRECTIVES = "aAwdbBmyYHIMpSfjUWcxX"
# A macro overrides the function of the same name. Jinja drops the line break after its last tag, so
# the template itself still starts at the beginning of a line.
PINNED = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(
        f' | replace("{directive}", "{shown}")'
        for directive, shown in [
            ("%-d", str(CLOCK.day)),
            ("%-m", str(CLOCK.month)),
            *((f"%{letter}", CLOCK.strftime(f"%{letter}")) for letter in DIRECTIVES),
        ]
    )
    + " }}{% endmacro %}\n"
)
# Stands for an answer while its position is looked up: private-use characters, which data do not
# contain and templates do not strip.
PLACEHOLDER = "\ue000\ue0ff\ue000"


class Turn(NamedTuple):
    """One answer of the assistant: its text is characters [begin, end), its end-of-turn marker,
    which the model must write to stop, is [end, closed)."""

    begin: int
    end: int
    closed: int


def render(tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> tuple[str, list[Turn]]:
    """The whole chat as one text, and every assistant turn in it that is not blank.

    A turn is located by rendering the chat once more with a placeholder instead of the answer: the
    answer is everything in the placeholder's position, white space included. The header that opens
    the turn belongs to the prompt, and so does what the template itself puts between header and
    answer. White space after the end-of-turn marker is not part of it.

    Raises ValueError when the template is missing, refuses the chat, or changes what was said.
    """
    text = apply_template(tokenizer, messages)
    turns = [
        _find(tokenizer, messages, number, text)
        for number, (role, content) in enumerate(messages)
        if role == "assistant" and content.strip()
    ]
    if not turns:
        raise ValueError("a chat has no assistant turn with text in it: nothing can be scored")
    return text, turns


def apply_template(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> str:
    """The text that the tokenizer's template renders for a chat, with its clock at `CLOCK`.

    Raises ValueError when the template is missing or refuses the chat."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, and a row is a chat: give the tokenizer one, or "
            "the rows a prompt and a response"
        )
    template = tokenizer.get_chat_template()
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            chat_template=PINNED + template if asks_for_the_date(tokenizer) else template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
    except Exception as error:  # jinja's own errors, and whatever a template raises by name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        roles = ", ".join(role for role, _ in messages)
        raise ValueError(f"the chat template refuses a chat of {roles}: {reason}") from error
    assert isinstance(rendered, str)
    return rendered


def asks_for_the_date(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the template writes today's date, for which it then gets `CLOCK`."""
    return "strftime_now" in tokenizer.get_chat_template()


def _find(tokenizer: "PreTrainedTokenizerBase", messages: Messages, number: int, text: str) -> Turn:
    content = messages[number][1]
    through = [*messages[:number], ("assistant", PLACEHOLDER)]
    marked = apply_template(tokenizer, [*through, *messages[number + 1 :]])
    before, found, after = marked.partition(PLACEHOLDER)
    refusal = ValueError(f"the chat template does not keep what was said: {content.strip()[:40]!r}")
    if not found or not text.endswith(after):
        raise refusal
    end = len(text) - len(after)
    if not text.startswith(before):
        # The template rewrites the answer, for example to move reasoning out of it: then everything
        # after the header is the answer.
        before = apply_template(tokenizer, messages[:number], add_generation_prompt=True)
    begin = len(before)
    spoken, meant = ("".join(part.split()) for part in (text[begin:end], content))
    if not text.startswith(before) or not spoken or (spoken not in meant and meant not in spoken):
        raise refusal
    # The end-of-turn marker is what closes the turn both here and at the end of a chat.
    closing = apply_template(tokenizer, through).partition(PLACEHOLDER)[2].rstrip()
    common = os.path.commonprefix([closing, text[end:]])
    if common != closing:  # what both only begin alike behind a gap is no part of it
        common = re.sub(r"\s+\S*$", "", common)
    return Turn(begin, end, end + len(common))
