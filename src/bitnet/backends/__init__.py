"""Meanings for the operations of base.py."""

from __future__ import annotations

from importlib import import_module

from bitnet.backends.base import Ops
from bitnet.backends.packing import asked
from bitnet.errors import ParameterError

BACKENDS = ("cpu", "cuda", "reference", "tvm")


def make(name: str = "cpu", weights: str = "auto", kernel: str = "auto") -> Ops:
    """A backend by name; imported only now, since each may need something that is not installed.

    name: "cuda:1" is the second GPU. weights, kernel: how "cpu" keeps and multiplies ternary weights, out of
    packing.WEIGHTS and packing.KERNELS.
    """
    packing = asked(weights, kernel)
    if name == "cpu":
        from bitnet.backends.cpu import CPU

        return CPU(packing)
    if packing != "auto":
        raise ParameterError(f"The backend {name} has neither weights {weights!r} nor a kernel {kernel!r}.")
    family, _, index = name.partition(":")
    if family == "cuda" and (name == family or index.isdecimal()):
        opened: Ops = import_module("bitnet.backends.cuda").open_gpu(int(index or 0))
        return opened
    if name == "reference":
        from bitnet.backends.reference import Reference

        return Reference()
    if name == "tvm":
        return make_tvm()
    raise ParameterError(f"There is no backend {name!r}.", f"Known: {', '.join(BACKENDS)}.")


def make_tvm() -> Ops:
    """The backend tvm, or ParameterError where TVM is not installed."""
    try:
        made: Ops = import_module("bitnet.backends.tvm").with_native()
    except ImportError as error:
        raise ParameterError(f"The backend tvm needs {error.name}.", "pip install 'bitnet[tvm]'") from error
    return made


def set_threads(threads: int) -> int:
    """Let the C++ core use this many processors, 0: all that are allowed; returns how many that is."""
    import bitnet._core as _core

    if not 0 <= threads <= 1024:
        raise ParameterError(f"threads is {threads}; expected 0 to 1024.")
    _core.set_threads(threads or _core.default_threads())
    return _core.threads()
