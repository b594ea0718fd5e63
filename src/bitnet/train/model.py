"""A model in training: the architecture of models/, run by PyTorch, with float32 masters as its parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bitnet.backends.torch import Packed, Quantized, TorchOps
from bitnet.formats import open as open_checkpoint
from bitnet.models.decoder import Decoder
from bitnet.models.load import open_model
from bitnet.train.described import Described, description_of, masters_of, with_sub_norms
from bitnet.train.fused import FusedOps, first_of, head_loss, suits
from bitnet.train.quantizers import TERNARY, Recipe, quantize, recipe_values, ternarize

Batch = Mapping[str, Tensor]


class TernaryLM(nn.Module):
    """description: the entries of a config.json. Parameters have our names and ".weight", a trained scale ".scale".

    dtype: of activations. checkpointing: keep only what stands between the layers for the backward pass.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        recipe: Recipe | None = None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.description, self.recipe = dict(description), recipe or Recipe()
        self.dtype, self.checkpointing = dtype, checkpointing
        self.architecture, self.config, self.shapes = open_model(Described(self.description))
        self.blend: Tensor | None = None  # how far weights and activations are rounded; None: wholly
        self._held: dict[str, Any] | None = None
        self._ops: dict[tuple[int, bool], TorchOps] = {}
        generator = torch.Generator().manual_seed(seed)
        for name, shape in self.shapes.items():
            if name.endswith("_proj"):
                self.recipe.check(name, shape)
            module_at(self, name).weight = nn.Parameter(start(shape, generator))
        self.reset_scales()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        recipe: Recipe | None = None,
        *,
        sub_norms: bool = False,
        **options: Any,
    ) -> TernaryLM:
        """A float or ternary model file as masters: for training on, or with a teacher's recipe as it is.

        sub_norms: put norms, of ones, before the projections whose inputs vary most (see with_sub_norms).
        """
        with open_checkpoint(Path(path)) as opened:
            description = description_of(opened)
            model = cls(with_sub_norms(description) if sub_norms else description, recipe, **options)
            model.load_masters(masters_of(opened, model.recipe))
        return model

    @torch.no_grad()
    def load_masters(self, masters: Iterator[tuple[str, Any]]) -> None:
        """masters: our name and NumPy array of every tensor that is not to keep its start."""
        for name, values in masters:
            self.master(name).copy_(torch.from_numpy(values))
        self.reset_scales()

    @torch.no_grad()
    def reset_scales(self) -> None:
        """Scales that are trained, as the rule has them for the masters of now."""
        if not self.recipe.trainable_scale:
            return
        for name in self.projections():
            if self.recipe.bits(name) == TERNARY:
                module_at(self, name).scale = nn.Parameter(ternarize(self.master(name), self.recipe.rule)[1].clone())

    def master(self, name: str) -> nn.Parameter:
        weight: nn.Parameter = module_at(self, name).weight
        return weight

    def projections(self) -> list[str]:
        return [name for name in self.shapes if name.endswith("_proj")]

    def forward(
        self, ids: Tensor, documents: Tensor | None = None, seen: dict[int, tuple[Tensor, ...]] | None = None
    ) -> Tensor:
        """Logits (rows, length, vocab) of windows ids (rows, length).

        documents: number of each token's document (rows, length), never descending: a token looks at its own one up to
        itself; None: they are one. seen: layers whose queries, keys and values are left there.
        """
        model = self.decoder(ids)
        return model(*self.inputs(ids, documents, seen)).view(*ids.shape, -1)  # type: ignore[no-any-return]

    def loss(self, batch: Batch) -> Tensor:
        """Nats of all targets together, float32; targets of -100 do not count."""
        if not self.fused(batch["ids"].device):
            return nats(self(batch["ids"], batch["documents"]), batch["targets"])
        model = self.decoder(batch["ids"])
        hidden = model.hidden(*self.inputs(batch["ids"], batch["documents"]))
        return head_loss(hidden, model.weights["lm_head"], batch["targets"])

    def inputs(
        self, ids: Tensor, documents: Tensor | None, seen: dict[int, tuple[Tensor, ...]] | None = None
    ) -> tuple[Any, Packed]:
        """Step and cache of a decoder."""
        rows, length = ids.shape
        step = TrainStep(ids.reshape(-1), torch.arange(length, device=ids.device).repeat(rows))
        documents = torch.zeros_like(ids) if documents is None else documents
        if self.fused(ids.device):
            return step, Packed(rows, None, {} if seen is None else seen, first_of(documents))
        return step, Packed(rows, document_mask(documents), {} if seen is None else seen)

    def fused(self, device: torch.device) -> bool:
        return suits(self.config, self.dtype, device)

    def about(self) -> dict[str, Any]:
        """What the model is made of beside its parameters, in plain values."""
        return {"description": self.description, "recipe": recipe_values(self.recipe)}

    def decoder(self, ids: Tensor) -> Decoder:
        """The model on this step's weights, for windows such as these."""
        weights = self.weights() if self._held is None else self._held
        model: Decoder = self.architecture.Model(self.config, weights, self.ops(ids.shape[1], self.fused(ids.device)))
        if self.checkpointing and torch.is_grad_enabled():
            model.layer = partial(checkpoint, model.layer, use_reentrant=False)  # type: ignore[method-assign]
        return model

    def ops(self, length: int, fused: bool) -> TorchOps:
        if (length, fused) not in self._ops:
            kind = FusedOps if fused else TorchOps
            self._ops[length, fused] = kind(self.dtype, length, (self.config.rope, self.config.local_rope))
        return self._ops[length, fused]

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """With activations as the engine has them, whatever those of training are."""
        trained = self.dtype, self._ops
        self.dtype, self._ops = torch.float32, {}
        try:
            yield
        finally:
            self.dtype, self._ops = trained

    def weights(self) -> dict[str, Any]:
        """Every weight as a step computes with it, with gradients to the masters."""
        weights: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            master = self.master(name)
            if name.endswith("_proj"):
                scales = getattr(module_at(self, name), "scale", None)
                weights[name] = quantize(master, self.recipe.bits(name), self.recipe, self.dtype, self.blend, scales)
            else:
                weights[name] = master.to(self.dtype) if len(shape) == 2 else master
        weights.setdefault("lm_head", weights["embed_tokens"])
        return weights

    @contextmanager
    def step(self) -> Iterator[None]:
        """Quantise once for all that runs inside; its gradients reach the masters at the end."""
        made = self.weights()
        tensors = {name: made[name].codes if isinstance(made[name], Quantized) else made[name] for name in self.shapes}
        leaves = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in tensors.items()}
        scales = {
            name: made[name].scale.detach().requires_grad_(made[name].scale.requires_grad)
            for name in self.shapes
            if isinstance(made[name], Quantized)
        }
        held = {n: made[n]._replace(codes=leaf, scale=scales[n]) if n in scales else leaf for n, leaf in leaves.items()}
        self._held = held | {"lm_head": held.get("lm_head", held["embed_tokens"])}
        try:
            yield
        finally:
            self._held = None
        roots = [(tensors[name], leaf.grad) for name, leaf in leaves.items()]
        roots += [(made[name].scale, scale.grad) for name, scale in scales.items()]
        pairs = [(root, grad) for root, grad in roots if grad is not None and root.requires_grad]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [grad for _, grad in pairs])


class TrainStep:
    """The part of backends.base.Step that training needs, as tensors; every row's logits are wanted."""

    want, top = None, 0

    def __init__(self, ids: Tensor, positions: Tensor) -> None:
        self.ids, self.positions = ids, positions


def module_at(root: nn.Module, name: str) -> Any:
    """The module of this dotted name, made where there is none."""
    for part in name.split("."):
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    return root


def start(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms at one; matrices normal: the embedding small, as it is often the output head too."""
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(shape[1])


def causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def document_mask(documents: Tensor) -> Tensor:
    """Number of each token's document (rows, length) -> (rows, 1, length, length): its own one up to itself."""
    same = documents[:, :, None] == documents[:, None, :]
    return (same & causal(documents.shape[1], documents.device))[:, None]


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of the targets (rows, length), summed in float32; -100 does not count."""
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.reshape(-1), ignore_index=-100, reduction="sum"
    )
