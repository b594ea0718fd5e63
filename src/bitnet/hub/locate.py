"""From what a user calls a model to the path that it can be opened at."""

from __future__ import annotations

import os
from pathlib import Path

from bitnet.errors import OfflineError
from bitnet.hub import cache, remote
from bitnet.hub.choice import choose
from bitnet.hub.names import Name, given, parse


def locate(model: str | os.PathLike[str]) -> Path:
    """A path as it is, where something is there; a name's files in the cache, fetched first if need be.

    What is neither comes back as a path, for whoever opens it to say what is wrong.
    Raises HubError where a model cannot be fetched, ParameterError where a name fits several.
    """
    path = Path(model)
    if there(path):
        return path
    name = parse(given(model))
    return path if name is None else cache.find(name) or pull(name)


def pull(name: Name) -> Path:
    """The model as the hub has it now; downloads what the cache lacks."""
    forbidden = remote.offline()
    if forbidden:
        raise OfflineError(
            f"{name} is not in {cache.folder()}, and {forbidden} forbids the network.",
            f"Fetch it while there is one: bitnet pull {name}",
        )
    from bitnet.hub.download import fetch

    repository = remote.look(name.repo)
    return fetch(repository, choose(name.repo, repository.files, name.quant))


def there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name with a NUL, or too long
        return False
