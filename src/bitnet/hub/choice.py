"""Which files of a repository are the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitnet.errors import NotFoundError, ParameterError, UnsupportedError
from bitnet.formats.opening import PICKLES
from bitnet.hub.known import FOLDER

# How a file that is one of several is chosen where nobody says: the first of these that is there, then a folder of
# safetensors. Two bits before fewer, for they load and run fastest; files of other types are never chosen silently.
ORDER = ("I2_S", "PQ2_0", "Q2_0", "TQ2_0", "IQ2_BN", "PTQ1_0", "TQ1_0", "IQ1_BN", "Q1_0")
QUANT = re.compile(
    r"(?:^|[-._])(I2_S|TL[12]|P?TQ[12]_0|PQ2_0|IQ[1-4]_\w+?|Q\d(?:_K)?(?:_[SMLX0-9]+)?|BF16|F16|F32|FP16|FP32)"
    r"((?:[_-]g\d+)?)$",
    re.IGNORECASE,
)
SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
BESIDE = ("mmproj", "imatrix")  # GGUF files that are no language models
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
NEEDED = frozenset(  # beside the weights; code and pickles are never fetched
    (
        CONFIG,
        INDEX,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "modules.json",
        "1_Pooling/config.json",
    )
)


@dataclass(frozen=True, slots=True)
class File:
    """sha256: of the contents, where the hub tells it; git: git's hash of them, which it tells of small files."""

    name: str
    size: int
    sha256: str = ""
    git: str = ""

    @property
    def etag(self) -> str:
        """Under which the cache keeps it."""
        return self.sha256 or self.git


def choose(repo: str, files: Iterable[File], quant: str = "") -> list[File]:
    """One GGUF file, or the files of a folder, config.json the last of them.

    NotFoundError where there is no such quant, ParameterError where several would do, UnsupportedError where nothing
    does.
    """
    files = [file for file in files if sound(file.name)]
    models: dict[str, list[list[File]]] = {}
    for file in files:
        if is_model(file.name):
            models.setdefault(label(file.name), []).append([file])
    if folder := folder_files(files):
        models[FOLDER] = [folder]
    if not models:
        raise nothing(repo, files)
    found = matching(models, quant) if quant else preferred(models)
    if len(found) == 1:
        return found[0]
    if not found and quant:
        raise NotFoundError(
            f"{repo} has no {quant}; it has {listed(models)}.", f"Name one of them: {example(repo, models)}"
        )
    raise ParameterError(
        f"{repo} has {listed(models)}: which one is meant?", f"Name one of them: {example(repo, models)}"
    )


Models = dict[str, list[list[File]]]  # quant -> models, each a list of files


def matching(models: Models, quant: str) -> list[list[File]]:
    """Those of this label, or else of this type whatever the size of its groups, or the file of this name."""
    wanted = quant.lower()
    named = [m for group in models.values() for m in group if len(m) == 1 and m[0].name.lower() == wanted]
    exact = [m for name, group in models.items() for m in group if name.lower() == wanted]
    loose = [m for name, group in models.items() for m in group if base(name).lower() == wanted]
    return named or exact or loose


def preferred(models: Models) -> list[list[File]]:
    """The best in the order above; all where none of them is in it."""
    for quant in (*ORDER, FOLDER):
        if quant in models:
            return models[quant]
        grouped = [m for name, group in models.items() for m in group if base(name) == quant]
        if grouped:
            return grouped
    return [m for group in models.values() for m in group]


def is_model(name: str) -> bool:
    stem = name.rsplit("/", 1)[-1].removesuffix(".gguf")
    return name.endswith(".gguf") and not SPLIT.search(stem) and not any(word in stem.lower() for word in BESIDE)


def label(name: str) -> str:
    """How a file's name says that it is quantised: "I2_S" of ggml-model-i2_s.gguf; the whole name where it does not."""
    match = QUANT.search(name.rsplit("/", 1)[-1].removesuffix(".gguf"))
    return match[1].upper() + match[2].lower().replace("-", "_") if match else name


def base(quant: str) -> str:
    """Q2_0 of Q2_0_g64."""
    return re.sub(r"_g\d+$", "", quant)


def folder_files(files: Sequence[File]) -> list[File]:
    """What a folder needs to be opened, config.json last: where that is there, everything is."""
    names = {file.name for file in files}
    weights = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    if INDEX in names:
        weights = {name for name in weights if SPLIT.search(name.removesuffix(".safetensors"))} or weights
    elif "model.safetensors" in weights:
        weights = {"model.safetensors"}
    if CONFIG not in names or not weights:
        return []
    wanted = [file for file in files if file.name in weights or file.name in NEEDED]
    return sorted(wanted, key=lambda file: (file.name == CONFIG, file.name not in weights, file.name))


def sound(name: str) -> bool:
    """Whether a name from a listing may be joined to a folder."""
    return not name.startswith(("/", "~")) and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def nothing(repo: str, files: Sequence[File]) -> UnsupportedError:
    if any(SPLIT.search(file.name.removesuffix(".gguf")) for file in files if file.name.endswith(".gguf")):
        return UnsupportedError(
            f"{repo} has its model in parts.", "Join them: llama-gguf-split --merge FIRST-PART OUTPUT."
        )
    if any(file.name.endswith(PICKLES) for file in files):
        return UnsupportedError(
            f"{repo} has pickled weights only; they are never loaded, for they run code.",
            "Look for a repository of the same model with *.safetensors or *.gguf.",
        )
    return UnsupportedError(
        f"{repo} has no model that can be opened: neither a GGUF file nor config.json with *.safetensors.",
        "Look for a repository of the same model with one of them.",
    )


def listed(models: Models) -> str:
    return ", ".join(
        f"{name} ({amount(sum(file.size for file in m))})" for name, group in models.items() for m in group
    )


def example(repo: str, models: Models) -> str:
    """A name that picks one."""
    quant, group = next(iter(models.items()))
    return f"{repo}:{quant if len(group) == 1 else group[0][0].name}"


def amount(nbytes: float) -> str:
    """As hubs count: 1 GB is 10^9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.{2 if nbytes < 10 * size else 1 if nbytes < 100 * size else 0}f} {unit}"
    return f"{nbytes:.0f} bytes"
