"""Tokenizers in Hugging Face folders: which file says what, and what is refused."""

import json

import pytest
import small_tokenizers as small

from bitnet.errors import FormatError, ModelError, ShapeError, UnsupportedError
from bitnet.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path):
    return small.save(small.llama3(), tmp_path, small.KINDS["llama-bpe"][1])


def edit(folder, change, name="tokenizer.json"):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_every_id_that_generation_config_lists_ends_a_text(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert {3, 5} <= Tokenizer.from_folder(folder).eos_ids


def test_a_special_token_may_be_written_with_its_options(folder):
    token = {"__type": "AddedToken", "content": "<|eot_id|>", "lstrip": False}
    edit(folder, lambda c: c.update(eos_token=token), "tokenizer_config.json")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_id == tokenizer.id_of("<|eot_id|>")


def test_config_json_names_the_special_ids_that_the_tokenizer_does_not(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 7, "eos_token_id": 9}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.bos_id == 7 and tokenizer.eos_id == 9


def test_the_flag_decides_over_the_post_processor(folder):
    edit(folder, lambda c: c.update(add_bos_token=False, add_eos_token=True), "tokenizer_config.json")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("a")[0] != tokenizer.bos_id and tokenizer.encode("a")[-1] == tokenizer.eos_id


@pytest.mark.parametrize("stored", ["A", [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}]])
def test_the_template_is_in_tokenizer_config(folder, stored):
    edit(folder, lambda c: c.update(chat_template=stored), "tokenizer_config.json")
    assert Tokenizer.from_folder(folder).chat_template == "A"


def test_the_template_in_its_own_file_decides(folder):
    edit(folder, lambda c: c.update(chat_template="A"), "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text("B")
    assert Tokenizer.from_folder(folder).chat_template == "B"
    assert Tokenizer.from_folder(folder).to_gguf()["tokenizer.chat_template"] == "B"


def test_tokens_that_only_tokenizer_config_knows_are_added(folder):
    extra = {"content": "<tool>", "special": True}
    edit(folder, lambda c: c.update(added_tokens_decoder={"700": extra}), "tokenizer_config.json")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("<tool>", add_special=False, parse_special=True) == [700]
    assert tokenizer.token_bytes(699) == b""  # nothing has this id


@pytest.mark.parametrize("option", ["lstrip", "rstrip"])
def test_a_control_token_may_take_along_the_spaces_around_it(folder, option):
    edit(folder, lambda c: [t.update({option: True}) for t in c["added_tokens"]])
    library = small.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "a  <|eot_id|> \n b"
    ours = Tokenizer.from_folder(folder).encode(text, add_special=False, parse_special=True)
    assert ours == library.encode(text, add_special_tokens=False).ids


def test_merges_are_read_in_both_spellings(folder):
    before = Tokenizer.from_folder(folder).encode("the quick brown fox")
    edit(folder, lambda c: c["model"].update(merges=[" ".join(m) for m in c["model"]["merges"]]))
    assert Tokenizer.from_folder(folder).encode("the quick brown fox") == before


def test_the_models_size_pads(folder):
    assert Tokenizer.from_folder(folder, 1000).vocab_size == 1000
    with pytest.raises(ShapeError):
        Tokenizer.from_folder(folder, 5)


def test_a_pre_tokenizer_that_gguf_cannot_name_runs_but_is_not_written(folder):
    edit(folder, lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W+"))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.decode(tokenizer.encode("a b!")) == "a b!"
    with pytest.raises(UnsupportedError, match="GGUF"):
        tokenizer.to_gguf()


def replacement(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


BROKEN = {
    "unigram": lambda c: c["model"].update(type="Unigram"),
    "no model": lambda c: c.pop("model"),
    "no vocab": lambda c: c["model"].pop("vocab"),
    "id is text": lambda c: c["model"]["vocab"].update(zz="9"),
    "id negative": lambda c: c["model"]["vocab"].update(zz=-1),
    "id huge": lambda c: c["model"]["vocab"].update(zz=2**62),
    "id twice": lambda c: c["model"]["vocab"].update(zz=3),
    "token is half a pair": lambda c: c["model"]["vocab"].update({"\ud800": 5000}),
    "merges missing": lambda c: c["model"].pop("merges"),
    "merge of strangers": lambda c: c["model"]["merges"].append(["q!", "q!"]),
    "merge of three": lambda c: c["model"]["merges"].append(["a", "b", "c"]),
    "bad regular expression": lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("),
    "unknown pre-tokenizer": lambda c: c.update(pre_tokenizer={"type": "Martian"}),
    "not byte-level": lambda c: c.update(pre_tokenizer=None),
    "added token without an id": lambda c: c["added_tokens"].append({"content": "x"}),
    "replacements that double a text": lambda c: c.update(
        normalizer={"type": "Sequence", "normalizers": [replacement("a", "aa")] * 30}
    ),
    "one long replacement": lambda c: c.update(normalizer=replacement("a", "b" * 10**6)),
    "a few tokens far apart": lambda c: c["model"]["vocab"].update(zz=200_000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_json_is_refused(folder, name):
    edit(folder, BROKEN[name])
    with pytest.raises(ModelError):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, '{"model": NaN}', '{"a": 1, "a": 2}', "\x00"])
def test_what_is_not_json_is_refused(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError):
        Tokenizer.from_folder(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"neither tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def train_sentencepiece(folder, kind):
    sentencepiece = pytest.importorskip("sentencepiece")
    (folder / "text.txt").write_text("\n".join(small.CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type=kind,
        vocab_size=700 if kind == "bpe" else 450,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_a_sentencepiece_model_alone_gives_the_ids_of_sentencepiece(tmp_path):
    original = train_sentencepiece(tmp_path, "bpe")
    tokenizer = Tokenizer.from_folder(tmp_path)
    gguf = Tokenizer.from_gguf(tokenizer.to_gguf())
    for text in [*small.CORPUS[:7], "🦊 unseen ᚠ", " two  spaces ", "</s>", ""]:
        assert tokenizer.encode(text, add_special=False) == original.encode(text)
        assert gguf.encode(text, add_special=False) == original.encode(text)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)


def test_a_unigram_model_is_refused(tmp_path):
    train_sentencepiece(tmp_path, "unigram")
    with pytest.raises(UnsupportedError, match="unigram"):
        Tokenizer.from_folder(tmp_path)


def test_a_sentencepiece_model_of_noise_is_refused(tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\x00noise" * 50)
    with pytest.raises(FormatError, match=r"tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UnsupportedError, match=r"bitnet\[sentencepiece\]"):
        Tokenizer.from_folder(tmp_path)
