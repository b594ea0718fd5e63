"""`bitnet eval` as a program, on the built-in model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import sacrebleu

PAIRS = "The boy see a dog .\nThe boy sees a dog .\nShe are happy .\nShe is happy .\nHim ran away .\nHe ran away .\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bitnet", "eval", *arguments], capture_output=True, text=True)


def test_the_builtin_model_knows_some_grammar(tmp_path: Path) -> None:
    path = tmp_path / "grammar.txt"
    path.write_text(PAIRS)
    done = run(str(path), "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert (task["task"], task["n"], task["acc"], task["chance"]) == ("grammar", 3, 1.0, 0.5)
    done = run(str(path), "--limit", "2", "--threads", "1")
    header, row = done.stdout.splitlines()
    assert header.split() == ["task", "questions", "acc", "acc_norm", "chance"]
    assert row.split()[:3] == ["grammar", "2", "100.0"]


def test_a_file_without_questions(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_text("one line\n")
    done = run(str(path))
    assert done.returncode == 2
    assert "multiple of 2" in done.stderr and "Traceback" not in done.stderr


def test_what_the_model_writes_beside_what_people_wrote(tmp_path: Path) -> None:
    path = tmp_path / "tales.jsonl"
    references = ["Once upon a time there was a little dog.", "Once upon a time there was a dog."]
    path.write_text(json.dumps({"prompt": "Once upon a time", "references": references}))
    grammar = tmp_path / "grammar.txt"
    grammar.write_text(PAIRS)
    options = ("--threads", "1", "--max-tokens", "8", "--stop", "\n")
    done = run(str(path), str(grammar), "--json", *options)
    assert done.returncode == 0, done.stderr
    tale, pairs = json.loads(done.stdout)["tasks"]
    assert (tale["task"], tale["n"], pairs["acc"]) == ("tales", 1, 1.0)
    assert tale["bleu"] == sacrebleu.corpus_bleu(tale["written"], [[each] for each in references]).score
    assert tale["chrf"] == sacrebleu.corpus_chrf(tale["written"], [[each] for each in references]).score
    done = run(str(path), *options, "--chat")
    header, row, bleu, chrf = done.stdout.splitlines()
    assert header.split() == ["task", "prompts", "BLEU", "chrF"] and row.split()[:2] == ["tales", "1"]
    assert bleu.startswith("BLEU: nrefs:2|") and chrf.startswith("chrF: nrefs:2|")


def test_nothing_to_ask() -> None:
    done = run()
    assert done.returncode == 2 and "--lm-eval" in done.stderr
