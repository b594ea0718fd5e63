"""One file per group of routes. They translate between a dialect and the engine, and do nothing else."""

from bitnet.server.routes import chat, completions, embeddings, models, page, status, tokens, unsupported

ROUTERS = tuple(each.router for each in (chat, completions, embeddings, models, tokens, status, page, unsupported))
