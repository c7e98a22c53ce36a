"""A FastAPI app that streams server-sent events; its lifespan holds the client.

python examples/fastapi_sse.py MODEL [PORT], then curl -N 'localhost:8000/stream?prompt=Hello'

A browser that goes away ends its request: Starlette cancels the response, which leaves the stream, which aborts.
"""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from octavo import AsyncClient, OctavoError, Overloaded, SamplingParams


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    shared = os.environ.get("ENGINE_ADDRESS")  # see fastapi_workers.py
    client = await AsyncClient.connect(shared) if shared else AsyncClient(os.environ["MODEL"])
    async with client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/stream")
async def stream(request: Request, prompt: str, max_tokens: int = 64) -> StreamingResponse:
    client: AsyncClient = request.app.state.client

    async def events() -> AsyncIterator[str]:
        try:
            messages = [{"role": "user", "content": prompt}]
            async with client.stream(messages, SamplingParams(max_tokens=max_tokens)) as deltas:
                async for delta in deltas:
                    yield f"data: {json.dumps({'text': delta.text})}\n\n"
            yield "data: [DONE]\n\n"
        except OctavoError as error:
            yield f"event: error\ndata: {json.dumps({'error': str(error)})}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/generate")
async def generate(request: Request, prompt: str, max_tokens: int = 64) -> dict[str, object]:
    try:
        done = await request.app.state.client.generate(prompt, SamplingParams(max_tokens=max_tokens))
    except Overloaded as error:
        raise HTTPException(429, str(error)) from error
    return {"text": done.text, "finish_reason": done.finish_reason, "worker": os.getpid()}


@app.get("/stats")
async def stats(request: Request) -> dict[str, float]:
    return await request.app.state.client.stats()


@app.get("/engine")
async def engine(request: Request) -> dict[str, int]:
    return {"worker": os.getpid(), "engine": request.app.state.client.ready.pid}


if __name__ == "__main__":
    os.environ["MODEL"] = sys.argv[1]
    uvicorn.run(app, port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000, log_level="warning")
