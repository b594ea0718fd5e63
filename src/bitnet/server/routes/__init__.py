"""One file per group of routes. They translate between a dialect and the engine, and do nothing else."""

from bitnet.server.routes import (
    chat,
    completions,
    embeddings,
    messages,
    models,
    ollama,
    ollama_models,
    page,
    responses,
    status,
    tokens,
    unsupported,
)

OPENAI = (chat, completions, responses, embeddings, models)
OTHERS = (messages, ollama, ollama_models, tokens, status, page, unsupported)
ROUTERS = tuple(module.router for module in (*OPENAI, *OTHERS))
