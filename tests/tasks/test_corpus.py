"""Python's documentation as text, and the tokenizer trained on text."""

import json
import logging

import pytest

from taskpgm.tasks import corpus, load_tokenizer


def test_documentation_is_plenty_clean_and_the_same_twice():
    texts = corpus.documentation(0)
    assert sum(map(len, texts)) > 500_000
    assert all(40 <= len(text) <= corpus.CHUNK and text == text.strip() for text in texts)
    assert len(set(texts)) == len(texts)
    assert not any(" at 0x" in text and "object at 0x7" in text for text in texts)
    assert corpus.documentation(0) == texts
    other = corpus.documentation(1)
    assert other != texts and sorted(other) == sorted(texts)


def test_what_a_library_adds_to_a_class_of_python_is_not_its_documentation(monkeypatch):
    def shout(self) -> None:
        """Logs what somebody else has written, and at length."""

    texts = corpus.documentation()
    monkeypatch.setattr(logging.Logger, "shout", shout, raising=False)
    assert corpus.documentation() == texts


def test_long_paragraphs_are_cut_between_words_and_nothing_is_lost():
    text = " ".join(f"word{i}" for i in range(500)) + "\n\nshort"
    chunks = list(corpus._chunks(text))
    assert all(len(chunk) <= corpus.CHUNK for chunk in chunks)
    assert " ".join(chunks).split() == text.split()
    assert "".join(corpus._chunks("x" * 2000)) == "x" * 2000


def test_training_is_deterministic_and_any_text_round_trips(tokenizer, suite):
    texts = [row.prompt + row.response for task in suite for row in task.train[:40]]
    again = corpus.train_tokenizer(iter(texts), 400)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) == 400
    for text in ("Héllo, wörld!\n\n  12345 \t", "日本 🎈", " leading", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4


def test_saved_beside_a_model_it_loads_back_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 400}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_a_vocabulary_too_small_and_a_folder_without_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=100 is too small"):
        corpus.train_tokenizer(["text"], 100)
    with pytest.raises(FileNotFoundError, match=f"no tokenizer at {tmp_path}"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_tokenizer(str(tmp_path / "nowhere"))
