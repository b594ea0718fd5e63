"""Models by name: where a name's files are in the Hugging Face cache, and how they come there.

huggingface_hub is imported only when something is fetched or deleted: what is in the cache opens without it.
"""

from bitnet.hub.known import KNOWN, Known
from bitnet.hub.locate import locate, pull
from bitnet.hub.names import Name, parse

__all__ = ["KNOWN", "Known", "Name", "locate", "parse", "pull"]
