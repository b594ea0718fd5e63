"""Trains the two small models, unless they are there, and writes them as tests/golden/*.gguf. See make_goldens.py.

python record_gguf.py WORK
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import torch
import train_tiny

from bitnet import formats
from bitnet.convert import write_checkpoint
from bitnet.train.stories import stories

HERE = Path(__file__).parent
# name -> how it is written: between them every type that llama.cpp reads too
FILES = {
    "bitnet-silu": {"weights": "tq2_0", "embeddings": "f16"},
    "llama": {"weights": "tq1_0", "embeddings": "q8_0"},
}
PASSAGES = 8


def main() -> None:
    work = Path(sys.argv[1])
    torch.set_num_threads(1)
    for name, options in FILES.items():
        train_tiny.train(name, work / name)
        with formats.open(work / name) as checkpoint:
            write_checkpoint(checkpoint, HERE / f"{name}.gguf", **options)
    texts = [story.text for story in islice(stories(seed=99), PASSAGES)]  # not among those trained on
    (work / "texts.json").write_text(json.dumps(texts), "utf-8")


if __name__ == "__main__":
    main()
