"""instructor, in its mode of tools."""

import json

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Place(BaseModel):
    city: str


client = instructor.from_openai(OpenAI(), mode=instructor.Mode.TOOLS)
place = client.chat.completions.create(
    model="smol",
    response_model=Place,
    messages=[{"role": "user", "content": "Which city is the capital of France?"}],
    temperature=0,
    max_tokens=60,
)
print(json.dumps({"typed": place.model_dump()}))
