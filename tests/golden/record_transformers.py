"""Writes tests/golden/transformers: tiny folders, and what `transformers` computes on them. See make_goldens.py."""

from __future__ import annotations

from pathlib import Path

import hf_folders
import numpy as np
import one_bit_llm
import torch

HERE = Path(__file__).parent
CASES = (
    "bitnet-online",
    "bitnet-autobitlinear",
    "bitnet-bitlinear",
    "bitnet-untied",
    "llama-bitlinear",
    "llama-head-dim",
    "llama-untied-mqa",
    "llama-rope-llama3",
    "llama-rope-linear",
)


def main() -> None:
    torch.set_num_threads(1)
    for name in CASES:
        folder = new_folder(name)
        hf_folders.write(hf_folders.CASES[name], folder)
        logits, tokens = hf_folders.run(folder, hf_folders.PROMPT, 16)
        record(folder, logits, tokens)
    folder = new_folder("1bitllm")
    one_bit_llm.write(folder)
    record(folder, one_bit_llm.run(folder, hf_folders.PROMPT), [])


def new_folder(name: str) -> Path:
    folder = HERE / "transformers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def record(folder: Path, logits: np.ndarray, tokens: list[int]) -> None:
    """golden.npz: prompt (T,), logits (T, vocab), and the greedy tokens after it."""
    np.savez_compressed(
        folder / "golden.npz",
        prompt=np.array(hf_folders.PROMPT, np.int32),
        logits=logits.astype(np.float32),
        tokens=np.array(tokens, np.int32),
    )


if __name__ == "__main__":
    main()
