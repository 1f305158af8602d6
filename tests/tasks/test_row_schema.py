"""How one row is read: null is empty text, labels give words, templates are filled in."""

import math

import pytest

from taskpgm.tasks import Example
from taskpgm.tasks.row_schema import NoResponse, RowSchema, checked_schema, read_row

TEMPLATE = {"prompt": "{q}\n{context}", "response": "{a}"}


@pytest.mark.parametrize("null", [None, math.nan])
def test_null_and_nan_are_empty_text(null):
    def read(row, **schema):
        return read_row(row, "here", RowSchema(**schema))

    assert read({"prompt": null, "response": "r"}) == Example("", "r")
    assert read({"instruction": "i", "input": null, "output": "o"}) == Example("i\n", "o")
    filled = read({"q": "q", "context": null, "a": "a"}, template=TEMPLATE)
    assert filled == Example("q\n", "a")
    shown = read({"q": null, "a": "a"}, template={"prompt": "<{q!r:>4}>", "response": "{a:>3}"})
    assert shown == Example("<>", "  a")
    nested = read({"q": {"x": [null]}}, template={"prompt": "{q[x][0]}", "response": "r"})
    assert nested == Example("", "r")
    turns = [{"role": "user", "content": null}, {"role": "assistant", "content": "r"}]
    assert read({"messages": turns}) == Example("", "", (("user", ""), ("assistant", "r")))
    for row, schema in (
        ({"prompt": "p", "response": null}, {}),
        ({"q": "q", "context": "c", "a": null}, {"template": TEMPLATE}),
        ({"q": "q", "a": null}, {"columns": {"prompt": "q", "response": "a"}}),
        ({"messages": [{"role": "assistant", "content": null}]}, {}),
        ({"prompt": "p", "response": null}, {"labels": {"response": ["no", "yes"]}}),
    ):
        with pytest.raises(NoResponse, match="here: a row with no response"):
            read(row, **schema)


@pytest.mark.parametrize(
    ("value", "word"),
    [(0, "no"), (1, "yes"), (True, "yes"), (1.0, "yes"), ("1", "yes"), ("yes", "yes")],
)
def test_a_label_is_the_word_for_its_number(value, word):
    schema = RowSchema(labels={"response": ["no", "yes"]})
    assert read_row({"prompt": "p", "response": value}, "here", schema).response == word


@pytest.mark.parametrize("value", [2, -2, 0.5, "maybe", "2", [0], "", math.inf])
def test_a_value_that_no_label_stands_for_is_refused(value):
    schema = RowSchema(labels={"response": ["no", "yes"]})
    with pytest.raises(ValueError, match="here: response is .*labels for 0 to 1: no, yes"):
        read_row({"prompt": "p", "response": value}, "here", schema)


def test_a_hidden_label_is_no_response():
    schema = RowSchema(labels={"response": ["no", "yes"]})
    with pytest.raises(NoResponse):
        read_row({"prompt": "p", "response": -1}, "here", schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"labels": {"a": "no-yes"}}, "labels: 'a' needs a list of texts"),
        ({"labels": {"a": True}}, "labels: 'a' needs a list of texts"),
        ({"labels": {"a": [False, True]}}, "labels: 'a' needs a list of texts"),
        ({"labels": {"a": ["no", None]}}, "labels: 'a' needs a list of texts"),
        ({"labels": {"a": [1, 2]}}, "labels: 'a' needs a list of texts"),
        ({"labels": {"a": []}}, "labels: 'a' needs a list of texts"),
        ({"labels": {"a": ["", "yes"]}}, "labels: 'a' needs a list of texts"),
        ({"columns": {"prompt": ["a"], "response": "b"}}, "columns: 'prompt' must name a column"),
        ({"columns": {"prompt": "a"}}, "columns: prompt are not the whole of prompt/response"),
        ({"columns": {"prompt": "a", "targets": "b"}}, "are not the whole of"),
        ({"template": {"prompt": "{a", "response": "b"}}, "template: 'prompt' cannot be read"),
        ({"template": {"prompt": "a}", "response": "b"}}, "template: 'prompt' cannot be read"),
        ({"template": {"prompt": 5, "response": "b"}}, "template: 'prompt' must be a text, not 5"),
        ({"template": {"prompt": "a", "response": "{}"}}, "template: 'response' has a field {}"),
        ({"template": {"prompt": "{0}", "response": "b"}}, "template: 'prompt' has a field {0}"),
        ({"template": {"prompt": "{a.b}", "response": "b"}}, "has a field {a.b}"),
        ({"template": {"prompt": "{a.__class__}", "response": "b"}}, "has a field"),
    ],
)
def test_a_schema_is_checked_before_any_row(schema, message):
    with pytest.raises(ValueError) as caught:
        checked_schema(**({"columns": {}, "template": None, "labels": {}} | schema))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "q", "a": "a"}, "the prompt template .* fails on 'context'"),
        ({"q": ["q"], "context": "c", "a": "a"}, "fails on a value that is a list, not text"),
        ({"q": {"x": 1}, "context": "c", "a": "a"}, "fails on a value that is a dict, not text"),
    ],
)
def test_a_template_that_a_row_does_not_fill_is_refused(row, message):
    with pytest.raises(ValueError, match=f"^here: {message}" if message[0] == "t" else message):
        read_row(row, "here", RowSchema(template=TEMPLATE))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "response": math.inf}, "holds an infinite number, not text"),
        ({"prompt": b"p", "response": "r"}, "holds a bytes, not text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "calls a tool"),
        ({"messages": [{"role": "assistant", "content": ["x"]}]}, "message 0 must have a `role`"),
        ({"messages": [{"role": None, "content": "x"}]}, "message 0 must have a `role`"),
        ({"prompt": "\udc80", "response": "r"}, "a lone surrogate"),
        ({}, "the columns none are not"),
    ],
)
def test_what_is_no_text_is_refused(row, message):
    with pytest.raises(ValueError, match=f"^here: .*{message}"):
        read_row(row, "here", RowSchema())


def test_a_column_that_is_not_there_is_named():
    labels = RowSchema(labels={"answr": ["no", "yes"]})
    with pytest.raises(ValueError, match="here: no column 'answr' .named as labels.: there are p"):
        read_row({"prompt": "p", "response": 1}, "here", labels)
