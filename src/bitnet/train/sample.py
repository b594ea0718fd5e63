"""Text from a checkpoint of the built-in model in training, to read with one's own eyes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from bitnet.train.corpus import Document, encode
from bitnet.train.export import TOKENIZER, trained
from bitnet.train.model import TernaryLM
from bitnet.train.vocabulary import END, END_OF_TURN


@torch.no_grad()
def generate(model: TernaryLM, prompt: list[int], count: int, temperature: float, seed: int = 0) -> list[int]:
    """Continue `prompt` until a document or turn ends, or `count` tokens; the whole window is run for each token."""
    rng, tokens = torch.Generator().manual_seed(seed), list(prompt)
    with model.step():
        while len(tokens) < len(prompt) + count:
            logits = model(torch.tensor([tokens[-model.config.max_position_embeddings :]]))[0, -1].float()
            probabilities = torch.softmax(logits / max(temperature, 1e-4), -1)
            token = int(torch.multinomial(probabilities, 1, generator=rng))
            if token in (END, END_OF_TURN):
                break
            tokens.append(token)
    return tokens[len(prompt) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run")
    add("--temperature", type=float, default=0.7)
    add("--count", type=int, default=250, help="tokens at most")
    add("--user", action="store_true", help="put the prompts to the assistant")
    add("prompts", nargs="*", default=[""])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = Tokenizer.from_file(str(arguments.out / TOKENIZER / "tokenizer.json")), trained(arguments.out)
    for seed, prompt in enumerate(arguments.prompts):
        document = Document(turns=((prompt, ""),)) if arguments.user else Document(prompt)
        tokens = encode(tokenizer, document)[:-1]
        continued = generate(model, tokens, arguments.count, arguments.temperature, seed)
        print(f"=== {prompt}" + tokenizer.decode(continued), flush=True)


if __name__ == "__main__":
    main()
