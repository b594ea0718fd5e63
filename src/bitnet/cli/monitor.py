"""`bitnet monitor`: a server's figures as a dashboard of Streamlit's."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from bitnet.cli.top import HERE, ApiKey, Interval, Url
from bitnet.errors import ParameterError

NEEDED = ("streamlit", "plotly", "prometheus_client")


def command(
    url: Url = HERE,
    api_key: ApiKey = "",
    interval: Interval = 2.0,
    host: Annotated[
        str, typer.Option("--host", help="Address that the dashboard listens on; whoever reaches it sees the figures.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port that it listens on.")] = 8501,
) -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ParameterError(f"`bitnet monitor` needs {', '.join(missing)}.", "pip install 'bitnet[monitor]'")
    from streamlit.web import cli as streamlit

    import bitnet.monitor

    # Streamlit runs the file as a script, with nothing to give it but the environment.
    os.environ.update(BITNET_MONITOR_URL=url, BITNET_MONITOR_KEY=api_key, BITNET_MONITOR_INTERVAL=str(interval))
    settings = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "global.developmentMode": "false",
    }
    script = Path(bitnet.monitor.__file__).with_name("dashboard.py")
    streamlit.main(["run", str(script), *(f"--{name}={value}" for name, value in settings.items())])
