"""What a conversion could not keep exactly, noticed while the values go through."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np

from bitnet.formats.gguf_writer import Block
from bitnet.quant.tensor import Tensor, TernaryTensor

FLOAT32_SCALES = ("I2_S", "IQ2_BN", "packed")
PLAIN = ("F32", "F16", "BF16")


class Losses:
    """tables: what was rounded, as "token_embd.weight: BF16 to Q8_0". scales: by tensor, the largest relative change
    of a ternary scale. masters: float matrices that were rounded as loading them would, which loses nothing there."""

    def __init__(self) -> None:
        self.tables: dict[str, str] = {}
        self.scales: dict[str, float] = {}
        self.masters: set[str] = set()
        self._lock = Lock()

    def __bool__(self) -> bool:
        return bool(self.tables or self.scales)

    def watch(self, name: str, stored: str, dtype: str) -> Callable[[Block], Tensor]:
        """A call that passes a block of the tensor on, which goes from `stored` to `dtype`."""

        def look(block: Block) -> Tensor:
            tensor = block()
            with self._lock:
                if isinstance(tensor, TernaryTensor) and dtype not in (*FLOAT32_SCALES, *PLAIN):
                    self.half_scales(name, tensor)
                elif not exact(tensor, dtype):
                    self.tables[name] = f"{stored} to {dtype}"
                if isinstance(tensor, TernaryTensor) and stored in (*PLAIN, "Q8_0"):
                    self.masters.add(name)
            return tensor

        return look

    def half_scales(self, name: str, tensor: TernaryTensor) -> None:
        scales = tensor.scales.reshape(-1)
        with np.errstate(over="ignore"):
            changes = np.abs(scales.astype(np.float16).astype(np.float32) - scales)
        change = float(np.max(changes / np.where(scales == 0, 1, np.abs(scales)), initial=0))
        if change:
            self.scales[name] = max(change, self.scales.get(name, 0.0))

    def notes(self) -> list[str]:
        """A sentence for each kind of loss."""
        found = [f"{name} was rounded from {how}." for name, how in sorted(self.tables.items())]
        if self.scales:
            most = max(self.scales.values())
            found.append(
                f"The scales of {len(self.scales)} ternary tensors were rounded to float16, by {most:.1e} at most."
            )
        return found


def exact(tensor: Tensor, dtype: str) -> bool:
    """Whether the plain or quantised type `dtype` holds every value of `tensor`."""
    if dtype in FLOAT32_SCALES or dtype == "F32" or (not isinstance(tensor, TernaryTensor) and tensor.dtype == dtype):
        return True
    if dtype not in PLAIN:
        return False
    values = tensor.dequantize()
    if dtype == "BF16":
        return not (values.view(np.uint32) & 0xFFFF).any()
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())
