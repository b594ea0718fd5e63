"""Records what other programs compute, so that `make test` can compare with them where they are not installed.

    make goldens

Everything in this folder that is not Python comes from here:

transformers/*/   tiny random folders written by `transformers`, with the logits and greedy tokens that it computes
                  (record_transformers.py; the cases are in tests/hf_folders.py)
*.gguf            two models of 1.9 M parameters, trained for a few minutes (train_tiny.py) on the project's own story
                  grammar and written by bitnet.convert: architecture "bitnet" with SiLU, TQ2_0, SentencePiece; and
                  "llama" with TQ1_0, Q8_0, shared keys, wide heads, scaled rotary frequencies, Llama 3's tokenizer
*.json            what llama.cpp makes of those two files (record_llama_cpp.py)
tensor_types.npz  tensors in each of llama.cpp's types, as it writes and reads them (record_tensor_types.py)

It builds its own environment in build/goldens, with torch, transformers and llama-cpp-python (compiled there: a quarter
of an hour, a C++ compiler needed). PYTHONS that have them already can be named instead:

    python tests/golden/make_goldens.py [--torch-python PYTHON] [--llama-python PYTHON]

Trained weights stay in build/goldens; delete that folder to train anew. Only the standard library is used in this file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "build" / "goldens"
TORCH = ["numpy", "torch", "transformers", "accelerate", "safetensors", "sentencepiece", "tokenizers", "jinja2"]
LLAMA_CPP = ["numpy", "llama-cpp-python==0.3.36"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help=f"a Python with {', '.join(TORCH)}")
    parser.add_argument("--llama-python", help=f"a Python with {', '.join(LLAMA_CPP)}")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    torch_python = arguments.torch_python or environment("torch", TORCH)
    llama_python = arguments.llama_python or environment("llama-cpp", LLAMA_CPP)
    run(torch_python, "record_transformers.py")
    run(torch_python, "record_gguf.py", WORK)
    run(llama_python, "record_tensor_types.py", HERE / "tensor_types.npz")
    for model in sorted(HERE.glob("*.gguf")):
        run(llama_python, "record_llama_cpp.py", model, WORK / "texts.json", model.with_suffix(".json"))


def environment(name: str, packages: list[str]) -> str:
    """The Python of a virtual environment with these packages, made if need be."""
    folder = WORK / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def run(python: str, script: str, *arguments: Path) -> None:
    print(f"{script} {' '.join(str(each) for each in arguments)}", flush=True)
    path = os.pathsep.join(str(each) for each in (ROOT / "src", HERE.parent, HERE))
    environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([python, HERE / script, *arguments], check=True, env=environ)


if __name__ == "__main__":
    main()
