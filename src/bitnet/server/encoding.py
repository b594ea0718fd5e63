"""JSON of ours on its way out."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


def to_json(value: Any) -> bytes:
    """Compact UTF-8; half of a surrogate pair, which only strangers' text can hold, stays an escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class JsonResponse(JSONResponse):
    def render(self, content: Any) -> bytes:
        return to_json(content)
