"""tokenizer.json is used whatever class the folder names; no code in the folder is run."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from taskpgm.tasks import check_vocabulary, load_tokenizer

TEXT = "the year 2024 and  2025, 12345 of 12345"
THREES = r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"  # digits in threes, words with their space
ONES = r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"


def save(folder: Path, pattern: str = THREES, bos: bool = False, **settings) -> Path:
    """A tokenizer that splits by `pattern`; `settings` go into its tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 8, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("pattern", [THREES, ONES])
@pytest.mark.parametrize(
    "name", ["Qwen2Tokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizerFast"]
)
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_the_class_that_is_named_changes_nothing(tmp_path, pattern, name, kind):
    save(tmp_path, pattern, tokenizer_class=name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    tokenizer = load_tokenizer(tmp_path)
    wanted = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT)
    assert tokenizer(TEXT)["input_ids"] == wanted.ids
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == ("<s>", 2)
    tokenizer.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again")(TEXT)["input_ids"] == wanted.ids


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token", "add_prefix_space"])
@pytest.mark.parametrize("value", [True, False])
def test_what_is_added_is_said_by_tokenizer_json_alone(tmp_path, bos, key, value):
    tokenizer = load_tokenizer(save(tmp_path, bos=bos, **{key: value}))
    wanted = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT).ids
    assert tokenizer(TEXT)["input_ids"] == wanted
    assert (wanted[0] == 1) == bos


def test_a_config_that_contradicts_tokenizer_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tokenizer_config.json: contradicts tokenizer.json"):
        load_tokenizer(save(tmp_path, split_special_tokens=True))


@pytest.mark.parametrize("named", ["Mine", "LlamaTokenizer"])
def test_code_of_the_folder_does_not_run(tmp_path, monkeypatch, named):
    def asked(*_):
        raise AssertionError("something is asked on stdin")

    monkeypatch.setattr("builtins.input", asked)
    map_ = {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}
    save(tmp_path, tokenizer_class=named, auto_map=map_)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    tokenizer.save_pretrained(tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer.json").unlink()  # nothing is left but that code
    with pytest.raises(FileNotFoundError, match=f"no tokenizer at {tmp_path}: ") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {}}'])
def test_a_damaged_tokenizer_is_named(tmp_path, text):
    (save(tmp_path) / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="tokenizer.json: cannot be read as a tokenizer") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no tokenizer at {tmp_path}: it needs"):
        load_tokenizer(tmp_path)


def test_ids_without_an_embedding_are_named(tmp_path):
    tokenizer = load_tokenizer(save(tmp_path))
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    size = len(tokenizer) - 1
    plain = np.array(tokenizer(TEXT)["input_ids"])
    check_vocabulary(tokenizer, [plain, np.zeros(0, np.int32)], size, "task a")
    chat = np.array(tokenizer(TEXT + "<|im_end|>")["input_ids"])
    said = rf"^task a: the token '<\|im_end\|>' has id {size}, but the model embeds only {size} ids"
    with pytest.raises(ValueError, match=said):
        check_vocabulary(tokenizer, [plain, chat], size, "task a")
