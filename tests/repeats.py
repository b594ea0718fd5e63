"""Running the tests again with more packages installed: those that can only do the same again are left out.

`--record FILE` notes each test that passes, and every package that it looked for in vain, itself or its fixtures or its
file. `--not-again FILE` leaves a noted test out unless one of these packages is there by now, or it started Python,
which may have looked for anything. Where that cannot be told of any test (other releases of what was installed,
files that have changed since, no such FILE), all run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("src", "tests", "core", "benchmarks", "tools", "deploy", "examples", "pyproject.toml")
INSTALLERS = {"pip", "setuptools", "wheel"}  # of which no test imports anything
PROCESS = "*"  # what a process looked for
LOOKED_FOR = "looked for"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("repeats")
    group.addoption("--record", metavar="FILE", help="note which tests passed, and what they looked for in vain")
    group.addoption("--not-again", metavar="FILE", help="leave out what is noted there and would do the same again")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record"):
        config.pluginmanager.register(Recorder(config), "recorder")


class Absent(MetaPathFinder):
    """Asked last, so that it learns of every package that no other finder knows."""

    def __init__(self) -> None:
        self.names: set[str] = set()  # since they were last taken away
        self.by_shared: set[str] = set()  # by modules that are imported once for many tests

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if "." not in name:
            self.names.add(name)
            if importer_is_shared():
                self.by_shared.add(name)

    def note_process(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and any(map(runs_python, command_of(*arguments[:2]))):
            self.names.add(PROCESS)

    @contextmanager
    def during(self) -> Iterator[set[str]]:
        """What is looked for in the block, filled when it ends."""
        found: set[str] = set()
        before, self.names = self.names, found
        try:
            yield found
        finally:
            self.names = before | found


def importer_is_shared() -> bool:
    """Whether it is a module of ours that imports, but for the files of tests themselves."""
    frame = sys._getframe(2)
    while frame and frame.f_code.co_name != "<module>":
        frame = frame.f_back  # type: ignore[assignment]
    file = Path(frame.f_code.co_filename) if frame else ROOT
    return file.is_relative_to(ROOT / "src") or (
        file.is_relative_to(ROOT / "tests") and not file.name.startswith("test_")
    )


def command_of(executable: Any, arguments: Any) -> list[str]:
    given = [arguments] if isinstance(arguments, (str, bytes, os.PathLike)) else list(arguments)
    return [os.fsdecode(each) for each in (executable, *given) if each is not None]


def runs_python(word: str) -> bool:
    return Path(word).name.startswith(("python", "bitnet"))


class Recorder:
    """In each worker and, where there are some, in the process that they report to."""

    def __init__(self, config: pytest.Config) -> None:
        self.path = Path(config.getoption("--record"))
        self.began = time.time()
        self.absent = Absent()
        self.by_owner: dict[str, set[str]] = {}  # a fixture's name, a file
        self.passed: dict[str, list[str]] = {}
        self.failed: set[str] = set()
        self.shared: set[str] = set()
        self.is_worker = hasattr(config, "workerinput")
        sys.meta_path.append(self.absent)
        sys.addaudithook(self.absent.note_process)
        if not self.is_worker:
            self.path.unlink(missing_ok=True)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None]:
        with self.absent.during() as found:
            yield
        self.by_owner.setdefault(str(collector.path), set()).update(found)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None]:
        with self.absent.during() as found:
            yield
        self.by_owner.setdefault(fixturedef.argname, set()).update(found)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Generator[None, Any]:
        if call.when == "setup":
            self.absent.names = set()
        report = (yield).get_result()
        if call.when == "teardown":
            owners = (self.by_owner.get(owner, set()) for owner in (str(item.path), *item.fixturenames))
            found = self.absent.names.union(*owners)
            report.user_properties.append((LOOKED_FOR, [sorted(found), sorted(self.absent.by_shared)]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed" or hasattr(report, "wasxfail"):
            self.failed.add(report.nodeid)
        elif report.when == "teardown":
            found: Any = dict(report.user_properties)[LOOKED_FOR]
            self.passed[report.nodeid], shared = found
            self.shared.update(shared)

    def pytest_sessionfinish(self) -> None:
        if self.is_worker:
            return
        tests = {name: found for name, found in self.passed.items() if name not in self.failed}
        noted = {"began": self.began, "packages": packages(), "shared": sorted(self.shared), "tests": tests}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(noted))


def packages() -> dict[str, str]:
    return {each.name.lower(): each.version for each in distributions() if each.name.lower() not in INSTALLERS}


def changed_since(began: float, root: Path) -> bool:
    """Whether a file that tests depend on is younger."""
    files = (path for name in CODE for path in (root / name, *(root / name).rglob("*")))
    return any(path.stat().st_mtime > began for path in files if path.is_file() and "__pycache__" not in path.parts)


def is_there(name: str) -> bool:
    return name == PROCESS or find_spec(name) is not None


def reason_for_all(path: Path, root: Path) -> str:
    if not path.exists():
        return f"there is no {path}"
    noted, now = json.loads(path.read_text()), packages()
    other = sorted(name for name, version in noted["packages"].items() if now.get(name) != version)
    if other:
        return f"{', '.join(other[:5])} is another release"
    new = list(filter(is_there, noted["shared"]))
    if new:
        return f"{', '.join(new)} is there by now"
    return "files have changed" if changed_since(noted["began"], root) else ""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    given = config.getoption("--not-again")
    if not given or reason_for_all(Path(given), config.rootpath):
        return
    tests = json.loads(Path(given).read_text())["tests"]
    new = set(filter(is_there, {name for names in tests.values() for name in names}))
    again = [item for item in items if item.nodeid not in tests or not new.isdisjoint(tests[item.nodeid])]
    kept = set(map(id, again))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = again


def pytest_report_header(config: pytest.Config) -> str | None:
    given = config.getoption("--not-again")
    if not given:
        return None
    reason = reason_for_all(Path(given), config.rootpath)
    return f"all tests, since {reason}" if reason else f"without the tests of {given} that would do the same again"
