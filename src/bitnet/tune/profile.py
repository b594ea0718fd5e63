"""What was measured for a model on a machine, kept where later runs find it.

~/.config/bitnet/profiles/MACHINE/MODEL.json. Both names are fingerprints of what decides about speed: no weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bitnet
from bitnet.errors import BitNetError, FormatError, ParameterError, ResourceError
from bitnet.formats.atomic import replacing
from bitnet.formats.bounded_json import parse_object
from bitnet.formats.checkpoint import Checkpoint
from bitnet.machine.files import ROOT
from bitnet.models import open_model
from bitnet.tune.options import Options

VERSION = 1  # of the file
MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Profile:
    """machine, model: what it was measured on, in words. measured: seconds of the work before and after, and rates."""

    options: Options
    machine: str = ""
    model: str = ""
    made: str = ""
    measured: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        kept = {"options": self.options.changed(), "machine": self.machine, "model": self.model, "made": self.made}
        return {"version": VERSION, "bitnet": bitnet.__version__, **kept, "measured": self.measured}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Profile:
        """Raises FormatError where it is none that this bitnet wrote."""
        if found.get("version") != VERSION or found.get("bitnet") != bitnet.__version__:
            made = f"bitnet {found.get('bitnet')!s:.20}, version {found.get('version')!s:.20}"
            raise FormatError(f"it was written by {made}.")
        options, measured = found.get("options"), found.get("measured")
        machine, model, made = (str(found.get(name, "")) for name in ("machine", "model", "made"))
        if not isinstance(options, dict):
            raise FormatError("it holds no options.")
        try:
            settings = Options.of(options)
        except ParameterError as error:
            raise FormatError(error.message) from None
        return cls(settings, machine, model, made, measured if isinstance(measured, dict) else None)


@dataclass(frozen=True, slots=True)
class Found:
    """path: where the profile of a model is kept, or would be. note: why a file that is there is not used."""

    path: Path | None = None
    profile: Profile | None = None
    note: str = ""

    @property
    def options(self) -> Options:
        return self.profile.options if self.profile else Options()


def find(checkpoint: Checkpoint) -> Found:
    """The profile of this model on this machine; nothing where BITNET_NO_PROFILE is set or there is none."""
    if os.environ.get("BITNET_NO_PROFILE", "0").lower() not in ("", "0", "false", "no"):
        return Found()
    path = place(checkpoint)
    if path is None:
        return Found()
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError:
        return Found(path)
    try:
        if len(text) > MOST_BYTES:
            raise FormatError("it is too large.")
        return Found(path, Profile.of(parse_object(text, "it")))
    except FormatError as error:
        return Found(path, note=f"The profile {path} is not used: {error.message} `bitnet tune` makes a new one.")


def save(profile: Profile, checkpoint: Checkpoint) -> Path:
    """Keep it for later runs; what was there before is replaced. ResourceError where it cannot be written."""
    path = place(checkpoint)
    if path is None:
        raise ResourceError("There is no home directory to keep the profile in.", "Set XDG_CONFIG_HOME.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path.parent} cannot be made: {error.strerror}.", "Set XDG_CONFIG_HOME.") from error
    with replacing(path) as file:
        file.write(json.dumps(profile.to_json(), indent=2).encode() + b"\n")
    return path


def place(checkpoint: Checkpoint) -> Path | None:
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return home / "bitnet" / "profiles" / machine_fingerprint() / f"{model_fingerprint(checkpoint)}.json"
    except (RuntimeError, BitNetError):  # no home; a model that loading will refuse, with the reason
        return None


def machine_fingerprint() -> str:
    """Of what decides about speed: the processor, what it can do, and how much of it this process has."""
    import bitnet._core as _core
    from bitnet.machine.processor import caches, model_name

    cpus = _core.allowed_cpus()
    shared = [asdict(cache) for cache in caches(ROOT, tuple(cpus))]
    counts = [len(cpus), _core.default_threads(), len(_core.memory_nodes())]
    return fingerprint([model_name(), platform.machine(), _core.isa(), shared, counts])


def model_fingerprint(checkpoint: Checkpoint) -> str:
    """Of the architecture, the sizes and the stored types: two models of one shape share a profile."""
    _, config, _ = open_model(checkpoint)
    tensors = sorted((info.name, list(info.shape), info.dtype) for info in checkpoint.tensors().values())
    return fingerprint([checkpoint.architecture, asdict(config), tensors])


def fingerprint(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]
