"""One row of data -> an Example, by known column names or by a schema that the user gives."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from taskpgm.tasks.messages import printable, shortened
from taskpgm.tasks.task import Example, join

# Column of the prompt: column of its response. The first prompt column that a row has decides.
SCHEMAS = {"prompt": "response", "inputs": "targets", "instruction": "output"}
ROLES = {*SCHEMAS, *SCHEMAS.values(), "input", "messages"}
KNOWN = "prompt/response, inputs/targets, instruction/input/output or messages"
# Parts of a message that are not text: leaving them out would change the chat.
CALLS = ("tool_calls", "function_call")


class NoResponse(ValueError):
    """A row that has no answer: test splits on the hub often hide theirs."""


@dataclass(frozen=True)
class RowSchema:
    """How to read rows.

    columns: {role: column of the data}, with roles from `ROLES`.
    template: formats for "prompt" and "response", with the row's columns as fields: "{question}",
      "{answers[text][0]}".
    labels: {column: class names}, for columns of class numbers; -1 is a hidden label.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, str] | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)


def checked_schema(
    columns: Mapping[str, Any], template: Mapping[str, Any] | None, labels: Mapping[str, Any]
) -> RowSchema:
    """The schema that a user wrote, checked. Raises ValueError, to which the caller adds the place,
    for incomplete columns, a template that cannot be parsed, and labels that are no list of texts.
    """
    _check_columns(columns)
    for part, text in (template or {}).items():
        _check_template(part, text)
    for column, words in labels.items():
        if not isinstance(words, list | tuple) or not words or not _all_text(words):
            raise ValueError(
                f'labels: {column!r} needs a list of texts, such as ["no", "yes"], not '
                f"{shortened(words)}"
            )
    return RowSchema(columns, template, labels)


def read_row(row: Mapping[str, Any], where: str, schema: RowSchema) -> Example:
    """Reads one row; every error begins with `where` ("file:line").

    Null and NaN are empty text. `join` puts a newline between prompt and response unless either
    has white space there. A blank line separates an instruction from its input.

    Raises NoResponse for a row without a response, and ValueError for unknown columns and for
    values that are not text.
    """
    labelled = {
        column: _word(_value(row, column, "labels", where), column, words, where)
        for column, words in schema.labels.items()
    }
    row = {**row, **labelled}
    if schema.template is not None:
        prompt, response = (
            _fill(schema.template[part], part, row, where) for part in ("prompt", "response")
        )
        return _answered(prompt, response, "response", where)
    if schema.columns:
        row = {role: _value(row, column, role, where) for role, column in schema.columns.items()}
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


# --- What a schema may say -----------------------------------------------------------------------
def _check_columns(columns: Mapping[str, Any]) -> None:
    for role, column in columns.items():
        if not isinstance(column, str):
            raise ValueError(f"columns: {role!r} must name a column, not {shortened(column)}")
    known = [{"messages"}, {"instruction", "input", "output"}, *map(set, SCHEMAS.items())]
    if columns and set(columns) not in known:
        raise ValueError(f"columns: {', '.join(sorted(columns))} are not the whole of {KNOWN}")


def _check_template(part: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"template: {part!r} must be a text, not {shortened(text)}")
    try:
        fields = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"template: {part!r} cannot be read: {error}: {text[:80]!r}") from error
    for name in fields:
        if not name or name[0].isdigit() or "." in re.sub(r"\[[^]]*\]", "", name):
            raise ValueError(
                f"template: {part!r} has a field {{{name}}}: a field is a column, {{question}}, "
                "or a part of one, {answers[text][0]}; {{ and }} write braces"
            )


def _all_text(words: Sequence[Any]) -> bool:
    return all(isinstance(word, str) and word.strip() for word in words)


# --- What a row holds ----------------------------------------------------------------------------
class _Template(Formatter):
    """str.format, except that null and NaN are empty text, and a list or a mapping is refused."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return None if _is_null(value) else super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        if _is_null(value):
            return ""
        if not isinstance(value, str | int | float):
            raise TypeError(f"a value that is a {type(value).__name__}, not text")
        return super().format_field(value, format_spec)


def _fill(template: str, part: str, row: Mapping[str, Any], where: str) -> str:
    try:
        return _Template().vformat(template, (), row)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: the {part} template {template!r} fails on {printable(str(error))}: "
            f"there are {_names(row)}"
        ) from error


def _answered(prompt: str, response: str, name: str, where: str) -> Example:
    if not response.strip():
        raise NoResponse(f"{where}: a row with no response: {name!r} is missing or empty")
    return join(_unicode(prompt, where), _unicode(response, where))


def _chat(messages: Any, where: str) -> Example:
    turns = []
    if not isinstance(messages, list | tuple):
        raise ValueError(f"{where}: `messages` must be a list of {{role, content}}")
    for number, message in enumerate(messages):
        turn = message if isinstance(message, Mapping) else {}
        role, content = turn.get("role"), turn.get("content", 0)
        content = "" if _is_null(content) else content
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"{where}: message {number} must have a `role` and a `content`, both text"
            )
        if any(turn.get(call) for call in CALLS):
            raise ValueError(f"{where}: message {number} calls a tool: only text can be trained on")
        turns.append((_unicode(role, where), _unicode(content, where)))
    if not any(role == "assistant" and content.strip() for role, content in turns):
        raise NoResponse(f"{where}: a row with no response: the assistant says nothing")
    return Example("", "", tuple(turns))


def _word(value: Any, column: str, words: Sequence[str], where: str) -> Any:
    """The class name of a class number, which may be given as text."""
    if _is_null(value) or (isinstance(value, str) and value in words):
        return value
    try:
        number = int(value)
        whole = number == float(value)
    except (ValueError, TypeError, OverflowError):
        whole, number = False, 0
    if whole and number == -1:  # how `datasets` writes that a label is hidden
        return None
    if not whole or not 0 <= number < len(words):
        raise ValueError(
            f"{where}: {column} is {shortened(value)}, and there are labels for 0 to "
            f"{len(words) - 1}: {', '.join(words[:5])}{', ...' if len(words) > 5 else ''}"
        )
    return words[number]


def _text(value: Any, name: str, where: str) -> str:
    if _is_null(value):
        return ""
    if not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        kind = "infinite number" if isinstance(value, float) else type(value).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"{where}: {name!r} holds {article} {kind}, not text: use a `template`")
    return str(value)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write one half of a pair: "\\ud800"
        raise ValueError(
            f"{where}: a lone surrogate, {text[error.start]!a}, is no character: remove it"
        ) from error
    return text


def _value(row: Mapping[str, Any], column: str, named: str, where: str) -> Any:
    if column not in row:
        raise ValueError(
            f"{where}: no column {column!r} (named as {named}): there are {_names(row)}"
        )
    return row[column]


def _names(row: Mapping[str, Any]) -> str:
    return printable(", ".join(sorted(map(str, row)))[:300]) or "none"
