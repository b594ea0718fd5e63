"""Text from a checkpoint in training, to read with one's own eyes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bitnet.backends.torch import Packed, TorchOps
from bitnet.models import bitnet
from bitnet.models.decoder import Config
from bitnet.train.checkpoint import load
from bitnet.train.data import Document, encode
from bitnet.train.parameters import TrainStep, document_mask
from bitnet.train.vocabulary import END, END_OF_TURN


@torch.no_grad()
def generate(
    config: Config, weights: dict[str, Any], prompt: list[int], count: int, temperature: float, seed: int = 0
) -> list[int]:
    """Continue `prompt` until a document or turn ends, or `count` tokens; the whole window is run for each token."""
    ops = TorchOps(torch.float32, config.max_position_embeddings, config.rope)
    model, rng = bitnet.Model(config, weights, ops), torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        ids = torch.tensor([tokens[-config.max_position_embeddings :]])
        step = TrainStep(ids[0], torch.arange(ids.shape[1]))
        logits = model(step, Packed(1, document_mask(ids)))[-1].float()  # type: ignore[arg-type]
        probabilities = torch.softmax(logits / max(temperature, 1e-4), -1)
        token = int(torch.multinomial(probabilities, 1, generator=rng))
        if token in (END, END_OF_TURN):
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder with checkpoint.pt and tokenizer.json")
    add("--temperature", type=float, default=0.7)
    add("--count", type=int, default=250, help="tokens at most")
    add("--user", action="store_true", help="put the prompts to the assistant")
    add("prompts", nargs="*", default=[""])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(arguments.out / "tokenizer.json"))
    config, parameters = load(arguments.out / "checkpoint.pt")
    weights = parameters.refresh(torch.float32)
    for seed, prompt in enumerate(arguments.prompts):
        document = Document(turns=((prompt, ""),)) if arguments.user else Document(prompt)
        tokens = encode(tokenizer, document)[:-1]
        continued = generate(config, weights, tokens, arguments.count, arguments.temperature, seed)
        print(f"=== {prompt}" + tokenizer.decode(continued), flush=True)


if __name__ == "__main__":
    main()
