"""Machines made of files: what the kernel would say of them, in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Write = Callable[[Mapping[str, object]], Path]


def writer(folder: Path) -> Write:
    """Puts texts at paths below `folder`, and gives it back."""

    def write(texts: Mapping[str, object]) -> Path:
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return folder

    return write


CPU = "sys/devices/system/cpu"


def laptop(threads: int = 8) -> dict[str, object]:
    """Half as many cores as threads; thread i and i + cores share one, as Linux numbers them on Intel."""
    cores = threads // 2
    files: dict[str, object] = {
        "proc/cpuinfo": "processor : 0\nmodel name\t: Fast CPU @ 3.00GHz\ncpu MHz : 1234.5\nflags : fpu avx2",
        "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\nSwapTotal: 2000000 kB\nSwapFree: 1500000 kB",
        "proc/self/cgroup": "0::/user.slice/app.scope",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
        f"{CPU}/online": f"0-{threads - 1}",
    }
    for cpu in range(threads):
        files[f"{CPU}/cpu{cpu}/topology/core_cpus_list"] = f"{cpu % cores},{cpu % cores + cores}"
        files[f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq"] = 800000 + cpu * 1000
        files[f"{CPU}/cpu{cpu}/cpufreq/scaling_max_freq"] = 2000000
        files[f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = 4000000
        files[f"{CPU}/cpu{cpu}/cpufreq/scaling_governor"] = "powersave"
        files[f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_count"] = cpu % 2
    return files
