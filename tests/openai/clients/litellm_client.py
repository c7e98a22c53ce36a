"""litellm, with its generic OpenAI provider."""

import asyncio
import json
import os

import litellm

MODEL = {"model": "openai/smol", "api_base": os.environ["OPENAI_BASE_URL"], "temperature": 0}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}


async def main() -> None:
    whole = litellm.completion(messages=QUESTION, max_tokens=12, **MODEL)
    chunks = await litellm.acompletion(messages=QUESTION, max_tokens=12, stream=True, **MODEL)
    streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
    asked = [{"role": "user", "content": "How is the weather in Paris?"}]
    called = litellm.completion(messages=asked, tools=[WEATHER], tool_choice="required", max_tokens=60, **MODEL)
    call = called.choices[0].message.tool_calls[0].function
    try:
        litellm.completion(messages=QUESTION, **{**MODEL, "temperature": -1})
        error = ""
    except litellm.BadRequestError as refusal:
        error = str(refusal)
    answer = {"whole": whole.choices[0].message.content, "streamed": streamed, "error": error}
    print(json.dumps({**answer, "call": [call.name, json.loads(call.arguments)]}))


asyncio.run(main())
