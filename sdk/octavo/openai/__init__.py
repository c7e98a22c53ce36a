"""The OpenAI-compatible server: an ASGI app over an AsyncClient (extra [server]).

    client = AsyncClient("path/or/hub-id")
    app = create_app(client)                       # or: host.mount("/llm", create_app(client))

`octavo serve MODEL` runs it. Routes: /v1/chat/completions, /v1/completions, /v1/responses, /v1/models, /tokenize,
/detokenize, /health, /metrics, /openapi.json, which tells what each may hold.
"""

from octavo.openai.app import create_app

__all__ = ["create_app"]
