"""llama.cpp through llama-cpp-python's raw functions, used as llama-bench uses them."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

cpp: Any = import_module("llama_cpp")
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
ERROR = 4  # GGML_LOG_LEVEL_ERROR


def version() -> str:
    return str(cpp.__version__)


class Engine:
    def __init__(self, request: dict[str, Any]) -> None:
        """request: the GGUF file `path`, the most `positions` of a test, tokens in a `batch`."""
        self._said: list[str] = []
        self._log = LOG(self._hear)
        cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        cpp.llama_backend_init()
        self._model = cpp.llama_model_load_from_file(request["path"].encode(), cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(self._reason("the file cannot be loaded"))
        parameters = cpp.llama_context_default_params()
        parameters.n_ctx = request["positions"]
        parameters.n_batch = parameters.n_ubatch = request["batch"]
        self._context = cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(self._reason("there is no context for it"))
        self.vocab_size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))

    def reset(self, threads: int) -> None:
        cpp.llama_set_n_threads(self._context, threads, threads)
        cpp.llama_memory_clear(cpp.llama_get_memory(self._context), True)

    def read(self, ids: list[int]) -> None:
        tokens = (cpp.llama_token * len(ids))(*ids)  # the batch only points at them
        if cpp.llama_decode(self._context, cpp.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError(self._reason("llama_decode failed"))
        cpp.llama_synchronize(self._context)

    def _hear(self, level: int, text: bytes, data: object) -> None:
        if level == ERROR:
            self._said.append(text.decode(errors="replace").strip())

    def _reason(self, default: str) -> str:
        return next(iter(self._said), default)
