"""LoRA adapters through real engines: many in one batch, loaded and unloaded while requests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from octavo import AsyncClient, EngineOptions, LoraError, ModelError, SamplingParams
from tests.support.adapters import merged, write_adapter

pytestmark = pytest.mark.anyio

LAYERS = {
    f"model.layers.{i}.{name}": size
    for i in range(2)
    for name, size in {
        "self_attn.q_proj": (32, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (64, 32),
        "mlp.down_proj": (32, 64),
    }.items()
}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
PROMPTS = [[(7 * i + j * j) % 128 for j in range(3 + 23 * i)] for i in range(5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three adapters: where they lie, and what they add."""
    root = tmp_path_factory.mktemp("adapters")
    made = {}
    for i, name in enumerate(("a", "b", "c")):
        layers = dict(list(LAYERS.items())[i:])
        made[name] = (root / name, write_adapter(root / name, layers, rank=(1, 4, 16)[i], size=0.6 / (i + 1), seed=i))
    return made


def options(**more: Any) -> EngineOptions:
    sizes: dict[str, Any] = {"kv_cache_memory": 1 << 20, "max_num_seqs": 16, "max_num_batched_tokens": 48}
    return EngineOptions(enable_lora=True, **sizes, **more)


def essence(done: Any) -> list[tuple[int, float]]:
    return [(entry.token_id, entry.logprob) for entry in done.choices[0].logprobs]


@pytest.mark.parametrize(
    "more",
    [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"quantization": "int4", "quantized_cache": None}],
    ids=["float32", "bfloat16", "int4"],
)
async def test_alone_and_side_by_side_to_the_bit(more: dict[str, Any], tiny: Path, folders: dict[str, Any]) -> None:
    """A batch of all adapters and none, in chunks, its prefixes in the cache already: the same bits as alone."""
    work = [(prompt, name) for prompt in PROMPTS for name in (None, "a", "b", "c")]
    alone: list[Any] = []
    together: list[Any] = [None] * len(work)
    async with AsyncClient(tiny, options(**more)) as client:
        for name, (path, _) in folders.items():
            await client.load_lora(name, path)
        for prompt, name in work:
            alone.append(await client.generate(prompt, GREEDY, lora=name))

        async def one(i: int) -> None:
            together[i] = await client.generate(*work[i][:1], GREEDY, lora=work[i][1])

        async with anyio.create_task_group() as tasks:
            for i in range(len(work)):
                tasks.start_soon(one, i)
        vectors = [(await client.embed(PROMPTS[4], lora=name)).vectors[0] for name in (None, "a", "b")]
        scores = [(await client.score(PROMPTS[4], [[1, 2, 3]], lora=name))[0].logprob for name in (None, "a", "b")]
        stats = await client.stats()
        assert stats["kv_pages_free"] == stats["kv_pages_total"]
    assert list(map(essence, together)) == list(map(essence, alone))
    assert all(
        done.usage.cached_tokens == (len(prompt) - 1) // 16 * 16
        for done, (prompt, _) in zip(together, work, strict=True)
    )
    assert all(done.usage.cached_tokens == 0 for done in alone)  # another adapter's pages are none of its own
    assert len({tuple(vector) for vector in vectors}) == len(set(scores)) == 3
    answers = [tuple(done.token_ids) for done in alone]
    assert all(len(set(answers[i : i + 4])) > 1 for i in range(0, len(work), 4))
    if more == {"dtype": "float32"}:
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        networks = {None: plain, **{name: merged(plain, added) for name, (_, added) in folders.items()}}
        for (prompt, name), done in zip(work, alone, strict=True):
            tokens = torch.tensor([[*prompt, *done.token_ids]])
            with torch.inference_mode():
                logprobs = networks[name](tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert [entry[0] for entry in essence(done)] == logprobs.argmax(-1).tolist()
            expected = logprobs.max(-1).values.tolist()
            assert [entry[1] for entry in essence(done)] == pytest.approx(expected, abs=2e-3)


async def test_an_engine_that_takes_adapters_answers_as_one_that_does_not(tiny: Path, folders: dict[str, Any]) -> None:
    answers = []
    for chosen in (options(dtype="bfloat16"), EngineOptions(dtype="bfloat16", kv_cache_memory=1 << 20)):
        async with AsyncClient(tiny, chosen) as client:
            answers.append([essence(await client.generate(prompt, GREEDY)) for prompt in PROMPTS])
            if not chosen.enable_lora:
                with pytest.raises(LoraError, match="enable_lora=True"):
                    await client.load_lora("a", folders["a"][0])
                with pytest.raises(LoraError, match=r"lora='a' is not loaded; loaded: none; start.*enable_lora=True"):
                    await client.generate([1], lora="a")
    assert answers[0] == answers[1]


async def test_loading_and_unloading(tiny: Path, folders: dict[str, Any]) -> None:
    paths = {name: str(path) for name, (path, _) in folders.items()}
    async with AsyncClient(tiny, options(loras={"a": paths["a"]}, max_loras=2, max_lora_rank=4)) as client:
        (info,) = await client.loras()
        assert (info.name, info.path, info.rank) == ("a", paths["a"], 1)
        assert info.modules == ("down_proj", "gate_proj", "o_proj", "q_proj", "v_proj")
        await client.load_lora("a", paths["a"])
        await client.load_lora("b", paths["b"])
        assert [each.name for each in await client.loras()] == ["a", "b"]
        for name, path, message in (
            ("a", paths["b"], "name='a' is taken by"),
            ("c", paths["c"], "max_loras=2 adapters are loaded"),
            ("", paths["c"], "an adapter needs a name"),
        ):
            with pytest.raises(LoraError, match=message):
                await client.load_lora(name, path)
        with pytest.raises(LoraError, match="lora='z' is not loaded; loaded: 'a', 'b'"):
            await client.unload_lora("z")
        async with client.stream([1, 2, 3], SamplingParams(max_tokens=400, ignore_eos=True), lora="b") as stream:
            tokens = [*(await anext(stream)).token_ids]
            unloaded = anyio.Event()

            async def unload() -> None:
                await client.unload_lora("b")
                unloaded.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(unload)
                while len(await client.loras()) > 1:
                    pass
                with pytest.raises(LoraError, match="lora='b' is not loaded"):
                    await client.generate([1], lora="b")
                assert not unloaded.is_set()
                tokens += [token async for delta in stream for token in delta.token_ids]
                assert len(tokens) == 400
        with pytest.raises(LoraError, match=r"has rank 16; raise EngineOptions\.max_lora_rank=4"):
            await client.load_lora("c", paths["c"])
        with pytest.raises(LoraError, match="no such folder"):
            await client.load_lora("c", "/nowhere")
        # The same name with other weights finds nothing that the first one left in the cache.
        first = await client.generate(PROMPTS[3], GREEDY, lora="a")
        await client.unload_lora("a")
        await client.load_lora("a", paths["b"])
        second = await client.generate(PROMPTS[3], GREEDY, lora="a")
        assert second.usage.cached_tokens == 0
        assert essence(first) != essence(second)
    with pytest.raises(ModelError, match=r"loras\['x'\]: no such folder"):
        await AsyncClient(tiny, options(loras={"x": "/nowhere"})).open()
