"""What --not-again leaves out has passed and can only do the same again; everything else runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import importlib.util, subprocess, sys
import pytest

@pytest.fixture(scope="module")
def found():
    return importlib.util.find_spec("a_new_package") is not None

def test_alone(): pass
def test_of_a_fixture(found): pass
def test_of_a_fixture_made_before(found): pass
def test_asking():
    try:
        import a_new_package
    except ImportError:
        pass
def test_asking_for_another():
    assert importlib.util.find_spec("never_there") is None
def test_skipped(): pytest.importorskip("a_new_package")
def test_failing(): assert importlib.util.find_spec("os") is None
@pytest.mark.xfail
def test_failing_as_expected(): assert False
def test_with_a_process(): subprocess.run([sys.executable, "-c", ""], check=True)
def test_with_another_process(): subprocess.run(["true"], check=True)
"""
SAME = {"test_alone", "test_asking_for_another", "test_with_another_process"}

LINE = re.compile(r"::(test_\w+) ([A-Z]+)")
WORKERS_LINE = re.compile(r"\] ([A-Z]+) \S+::(test_\w+)")


def run(folder: Path, *options: object, workers: int = 0) -> dict[str, str]:
    """The names of the tests that ran, and how they ended."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "repeats", "-p", "no:cacheprovider", "-n", workers]
    paths = os.pathsep.join([str(Path(__file__).parent), str(folder / "new")])
    command += [*options, folder]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {match[1]: match[2] for match in LINE.finditer(done.stdout)} | {
        match[2]: match[1] for match in WORKERS_LINE.finditer(done.stdout)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_several.py").write_text(TESTS)
    (tmp_path / "test_that_asks.py").write_text(
        "import importlib.util\nimportlib.util.find_spec('a_new_package')\ndef test_of_a_file_that_asked(): pass\n"
    )
    (tmp_path / "new").mkdir()
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_what_could_do_something_else_is_done_again(workers: int, folder: Path) -> None:
    note = folder / "passed.json"
    all_of_them = run(folder, "--record", note, workers=workers)
    assert len(all_of_them) == 11 and all_of_them.keys() > SAME
    again = run(folder, "--not-again", note, workers=workers)
    assert again.keys() == {name for name, end in all_of_them.items() if end != "PASSED"} | {"test_with_a_process"}
    (folder / "new" / "a_new_package.py").touch()
    assert run(folder, "--not-again", note, workers=workers).keys() == all_of_them.keys() - SAME


def test_without_a_note_that_holds_all_are_done(folder: Path) -> None:
    assert len(run(folder, "--not-again", folder / "none.json")) == 11
    note = folder / "passed.json"
    run(folder, "--record", note)
    noted = note.read_text()
    note.write_text(noted.replace('"pytest": "', '"pytest": "0.'))
    assert len(run(folder, "--not-again", note)) == 11
    note.write_text(noted)
    (folder / "src").mkdir()
    (folder / "src" / "a.py").touch()
    assert len(run(folder, "--not-again", note)) == 11
