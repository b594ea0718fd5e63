"""An examination of the machine: facts, choices, measurements, tests and advice, as JSON has them."""

from __future__ import annotations

import os
import platform
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bitnet.errors import ParameterError
from bitnet.machine.advice import Warning, warnings
from bitnet.machine.choices import choices
from bitnet.machine.facts import Machine, look
from bitnet.machine.selftest import self_test

BANDWIDTH_BYTES = 256 << 20  # more than most caches hold, read in a moment
SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")


def examine(
    port: int = 8080,
    bandwidth: bool = True,
    machine: Machine | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Everything that `bitnet doctor` tells. bandwidth: whether to measure it, which takes a second."""
    import bitnet._core as _core

    machine = machine or look()
    found = warnings(machine)
    try:
        chosen = choices(machine, environment)
    except ValueError as error:  # an instruction set that is not to be had
        _core.set_isa(_core.isas()[0])
        found.insert(0, Warning("BITNET_ISA", str(error), "Unset BITNET_ISA to let bitnet choose."))
        chosen = choices(machine, {})
    return {
        "versions": versions(),
        "machine": {**asdict(machine), "available": machine.available, "features": _core.cpu_features()},
        "choices": {each.name: {"value": each.value, "why": each.why} for each in chosen},
        "bandwidth": measure(machine) if bandwidth else None,
        "self_test": tested(),
        "port": {"port": port, **port_state(port)},
        "environment": settings(environment),
        "warnings": [asdict(each) for each in found],
    }


def versions() -> dict[str, str]:
    import numpy

    import bitnet
    import bitnet._core as _core

    return {
        "bitnet": bitnet.__version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "compiler": _core.compiler,
    }


def measure(machine: Machine) -> dict[str, float]:
    """GB/s of reading memory with one thread and with all that are chosen, by the number of threads."""
    import bitnet._core as _core

    nbytes = min(BANDWIDTH_BYTES, (machine.available or BANDWIDTH_BYTES) // 4)
    counts = dict.fromkeys((1, _core.default_threads()))
    return {str(threads): round(_core.read_bandwidth(nbytes, threads), 2) for threads in counts}


def tested() -> dict[str, Any]:
    begin = time.perf_counter()
    checks = self_test()
    isas = dict.fromkeys(check.isa for check in checks)
    return {
        "passed": all(check.passed for check in checks),
        "seconds": round(time.perf_counter() - begin, 3),
        "isas": {isa: {c.operation: c.failure or "ok" for c in checks if c.isa == isa} for isa in isas},
    }


def port_state(port: int) -> dict[str, Any]:
    """Whether a server could listen there, and who does where the system tells."""
    if not 0 < port < 65536:
        raise ParameterError(f"The port is {port}; expected 1 to 65535.")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            trial.bind(("127.0.0.1", port))
            trial.listen(1)
        except OSError as error:
            return {"free": False, "why": error.strerror, "process": listener(port)}
    return {"free": True, "why": None, "process": None}


def listener(port: int) -> str | None:
    """The program that listens on `port`, with its number, where we may know."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid and not connection.raddr:
                return f"{psutil.Process(connection.pid).name()} ({connection.pid})"
    except (psutil.Error, OSError):
        pass
    return None


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what bitnet does; of secrets only that they are set."""
    ours = {name: value for name, value in sorted(environment.items()) if name.startswith("BITNET_")}
    return {name: "(set)" if SECRET.search(name) else value for name, value in ours.items()}
