"""An NVIDIA GPU as a backend. What it needs beside the package is imported when it is asked for."""

from __future__ import annotations

from bitnet.backends.cuda.ops import CUDA


def open_gpu(index: int = 0) -> CUDA:
    """DeviceError says why there is none."""
    from bitnet.backends.cuda.driver import DriverGPU

    return CUDA(DriverGPU(index))
