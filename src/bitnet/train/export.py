"""From a training checkpoint to model files: a Hugging Face folder of float masters, and the GGUF file that ships.

python -m bitnet.train.export --out DIR --folder FOLDER --gguf FILE
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bitnet.convert import write_checkpoint
from bitnet.formats import open as open_checkpoint
from bitnet.models.decoder import Config
from bitnet.models.names import spellings
from bitnet.tokenizer.chat import BITNET
from bitnet.train.checkpoint import load
from bitnet.train.vocabulary import BEGIN, END, END_OF_TURN, SPECIAL_TOKENS


def write_folder(out: Path, folder: Path) -> None:
    """config.json, model.safetensors (the float masters, ternarised when loaded) and the tokenizer's files."""
    config, parameters = load(out / "checkpoint.pt")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config), indent=2) + "\n")
    masters = {spellings(name, "hf")[0]: master.contiguous() for name, master in parameters.masters.items()}
    save_file(masters, folder / "model.safetensors")
    shutil.copyfile(out / "tokenizer.json", folder / "tokenizer.json")
    begin, end, _ = SPECIAL_TOKENS
    tokenizer = {"bos_token": begin, "eos_token": end, "add_bos_token": True, "chat_template": BITNET}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def config_json(config: Config) -> dict[str, Any]:
    """What `transformers` reads as BitNetForCausalLM with masters to be ternarised online."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act",
        "tie_word_embeddings",
    )  # fmt: skip
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        **{name: getattr(config, name) for name in names},
        "bos_token_id": BEGIN,
        "eos_token_id": [END, END_OF_TURN],
        "torch_dtype": "float32",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        },
    }


def write_gguf_file(out: Path, path: Path) -> None:
    """The deployed model: ternary projections with the exact float32 scale, float16 embedding, tokenizer inside."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / path.stem  # the file's general.name
        write_folder(out, named)
        with open_checkpoint(named) as checkpoint:
            write_checkpoint(checkpoint, path, weights="i2_s", embeddings="f16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder with checkpoint.pt and tokenizer.json")
    parser.add_argument("--folder", type=Path, help="Hugging Face folder to write")
    parser.add_argument("--gguf", type=Path, help="GGUF file to write")
    arguments = parser.parse_args()
    if arguments.folder:
        write_folder(arguments.out, arguments.folder)
    if arguments.gguf:
        write_gguf_file(arguments.out, arguments.gguf)


if __name__ == "__main__":
    main()
