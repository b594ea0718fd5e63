"""Put pip into an environment made where Debian's python3-venv is missing: python install_pip.py"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
WHEEL = re.compile(r'href="([^"]*/(pip-(\d+)\.(\d+)(?:\.(\d+))?-py3-none-any\.whl))#sha256=([0-9a-f]{64})"')


def main() -> None:
    links = WHEEL.findall(urlopen(INDEX).read().decode())
    link, name, *_, digest = max(links, key=lambda found: [int(number or 0) for number in found[2:5]])
    data = urlopen(urljoin(INDEX, link)).read()
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit(f"{name} from {INDEX} is not what the index says it is.")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder, name)
        wheel.write_bytes(data)
        subprocess.run([sys.executable, f"{wheel}/pip", "install", "-q", "pip"], check=True)


if __name__ == "__main__":
    main()
