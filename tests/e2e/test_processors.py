"""Logits processors in a real engine: what they draw, beside whom, and what happens when they break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from octavo import AsyncClient, EngineOptions, InvalidOption, InvalidRequest, RequestFailed, SamplingParams

pytestmark = pytest.mark.anyio

HERE = "tests.support.processors"
FILE = str(Path(__file__).parents[1] / "support" / "processors.py")
NAMES = {"only": f"{HERE}:only", "up": f"{FILE}:count_up", "halved": f"{HERE}:halved"}


def params(processors: dict[str, Any], **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=20, ignore_eos=True, seed=3, logprobs=1, logits_processors=processors, **more)


async def test_what_they_draw_and_whom_they_disturb(tiny: Path) -> None:
    work = [
        params({}),
        params({"only": {"token_ids": [5, 9]}}),
        params({"up": None}),
        params({"only": {"token_ids": list(range(0, 128, 2))}}, repetition_penalty=1.5, temperature=0.5),
        params({"only": {"token_ids": [5], "breaks": 7}}),
        params({"only": {"token_ids": [5, 9], "breaks": 3}, "up": 1}),
        params({"halved": {}}),
    ]
    prompts = [[i + 1, 100 - i, 7] for i in range(len(work))]
    # Few pages: some are preempted and resumed.
    options = EngineOptions(logits_processors=NAMES, kv_cache_memory=14_500, max_num_seqs=8, max_num_batched_tokens=32)
    alone: list[Any] = [None] * len(work)
    together: list[Any] = [None] * len(work)

    async def one(i: int, answers: list[Any]) -> None:
        try:
            answers[i] = (await client.generate(prompts[i], work[i])).choices[0].logprobs
        except RequestFailed as error:
            answers[i] = str(error)

    async with AsyncClient(tiny, options) as client:
        for i in range(len(work)):
            await one(i, alone)
        for _ in range(20):  # on a busy machine the first may have ended when the last arrives
            async with anyio.create_task_group() as tasks:
                for i in range(len(work)):
                    tasks.start_soon(one, i, together)
            if (await client.stats())["num_preemptions"] > 0:
                break
        else:
            pytest.fail("none was preempted")
        plain = (await client.generate(prompts[0], params({}))).choices[0].logprobs
        for wrong, message in (
            ({"none": 1}, r"'none' is not one of EngineOptions.logits_processors: 'only', 'up', 'halved'"),
            ({"only": {}}, r"logits_processors\['only'\]={}: token_ids: a list is needed"),
            ({"only": 3}, r"logits_processors\['only'\]=3"),
        ):
            with pytest.raises(InvalidRequest, match=message):
                await client.generate([1], params(wrong))
    assert together == alone
    tokens = [[entry.token_id for entry in answer] if isinstance(answer, tuple) else answer for answer in together]
    assert together[0] == plain
    assert set(tokens[1]) == {5, 9}
    assert tokens[2] == [(8 + i) % 128 for i in range(20)]
    assert all(token % 2 == 0 for token in tokens[3])
    assert together[1][0].logprob < 0  # of the model's own logits
    assert tokens[4] == tokens[5] == "logits processor 'only': RuntimeError: as asked"
    assert "logits processor 'halved': ValueError: it returned logits of shape [1, 64] for [1, 128]" in tokens[6]


async def test_a_module_is_found_where_the_host_finds_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_the_host.py").write_text(Path(FILE).read_text())
    (tmp_path / "octavo_engine.py").write_text("raise RuntimeError('the engine is shadowed')")
    monkeypatch.syspath_prepend(tmp_path)
    options = EngineOptions(logits_processors={"only": "of_the_host:only"})
    async with AsyncClient(tiny, options) as client:
        done = await client.generate([1, 2], params({"only": {"token_ids": [5]}}))
    assert done.token_ids == (5,) * 20


async def test_a_start_that_fails_says_why(tiny: Path) -> None:
    options = EngineOptions(logits_processors={"x": "no_such_module:factory"})
    with pytest.raises(InvalidOption, match="No module named 'no_such_module'") as caught:
        await AsyncClient(tiny, options).open()
    assert (caught.value.field, caught.value.value) == ("logits_processors", "no_such_module:factory")


@pytest.mark.parametrize("wrong", [{"a": object()}, {1: 2}, ["a"], {"a": {1, 2}.__class__}])
def test_arguments_are_plain_json(wrong: Any) -> None:
    with pytest.raises(InvalidOption, match="logits_processors"):
        SamplingParams(logits_processors=wrong)


@pytest.mark.parametrize("wrong", [{"a": "module"}, {"a": 3}, "module:factory", {"a": "module:not a name"}])
def test_paths_have_a_form(wrong: Any) -> None:
    with pytest.raises(InvalidOption, match="logits_processors"):
        EngineOptions(model="m", logits_processors=wrong)
