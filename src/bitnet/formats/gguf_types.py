"""The tensor types of GGUF files: number, name, and how many bytes so many weights take.

One list, read by the reader, the writer and the error messages. Sources: ggml.h of llama.cpp; bitnet.cpp for I2_S, TL1
and TL2; ik_llama.cpp for IQ1_BN, IQ2_BN and IQ2_BN_R4; PrismML's llama.cpp for PQ2_0 and PTQ1_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from bitnet.formats import tile_codes

I2_S_TRAILER = 32  # a float32 scale and 28 bytes of padding behind the codes


@dataclass(frozen=True, slots=True)
class GGUFType:
    """`block` weights of a row take `nbytes`; a row has `row_header` bytes in front, the tensor `trailer` behind it.

    Where `flat` is set the blocks run over the whole tensor, so that a row need not be a multiple of `block`. Rows come
    in multiples of `rows`. `use`: "ternary" and "float" types are decoded; the others are only recognised, to say what
    they are. `written`: whether this program writes it.
    """

    id: int
    name: str
    block: int
    nbytes: int
    use: str = ""
    written: bool = False
    flat: bool = False
    row_header: int = 0
    rows: int = 1
    trailer: int = 0

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this row-major shape is a whole number of blocks."""
        columns = prod(shape) if self.flat else shape[-1]
        return columns % self.block == 0 and prod(shape[:-1]) % self.rows == 0

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, without padding."""
        return prod(shape) // self.block * self.nbytes + prod(shape[:-1]) * self.row_header + self.trailer

    def row_step(self, shape: tuple[int, ...]) -> int:
        """Rows of a matrix of this shape whose bytes stand alone, but for the trailer."""
        return min(self.block // gcd(shape[-1], self.block) if self.flat else self.rows, shape[0])

    @property
    def behind(self) -> int:
        """Bytes after the tensor's size that belong to it, although the file may list them as another tensor."""
        return 0

    @property
    def rule(self) -> str:
        """What `divides` asks for, in words."""
        rule = f"{'sizes' if self.flat else 'rows'} in multiples of {self.block} weights"
        return rule if self.rows == 1 else f"{rule} and {self.rows} rows at a time"


class TiledType(GGUFType):
    """TL1 and TL2: their size is a formula, and a float32 scale lies behind them, which bitnet.cpp's converter lists as
    a tensor of its own, `NAME_scale`."""

    __slots__ = ()

    def divides(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and shape[-1] >= 256

    def size(self, shape: tuple[int, ...]) -> int:
        return tile_codes.nbytes(self.name, shape)

    def row_step(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    @property
    def behind(self) -> int:
        return 4

    @property
    def rule(self) -> str:
        return "matrices of at least 256 columns"


_TYPES = (
    GGUFType(0, "F32", 1, 4, "float", written=True),
    GGUFType(1, "F16", 1, 2, "float", written=True),
    GGUFType(30, "BF16", 1, 2, "float", written=True),
    GGUFType(8, "Q8_0", 32, 34, "float", written=True),
    GGUFType(2, "Q4_0", 32, 18, "float"),
    GGUFType(6, "Q5_0", 32, 22, "float"),
    GGUFType(11, "Q3_K", 256, 110, "float"),
    GGUFType(12, "Q4_K", 256, 144, "float", written=True),
    GGUFType(13, "Q5_K", 256, 176, "float"),
    GGUFType(14, "Q6_K", 256, 210, "float", written=True),
    GGUFType(34, "TQ1_0", 256, 54, "ternary", written=True),
    GGUFType(35, "TQ2_0", 256, 66, "ternary", written=True),
    GGUFType(36, "I2_S", 128, 32, "ternary", written=True, flat=True, trailer=I2_S_TRAILER),
    TiledType(38, "TL1", 1, 0, "ternary"),
    TiledType(39, "TL2", 1, 0, "ternary"),
    GGUFType(41, "Q1_0", 128, 18, "ternary", written=True),
    GGUFType(42, "Q2_0", 64, 18, "ternary", written=True),
    GGUFType(142, "PQ2_0", 128, 34, "ternary", written=True),
    GGUFType(143, "PTQ1_0", 128, 28, "ternary", written=True),
    GGUFType(134, "IQ1_BN", 64, 13, "ternary", written=True, row_header=2),
    GGUFType(135, "IQ2_BN", 64, 16, "ternary", written=True, row_header=4),
    GGUFType(335, "IQ2_BN_R4", 64, 16, "ternary", row_header=4, rows=4),
    GGUFType(3, "Q4_1", 32, 20),
    GGUFType(7, "Q5_1", 32, 24),
    GGUFType(10, "Q2_K", 256, 84),
    GGUFType(20, "IQ4_NL", 32, 18),
    GGUFType(23, "IQ4_XS", 256, 136),
    GGUFType(24, "I8", 1, 1),
    GGUFType(25, "I16", 1, 2),
    GGUFType(26, "I32", 1, 4),
    GGUFType(27, "I64", 1, 8),
    GGUFType(28, "F64", 1, 8),
)

# What else the number of a ternary type has meant, where its size says that it is not that type.
OTHER_MEANINGS = {
    36: "It may be an IQ4_NL_4_4 tensor of an old llama.cpp.",
    38: "It may be an IQ4_NL_8_8 tensor of an old llama.cpp.",
    39: "It may be an MXFP4 tensor of llama.cpp.",
    142: "It may be an IQ2_TN tensor of an old ik_llama.cpp.",
    143: "It may be an IQ1_TN tensor of an old ik_llama.cpp.",
}

BY_ID = {each.id: each for each in _TYPES}
BY_NAME = {each.name: each for each in _TYPES}
READABLE = tuple(each.name for each in _TYPES if each.use)
TERNARY = tuple(each.name for each in _TYPES if each.use == "ternary")
WRITABLE = tuple(each.name for each in _TYPES if each.written)
