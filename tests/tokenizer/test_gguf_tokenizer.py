"""Tokenizers as GGUF metadata: what is written, what is assumed where the file is silent, and what is refused."""

from contextlib import suppress

import numpy as np
import pytest
import small_tokenizers as small
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import FormatError, ModelError, ShapeError, UnsupportedError
from bitnet.tokenizer import Tokenizer
from bitnet.tokenizer.merges import merges_from_scores
from bitnet.tokenizer.pre_tokenizers import PRE_TOKENIZERS, name_of
from bitnet.tokenizer.vocabulary import TokenType

KEY = "tokenizer.ggml."


@pytest.fixture
def byte_level(llama3):
    return llama3.to_gguf()


@pytest.fixture
def pieces(sentencepiece):
    return sentencepiece.to_gguf()


def test_the_pre_tokenizer_is_named(trio):
    expected = trio.kind if trio.kind in PRE_TOKENIZERS else "default"
    assert trio.folder.to_gguf()[KEY + "pre"] == expected


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_name_stands_for_one_rule(name):
    rule = PRE_TOKENIZERS[name]
    written = name_of(rule.to_json(), rule.ignore_merges, rule.normalizer is not None)
    assert PRE_TOKENIZERS[written].rules == rule.rules
    assert PRE_TOKENIZERS[written].ignore_merges == rule.ignore_merges


def test_arrays_have_the_types_that_llama_cpp_reads(byte_level, pieces):
    assert byte_level[KEY + "token_type"].dtype == np.int32 and pieces[KEY + "scores"].dtype == np.float32
    assert KEY + "scores" not in byte_level
    assert byte_level[KEY + "eot_token_id"] == byte_level[KEY + "tokens"].index("<|eot_id|>")


def test_token_types_are_written(pieces):
    types = dict(zip(pieces[KEY + "tokens"], pieces[KEY + "token_type"], strict=True))
    assert (types["<unk>"], types["<s>"], types["<0x0A>"], types["e"]) == (2, 3, 6, 1)


def test_missing_rows_are_padded_with_unused_tokens(llama3):
    metadata = llama3.to_gguf(llama3.vocab_size + 2)
    assert metadata[KEY + "tokens"][-2:] == [f"[PAD{llama3.vocab_size}]", f"[PAD{llama3.vocab_size + 1}]"]
    assert list(metadata[KEY + "token_type"][-2:]) == [TokenType.UNUSED] * 2
    padded = Tokenizer.from_gguf(metadata)
    assert padded.decode([padded.vocab_size - 1]) == "" and padded.encode("fox") == llama3.encode("fox")


def test_more_tokens_than_the_model_has_are_refused(llama3):
    with pytest.raises(ShapeError, match="vocabulary has 10"):
        llama3.to_gguf(10)


def test_the_models_size_is_read(byte_level):
    size = len(byte_level[KEY + "tokens"]) + 3
    named = {**byte_level, "general.architecture": "llama", "llama.vocab_size": size}
    assert Tokenizer.from_gguf(named).vocab_size == size
    with pytest.raises(ShapeError):
        Tokenizer.from_gguf({**named, "llama.vocab_size": 5})


def test_scores_keep_the_order_of_merges(pieces, sentencepiece):
    del pieces[KEY + "merges"]
    again = Tokenizer.from_gguf(pieces)
    for text in small.CORPUS[:7]:
        assert again.decode(again.encode(text)) == text
    ranks = {a + b: i for i, (a, b) in enumerate(reversed(sentencepiece.vocabulary.merges))}
    order = [a + b for a, b in again.vocabulary.merges]
    assert order == sorted(order, key=lambda token: -ranks[token])


def test_merges_are_every_split_in_the_order_of_scores():
    tokens, scores = ["a", "b", "ab", "ba", "aba", "<s>"], [0, 0, -1.0, -2.0, -3.0, 0]
    assert merges_from_scores(tokens, scores, {"<s>"}) == [("a", "b"), ("b", "a"), ("ab", "a"), ("a", "ba")]


def test_a_vocabulary_of_150_000_pieces_takes_seconds():
    tokens = list(dict.fromkeys(f"{i:x}{i * 7919 % 65536:x}" for i in range(150_000)))
    assert merges_from_scores([*"0123456789abcdef", *(t for t in tokens if len(t) > 1)], [0.0] * (len(tokens) + 16))


def test_pieces_of_which_millions_could_be_cut_are_refused():
    with pytest.raises(FormatError, match="characters"):
        merges_from_scores([f"{i:x}" * 200 for i in range(10_000)], [0.0] * 10_000)


def test_bitnet_without_a_pre_tokenizer_name_is_llama_3(byte_level, llama3):
    del byte_level[KEY + "pre"], byte_level[KEY + "add_bos_token"]
    silent = Tokenizer.from_gguf({**byte_level, "general.architecture": "bitnet-b1.58"})
    assert silent.encode("don't 12345") == llama3.encode("don't 12345")


def test_what_llama_cpp_assumes_of_sentencepiece(pieces):
    for name in ("bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token", "add_space_prefix"):
        del pieces[KEY + name]
    silent = Tokenizer.from_gguf(pieces)
    assert (silent.bos_id, silent.eos_id, silent.unk_id) == (1, 2, 0)
    assert silent.encode("fox")[0] == 1 and silent.add_space_prefix


def test_a_special_token_marked_normal_ends_the_text_all_the_same(byte_level):
    byte_level[KEY + "token_type"] = [1] * len(byte_level[KEY + "tokens"])
    tokenizer = Tokenizer.from_gguf(byte_level)
    end = tokenizer.id_of("<|eot_id|>")
    assert end in tokenizer.eos_ids and end not in tokenizer.encode("<|eot_id|>")


def test_user_defined_tokens_are_found_in_any_text(byte_level):
    tokens, types = ([*byte_level[KEY + "tokens"], "<think>"], [*byte_level[KEY + "token_type"], 4])
    tokenizer = Tokenizer.from_gguf({**byte_level, KEY + "tokens": tokens, KEY + "token_type": types})
    ids = tokenizer.encode("a<think>b")
    assert len(tokens) - 1 in ids and tokenizer.decode(ids) == "a<think>b"


BROKEN = {
    "no model": ({"model": None}, UnsupportedError, "no tokenizer"),
    "unigram": ({"model": "t5"}, UnsupportedError, "'t5'"),
    "unknown pre": ({"pre": "martian"}, UnsupportedError, "'martian'"),
    "no tokens": ({"tokens": None}, FormatError, "tokens is missing"),
    "empty tokens": ({"tokens": [], "token_type": []}, FormatError, "no tokens"),
    "token is a number": ({"tokens": ["a", 3], "token_type": [1, 1]}, FormatError, r"tokens\[1\]"),
    "token is half a pair": ({"tokens": ["a", "\udc80"], "token_type": [1, 1]}, FormatError, r"tokens\[1\]"),
    "token twice": ({"tokens": ["a", "b", "a"], "token_type": [1] * 3, "merges": []}, FormatError, "0 and 2"),
    "too few types": ({"token_type": [1, 2]}, ShapeError, "token_type has 2"),
    "types are text": ({"token_type": ["x"]}, FormatError, "token_type"),
    "no merges": ({"merges": None}, FormatError, "merges is missing"),
    "merge without space": ({"merges": ["ab"]}, FormatError, "Merge 0"),
    "merge is a number": ({"merges": [7]}, FormatError, "Merge 0"),
    "merge of what is no token": ({"merges": ["t zzz"]}, FormatError, "'zzz' is not a token"),
    "merge into what is no token": ({"merges": ["z %"]}, FormatError, "is not a token"),
    "bos outside": ({"bos_token_id": 10**6}, FormatError, "bos_token_id is 1000000"),
    "eos is text": ({"eos_token_id": "2"}, FormatError, "eos_token_id"),
    "eot negative": ({"eot_token_id": -5}, FormatError, "eot_token_id"),
    "flag is text": ({"add_bos_token": "yes"}, FormatError, "add_bos_token"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_is_refused_by_name(byte_level, name):
    changes, error, message = BROKEN[name]
    metadata = {**byte_level, **{KEY + key: value for key, value in changes.items()}}
    with pytest.raises(error, match=message):
        Tokenizer.from_gguf({key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scores": [1.0]}, "scores has 1"),
        ({"scores": None}, "scores is missing"),
        ({"scores": "nan"}, "not a finite number"),
        ({"token_type": "bytes"}, "byte token"),
    ],
)
def test_broken_sentencepiece_metadata_is_refused_by_name(pieces, changes, message):
    del pieces[KEY + "merges"]
    count = len(pieces[KEY + "tokens"])
    special = {"nan": [float("nan")] * count, "bytes": [6] * count}
    for key, value in changes.items():
        pieces[KEY + key] = special.get(value, value) if isinstance(value, str) else value
    with pytest.raises(ModelError, match=message):
        Tokenizer.from_gguf({key: value for key, value in pieces.items() if value is not None})


ANY = (
    st.none()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3) | st.integers(), max_size=4)
)
NAMES = ["model", "pre", "tokens", "merges", "scores", "token_type", "bos_token_id", "eos_token_id", "add_bos_token"]


@given(metadata=st.dictionaries(st.sampled_from(NAMES), ANY), model=st.sampled_from(["gpt2", "llama"]))
def test_nonsense_is_refused_or_read(metadata, model):
    with suppress(ModelError):
        tokenizer = Tokenizer.from_gguf({KEY + "model": model, **{KEY + k: value for k, value in metadata.items()}})
        tokenizer.encode("ab")
