"""The Dockerfile's steps, as they stand there, carried out without containers: a virtual environment is the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import serving

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()


@dataclass
class Stage:
    """The instructions after a FROM, in their order."""

    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return [argument for name, argument in self.steps if name == instruction][-1]


def stages() -> list[Stage]:
    found: list[Stage] = []
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))
    for line in filter(None, joined.splitlines()):
        name, _, argument = line.partition(" ")
        if name == "FROM":
            found.append(Stage())
        if found:
            found[-1].steps.append((name, argument.strip()))
    return found


class Image:
    """Folders that stand for those of the image, and an environment that stands for its Python."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root
        self.python = root / "usr" / "local"
        venv.create(self.python, with_pip=True)
        self.variables: dict[str, str] = {}

    def inside(self, text: str) -> str:
        """The same command with the image's folders."""
        return re.sub(r"(?<![\w.])/(src|wheels|data)\b", rf"{self.root}/\1", text)

    def run(self, command: str) -> None:
        """One RUN. What needs the image's own root is checked as far as this machine lets it be."""
        command = re.sub(r"^(--mount=\S+\s+)*", "", command)
        for step in command.split("&&"):
            words = shlex.split(step)
            if words[:2] == ["apt-get", "update"] or words[:2] == ["rm", "-rf"]:
                continue
            if words[:2] == ["apt-get", "install"]:
                packages = [word for word in words[2:] if not word.startswith("-")]
                assert packages == ["g++"] and shutil.which("g++"), packages  # the compiler that builds it here
            elif words[0] == "useradd":
                (self.root / "etc").mkdir()
                for name in ("passwd", "group", "shadow", "gshadow"):
                    (self.root / "etc" / name).touch()
                if shutil.which("useradd") and os.geteuid() == 0:
                    subprocess.run(["useradd", "--prefix", self.root, *words[1:]], check=True)
                    assert re.search(r"^bitnet:x:10001:", (self.root / "etc" / "passwd").read_text(), re.M)
            elif words[0] == "install":
                owner = [] if os.geteuid() == 0 else ["-o", "-g"]
                assert not owner or words.count("-o") == 1
                subprocess.run(shlex.split(self.inside(step)), check=os.geteuid() == 0)
            else:
                assert words[0] == "pip", f"the test does not know {words[0]}"
                subprocess.run(self.inside(step), shell=True, check=True, cwd=self.folder, env=self.environment())

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BITNET_", "PYTHON", "VIRTUAL_ENV"))}
        return {**kept, **self.variables, "PATH": f"{self.python / 'bin'}:{os.environ['PATH']}"}

    def build(self, stage: Stage) -> None:
        for name, argument in stage.steps:
            if name == "RUN":
                self.run(argument)
            elif name == "WORKDIR":
                self.folder = Path(self.inside(argument))
                self.folder.mkdir(parents=True, exist_ok=True)
            elif name == "COPY":
                assert argument == ". ."
                copy_context(self.folder)
            elif name == "ENV":
                self.variables |= dict(word.split("=", 1) for word in shlex.split(self.inside(argument)))
            else:
                assert name in ("FROM", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"), name


def copy_context(folder: Path) -> None:
    """What .dockerignore lets through: all it names with "!" """
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignore
    for name in (line[1:] for line in ignore if line.startswith("!")):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, folder / name)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    built = Image(tmp_path_factory.mktemp("image"))
    for stage in stages():
        built.build(stage)
    return built


def test_the_image_answers_its_own_health_check(image: Image) -> None:
    final = stages()[-1]
    command = [*json.loads(final.last("ENTRYPOINT")), *json.loads(final.last("CMD"))]
    program = shutil.which(command[0], path=str(image.python / "bin"))
    assert program
    check = json.loads(final.last("HEALTHCHECK").partition("CMD ")[2])
    assert final.last("EXPOSE") == "8080"
    own = image.environment()
    keyless = subprocess.run([program, *command[1:]], env=own, capture_output=True, text=True, timeout=120)
    assert keyless.returncode == 2 and "--api-key" in keyless.stderr  # nobody's server by mistake
    process = subprocess.Popen(
        [program, *command[1:], "--port", "0", "--backend", serving.BACKEND],
        env={**own, "BITNET_API_KEY": "sesame"}, stderr=subprocess.PIPE, text=True, cwd=image.root,
    )  # fmt: skip
    try:
        lines = iter(process.stderr)  # type: ignore[arg-type]
        port = next(found[1] for line in lines if (found := re.search(r"http://0\.0\.0\.0:(\d+)", line)))
        probe = [each.replace(":8080", f":{port}") for each in check]
        assert probe != check and probe[0] == "python"
        done = subprocess.run([image.python / "bin" / "python", *probe[1:]], timeout=60)
        assert done.returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(serving.PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()
    assert subprocess.run([image.python / "bin" / "python", *probe[1:]], stderr=subprocess.DEVNULL).returncode != 0


def test_nobody_is_root_in_it_and_it_installs_from_its_own_wheels() -> None:
    final = stages()[-1]
    names = [name for name, _ in final.steps]
    assert final.last("USER") == "10001" and names.index("USER") > max(i for i, n in enumerate(names) if n == "RUN")
    assert all("--no-index" in argument for name, argument in final.steps if name == "RUN" and "pip" in argument)
