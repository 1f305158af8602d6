"""A chat -> the text its tokenizer's template writes, and where in it the assistant speaks."""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[tuple[str, str]]

# Some templates write the date, by `strftime_now`. Rows must not be other tokens tomorrow, so that
# the clock always shows this moment: the date that Llama's templates write where there is no clock.
CLOCK = datetime(2024, 7, 26)
DIRECTIVES = "aAwdbBmyYHIMpSfjUWcxX"
# A macro hides the function of its name. Its last tag takes the line break, so that the template
# itself still begins a line.
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
# Stands for an answer while its place is looked for: nobody writes this, and nothing trims it.
PLACEHOLDER = "\ue000\ue0ff\ue000"


class Turn(NamedTuple):
    """What the assistant says, as characters [begin, end), and the mark that closes it, as [end,
    closed): what the model must write to stop."""

    begin: int
    end: int
    closed: int


def render(tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> tuple[str, list[Turn]]:
    """The whole chat as one text, and every assistant turn in it that is not blank.

    A turn's place is found by rendering the chat with a placeholder instead of the answer: the
    answer is all that stands in that place, with its own white space, whatever it says. The header
    that opens the turn belongs to the prompt, and so does what the template itself puts between
    header and answer. White space after the closing mark is not part of it.

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
    """What the tokenizer's template writes for a chat, at the time of `CLOCK`.

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
    """Whether the template reads the clock, which then shows `CLOCK`."""
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
    if not text.startswith(before):  # The template takes the answer apart, as those that move
        # thoughts do: all that it writes after the header counts.
        before = apply_template(tokenizer, messages[:number], add_generation_prompt=True)
    begin = len(before)
    spoken, meant = ("".join(part.split()) for part in (text[begin:end], content))
    if not text.startswith(before) or not spoken or (spoken not in meant and meant not in spoken):
        raise refusal
    # How the turn is closed when nothing follows, as far as it is closed so here.
    closing = apply_template(tokenizer, through).partition(PLACEHOLDER)[2].rstrip()
    return Turn(begin, end, end + len(os.path.commonprefix([closing, text[end:]])))
