"""Other engines with the same shape, each in a process of its own: which there are, and what each is given to load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bitnet.formats
from bitnet.bench.engines import described, parameters, short
from bitnet.bench.peers.process import Peer, PeerError, Process
from bitnet.bench.results import Facts
from bitnet.bench.speed import multiply_adds, position_bytes
from bitnet.bench.vocabulary import byte_tokenizer
from bitnet.convert.gguf import write_checkpoint
from bitnet.errors import BitNetError, ParameterError
from bitnet.formats import Checkpoint
from bitnet.models.decoder import Config
from bitnet.models.load import Progress, open_model
from bitnet.models.memory import GIB, available_bytes
from bitnet.models.synthetic import SyntheticCheckpoint

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be loaded, for tests of so many positions and prompts in such batches; files go to `folder`."""

    checkpoint: Checkpoint
    config: Config
    positions: int
    batch: int
    folder: Path
    progress: Progress


@dataclass(frozen=True, slots=True)
class Offer:
    """A model for a peer: what its engine is told, what is true of it, the bytes that it takes while it loads, and the
    file that was written for it alone."""

    request: dict[str, Any]
    facts: Facts
    memory: int
    temporary: Path | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """script: the file here that runs in the peer's Python. package: what pip calls it. offers: one or several."""

    script: str
    package: str
    offers: Callable[[Job], Iterator[Callable[[], Offer]]]


def llama_cpp(job: Job) -> Iterator[Callable[[], Offer]]:
    """The file itself where it is a GGUF file, else the model written as TQ2_0 and as TQ1_0."""
    if job.checkpoint.kind == "gguf":
        yield lambda: gguf_offer(job, job.checkpoint.path)
    else:
        yield lambda: written_offer(job, "tq2_0")
        yield lambda: written_offer(job, "tq1_0")


def written_offer(job: Job, weights: Any) -> Offer:
    path = job.folder / f"{weights}.gguf"
    tokenizer = byte_tokenizer() if isinstance(job.checkpoint, SyntheticCheckpoint) else None
    write_checkpoint(job.checkpoint, path, weights=weights, tokenizer=tokenizer, progress=job.progress)
    return replace(gguf_offer(job, path), temporary=path)


def gguf_offer(job: Job, path: Path) -> Offer:
    with bitnet.formats.open(path) as checkpoint:
        infos = checkpoint.tensors()
        said = described(checkpoint)
    size = said["model_size"]
    unread = infos["token_embd.weight"].nbytes if "output.weight" in infos else 0
    facts = peer_facts(job, "llama.cpp", "f16", size - unread, size, position_bytes(job.config, "f16"))
    return Offer({"path": str(path)}, replace(facts, **said, backends="CPU"), size)


def transformers(job: Job) -> Iterator[Callable[[], Offer]]:
    def offer() -> Offer:
        count = parameters(job.checkpoint)
        untied = 0 if job.config.tie_word_embeddings else job.config.vocab_size * job.config.hidden_size
        kv = position_bytes(job.config, "f16")
        facts = peer_facts(job, "transformers", "bf16", 2 * (count - untied), 2 * count, kv)
        return Offer({"config": config_json(job)}, typed(facts, "BF16"), 2 * count + count // 10)

    yield offer


def litespark(job: Job) -> Iterator[Callable[[], Offer]]:
    def offer() -> Offer:
        head = job.config.vocab_size * job.config.hidden_size
        nbytes = multiply_adds(job.config) // 4 + 2 * head
        facts = peer_facts(job, "litespark", "f32", nbytes, nbytes, position_bytes(job.config, "f32"))
        return Offer({"config": config_json(job)}, typed(facts, "2bit"), nbytes + 8 * head)

    yield offer


PEERS: Mapping[str, Kind] = {
    "llama.cpp": Kind("llama_cpp_engine", "llama-cpp-python", llama_cpp),
    "transformers": Kind("transformers_engine", "transformers torch", transformers),
    "litespark": Kind("litespark_engine", "litespark-inference", litespark),
}


def peer_facts(job: Job, engine: str, kv: str, read: int, resident: int, position: int) -> Facts:
    return Facts(
        engine=engine,
        engine_version="",
        backends="CPU",
        isa="",
        weights="",
        model_filename=str(job.checkpoint.path),
        model_type="",
        model_size=resident,
        model_n_params=parameters(job.checkpoint),
        type_kv=kv,
        head="full",
        load_s=None,
        weight_bytes=read,
        resident_bytes=resident,
        position_bytes=position,
        kv_cache_bytes=job.positions * position,
        multiply_adds=multiply_adds(job.config),
    )


def typed(facts: Facts, dtype: str) -> Facts:
    return replace(facts, model_type=f"{short(facts.model_n_params)} {dtype}")


def config_json(job: Job) -> dict[str, Any]:
    """The shape as config.json spells it."""
    c = job.config
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
        "max_position_embeddings rms_norm_eps rope_theta hidden_act tie_word_embeddings"
    )
    model = open_model(job.checkpoint)[0].__name__.rpartition(".")[-1]
    return {"model_type": model, **{name: getattr(c, name) for name in names.split()}}


def chosen(names: Sequence[str], pythons: Sequence[str]) -> dict[str, str]:
    """The peers of these names ("all": every one) and the Python of each: "PATH" is for all, "NAME=PATH" for one.

    ParameterError for a name that is none of PEERS.
    """
    wanted = list(PEERS) if "all" in names else list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        raise ParameterError(f"There is no peer {unknown[0]!r}.", f"Known: {', '.join(PEERS)}, or all.")
    given = [each.partition("=") if each.partition("=")[0] in PEERS else ("", "", each) for each in pythons]
    common = next((path for name, _, path in given if not name), sys.executable)
    own = {name: path for name, _, path in given if name}
    return {name: own.get(name, common) for name in wanted}


def start(job: Job, pythons: Mapping[str, str], stack: ExitStack, note: Note) -> Iterator[Peer]:
    """Every peer that can be had, with what it has loaded; `note` hears why another one cannot. The stack ends them."""
    for name, python in pythons.items():
        kind = PEERS[name]
        command = [python, str(Path(__file__).parent / "worker.py"), kind.script]
        for make in kind.offers(job):
            try:
                process = Process(command)
                stack.enter_context(closing(process))
                yield load(process, make, job)
            except (PeerError, BitNetError) as error:
                missing = "ModuleNotFoundError" in str(error)
                reason = f"{python} lacks it (pip install {kind.package})" if missing else str(error).replace("\n", " ")
                note(f"{name} was left out: {reason}")
                if missing:
                    break


def load(process: Process, make: Callable[[], Offer], job: Job) -> Peer:
    version = str(process.answer().get("version", ""))  # first, for a model is not written in vain
    offer = make()
    needed = offer.memory + (offer.facts.kv_cache_bytes or 0)
    free = available_bytes()
    if needed > free:
        raise PeerError(f"it needs {needed / GIB:.1f} GiB of memory; {free / GIB:.1f} GiB are free")
    answer = process.ask(batch=job.batch, positions=job.positions, **offer.request)
    if offer.temporary is not None:
        with suppress(OSError):  # where the system lets go of a file in use, nothing is left if this process is killed
            offer.temporary.unlink()
    loaded = float(answer["load_s"]) if "path" in offer.request else None
    return Peer(process, replace(offer.facts, engine_version=version, load_s=loaded))
