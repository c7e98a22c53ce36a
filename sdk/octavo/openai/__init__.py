"""The OpenAI-compatible server: an ASGI app over an AsyncClient (extra [server]).

    client = AsyncClient("path/or/hub-id")
    app = create_app(client)                       # or: host.mount("/llm", create_app(client))

`octavo serve MODEL` runs it. Routes: /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/models,
/v1/load_lora_adapter, /v1/unload_lora_adapter, /tokenize, /detokenize, /health, /metrics, /openapi.json, which tells
what each may hold, and at / a page to chat in a browser. A loaded adapter's name is a model's.
"""

from octavo.openai.app import create_app

__all__ = ["create_app"]
