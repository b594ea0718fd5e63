"""What ends a run from outside, a full disk or a kill, loses nothing: the same command goes on with the same curve."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from training_run import DESCRIPTION, counting, trainer

from bitnet.errors import ResourceError
from bitnet.train import checkpoint
from bitnet.train.export import TOKENIZER, export
from bitnet.train.model import TernaryLM
from bitnet.train.trainer import Plan, Trainer
from bitnet.train.vocabulary import SMALLEST, train_tokenizer, write_tokenizer


@contextmanager
def room(nbytes: int) -> Iterator[None]:
    """A disk on which no file can grow further than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def lines(out: Path) -> list[dict[str, Any]]:
    """The metrics, but for the time that was taken."""
    said = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines(True) if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name != "minutes"} for line in said]


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert trainer(out, steps=6).run()
    return out


@pytest.mark.parametrize("share", [0.001, 0.15, 0.7, 0.999])
def test_a_checkpoint_that_finds_the_disk_full_leaves_the_one_before(share: float, whole: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=6, save_every=0)
    save, nbytes = run.save, checkpoint.found(whole)[-1].stat().st_size

    def save_the_third_on_a_full_disk() -> None:
        with room(int(share * nbytes) if run.step == 3 else resource.RLIM_INFINITY):
            save()

    run.save = save_the_third_on_a_full_disk  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match=r"checkpoint-00000003.pt cannot be written: File too large"):
        run.run()
    assert names(tmp_path) == ["checkpoint-00000001.pt", "checkpoint-00000002.pt", "metrics.jsonl"]
    assert trainer(tmp_path, steps=6).run()
    assert lines(tmp_path) == lines(whole)


def test_metrics_are_whole_where_the_disk_is_full_when_a_run_goes_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert trainer(out, steps=2).run()
    before = lines(out)
    with room(100), pytest.raises(ResourceError, match=r"metrics.jsonl cannot be written"):
        trainer(out, steps=6).run()
    assert lines(out) == before


@pytest.mark.parametrize("target", ["gguf", "folder"])
def test_an_export_that_finds_the_disk_full_leaves_nothing(target: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = TernaryLM({**DESCRIPTION, "vocab_size": SMALLEST}, dtype=torch.float32)
    assert Trainer(model, counting(8, 0), Plan(run, steps=1)).run()
    write_tokenizer(train_tokenizer(["the fox ran"], SMALLEST), run / TOKENIZER)
    placed = {target: tmp_path / "exported"}
    with room(4000), pytest.raises(ResourceError, match="exported cannot be written: File too large"):
        export(run, **placed)
    assert names(tmp_path) == ["run"]
    export(run, **placed)
    assert names(tmp_path) == ["exported", "run"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    stories = [f"Day {i}: the fox ran to the {place}." for i in range(60) for place in ("den", "inn", "sea")]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    description = {name: value for name, value in DESCRIPTION.items() if name != "vocab_size"}
    values = {
        "task": "pretrain",
        "out": str(folder / "out"),
        "model": {"config": description},
        "tokenizer": {"vocabulary": 300},
        "data": {"train": [{"path": f"{folder}/stories.txt"}], "length": 16},
        "training": {"steps": 40, "log_every": 1, "save_every": 0.0, "keep": 1000, "threads": 1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


def start(config: Path, out: Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """`bitnet train`, in as many processes as torchrun would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "bitnet", "train", config, "--out", out],
            env={"OMP_NUM_THREADS": "1", **os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_goes_on_where_it_was_killed(processes: int, config: Path, tmp_path: Path) -> None:
    """Compared with what the killed one did itself, of which the last ten steps are done again."""
    *others, killed = start(config, tmp_path, processes)
    wait_for(lambda: len(checkpoint.found(tmp_path)) > 15, killed)
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
    assert all(other.wait(300) > 0 for other in others)  # none waits for one that is gone
    before, saved = lines(tmp_path), checkpoint.found(tmp_path)
    for path in saved[-10:]:
        path.unlink()
    assert 5 < len(saved) - 10 < before[-1]["step"] < 40
    assert all(process.wait(300) == 0 for process in start(config, tmp_path, processes))
    found = lines(tmp_path)
    assert found[: len(before)] == before
    assert [line["step"] for line in found if "loss" in line] == list(range(1, 41))
