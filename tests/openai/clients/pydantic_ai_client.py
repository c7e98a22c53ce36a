"""pydantic-ai's Agent: an answer, a stream, and a result of a type, which it asks for by a tool call."""

import asyncio
import json

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.settings import ModelSettings

QUESTION = "What is the capital of France?"


class Place(BaseModel):
    city: str


async def main() -> None:
    model = OpenAIChatModel("smol", settings=ModelSettings(temperature=0.0, max_tokens=60))
    whole = await Agent(model).run(QUESTION)
    async with Agent(model).run_stream(QUESTION) as stream:
        streamed = await stream.get_output()
    typed = await Agent(model, output_type=Place).run(QUESTION)
    print(json.dumps({"whole": whole.output, "streamed": streamed, "typed": typed.output.model_dump()}))


asyncio.run(main())
