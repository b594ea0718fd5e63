"""These tests want the extra `cuda`, and no GPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its own library is interpreted then, too
collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]
