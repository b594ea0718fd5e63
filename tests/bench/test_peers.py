"""Peers: real child processes of a fake engine, that answer, refuse, die, hang and talk nonsense."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from bench.fake_engine import Engine as FakeEngine
from bench.made import FACTS

from bitnet import formats
from bitnet.bench import peers, speed
from bitnet.bench.peers import worker
from bitnet.bench.peers.process import Peer, PeerError, Process
from bitnet.bench.results import Facts
from bitnet.bench.speed import Test
from bitnet.errors import ParameterError
from bitnet.models.load import open_model
from bitnet.models.synthetic import SyntheticCheckpoint

WORKER = str(Path(worker.__file__))
Start = Callable[..., Process]


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def start() -> Iterator[Start]:
    """The worker with the fake engine, or another command."""
    with ExitStack() as stack:

        def process(*command: str, patience: float = 60.0) -> Process:
            started = Process(command or [sys.executable, WORKER, "fake_engine"], patience)
            stack.callback(started.close)
            return started

        yield process


def loaded(process: Process, **request: Any) -> Peer:
    assert process.answer() == {"version": "1.2"}
    assert process.ask(batch=8, positions=64, **request)["vocab_size"] == 320
    return Peer(process, Facts(**{**FACTS, "engine": "fake"}))


def test_a_peer_answers_one_test_after_the_other(start: Start) -> None:
    peer = loaded(start())
    for test in (Test(20, 0), Test(0, 5, 3), Test(4, 2)):
        sample = peer.timed(test, 2)
        assert len(sample.token_ns) == test.n_gen and 0 < sample.first_ns <= sample.ns
        assert sum(sample.token_ns) + (sample.first_ns if test.n_prompt else 0) == sample.ns
    assert peer.peak_rss() or sys.platform != "linux"


@pytest.mark.parametrize(
    "behave, reason",
    [("die", "ended with 3: ran into a wall"), ("raise", "ValueError: cannot read that"), ("hang", "no answer within")],
)
def test_a_peer_that_fails_in_a_test_says_why(start: Start, behave: str, reason: str) -> None:
    peer = loaded(start(patience=60 if behave != "hang" else 3), behave=behave)
    with pytest.raises(PeerError, match=reason):
        peer.timed(Test(0, 2), 1)


def test_a_peer_that_is_not_there_or_talks_nonsense_says_so(start: Start) -> None:
    with pytest.raises(PeerError, match="No such file"):
        start("/nowhere/python", "worker.py")
    for said, reason in (("hello", "'hello"), ("[1]", r"'\[1\]"), ('{"error": "sorry"}', "sorry")):
        with pytest.raises(PeerError, match=reason):
            start(sys.executable, "-c", f"print({said!r})").answer()


def test_an_incomplete_answer_is_an_error(start: Start) -> None:
    script = "import sys\nfor line in sys.stdin: print('{\"ns\": 5}', flush=True)"
    peer = Peer(start(sys.executable, "-c", script), Facts(**FACTS))
    with pytest.raises(PeerError, match="first_ns"):
        peer.timed(Test(0, 1), 1)


def test_the_worker_reads_the_same_tokens_as_we_do_in_batches() -> None:
    reads: list[list[int]] = []
    engine = FakeEngine({})
    engine.read = reads.append  # type: ignore[method-assign]
    worker.timed(engine, batch=8, threads=1, prompt=10, generate=2, depth=3)
    assert [len(ids) for ids in reads] == [3, 8, 2, 1, 1]
    assert [token for ids in reads for token in ids] == speed.token_ids(15, 320)


@pytest.fixture
def job(tmp_path: Path) -> peers.Job:
    checkpoint = SyntheticCheckpoint("tiny", hidden_act="silu")
    return peers.Job(checkpoint, open_model(checkpoint)[1], 40, 8, tmp_path, lambda done, total: None)


def offered(job: peers.Job, **request: Any) -> Callable[[peers.Job], Iterator[Callable[[], peers.Offer]]]:
    def offers(job: peers.Job) -> Iterator[Callable[[], peers.Offer]]:
        yield lambda: peers.Offer(request, Facts(**{**FACTS, "engine": "fake"}), memory=0)

    return offers


def test_peers_that_cannot_be_had_are_named_with_the_reason(job: peers.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "good": peers.Kind("fake_engine", "fake", offered(job)),
        "sulking": peers.Kind("fake_engine", "fake", offered(job, behave="refuse")),
        "absent": peers.Kind("no_such_engine", "absent-package", offered(job)),
    }
    monkeypatch.setattr(peers, "PEERS", kinds)
    notes: list[str] = []
    pythons = {**dict.fromkeys(kinds, sys.executable)}
    with ExitStack() as stack:
        found = list(peers.start(job, pythons, stack, notes.append))
        assert [(peer.facts.engine, peer.facts.engine_version) for peer in found] == [("fake", "1.2")]
        assert found[0].timed(Test(4, 2), 1).ns > 0
    assert "sulking was left out: RuntimeError: this file is not for me" in notes[0]
    assert "absent was left out" in notes[1] and "pip install absent-package" in notes[1] and len(notes) == 2


def test_a_model_beyond_the_memory_is_not_loaded(job: peers.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {"fake": peers.Kind("fake_engine", "fake", offered(job))})
    monkeypatch.setattr(peers, "available_bytes", lambda: 10)
    notes: list[str] = []
    with ExitStack() as stack:
        assert not list(peers.start(job, {"fake": sys.executable}, stack, notes.append))
    assert "GiB of memory" in notes[0]


def test_llama_cpp_is_offered_both_types_of_a_synthetic_model(job: peers.Job) -> None:
    offers = [make() for make in peers.llama_cpp(job)]
    assert [offer.facts.model_type for offer in offers] == ["bitnet 1M TQ2_0", "bitnet 1M TQ1_0"]
    for offer in offers:
        with formats.open(offer.request["path"]) as checkpoint:
            sizes = {name: info.nbytes for name, info in checkpoint.tensors().items()}
        assert offer.facts.weight_bytes == sum(sizes.values())  # a tied head: all is read
        assert offer.temporary == Path(offer.request["path"])


def test_llama_cpp_is_given_a_gguf_file_as_it_is(tiny_gguf: Path, tmp_path: Path) -> None:
    with formats.open(tiny_gguf) as checkpoint:
        job = peers.Job(checkpoint, open_model(checkpoint)[1], 40, 8, tmp_path, lambda done, total: None)
        (offer,) = [make() for make in peers.llama_cpp(job)]
    assert (offer.request["path"], offer.temporary) == (str(tiny_gguf), None)


def test_a_dense_peer_reads_two_bytes_a_weight_but_of_the_embedding_a_row(tmp_path: Path) -> None:
    for tied in (True, False):
        checkpoint = SyntheticCheckpoint("tiny", tie_word_embeddings=tied)
        job = peers.Job(checkpoint, open_model(checkpoint)[1], 40, 8, tmp_path, lambda done, total: None)
        (offer,) = [make() for make in peers.transformers(job)]
        layers = 2 * (3 * 256 * 512 + 2 * 256 * 256 + 2 * 256 * 128)
        norms = 2 * (3 * 256 + 512) + 256
        assert offer.facts.weight_bytes == 2 * (layers + norms + 320 * 256)
        assert offer.facts.resident_bytes == offer.facts.weight_bytes + (0 if tied else 2 * 320 * 256)
        assert offer.request["config"]["intermediate_size"] == 512 and offer.facts.model_type == "1M BF16"


def test_names_and_interpreters_of_peers() -> None:
    here = sys.executable
    assert peers.chosen([], []) == {}
    assert peers.chosen(["all"], []) == dict.fromkeys(peers.PEERS, here)
    assert peers.chosen(["llama.cpp", "litespark"], ["/a/python", "litespark=/b/python"]) == {
        "llama.cpp": "/a/python",
        "litespark": "/b/python",
    }
    with pytest.raises(ParameterError, match="vllm"):
        peers.chosen(["vllm"], [])
