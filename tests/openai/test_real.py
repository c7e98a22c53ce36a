"""`octavo serve` as a user runs it, with SmolLM2, asked by OpenAI's own client."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import anyio
import httpx
import openai
import pydantic
import pytest

from tests.openai.serving import KEY, serving

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60)


def metric(address: str, name: str) -> float:
    text = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    found = [float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")]
    return found[0] if found else 0.0  # what was never counted has no line


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_chat_and_stream_say_the_same(server: str) -> None:
    api = client(server)
    whole = api.chat.completions.create(
        model="smol", messages=QUESTION, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2
    )
    choice = whole.choices[0]
    assert "Paris" in (choice.message.content or "")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    tokens = [entry for entry in choice.logprobs.content if entry.token != "<|im_end|>"]
    assert "".join(entry.token for entry in tokens) == choice.message.content
    assert all(bytes(entry.bytes or []).decode() == entry.token for entry in tokens)
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in tokens)
    streamed = api.chat.completions.create(
        model="smol",
        messages=QUESTION,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(streamed)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completion_echoed_and_scored(server: str) -> None:
    api = client(server)
    scored = api.completions.create(
        model="smol", prompt="The sky is blue", max_tokens=3, temperature=0, echo=True, logprobs=1
    )
    choice = scored.choices[0]
    assert choice.text.startswith("The sky is blue")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.text_offset == [
        sum(map(len, choice.logprobs.tokens[:i])) for i in range(len(choice.logprobs.tokens))
    ]
    pieces = api.completions.create(
        model="smol", prompt="The sky is blue", max_tokens=3, temperature=0, echo=True, logprobs=1, stream=True
    )
    parts = [chunk.choices[0] for chunk in pieces]
    assert "".join(part.text for part in parts) == choice.text
    for field in ("tokens", "token_logprobs", "text_offset"):
        streamed = [item for part in parts if part.logprobs for item in getattr(part.logprobs, field)]
        assert streamed == getattr(choice.logprobs, field), field


def test_the_best_of_several(server: str) -> None:
    """The n of best_of with the highest mean logprob, whose own logprobs show it."""
    api = client(server)
    asked = {"model": "smol", "prompt": "Once upon a time", "max_tokens": 6, "seed": 5, "temperature": 1.2}
    every = api.completions.create(**asked, n=6, logprobs=0)
    best = api.completions.create(**asked, n=2, best_of=6)
    assert [choice.index for choice in best.choices] == [0, 1]

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = sorted(every.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert all(choice.logprobs is None for choice in best.choices)
    assert best.usage is not None
    assert every.usage is not None
    assert best.usage.completion_tokens == every.usage.completion_tokens
    with pytest.raises(openai.BadRequestError, match="best_of=3: which are best"):
        api.completions.create(**asked, n=2, best_of=3, stream=True)
    with pytest.raises(openai.BadRequestError, match="best_of=1"):
        api.completions.create(**asked, n=2, best_of=1)


def test_errors_are_openai_s_classes(server: str) -> None:
    api = client(server)
    with pytest.raises(openai.NotFoundError, match="served here: smol"):
        api.chat.completions.create(model="other", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="max_model_len"):
        api.chat.completions.create(model="smol", messages=[{"role": "user", "content": "word " * 20000}])
    with pytest.raises(openai.BadRequestError, match="temperature=-1"):
        api.chat.completions.create(model="smol", messages=QUESTION, temperature=-1)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0).models.list()


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=130)
    colours: list[Literal["red", "green", "blue"]] = pydantic.Field(min_length=1, max_length=3)


def test_parse_gives_what_pydantic_describes(server: str) -> None:
    api = client(server)
    question: Any = [{"role": "user", "content": "Make up a person."}]
    for seed in range(3):
        parsed = api.chat.completions.parse(model="smol", messages=question, response_format=Person, seed=seed)
        assert isinstance(parsed.choices[0].message.parsed, Person)
    with api.chat.completions.stream(model="smol", messages=question, response_format=Person, seed=4) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_guided_fields_and_their_errors(server: str) -> None:
    api = client(server)
    chosen = api.completions.create(model="smol", prompt="Say", extra_body={"guided_choice": ["yes", "no"]}, n=4)
    assert {choice.text for choice in chosen.choices} <= {"yes", "no"}
    told = api.chat.completions.create(
        model="smol", messages=QUESTION, extra_body={"structured_outputs": {"regex": r"\d{3}"}}
    )
    assert re.fullmatch("[0-9]{3}", told.choices[0].message.content or "")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="unclosed group") as caught:
            api.chat.completions.create(
                model="smol", messages=QUESTION, extra_body={"guided_regex": "(a"}, stream=stream
            )
        assert caught.value.param == "guided_regex"


def test_many_at_once_and_one_that_leaves(server: str) -> None:
    async def main() -> None:
        api = openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0, timeout=60)
        answers: list[str] = []

        async def one(i: int) -> None:
            stream = await api.chat.completions.create(
                model="smol", messages=QUESTION, temperature=0, max_tokens=10, stream=True
            )
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
            answers.append(text)

        async with anyio.create_task_group() as tasks:
            for i in range(32):
                tasks.start_soon(one, i)
        assert len(answers) == 32
        assert len(set(answers)) == 1
        leaving = await api.chat.completions.create(
            model="smol", messages=QUESTION, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in leaving:
            break
        await leaving.close()
        await api.close()

    aborted = metric(server, "octavo_request_aborted_total")
    anyio.run(main)
    wait_for(lambda: metric(server, "octavo_num_requests_live") == 0, "the request of a caller that left still runs")
    assert metric(server, "octavo_request_aborted_total") == aborted + 1


def test_workers_share_one_engine_and_sigterm_lets_requests_end(smollm2: str) -> None:
    with serving(smollm2, "--workers", "2") as (address, process):
        api = client(address)
        answers = [
            api.chat.completions.create(model="smol", messages=QUESTION, temperature=0, max_tokens=8) for _ in range(6)
        ]
        assert len({answer.choices[0].message.content for answer in answers}) == 1
        assert metric(address, "octavo_request_success_total") == 6  # one engine's count, whoever is asked
        stream = api.chat.completions.create(
            model="smol", messages=QUESTION, max_tokens=60, stream=True, extra_body={"ignore_eos": True}
        )
        first = next(stream)
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert first.id == rest[-1].id
        assert rest[-1].choices[0].finish_reason == "length"
        assert process.wait(timeout=20) == 0


def test_tokens_there_and_back(server: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}

    def post(path: str, body: object) -> dict[str, object]:
        answer = httpx.post(f"{server}{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    text = "Zürich \U0001f600 \u4f60\u597d, def f(x): return x ** 2\n"
    for said in (text, text * 500):  # in place, and on the engine's other thread
        tokens = post("/tokenize", {"prompt": said})
        assert post("/detokenize", {"tokens": tokens["tokens"]}) == {"prompt": said}
    chat = post("/tokenize", {"messages": QUESTION})
    prompt = str(post("/detokenize", {"tokens": chat["tokens"]})["prompt"])
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    begun = {"messages": [*QUESTION, {"role": "assistant", "content": "It is "}], "continue_final_message": True}
    chat = post("/tokenize", begun)
    prompt = str(post("/detokenize", {"tokens": chat["tokens"]})["prompt"])
    assert prompt.endswith("France?<|im_end|>\n<|im_start|>assistant\nIt is ")


def test_embeddings(server: str) -> None:
    """OpenAI's client asks for base64 by itself and decodes it."""
    api = client(server)
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "The bank raised its interest rates."]
    made = api.embeddings.create(model="smol", input=texts)
    cat, kitten, bank = (item.embedding for item in made.data)
    assert len(cat) == 576
    assert sum(x * x for x in cat) == pytest.approx(1, rel=1e-5)
    assert sum(x * y for x, y in zip(cat, kitten, strict=True)) > sum(x * y for x, y in zip(cat, bank, strict=True))
    plain = api.embeddings.create(model="smol", input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == cat
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == 9
    with pytest.raises(openai.BadRequestError, match="dimensions=577: this model's embeddings have 1 to 576"):
        api.embeddings.create(model="smol", input=texts, dimensions=577)
