"""BLEU and chrF of what a model writes, beside sacrebleu called by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

from bitnet import BitNet, SamplingParams
from bitnet.errors import ParameterError
from bitnet.evaluate.questions import Passage, read_questions
from bitnet.evaluate.writing import closeness, compared, metrics

WRITTEN = ["The cat sat on the mat today.", "Rain falls on the old green hills.", "He went home early."]
ONE = [Passage("a", ("The cat sat on a mat today.",)), Passage("b", ("Rain fell on the green hills.",)),
       Passage("c", ("She went home very early.",))]  # fmt: skip
MORE = [
    Passage("a", ("The cat sat on a mat today.", "Today the cat sat on the mat.")),
    Passage("b", ("Rain fell on the green hills.",)),
    Passage("c", ("She went home early.", "He went home.", "He left early.")),
]


def test_one_reference_each() -> None:
    found = compared(WRITTEN, ONE)
    references = [[each.references[0] for each in ONE]]
    assert found.bleu == sacrebleu.corpus_bleu(WRITTEN, references).score > 10
    assert found.chrf == sacrebleu.corpus_chrf(WRITTEN, references).score > 50
    assert found.bleu_signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found.chrf_signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_as_many_references_as_there_are() -> None:
    """Of a single passage the reference that is not there must count for nothing."""
    found = compared(WRITTEN, MORE)
    streams = [["The cat sat on a mat today.", "Rain fell on the green hills.", "She went home early."],
               ["Today the cat sat on the mat.", None, "He went home."], [None, None, "He left early."]]  # fmt: skip
    assert found.bleu == BLEU().corpus_score(WRITTEN, streams).score > compared(WRITTEN, ONE).bleu
    assert found.chrf == CHRF().corpus_score(WRITTEN, streams).score
    assert "nrefs:var" in found.bleu_signature
    single = compared(WRITTEN[1:2], MORE[1:2])
    assert single.bleu == sacrebleu.corpus_bleu(WRITTEN[1:2], [[MORE[1].references[0]]]).score


def test_words_are_cut_as_asked() -> None:
    written, passages = ["今天天气很好。"], [Passage("", ("今天天气不好。",))]
    found = compared(written, passages, "zh")
    assert found.bleu == sacrebleu.corpus_bleu(written, [["今天天气不好。"]], tokenize="zh").score > 0
    assert found.bleu != compared(written, passages).bleu and "tok:zh" in found.bleu_signature
    with pytest.raises(ParameterError, match="tokenize"):
        metrics("words")


def test_the_model_writes_greedily_whatever_runs_beside_it() -> None:
    passages = [Passage(f"Once there was a {each}", (f"Once there was a {each} who ran.",)) for each in ("dog", "fox")]
    with BitNet(threads=1, ctx_size=128, max_sequences=2) as model:
        prompts = [model.tokenize(each.prompt) for each in passages]
        params = SamplingParams(max_tokens=12, temperature=0.0, stop=(".",))
        found = closeness(model.llm, prompts * 3, passages * 3, params)
        alone = [model.generate(each.prompt, 12, temperature=0.0, stop=".").strip() for each in passages]
    assert list(found.written) == alone * 3
    assert found.bleu == sacrebleu.corpus_bleu(alone * 3, [[each.references[0] for each in passages * 3]]).score


def test_files_of_references(tmp_path: Path) -> None:
    path = tmp_path / "tales.jsonl"
    records = [{"prompt": "a", "references": "b"}, {"prompt": "c", "references": ["d", "e"]}]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    assert read_questions(path) == [Passage("a", ("b",)), Passage("c", ("d", "e"))]
    for broken in ({"prompt": "a", "references": []}, {"prompt": "a", "references": [1]}, {"references": ["a"]},
                   {"prompt": "a", "references": " "}):  # fmt: skip
        path.write_text(json.dumps(broken))
        with pytest.raises(ParameterError, match="question 1"):
            read_questions(path)
    path.write_text(
        json.dumps([{"prompt": "a", "references": "b"}, {"context": "a", "choices": ["b", "c"], "answer": 0}])
    )
    with pytest.raises(ParameterError, match="Keep them apart"):
        read_questions(path)
