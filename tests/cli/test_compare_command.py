"""`bitnet compare` and `bitnet perplexity --base` as programs, on the built-in model and a rounded copy of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bitnet.api import builtin_model

TEXT = "Once upon a time there was a little fox. The fox wanted to play with the ball in the garden. " * 6
QUICK = ("-p", "8", "-n", "4", "-r", "2", "--threads", "1")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bitnet", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("compare")
    text, rounded = folder / "text.txt", folder / "rounded.gguf"
    text.write_text(TEXT)
    done = run("convert", builtin_model(), rounded, "--head", "q4_k")
    assert done.returncode == 0, done.stderr
    return text, rounded


class Cells(HTMLParser):
    """The words of every cell of the tables, and which elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_a_rounded_copy(files: tuple[Path, Path]) -> None:
    text, rounded = files
    done = run("compare", builtin_model(), rounded, "-f", text, "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    base, other = found["subjects"]
    assert 0 < found["divergence"]["mean"] < 0.1 < 0.8 < found["divergence"]["same_top"] <= 1
    assert other["resident_bytes"] < base["resident_bytes"]
    assert all(len(rates) == 2 and min(rates) > 0 for rates in base["tokens_per_s"].values())
    by_base = json.loads(run("perplexity", text, "-m", rounded, "--base", builtin_model(), "--json").stdout)
    assert by_base["kl"] == pytest.approx(found["divergence"]["mean"])
    assert by_base["perplexity"] == pytest.approx(other["perplexity"])
    alone = json.loads(run("perplexity", text, "--json").stdout)
    assert alone["perplexity"] == pytest.approx(base["perplexity"]) == pytest.approx(by_base["base_perplexity"])


def test_two_backends_and_a_page(files: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    backends = ("--backend", "cpu", "--backend", "reference")
    done = run("compare", *backends, "--report", page, *QUICK)
    assert done.returncode == 0, done.stderr
    same = re.search(r"Greedy text the same for (\d+) of 256 tokens", done.stdout)
    assert same and int(same[1]) > 128  # float rounding may part them where two tokens are as likely
    cells = Cells(page.read_text())
    assert {"table", "svg"} <= cells.tags and not {"script", "link", "img"} & cells.tags
    assert "cpu" in cells.words and "reference" in cells.words
    assert run("compare", *backends, "--report", page, *QUICK).returncode == 2  # it is there already


def test_a_report_in_markdown_has_its_picture_beside_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text, rounded = files
    report = tmp_path / "report.md"
    done = run("compare", builtin_model(), rounded, "-f", text, "--report", report, *QUICK)
    assert done.returncode == 0, done.stderr
    words = report.read_text()
    assert words.endswith("![speed, memory and divergence](report.svg)\n") and words.startswith(done.stdout)
    assert "weights in memory" in words and "±" in words
    picture = Cells((tmp_path / "report.svg").read_text())
    assert "svg" in picture.tags and (tmp_path / "report.svg").read_text().count('<g id="axes_') == 4
    report.unlink()
    assert run("compare", builtin_model(), rounded, "--report", report, *QUICK).returncode == 2  # the picture is there


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c"), ("--report", "x.pdf")])
def test_what_cannot_be_compared(arguments: tuple[str, ...]) -> None:
    done = run("compare", *arguments)
    assert done.returncode != 0 and "Traceback" not in done.stderr
