"""Whatever a tokenizer's files hold: a tokenizer, or one line that names file or folder."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskpgm.tasks import Example, encode, load_tokenizer
from taskpgm.tasks.corpus import train_tokenizer

quietly = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
text = st.sampled_from(["<s>", "</s>", "LlamaTokenizer", "{{ messages", ""]) | st.text(max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
SETTINGS = (
    "eos_token bos_token pad_token unk_token additional_special_tokens extra_special_tokens "
    "chat_template tokenizer_class model_max_length padding_side truncation_side add_bos_token "
    "add_eos_token add_prefix_space split_special_tokens clean_up_tokenization_spaces auto_map "
    "added_tokens_decoder legacy"
).split()
PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "saved"
    train_tokenizer(["a tokenizer of all bytes"] * 4, 300).save_pretrained(folder)
    return folder


def used(folder) -> None:
    """Loads and uses it: rows, or one line that is a ValueError or an OSError."""
    try:
        tokenizer = load_tokenizer(folder)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message and "\n" not in message and str(folder) in message
        return
    try:
        encoded = encode(tokenizer, [Example("say ", "hello")], 64)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert len(encoded.ids) == 1 and encoded.scored[0].any()


@quietly
@given(change=st.dictionaries(st.sampled_from(SETTINGS), values, min_size=1, max_size=3))
@example(change={"eos_token": None})
@example(change={"chat_template": [{"name": "tool_use", "template": "x"}]})
@example(change={"eos_token": {"content": "</s>", "__type": "AddedToken"}})
@example(change={"model_max_length": "many"})
def test_any_settings(saved, tmp_path, change):
    folder = tmp_path / "settings"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    file = folder / "tokenizer_config.json"
    told = json.loads((saved / "tokenizer_config.json").read_text())
    file.write_text(json.dumps({**told, **change}))
    used(folder)


@quietly
@given(change=st.dictionaries(st.sampled_from(PARTS), values, min_size=1, max_size=2))
@example(change={"post_processor": None})
@example(
    change={"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}
)
@example(change={"model": {"type": "BPE", "vocab": {}, "merges": []}})
@example(change={"truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0}})
def test_any_part_of_the_tokenizer_itself(saved, tmp_path, change):
    folder = tmp_path / "parts"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    told = json.loads((saved / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**told, **change}))
    used(folder)


@quietly
@given(
    content=st.binary(max_size=60) | values.map(lambda x: json.dumps(x).encode()),
    name=st.sampled_from(
        [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
        ]
    ),
)
@example(content=b"[" * 100_000, name="tokenizer.json")
@example(content=b"[" * 100_000, name="tokenizer_config.json")
def test_any_bytes(saved, tmp_path, content, name):
    folder = tmp_path / "bytes"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    (folder / name).write_bytes(content)
    used(folder)
