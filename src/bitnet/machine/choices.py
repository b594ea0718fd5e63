"""What bitnet chose for this machine, and why."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from bitnet.machine.facts import Machine


@dataclass(frozen=True, slots=True)
class Choice:
    name: str
    value: str | int
    why: str


def choices(machine: Machine, environment: Mapping[str, str] = os.environ) -> list[Choice]:
    """Raises ValueError where BITNET_ISA names no instruction set that this CPU can run."""
    import bitnet._core as _core

    return [
        instruction_set(_core.isa(), _core.cpu_features(), environment.get("BITNET_ISA", "")),
        Choice("threads", _core.default_threads(), threads_reason(machine)),
        Choice("pinning", "none", "the system places the threads; taskset and numactl are respected"),
        placement(_core.memory_nodes()),
    ]


def instruction_set(isa: str, features: dict[str, bool], wanted: str = "") -> Choice:
    if wanted:
        return Choice("instruction set", isa, "BITNET_ISA asks for it")
    better = [f"{name} needs {', '.join(lacking)}" for name, lacking in better_sets(isa, features).items()]
    return Choice("instruction set", isa, "; ".join(["the best that this CPU can run", *better]))


def better_sets(isa: str, features: dict[str, bool]) -> dict[str, list[str]]:
    """The instruction sets of this machine type before `isa`, best first, with the features that the CPU lacks."""
    import bitnet._core as _core

    foreign = {name for name in features if name.startswith("neon") != features["neon"]}
    complete = {name: name not in foreign for name in features}
    before = _core.isas_for(complete)
    return {
        name: [
            each for each in features if not features[each] and name not in _core.isas_for({**complete, each: False})
        ]
        for name in before[: before.index(isa)]
    }


def placement(nodes: list[int]) -> Choice:
    if len(nodes) < 2:
        return Choice("placement", "local", "the allowed CPUs have one NUMA node")
    return Choice(
        "placement", "interleaved", f"pages come from the NUMA nodes {nodes} in turn, unless numactl says otherwise"
    )


def threads_reason(machine: Machine) -> str:
    cpus, cores, quota = len(machine.processor.allowed), machine.processor.allowed_cores, machine.limits.cpus
    reasons = [f"{cpus} of {machine.processor.logical or cpus} CPUs are allowed"]
    if cores is not None and cores < cpus:
        reasons.append(f"they share {cores} cores, and a core's second thread adds nothing")
    if quota is not None:
        reasons.append(f"the control group grants the time of {quota:g}")
        if math.ceil(quota) < (cores or cpus):
            reasons[-1] += ", which is fewer"
    return "; ".join(reasons)
