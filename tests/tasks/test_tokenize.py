"""One tokenisation, a boundary from offsets, responses whole, end-of-sequence scored."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from taskpgm.tasks import Example, encode, encode_text
from taskpgm.tasks.tokenize import token_ids


@pytest.fixture(scope="module")
def bare():
    """A byte-level tokenizer with merges by hand and without BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("b", "c"), ("Ġ", "y")]
    vocab = {token: i for i, token in enumerate([*alphabet, "bc", "Ġy", "<e>"])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>")


def pieces(tokenizer, encoded, row=0):
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids[row].tolist())
    return list(zip(tokens, encoded.scored[row].tolist(), strict=True))


def test_the_response_and_the_end_are_scored_and_the_prompt_is_not(tokenizer, suite):
    rows = suite[0].heldout
    encoded = encode(tokenizer, rows, 64)
    assert encoded.index.tolist() == list(range(len(rows)))
    assert (encoded.dropped, encoded.truncated) == (0, 0)
    for row, ids, scored in zip(rows, encoded.ids, encoded.scored, strict=True):
        assert ids.dtype == np.int32 and scored.dtype == bool
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[scored][:-1]) == row.response
        assert tokenizer.decode(ids[~scored], skip_special_tokens=True) == row.prompt
        whole = tokenizer(row.prompt + row.response)["input_ids"]
        assert ids.tolist() == [*whole, tokenizer.eos_token_id]


def test_a_token_across_the_boundary_belongs_to_the_response(bare):
    # Tokenised apart this would be a, b | c, d; together the model meets bc.
    encoded = encode(bare, [Example("ab", "cd")], 16)
    assert pieces(bare, encoded) == [("a", False), ("bc", True), ("d", True), ("<e>", True)]
    encoded = encode(bare, [Example("a ", "y")], 16)
    assert pieces(bare, encoded) == [("a", False), ("Ġy", True), ("<e>", True)]


def test_every_response_has_context(bare, tokenizer):
    encoded = encode(bare, [Example("", "ad"), Example("b", "c")], 16)
    assert pieces(bare, encoded) == [("<e>", False), ("a", True), ("d", True), ("<e>", True)]
    assert pieces(bare, encoded, 1) == [("<e>", False), ("bc", True), ("<e>", True)]
    encoded = encode(tokenizer, [Example("", "1")], 16)
    assert pieces(tokenizer, encoded) == [("<s>", False), ("1", True), ("</s>", True)]


def test_a_long_prompt_loses_its_beginning_never_its_response(bare, tokenizer):
    row = Example("0123456789", "xyz")
    for length in range(6, 15):
        encoded = encode(tokenizer, [row], length)
        ids, scored = encoded.ids[0], encoded.scored[0]
        assert len(ids) == min(length, 15) and encoded.truncated == 1
        assert ids[0] == tokenizer.bos_token_id
        kept = tokenizer.decode(ids[~scored][1:])
        assert row.prompt.endswith(kept) and len(kept) == length - 5
        assert tokenizer.decode(ids[scored]) == "xyz</s>"
    assert encode(tokenizer, [row], 15).truncated == 0
    assert pieces(bare, encode(bare, [row], 5))[0] == ("9", False)


def test_a_response_that_cannot_fit_is_dropped_and_counted(bare, tokenizer):
    rows = [Example("p", "0123456789"), Example("p", "1"), Example("p", "012345678")]
    for used in (bare, tokenizer):
        encoded = encode(used, rows, 10)
        assert encoded.dropped == 2 and encoded.index.tolist() == [1]
    # Its last chance: the response, the end, and one token of context.
    assert encode(bare, [Example("p", "1234")], 6).dropped == 0
    assert encode(bare, [Example("p", "1234")], 5).dropped == 1
    encoded = encode(tokenizer, [Example("p", "1234")], 6)
    assert [scored for _, scored in pieces(tokenizer, encoded)] == [False] + 5 * [True]
    assert encode(tokenizer, [Example("p", "1234")], 5).dropped == 1


def test_text_beyond_ascii_keeps_its_boundary(tokenizer, bare):
    for used in (tokenizer, bare):
        encoded = encode(used, [Example("größe 🎈", "日本é")], 64)
        assert used.decode(encoded.ids[0][encoded.scored[0]][:-1]) == "日本é"


def test_sentencepiece_offsets_as_llama_has_them():
    """Spaces become a marker, one is prepended, and unknown characters fall back to bytes."""
    pieces_known = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁abc:", "▁b"]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces_known)},
            [("▁", "b")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    llama = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    encoded = encode(llama, [Example("a é:", " bé"), Example("a: ", "b"), Example("", "b")], 32)
    end = ("</s>", True)
    assert pieces(llama, encoded) == [
        ("<s>", False),
        ("▁", False),
        ("a", False),
        ("▁", False),
        ("<0xC3>", False),
        ("<0xA9>", False),
        (":", False),
        ("▁b", True),
        ("<0xC3>", True),
        ("<0xA9>", True),
        end,
    ]
    assert pieces(llama, encoded, 1)[-3:] == [(":", False), ("▁b", True), end]
    assert pieces(llama, encoded, 2) == [("<s>", False), ("▁b", True), end]


def test_a_mark_the_tokenizer_closes_with_is_not_doubled(tokenizer):
    closing = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert closing("1")["input_ids"][-1] == 2
    rows = [Example("p", "1"), Example("", "2")]
    for a, b in zip(encode(closing, rows, 9).ids, encode(tokenizer, rows, 9).ids, strict=True):
        assert a.tolist() == b.tolist()


def test_a_text_that_brings_its_own_marks_gets_no_second_ones(tokenizer, bare):
    rows = [Example("<s>p ", "1</s>"), Example("p ", "1"), Example("", "<s>1")]
    encoded = encode(tokenizer, rows, 9)
    assert encoded.ids[0].tolist() == encoded.ids[1].tolist()
    assert encoded.scored[0].tolist() == encoded.scored[1].tolist()
    assert pieces(tokenizer, encoded, 2) == [("<s>", False), ("1", True), ("</s>", True)]
    assert encoded.notes == (
        "2 of 3 rows begin with a <s> of their own: the tokenizer adds no second one",
    )
    assert encode(tokenizer, rows[1:2], 9).notes == ()
    # EOS is no BOS: it stands before an empty context alone, and never before a text.
    assert pieces(bare, encode(bare, [Example("a", "d<e>")], 9)) == [
        ("a", False),
        ("d", True),
        ("<e>", True),
    ]
    assert token_ids(tokenizer, "<s>1") == token_ids(tokenizer, "1") == tokenizer("1")["input_ids"]
    assert token_ids(bare, "a") == bare("a")["input_ids"]
    texts = encode_text(tokenizer, ["<s>12</s>", "12"], 9)
    assert texts.ids[0].tolist() == texts.ids[1].tolist()


def test_plain_text_predicts_every_token_once(tokenizer):
    texts = ["The quick brown fox jumps over the lazy dog. " * 4, "", "short", "x"]
    encoded = encode_text(tokenizer, texts, 16)
    assert encoded.dropped == 1 and encoded.truncated == 1
    for number, text in enumerate(texts):
        predicted = [
            ids[1:][scored[1:]]
            for ids, scored, at in zip(encoded.ids, encoded.scored, encoded.index, strict=True)
            if at == number
        ]
        if text:
            expected = [*tokenizer(text)["input_ids"][1:], tokenizer.eos_token_id]
            assert np.concatenate(predicted).tolist() == expected
    assert all(
        2 <= len(ids) <= 16 and not s[0] for ids, s in zip(encoded.ids, encoded.scored, strict=True)
    )


def test_a_tokenizer_that_cannot_be_used_is_refused(tokenizer):
    mute = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        encode(mute, [Example("a", "b")], 8)
    with pytest.raises(ValueError, match="max_length is 1"):
        encode(tokenizer, [Example("a", "b")], 1)

    class Slow:
        is_fast, eos_token_id, name_or_path = False, 0, "slow"

    with pytest.raises(ValueError, match="the tokenizer slow gives no character offsets"):
        encode(Slow(), [Example("a", "b")], 8)


def test_nothing_to_encode(tokenizer):
    assert encode(tokenizer, [], 8).ids == [] and encode_text(tokenizer, [], 8).ids == []


def test_reading_tasks_imports_neither_torch_nor_transformers():
    """They cost seconds, and the mixture from a matrix alone needs no model."""
    code = (
        "import sys, taskpgm.tasks as tasks; tasks.load_tasks('stdlib');"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
