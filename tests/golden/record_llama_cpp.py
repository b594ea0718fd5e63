"""Records what llama.cpp makes of a GGUF file: token ids, the likeliest next token and the loss at every position.

    python record_llama_cpp.py MODEL.gguf TEXTS.json OUT.json

Needs llama-cpp-python and NumPy only, so that it can run where bitnet is not installed. See make_goldens.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np

CONTEXT = 256
F32 = 0  # ggml's number of the type, here of cached keys and values
STRINGS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\r\n", " \n ", "\n \n", "a", " a", "  a", "a ", "a  ",
    "a   b", "\u00a0", "\u3000x", "Hello world", "hello  world", "HELLO, World!",
    "don't I'll we've THEY'RE O'Neil's 'S 'll'", "x'y ''s", "it\u2019s", "1", "12", "123", "1234",
    "12345678901234567890", "3.14159", "1,000,000", "1st 2nd 3rd", "a1b2c3", "\u0663\u0664\u0665\u0666",
    "\u00bd\u00b2", "snake_case camelCase kebab-case", "foo(bar)[0] = {x: -1};", "if (a != b) { return a->b; }",
    "    indented\n\tcode\n", "!!!???...", "-----", "=" * 40, "http://example.com/a?b=c&d=%20#e", "user@example.com",
    "C:\\path\\to", "$5 \u20ac5 \u00a35", "`code` **bold** _it_", '"quoted" \u201cquoted\u201d \u00abquoted\u00bb',
    "\u00e9t\u00e9 na\u00efve \u00fcber", "e\u0301te\u0301", "\u00df\u0130\u0131", "\u4f60\u597d\uff0c\u4e16\u754c",
    "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca", "\ud55c\uad6d\uc5b4",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\U0001d54f \U00010348", "\u200b\u200d\ufeff", "a\u00adb",
    "\ue000\uf8ff", "\u2028\u2029", "a\x00b", "\x01\x7f\x1b[0m", "\u2581", "\u2581\u2581a", "a\u2581b", "<s>", "</s>",
    "<unk>", "<0x41>", "<|begin_of_text|>", "<|eot_id|>hi", "<|end_of_text", "|>", "the" * 50, "a" * 300,
    " " * 50 + "x", "\n" * 20, "ab " * 60, "Once upon a time, there was a little girl named Lily.",
    "\u0001F\u030a\u0323", "x\u0308\u0304", "1\u2044 2\u20443", "\u2460\u2461", "I\u0307stanbul",
    "zz\u00a0zz\u2003zz\u2009zz", "end.\n\nNew paragraph.\n", "a,b;c:d", "word\u2014dash\u2013dash",
    "tab\tseparated\tvalues", "MiXeD CaSe WoRdS", "C3PO R2-D2", "x=1&y=2", "50% off!", "(a)(b)", "O'Clock", "a.b.c",
    "...a", "\u00bfQu\u00e9?",
]  # fmt: skip


def main() -> None:
    model_path, texts_path, out_path = sys.argv[1:]
    model = llama_cpp.Llama(
        model_path, n_ctx=CONTEXT, n_threads=1, logits_all=True, verbose=False, type_k=F32, type_v=F32, flash_attn=False
    )
    passages = [passage(model, text) for text in json.loads(Path(texts_path).read_text("utf-8"))]
    record = {
        "llama_cpp_python": llama_cpp.__version__,
        "passages": passages,
        "strings": [[text, model.tokenize(text.encode(), add_bos=True, special=False)] for text in STRINGS],
        "special": [[text, model.tokenize(text.encode(), add_bos=False, special=True)] for text in STRINGS],
    }
    Path(out_path).write_text(json.dumps(record), "utf-8")


def passage(model: llama_cpp.Llama, text: str) -> dict[str, object]:
    """ids (T,); choices (T,): the likeliest token after each; losses (T - 1,): nats of each token after the first."""
    ids = model.tokenize(text.encode())[:CONTEXT]
    model.reset()
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], np.float64)
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    losses = -logs[np.arange(len(ids) - 1), ids[1:]]
    return {
        "text": text,
        "ids": ids,
        "choices": logits.argmax(axis=1).tolist(),
        "losses": [round(float(loss), 4) for loss in losses],
    }


if __name__ == "__main__":
    main()
