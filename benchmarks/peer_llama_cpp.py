"""bitnet and llama.cpp on the same GGUF file, in alternation, so that both meet the same machine.

    python benchmarks/peer_llama_cpp.py --model 2B-4T --peer-python /path/with/llama_cpp/bin/python

Writes the synthetic model once as TQ2_0 (architecture "bitnet" or "llama", which llama.cpp opens), starts one process
for each engine, asks them in turn for the same test, and prints medians and ratios. Both decode the same token ids;
neither samples. The engine whose turn it is not waits, idle, with its model in memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

Timed = Callable[[int, int, int], int]  # (threads, prompt, generate) -> nanoseconds
WARM_UP = 4


SAY_NOTHING = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


def token_ids(count: int, vocab_size: int) -> list[int]:
    return [int(vocab_size * (i * 0.6180339887498949 % 1)) for i in range(1, count + 1)]


def llama_cpp_engine(path: str, positions: int) -> Timed:
    """llama.cpp through llama-cpp-python's raw functions, as llama-bench uses them."""
    cpp: Any = import_module("llama_cpp")
    cpp.llama_log_set(SAY_NOTHING, ctypes.c_void_p(0))
    cpp.llama_backend_init()
    model = cpp.llama_model_load_from_file(path.encode(), cpp.llama_model_default_params())
    parameters = cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = positions, 512, 512
    context = cpp.llama_init_from_model(model, parameters)
    vocab_size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))

    def decode(ids: list[int]) -> None:
        tokens = (cpp.llama_token * len(ids))(*ids)  # the batch only points at them
        if cpp.llama_decode(context, cpp.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        cpp.llama_synchronize(context)

    def timed(threads: int, prompt: int, generate: int) -> int:
        cpp.llama_set_n_threads(context, threads, threads)
        cpp.llama_memory_clear(cpp.llama_get_memory(context), True)
        ids = token_ids(prompt + generate, vocab_size)
        start = time.perf_counter_ns()
        for first in range(0, prompt, 512):
            decode(ids[first : min(prompt, first + 512)])
        for token in ids[prompt:]:
            decode([token])
        return time.perf_counter_ns() - start

    return timed


def bitnet_engine(path: str, positions: int) -> Timed:
    """The path that `bitnet bench` measures."""
    from bitnet import _core, backends, formats, models
    from bitnet.backends.base import BLOCK_SIZE
    from bitnet.bench.speed import Run, Test
    from bitnet.engine.runner import Runner

    _core.set_threads(_core.default_threads())
    with formats.open(path) as checkpoint:
        model = models.load(checkpoint, backends.make("cpu"))
    blocks = -(-(positions + 1) // BLOCK_SIZE)
    runner = Runner(model, blocks, "f16")

    def timed(threads: int, prompt: int, generate: int) -> int:
        _core.set_threads(threads)
        return Run(runner, blocks, 512).timed(Test(prompt, generate))[0]

    return timed


ENGINES = {"bitnet": bitnet_engine, "llama.cpp": llama_cpp_engine}


def serve(engine: str, path: str, positions: int) -> None:
    """Answer each line `[threads, prompt, generate]` on stdin with nanoseconds on stdout."""
    timed = ENGINES[engine](path, positions)
    print("ready", flush=True)
    for line in sys.stdin:
        print(timed(*json.loads(line)), flush=True)


class Engine:
    """An engine in a process of its own."""

    def __init__(self, python: str, name: str, path: Path, positions: int) -> None:
        command = [python, __file__, "--serve", name, "--file", str(path), "--positions", str(positions)]
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def timed(self, *test: int) -> int:
        assert self._process.stdin is not None
        print(json.dumps(test), file=self._process.stdin, flush=True)
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early.")
        return line

    def close(self) -> None:
        self._process.communicate()


def write_model(name: str, path: Path) -> None:
    from bitnet.bench.vocabulary import byte_tokenizer
    from bitnet.convert.gguf import write_checkpoint
    from bitnet.models.synthetic import SyntheticCheckpoint

    # llama.cpp's "bitnet" gates with SiLU. That changes one cheap operation, in both engines.
    write_checkpoint(SyntheticCheckpoint(name, hidden_act="silu"), path, weights="tq2_0", tokenizer=byte_tokenizer())


def compare(engines: dict[str, Engine], tests: list[tuple[int, int, int]], repetitions: int) -> Iterator[str]:
    yield "| threads | test | bitnet t/s | llama.cpp t/s | ratio | spread of the ratio |"
    yield "| ------: | ---- | ---------: | ------------: | ----: | ------------------- |"
    for threads, prompt, generate in tests:
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for engine in engines.values():
            engine.timed(threads, min(prompt, 32), min(generate, WARM_UP))
        for turn in range(repetitions):
            for name in list(engines)[:: -1 if turn % 2 else 1]:
                rates[name].append((prompt + generate) * 1e9 / engines[name].timed(threads, prompt, generate))
        ours, theirs = (statistics.median(rates[name]) for name in ("bitnet", "llama.cpp"))
        ratios = sorted(a / b for a, b in zip(rates["bitnet"], rates["llama.cpp"], strict=True))
        test, spread = f"pp{prompt}" if prompt else f"tg{generate}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        yield f"| {threads} | {test} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2B-4T", help="a synthetic model whose rows are multiples of 256")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--file", type=Path, help="a GGUF file to use, or to write where there is none")
    parser.add_argument("-t", "--threads", default="1,2")
    parser.add_argument("-p", "--n-prompt", type=int, default=256)
    parser.add_argument("-n", "--n-gen", type=int, default=64)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--positions", type=int, help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.serve:
        serve(given.serve, str(given.file), given.positions)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = given.file or Path(folder) / f"{given.model}.gguf"
        if not path.exists():
            write_model(given.model, path)
        pythons = {"bitnet": sys.executable, "llama.cpp": given.peer_python}
        positions = max(given.n_prompt, given.n_gen) + 1
        engines = {name: Engine(python, name, path, positions) for name, python in pythons.items()}
        shapes = [shape for shape in ((given.n_prompt, 0), (0, given.n_gen)) if any(shape)]
        tests = [(int(threads), *shape) for threads in given.threads.split(",") for shape in shapes]
        for line in compare(engines, tests, given.repetitions):
            print(line, flush=True)
        for engine in engines.values():
            engine.close()


if __name__ == "__main__":
    main()
