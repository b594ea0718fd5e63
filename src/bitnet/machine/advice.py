"""What slows this machine down, and what its owner can do about it."""

from __future__ import annotations

from dataclasses import dataclass

from bitnet.machine.facts import Machine

GIB = 2**30
LITTLE = 2 * GIB  # a model of two billion ternary weights and its context
HOT = 5.0  # degrees below critical


@dataclass(frozen=True, slots=True)
class Warning:
    """topic: a word that scripts may look for."""

    topic: str
    found: str
    advice: str


def warnings(machine: Machine) -> list[Warning]:
    return [each for rule in RULES if (each := rule(machine)) is not None]


def emulation(machine: Machine) -> Warning | None:
    name = machine.surroundings.emulator
    advice = "Install the build for this machine's own processor."
    return (
        Warning("emulation", f"This runs under {name}, which translates every instruction.", advice) if name else None
    )


def vectors(machine: Machine) -> Warning | None:
    import bitnet._core as _core

    found = "This CPU, or the virtual machine around it, offers no vector instructions that bitnet knows."
    advice = 'Let the virtual machine pass the CPU through (QEMU: -cpu host), or take one with AVX2 or "NEON".'
    return Warning("instructions", found, advice) if _core.isas() == ["scalar"] else None


def quota(machine: Machine) -> Warning | None:
    cpus, allowed = machine.limits.cpus, len(machine.processor.allowed)
    if cpus is None or cpus >= allowed:
        return None
    found = f"The control group grants the time of {cpus:g} of {allowed} CPUs."
    return Warning("quota", found, "Raise the container's CPU limit (docker: --cpus).")


def affinity(machine: Machine) -> Warning | None:
    allowed, logical = len(machine.processor.allowed), machine.processor.logical or 0
    found = f"{allowed} of {logical} CPUs are allowed."
    return Warning("affinity", found, "See taskset or --cpuset-cpus.") if allowed < logical else None


def governor(machine: Machine) -> Warning | None:
    if "powersave" not in (machine.processor.frequency.governor or "") or unlimited(machine):
        return None
    found = "The frequency governor is powersave."
    return Warning("governor", found, "As root: cpupower frequency-set -g performance")


def unlimited(machine: Machine) -> bool:
    """intel_pstate's powersave goes up to the full frequency under load, and is no cause for worry there."""
    frequency = machine.processor.frequency
    return frequency.now is not None and frequency.most is not None and frequency.now > 0.8 * frequency.most


def frequency(machine: Machine) -> Warning | None:
    limit, most = machine.processor.frequency.limit, machine.processor.frequency.most
    if limit is None or most is None or limit >= 0.95 * most:
        return None
    found = f"The frequency is limited to {limit} of {most} MHz."
    return Warning("frequency", found, "Look for a power-saving mode, or as root: cpupower frequency-set -u")


def heat(machine: Machine) -> Warning | None:
    hot = [t for t in machine.temperatures if t.limit is not None and t.now > t.limit - HOT]
    if hot:
        found = f"{hot[0].sensor} is at {hot[0].now:.0f} °C; {hot[0].limit:.0f} is critical."
        return Warning("heat", found, "Let it cool, clean the fans, or use fewer threads.")
    return None


def throttling(machine: Machine) -> Warning | None:
    count = machine.processor.frequency.throttled
    found = f"Heat has slowed the cores down {count} times since the system started."
    return Warning("throttling", found, "Look after the cooling, or use fewer threads.") if count else None


def huge_pages(machine: Machine) -> Warning | None:
    if machine.memory.huge_pages != "never":
        return None
    found = "Huge pages are off; reading the weights misses the TLB at every 4 KB."
    return Warning("huge pages", found, "As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")


def numa(machine: Machine) -> Warning | None:
    import bitnet._core as _core

    nodes = [
        node.id for node in machine.processor.nodes if node.memory and set(node.cpus) & {*machine.processor.allowed}
    ]
    if len(nodes) < 2 or _core.can_interleave(nodes):
        return None
    found = f"Memory may not be spread over the NUMA nodes {nodes}: the system refuses."
    return Warning("NUMA", found, "In docker: --cap-add SYS_NICE. Or keep to one node: --cpuset-cpus.")


def little_memory(machine: Machine) -> Warning | None:
    free = machine.available
    if free is None or free >= LITTLE:
        return None
    return Warning("memory", f"{free / GIB:.2f} GiB of memory are free.", "Close other programs or take a small model.")


def memory_limit(machine: Machine) -> Warning | None:
    limit, total = machine.limits.memory, machine.memory.total
    if limit is None or total is None or limit >= total:
        return None
    found = f"The control group allows {limit / GIB:.2f} of {total / GIB:.2f} GiB of memory."
    return Warning("memory limit", found, "Raise the container's limit (docker: --memory) for larger models.")


def swapping(machine: Machine) -> Warning | None:
    used, free = machine.memory.swap_used, machine.available
    if not used or used < GIB / 4 or free is None or free >= LITTLE:
        return None
    found = f"{used / GIB:.2f} GiB are swapped out."
    return Warning("swap", found, "Weights in swap are read at the speed of the disk: free some memory.")


# In the order of how much they cost.
RULES = (
    emulation,
    vectors,
    swapping,
    little_memory,
    quota,
    throttling,
    heat,
    governor,
    frequency,
    huge_pages,
    numa,
    affinity,
    memory_limit,
)
