"""One row of somebody's data -> an Example, by the row's own column names or the user's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskpgm.tasks.task import Example, join

# What a row calls its question, and what it then calls the answer; the first that a row has counts.
SCHEMAS = {"prompt": "response", "inputs": "targets", "instruction": "output"}
ROLES = {*SCHEMAS, *SCHEMAS.values(), "input", "messages"}
KNOWN = "prompt/response, inputs/targets, instruction/input/output or messages"


@dataclass(frozen=True)
class Form:
    """How to read rows. `columns`: {a name of `ROLES`: the data's name for it}. `template`:
    formats for "prompt" and "response", with the row's columns as fields: "{question}",
    "{answers[text][0]}". `labels`: {column: words}, for columns that hold the number of a word."""

    columns: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, str] | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)


def example(row: Mapping[str, Any], where: str, form: Form) -> Example:
    """Reads one row; `where` ("file:line") opens every error.

    The prompt ends in a newline unless it or the response brings white space to the seam (`join`).
    An instruction and its input stand a blank line apart. Raises ValueError for a row with no
    response, or with columns that nobody has named.
    """
    row = {
        **row,
        **{
            name: _label(row[name], name, words, where)
            for name, words in form.labels.items()
            if name in row
        },
    }
    if form.template is not None:
        prompt, response = (
            _fill(form.template[part], part, row, where) for part in ("prompt", "response")
        )
        return _answered(prompt, response, "response", where)
    for role, column in form.columns.items():
        if column not in row:
            raise ValueError(
                f"{where}: no column {column!r} (named as {role}): there are {_names(row)}"
            )
    row = {role: row[column] for role, column in form.columns.items()} if form.columns else row
    if row.get("messages") is not None:
        return _chat(row["messages"], where)
    for asked, answered in SCHEMAS.items():
        if asked in row:
            prompt = _text(row[asked], asked, where)
            extra = _text(row.get("input"), "input", where) if asked == "instruction" else ""
            prompt = f"{prompt}\n\n{extra}" if extra.strip() else prompt
            return _answered(prompt, _text(row.get(answered), answered, where), answered, where)
    raise ValueError(
        f"{where}: the columns {_names(row)} are not {KNOWN}: name them with `columns` or "
        "`template` in a manifest"
    )


def _answered(prompt: str, response: str, name: str, where: str) -> Example:
    if not response.strip():
        raise ValueError(f"{where}: a row with no response: {name!r} is missing or empty")
    return join(_unicode(prompt, where), _unicode(response, where))


def _chat(messages: Any, where: str) -> Example:
    turns = []
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"{where}: `messages` must be a list of {{role, content}}")
    for number, message in enumerate(messages):
        turn = message if isinstance(message, Mapping) else {}
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"{where}: message {number} must have a `role` and a `content`, both text"
            )
        turns.append((role, _unicode(content, where)))
    if not any(role == "assistant" and content.strip() for role, content in turns):
        raise ValueError(f"{where}: a row with no response: the assistant says nothing")
    return Example("", "", tuple(turns))


def _fill(template: str, part: str, row: Mapping[str, Any], where: str) -> str:
    try:
        return template.format_map(row)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: the {part} template {template!r} fails on {error}: there are {_names(row)}"
        ) from error


def _label(value: Any, name: str, words: Sequence[str], where: str) -> Any:
    if not isinstance(value, int):
        return value  # said in words already
    if not 0 <= value < len(words):
        raise ValueError(
            f"{where}: {name} is {value}, and there are labels for 0 to {len(words) - 1}"
        )
    return words[value]


def _text(value: Any, name: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{where}: {name!r} holds a {type(value).__name__}, not text: use a `template`"
        )
    return str(value)


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write one half of a pair: "\\ud800"
        raise ValueError(
            f"{where}: a lone surrogate, {text[error.start]!a}, is no character: remove it"
        ) from error
    return text


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, row))) or "none"
