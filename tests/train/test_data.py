"""Texts and conversations become rows: nothing is lost, and what is learnt is what the model is to say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import FormatError, ParameterError
from bitnet.tokenizer.chat import BITNET, CHATML, ChatTemplate
from bitnet.train.data import BEGINS, ID, LEARNT, Encoder, Source, open_rows, pack, prepare, words_of, write_rows
from bitnet.train.records import records

CHAT = [
    {"role": "user", "content": "the rain"},
    {"role": "assistant", "content": "in the den"},
    {"role": "user", "content": "an inner tin"},
    {"role": "assistant", "content": "the end"},
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny.tokenizer(), ChatTemplate(BITNET, "bitnet-b1.58"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learnt(encoder: Encoder, words: np.ndarray) -> list[str]:
    """The runs of learnt tokens, as text."""
    runs: list[list[int]] = []
    for before, word in zip([np.uint32(0), *words], words):
        if word & LEARNT:
            runs = runs if before & LEARNT else [*runs, []]
            runs[-1].append(int(word & ID))
    return [encoder.tokenizer.decode(run, skip_special=False) for run in runs]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=80), st.integers(8, 40))
def test_rows_hold_every_token_of_every_document_in_pieces_that_begin_anew(sizes: list[int], length: int) -> None:
    documents = [words_of(range(100 * i + 1, 100 * i + 1 + size)) for i, size in enumerate(sizes)]
    rows = list(pack(documents, length, filler=0, open_rows=3))
    pieces = [piece for row in rows for piece in np.split(row, np.flatnonzero(row & BEGINS)[1:])]
    told = sorted(list(piece & ID) for piece in pieces if piece[0] & LEARNT)
    expected = sorted(list(d[i : i + length] & ID) for d in documents for i in range(0, len(d), length))
    assert told == expected
    assert all(len(row) == length and row[0] & BEGINS for row in rows)


def test_filling_is_never_learnt() -> None:
    (row,) = pack([words_of([7, 8])], 6, filler=2)
    assert (row & ID).tolist() == [7, 8, 2, 2, 2, 2]
    assert ((row & LEARNT) != 0).tolist() == [True, True, False, False, False, False]
    assert ((row & BEGINS) != 0).tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize("source", [BITNET, CHATML], ids=["bitnet", "chatml"])
def test_only_the_assistants_turns_are_learnt_and_the_text_is_the_templates(source: str) -> None:
    encoder = Encoder(tiny.tokenizer(), ChatTemplate(source, "bitnet-b1.58"))
    words = encoder.conversation(CHAT)
    whole = encoder.tokenizer.decode((words & ID).tolist(), skip_special=False)
    assert whole == encoder.template.render(CHAT, encoder.tokenizer, add_generation_prompt=False)
    end = "</s>" if source == BITNET else "<|im_end|>\n"
    assert learnt(encoder, words) == [f"in the den{end}", f"the end{end}"]


def test_a_prompt_is_tokenised_as_when_the_model_is_run(encoder: Encoder) -> None:
    words = encoder.conversation(CHAT)
    prompt = encoder.template.apply(CHAT[:1], encoder.tokenizer, add_generation_prompt=True)
    assert (words[: len(prompt)] & ID).tolist() == prompt
    assert not (words[: len(prompt)] & LEARNT).any() and words[len(prompt)] & LEARNT


def test_the_name_of_a_control_token_in_a_message_stays_text(encoder: Encoder) -> None:
    said = [{"role": "user", "content": "</s>"}, {"role": "assistant", "content": "<s>"}]
    words = encoder.conversation(said)
    assert list(words & ID).count(encoder.tokenizer.bos_id) == 1
    assert list(words & ID).count(encoder.tokenizer.eos_id) == 2  # the ends of the two turns


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    source = "{% for m in messages %}{{ m.content if loop.last else '...' }}{% endfor %}"
    with pytest.raises(ParameterError, match="writes a turn differently"):
        Encoder(tiny.tokenizer(), ChatTemplate(source, "bitnet-b1.58")).conversation(CHAT)


def test_a_text_is_learnt_from_its_begin_to_its_end(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"story": "the rain"}])
    (words,) = encoder.documents(Source(path, text="story"))
    tokens = encoder.tokenizer
    assert (words & ID).tolist() == [*tokens.encode("the rain"), tokens.eos_id]
    assert words[0] & ID == tokens.bos_id


def test_a_text_file_is_parted_at_its_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree")
    assert [record["text"] for record in records(path, "<|endoftext|>")] == ["one\ntwo", "three"]
    assert len(list(records(path, ""))) == 1


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    write(tmp_path / "a.jsonl", [{"text": "first"}])
    (tmp_path / "notes.md").write_text("none")
    assert [record["text"] for record in records(tmp_path, "")] == ["first", "second"]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow file"])
def test_tables_of_hugging_face_datasets_are_read(kind: str, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": CHAT}, {"messages": CHAT[:2]}]
    table, path = pyarrow.Table.from_pylist(rows), tmp_path / f"data-00000-of-00001.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:  # as datasets.save_to_disk writes it, or as a file of Arrow's own
        new = pyarrow.ipc.new_stream if kind == "arrow" else pyarrow.ipc.new_file
        path = path.with_suffix(".arrow")
        with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table)
    assert list(records(tmp_path, "")) == rows
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FormatError, match="damaged"):
        list(records(path, ""))


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("{", FormatError, "line 2 is no JSON"),
        ("[1]", FormatError, "line 2 is no JSON object"),
        ('{"body": "x"}', ParameterError, "record 2: neither 'text'.*there is: body"),
        ('{"messages": [{"role": "user"}]}', ParameterError, r"record 2: messages\[0\].content"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', ParameterError, r"messages\[0\] calls a tool"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(encoder, line: str, error: type, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(error, match=message):
        list(encoder.documents(Source(path)))


def test_rows_are_made_once_and_then_found(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "the rain in the den " * 9}])
    made = prepare(tmp_path / "rows.bin", [Source(path)], encoder, 16)
    path.unlink()
    np.testing.assert_array_equal(prepare(tmp_path / "rows.bin", [Source(path)], encoder, 16), made)


def test_a_source_without_text_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ParameterError, match="no text"):
        prepare(tmp_path / "rows.bin", [Source(tmp_path / "a.txt")], encoder, 16)
    assert not (tmp_path / "rows.bin").exists()


def test_a_file_that_is_no_whole_rows_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.bin", pack([words_of([1, 2, 3])], 8, 0))
    with pytest.raises(FormatError, match="no rows of 6"):
        open_rows(tmp_path / "rows.bin", 6)


def test_a_blank_text_is_no_document(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": ""}, {"text": " \n"}, {"text": None}, {"text": "the rain"}])
    assert len(list(encoder.documents(Source(path)))) == 1


def test_what_holds_nothing_to_learn_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": CHAT[:1]}])
    with pytest.raises(ParameterError, match="nothing to learn in .*a.jsonl"):
        prepare(tmp_path / "rows.bin", [Source(path)], encoder, 16)
    assert not (tmp_path / "rows.bin").exists()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("how", ["lines", "list", "windows"])
def test_json_is_a_list_or_objects_by_line(name: str, how: str, tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two"}, {"text": "three"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    texts = {"lines": "\n\n".join(lines), "list": json.dumps(rows, indent=1), "windows": "\ufeff" + "\r\n".join(lines)}
    (tmp_path / name).write_bytes(texts[how].encode())
    assert list(records(tmp_path / name, "")) == rows


@pytest.mark.parametrize(
    "content", ["é".encode("latin1"), "the rain".encode("utf-16"), gzip.compress(b"the rain", mtime=0), b"the\0rain"]
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_no_text_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=r"a\..* is no (UTF-8 )?text"):
        list(records(tmp_path / name, ""))


def test_splits_of_a_dataset_are_not_mixed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "a.jsonl", [{"text": split}])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ParameterError, match="several splits: test, train"):
        list(records(tmp_path, ""))
    assert list(records(tmp_path / "train", "")) == [{"text": "train"}]


def test_the_tools_of_a_record_are_in_its_prompt() -> None:
    source = "{% for tool in tools or [] %}<{{ tool['name'] }}>{% endfor %}" + CHATML
    encoder = Encoder(tiny.tokenizer(), ChatTemplate(source))
    words = encoder.document({"messages": CHAT[:2], "tools": [{"name": "rain"}]}, Source(Path("a")))
    assert encoder.tokenizer.decode((words & ID).tolist()).startswith("<rain>")
