"""transformers on torch, dense in bfloat16: random weights of the same shape."""

from __future__ import annotations

from importlib import import_module
from typing import Any

torch: Any = import_module("torch")
transformers: Any = import_module("transformers")


def version() -> str:
    return f"{transformers.__version__}, torch {torch.__version__}"


class Engine:
    def __init__(self, request: dict[str, Any]) -> None:
        """request: the `config`, as in config.json."""
        config = dict(request["config"])
        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):  # no random numbers for every initialiser
            model = transformers.AutoModelForCausalLM.from_config(config)
        torch.set_default_dtype(default)
        # The rotary frequencies are a buffer, which the meta device leaves without values: made anew, on the CPU.
        rotary = type(model.model.rotary_emb)(config=config)
        self._model = model.to_empty(device="cpu").eval()
        self._model.model.rotary_emb = rotary
        self._model.tie_weights()
        for weight in self._model.parameters():  # memory that nobody wrote is one page of zeros
            if weight.ndim == 1:
                weight.data.fill_(1)
            else:
                weight.data.uniform_(-(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)
        self.vocab_size = config.vocab_size
        self._cache: Any = None

    def reset(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._cache = transformers.DynamicCache()

    def read(self, ids: list[int]) -> None:
        with torch.inference_mode():
            self._model(input_ids=torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
