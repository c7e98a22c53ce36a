"""Answers that a program can read: a JSON schema, a choice, a grammar.    python examples/structured.py MODEL"""

import asyncio
import json
import sys

from octavo import AsyncClient, Choice, Grammar, InvalidGrammar, JsonSchema, Regex, SamplingParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}
DATES = 'root ::= date (", " date)*\ndate ::= [0-9]{4} "-" [0-9]{2} "-" [0-9]{2}'


async def main(model: str) -> None:
    async with AsyncClient(model) as client:

        async def ask(question: str, form: JsonSchema | Choice | Regex | Grammar) -> str:
            params = SamplingParams(structured=form, max_tokens=200, seed=1)
            return (await client.chat([{"role": "user", "content": question}], params)).text

        print("person:", json.loads(await ask("Make up a person.", JsonSchema(PERSON))))
        print("choice:", await ask("Is the sea salty?", Choice(["yes", "no"])))
        print("dates:", await ask("When did men land on the Moon?", Grammar(DATES)))
        try:
            await ask("Is the sea salty?", Regex("(yes|no"))
        except InvalidGrammar as error:
            print("refused:", str(error).splitlines()[0])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
