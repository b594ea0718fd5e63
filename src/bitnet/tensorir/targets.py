"""What code is generated for: names that people use, and what each of them means to LLVM and to our schedules."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from bitnet.errors import ParameterError

X86 = ("sse4.2", "avx", "avx2", "f16c", "fma", "bmi", "bmi2", "popcnt", "lzcnt", "movbe")
AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True, slots=True)
class Target:
    """schedule: how ternary products are computed, a name in ternary.SCHEDULES. features: what a CPU must have, by the
    names of bitnet.machine. llvm: what TVM is told."""

    name: str
    machine: str
    schedule: str
    features: tuple[str, ...]
    llvm: tuple[tuple[str, Any], ...]

    @property
    def gpu(self) -> bool:
        return self.schedule == "dp4a"


def x86(name: str, schedule: str, mcpu: str, mattr: tuple[str, ...], features: tuple[str, ...]) -> Target:
    llvm = (("kind", "llvm"), ("mtriple", "x86_64-linux-gnu"), ("mcpu", mcpu), ("mattr", mattr))
    return Target(name, "x86_64", schedule, features, llvm)


def arm(name: str, schedule: str, mattr: tuple[str, ...], features: tuple[str, ...]) -> Target:
    llvm = (("kind", "llvm"), ("mtriple", "aarch64-linux-gnu"), ("mcpu", "generic"), ("mattr", mattr))
    return Target(name, "aarch64", schedule, features, llvm)


V3 = ("avx2", "f16c", "fma")
V4 = (*V3, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
TARGETS = {
    each.name: each
    for each in (  # the best first, of each machine
        x86("x86-64-v4", "avx512_vnni", "x86-64-v4", ("+avx512vnni",), V4),
        x86("x86-64-v3", "avx2", "x86-64-v3", (), V3),
        arm("aarch64-dotprod", "neon_dotprod", ("+neon", "+dotprod"), ("neon", "neon_dotprod")),
        arm("aarch64", "neon", ("+neon",), ("neon",)),
        Target("cuda", platform.machine(), "dp4a", ("cuda",), (("kind", "cuda"), ("arch", "sm_80"))),
    )
}


def target_of(name: str) -> Target:
    """The target of this name; "host" is the best that this machine runs."""
    if name == "host":
        return host()
    if name not in TARGETS:
        raise ParameterError(f"There is no target {name!r}.", f"Known: host, {', '.join(TARGETS)}.")
    return TARGETS[name]


def runs_here(target: Target) -> bool:
    return target.machine == platform.machine() and has_features(target)


def has_features(target: Target) -> bool:
    import bitnet._core as _core

    present = _core.cpu_features()
    return all(present.get(feature, False) for feature in target.features)


def host() -> Target:
    for target in TARGETS.values():
        if target.features and has_features(target):
            return target
    raise ParameterError("No target suits this CPU: x86-64 needs AVX2.", "The backend cpu runs on every CPU.")
