"""The tensor types of GGUF files: number, name, and how many bytes so many weights take.

One list, read by the reader, the writer and the error messages. Source: ggml.h and, for I2_S, TL1 and TL2, bitnet.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

I2_S_TRAILER = 32  # a float32 scale and 28 bytes of padding behind the codes


@dataclass(frozen=True, slots=True)
class GGUFType:
    """`block` weights of a row take `nbytes` bytes; `trailer` bytes follow the whole tensor.

    Where `flat` is set the blocks run over the whole tensor, so that a row need not be a multiple of `block`.
    `readable` types are decoded and written; the others are only recognised, to say what they are.
    """

    id: int
    name: str
    block: int
    nbytes: int
    readable: bool = False
    flat: bool = False
    trailer: int = 0

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this row-major shape is a whole number of blocks."""
        return (prod(shape) if self.flat else shape[-1]) % self.block == 0

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, without padding."""
        return prod(shape) // self.block * self.nbytes + self.trailer


_TYPES = (
    GGUFType(0, "F32", 1, 4, readable=True),
    GGUFType(1, "F16", 1, 2, readable=True),
    GGUFType(30, "BF16", 1, 2, readable=True),
    GGUFType(8, "Q8_0", 32, 34, readable=True),
    GGUFType(34, "TQ1_0", 256, 54, readable=True),
    GGUFType(35, "TQ2_0", 256, 66, readable=True),
    GGUFType(36, "I2_S", 128, 32, readable=True, flat=True, trailer=I2_S_TRAILER),
    GGUFType(2, "Q4_0", 32, 18),
    GGUFType(3, "Q4_1", 32, 20),
    GGUFType(6, "Q5_0", 32, 22),
    GGUFType(7, "Q5_1", 32, 24),
    GGUFType(10, "Q2_K", 256, 84),
    GGUFType(11, "Q3_K", 256, 110),
    GGUFType(12, "Q4_K", 256, 144),
    GGUFType(13, "Q5_K", 256, 176),
    GGUFType(14, "Q6_K", 256, 210),
    GGUFType(20, "IQ4_NL", 32, 18),
    GGUFType(23, "IQ4_XS", 256, 136),
    GGUFType(24, "I8", 1, 1),
    GGUFType(25, "I16", 1, 2),
    GGUFType(26, "I32", 1, 4),
    GGUFType(27, "I64", 1, 8),
    GGUFType(28, "F64", 1, 8),
    GGUFType(41, "Q1_0", 128, 18),
    GGUFType(42, "Q2_0", 64, 18),
    GGUFType(142, "PQ2_0", 128, 34),
    GGUFType(143, "PTQ1_0", 128, 28),
)

# Numbers that mean different things to different programs, or whose size is not known from the shape.
UNSIZED = {
    38: "TL1 (bitnet.cpp) or IQ4_NL_8_8 (old llama.cpp)",
    39: "TL2 (bitnet.cpp) or MXFP4 (llama.cpp)",
    134: "IQ1_BN (ik_llama.cpp)",
    135: "IQ2_BN (ik_llama.cpp)",
    335: "IQ2_BN_R4 (ik_llama.cpp)",
}

BY_ID = {each.id: each for each in _TYPES}
BY_NAME = {each.name: each for each in _TYPES}
READABLE = tuple(each.name for each in _TYPES if each.readable)
