"""Coverage-guided fuzzing of everything that reads a model file: make fuzz FUZZ_SECONDS=60

    python tests/fuzz/fuzz_model_files.py CORPUS [-max_total_time=SECONDS] [options of libFuzzer]

CORPUS is a folder that keeps what covers new code from run to run; it starts as fuzz_corpus.py makes it. What breaks
the oracle is left beside it as crash-*; each such finding gets a test of its own.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import sys
import time
import warnings
from pathlib import Path
from types import FunctionType

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "BITNET_NO_PROFILE": "1"}
sys.path.insert(0, str(Path(__file__).parent.parent))

try:
    import atheris
except ImportError:
    print("make fuzz is skipped: there is no atheris for this Python.")
    sys.exit()

from fuzz_corpus import LARGE, corpus
from fuzz_mutation import mutate
from fuzz_oracle import Oracle

from bitnet import _core

SECONDS = 1.0  # of processor time that a file may take
MEMORY = 64 << 20  # bytes beyond the file
ROOMS = ("bitnet.formats", "bitnet.tokenizer", "bitnet.models", "bitnet.quant")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    _core.set_threads(1)
    oracle = Oracle()
    for name, data in corpus().items():
        oracle.check(data)  # imports what is imported late
        if len(data) < LARGE:
            (folder / name).write_bytes(data)
    warnings.simplefilter("error", RuntimeWarning)  # NumPy's: nothing computes with what is no number
    for found in gc.get_objects():  # atheris cannot instrument what an editable install imports
        if isinstance(found, FunctionType) and str(found.__module__).startswith(ROOMS):
            atheris.instrument_func(found)

    def one(data: bytes) -> None:
        most, start = peak(), time.process_time()
        oracle.check(data)
        taken = time.process_time() - start
        assert taken < SECONDS, f"{taken:.1f} seconds"
        if peak() > most:  # the process was never as large before
            beyond = peak() - resident() - len(data)
            assert beyond < MEMORY, f"{beyond:,} bytes"

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = mutate(data, most, rng) if rng.randrange(3) else data
        return atheris.Mutate(data, most) if changed == data else changed

    # The timeout is for what never ends: wall time proves nothing where processes are stopped.
    options = [f"-max_len={LARGE}", "-timeout=1800", "-rss_limit_mb=4096", f"-artifact_prefix={folder.parent}/"]
    atheris.Setup([sys.argv[0], str(folder), *options, *sys.argv[2:]], one, custom_mutator=mutated)
    atheris.Fuzz()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
