"""Ids equal the library's own, by folder and by GGUF, for every kind of tokenizer; and text comes back from them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import CORPUS, LLAMA3_SPECIAL

from bitnet.errors import ParameterError

CONTROL_LIKE = ["<|eot_id|>", "<|im_end|>", "</s>", "<s>", "<unk>", "<0x0A>", "<|endoftext|>", "<think>", "<|", "|>"]
WORDS = st.sampled_from(
    ["  ", "\n\n", "\t ", "don't", "2025", "Größe", "世界", "мир", "👩‍👩‍👧‍👦", "e\u0301", "▁", "\x00", *CONTROL_LIKE]
)
TEXT = st.lists(st.text(max_size=12) | WORDS, max_size=12).map("".join)
PLAIN = TEXT.filter(lambda text: not any(name in text for name in ("<|", "<s>", "</s>", "<unk>")))
lenient = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@lenient
@given(text=PLAIN)
def test_ids_of_text_are_the_librarys(trio, text):
    expected = trio.library.encode(text, add_special_tokens=False).ids
    assert trio.folder.encode(text, add_special=False) == expected


@lenient
@given(text=TEXT)
def test_parsed_control_tokens_are_the_librarys(trio, text):
    expected = trio.library.encode(text).ids
    assert trio.folder.encode(text, parse_special=True) == expected


@lenient
@given(text=TEXT)
def test_a_gguf_file_gives_the_same_ids_as_the_folder(trio, text):
    if trio.kind == "metaspace":
        pytest.skip("GGUF cannot say that only the first piece of a text gets a space")
    assert trio.gguf.encode(text) == trio.folder.encode(text)
    assert trio.gguf.encode(text, parse_special=True) == trio.folder.encode(text, parse_special=True)


@lenient
@given(text=TEXT)
def test_no_text_spells_a_control_token(trio, text):
    control = set(trio.folder.control_tokens.values())
    assert control.isdisjoint(trio.folder.encode(text, add_special=False))
    assert control.isdisjoint(trio.gguf.encode(text, add_special=False))


def test_the_name_of_every_control_token_is_text(trio):
    for tokenizer in (trio.folder, trio.gguf):
        for name, token_id in tokenizer.control_tokens.items():
            ids = tokenizer.encode(name, add_special=False)
            assert token_id not in ids and tokenizer.decode(ids) == name
            assert tokenizer.encode(name, add_special=False, parse_special=True) == [token_id]


@lenient
@given(text=TEXT)
def test_text_comes_back(trio, text):
    if trio.kind == "qwen2":
        text = trio.library.normalizer.normalize_str(text)
    if trio.kind in ("llama", "metaspace"):
        text = text.replace("▁", " ")
    if trio.kind == "metaspace" and text.startswith(" "):
        return  # Metaspace adds no space before a space, and takes one away: the library does not bring it back either
    ids = trio.folder.encode(text)
    assert trio.folder.decode(ids) == text
    if trio.kind != "metaspace":
        assert trio.gguf.decode(trio.gguf.encode(text)) == text


@lenient
@given(data=st.data())
def test_decoding_any_ids_never_fails(trio, data):
    ids = data.draw(st.lists(st.integers(0, trio.folder.vocab_size - 1), max_size=30))
    assert trio.folder.decode(ids) == trio.gguf.decode(ids)
    valid = trio.folder.decode(ids)
    if "\ufffd" not in valid:
        assert trio.library.decode(ids) == valid


def test_special_ids_are_known(llama3, sentencepiece):
    names = llama3.vocabulary.tokens
    assert [names[i] for i in sorted(llama3.eos_ids)] == ["<|end_of_text|>", "<|eot_id|>"]
    assert (names[llama3.bos_id], names[llama3.eos_id]) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert (sentencepiece.bos_id, sentencepiece.eos_id, sentencepiece.unk_id) == (1, 2, 0)
    assert set(LLAMA3_SPECIAL) == set(llama3.control_tokens)


def test_bos_is_added_where_the_model_wants_it(trio):
    wanted = {"llama-bpe": True, "qwen2": False, "gpt-2": False, "llama": True, "metaspace": True}[trio.kind]
    for tokenizer in (trio.folder, trio.gguf):
        ids = tokenizer.encode("fox")
        assert (ids[0] == tokenizer.bos_id) is wanted and tokenizer.encode("fox", add_special=False) == ids[wanted:]


def test_token_bytes_join_to_the_text(trio):
    for text in CORPUS[:7]:
        text = trio.library.normalizer.normalize_str(text) if trio.kind == "qwen2" else text
        data = b"".join(map(trio.folder.token_bytes, trio.folder.encode(text, add_special=False)))
        assert data.decode().removeprefix(" ") == text.removeprefix(" ")


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "x" * 10 + "\ude00"])
def test_half_a_surrogate_pair_is_refused(llama3, text):
    with pytest.raises(ParameterError, match="surrogate"):
        llama3.encode(text)


@pytest.mark.parametrize("token_id", [-1, 10**9, 2**63])
def test_an_id_outside_the_vocabulary_is_refused(llama3, token_id):
    with pytest.raises(ParameterError, match="not in the vocabulary"):
        llama3.decode([token_id])


@pytest.mark.parametrize("text", ["\u0301" * 10**6, " " * 10**5, "a" * 10**5, "1" * 10**5, "<|eot_id|>" * 10**4])
def test_long_text_of_one_character_finishes(llama3, sentencepiece, text):
    for tokenizer in (llama3, sentencepiece):
        assert tokenizer.decode(tokenizer.encode(text)) == text
