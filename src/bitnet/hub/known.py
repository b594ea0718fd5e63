"""Models that are known to be 1-bit or ternary, and short names for them.

Sources: https://github.com/microsoft/BitNet (its table of supported models), and what microsoft, 1bitLLM, HF1BitLLM,
tiiuae, SpectraSuite and prism-ml have on huggingface.co.
"""

from __future__ import annotations

from dataclasses import dataclass

FOLDER = "safetensors"  # what a folder is called among the quants


@dataclass(frozen=True, slots=True)
class Known:
    """quant: which of the repository's files; "" where the choice is left to the rule for all repositories.

    parameters, nbytes: of the weights, computed from the shapes and the type that they are stored in, or as their page
    on the hub has them; None where that is not known. verified: whether the published file itself has been run with
    this program and compared with what its authors say; the architectures have been, on made-up weights.
    """

    name: str
    repo: str
    quant: str
    about: str
    parameters: int | None = None
    nbytes: int | None = None
    verified: bool = False


def _falcon3(size: str, parameters: int, nbytes: int) -> Known:
    name = f"tiiuae/Falcon3-{size}-Instruct-1.58bit"
    return Known(f"falcon3-{size.lower()}", name, FOLDER, "Falcon 3, chat", parameters, nbytes)


def _trilm(size: str, parameters: int | None, nbytes: int) -> Known:
    about = "TriLM, no chat, unpacked to float16"
    return Known(f"trilm-{size.lower()}", f"SpectraSuite/TriLM_{size}_Unpacked", FOLDER, about, parameters, nbytes)


def _bonsai(size: str, nbytes: int | None) -> Known:
    return Known(f"bonsai-{size.lower()}", f"prism-ml/Bonsai-{size}-gguf", "", "Bonsai, 1 bit, chat", None, nbytes)


def _ternary_bonsai(size: str, parameters: int, nbytes: int) -> Known:
    name = f"prism-ml/Ternary-Bonsai-{size}-gguf"
    return Known(f"ternary-bonsai-{size.lower()}", name, "", "Ternary Bonsai, chat", parameters, nbytes)


_2B = 2_412_820_480
KNOWN = (
    Known("2b-4t", "microsoft/bitnet-b1.58-2B-4T-gguf", "I2_S", "BitNet b1.58, chat", _2B, 1_179_449_920),
    Known("2b-4t-packed", "microsoft/bitnet-b1.58-2B-4T", FOLDER, "BitNet b1.58, chat", _2B, 1_178_562_980),
    Known("2b-4t-bf16", "microsoft/bitnet-b1.58-2B-4T-bf16", FOLDER, "its masters, for training", _2B, 2 * _2B),
    Known("bitnet-large", "1bitLLM/bitnet_b1_58-large", FOLDER, "BitNet b1.58, no chat, masters", 728_842_752),
    Known("bitnet-3b", "1bitLLM/bitnet_b1_58-3B", FOLDER, "BitNet b1.58, no chat, masters", 3_324_387_840),
    Known(
        "llama3-8b",
        "HF1BitLLM/Llama3-8B-1.58-100B-tokens",
        FOLDER,
        "Llama 3, fine-tuned to 1.58 bits",
        8_030_261_248,
        3_846_709_696,
    ),
    _falcon3("1B", 1_669_408_768, 1_357_009_148),
    _falcon3("3B", 3_227_655_168, 2_216_442_164),
    _falcon3("7B", 7_455_550_464, 3_273_480_584),
    _falcon3("10B", 10_305_653_760, 3_986_135_600),
    Known("falcon-e-1b", "tiiuae/Falcon-E-1B-Instruct", FOLDER, "Falcon-E, chat"),
    Known("falcon-e-3b", "tiiuae/Falcon-E-3B-Instruct", FOLDER, "Falcon-E, chat"),
    _trilm("99M", 99_800_000, 200_000_000),
    _trilm("390M", None, 785_000_000),
    _trilm("1.5B", None, 3_030_000_000),
    _trilm("3.9B", 3_990_000_000, 7_980_000_000),
    _bonsai("1.7B", 237_000_000),
    _bonsai("4B", 546_000_000),
    _bonsai("8B", 1_100_000_000),
    _ternary_bonsai("1.7B", 1_720_000_000, 457_000_000),
    _ternary_bonsai("4B", 4_000_000_000, 1_070_000_000),
    _ternary_bonsai("8B", 8_190_000_000, 2_180_000_000),
    Known("embed-0.6b", "microsoft/bitnet-embedding-0.6b", "I2_S", "BitNet embeddings"),
    Known("embed-270m", "microsoft/bitnet-embedding-270m", "I2_S", "BitNet embeddings"),
)
