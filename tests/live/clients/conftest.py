"""Real clients, each in an environment of its own (`make .venv/clients-NAME`), against our server with a tiny model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import serving

import bitnet

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent / "scripts"
KEY = "sesame"


@pytest.fixture(scope="session")
def client(tiny_gguf: Path) -> Iterator[serving.Client]:
    models = {"tiny": serving.opener(tiny_gguf, ctx_size=512)}
    with serving.serving(models, api_key=(KEY,)) as opened:
        yield opened


def program(environment: str, name: str) -> Path:
    path = ROOT / ".venv" / f"clients-{environment}" / "bin" / name
    if not path.exists():
        pytest.skip(f"make .venv/clients-{environment}")
    return path


Ran = subprocess.CompletedProcess[str]


def run_in(folder: Path, environment: str, name: str, *arguments: object, **variables: str) -> Ran:
    """A program of an environment, to its end, offline and with this folder for its home."""
    command = [program(environment, name), *arguments]
    # Proxies of the tester's would come between.
    inherited = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("BITNET_")}
    env = {**inherited, "HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **variables}
    options: Any = {"env": env, "cwd": folder, "capture_output": True, "text": True, "timeout": 900}
    return subprocess.run(list(map(str, command)), **options)


@pytest.fixture
def ran(tmp_path: Path) -> Callable[..., Ran]:
    return partial(run_in, tmp_path)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which programs of the environments find this package, with its entry points."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "bitnet").mkdir()
    here = distribution("bitnet")
    core = importlib.util.find_spec("bitnet._core")
    assert core is not None and core.origin is not None
    for each in (*Path(bitnet.__file__).parent.iterdir(), Path(core.origin)):
        (folder / "bitnet" / each.name).symlink_to(each)
    about = folder / f"bitnet-{here.version}.dist-info"
    about.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (about / name).write_text(here.read_text(name) or "")
    return str(folder)


@pytest.fixture
def told(ran: Callable[..., Ran], client: serving.Client, installed: str) -> Callable[[str, str], Any]:
    """What a script of scripts/ prints, which is JSON; it is given the URL of the server and the key."""

    def run(environment: str, script: str) -> Any:
        done = ran(environment, "python", SCRIPTS / script, client.base_url, KEY, PYTHONPATH=installed)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def answer(client: serving.Client) -> str:
    """What every client must get for `the end`."""
    return str(client.chat(temperature=0).json()["choices"][0]["message"]["content"])
