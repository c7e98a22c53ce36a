"""langchain-openai's ChatOpenAI: invoke, stream, tools, and /v1/responses."""

import json

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"It is 21 degrees in {city}."


model = ChatOpenAI(model="smol", temperature=0, max_tokens=60)
whole = model.invoke("What is the capital of France?")
streamed = "".join(str(chunk.content) for chunk in model.stream("What is the capital of France?"))
asked = HumanMessage("How is the weather in Paris?")
called = model.bind_tools([weather], tool_choice="weather").invoke([asked])
call = called.tool_calls[0]
after = model.bind_tools([weather]).invoke(
    [asked, called, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
)
responses = ChatOpenAI(model="smol", temperature=0, max_tokens=60, use_responses_api=True)
answer = {"whole": whole.content, "streamed": streamed, "call": [call["name"], call["args"]]}
more = {"after": after.content, "responses": responses.invoke("What is the capital of France?").text}
print(json.dumps({**answer, **more, "tokens": whole.usage_metadata["output_tokens"]}))
