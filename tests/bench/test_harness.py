"""The benchmark's own arithmetic: floors, rates and prompts. No test asserts a time."""

from __future__ import annotations

from argparse import Namespace

import pytest

from octavo import InvalidOption
from tests.bench.floors import Floor, Machine
from tests.bench.measure import Measurement, _Arrivals
from tests.bench.models import MODELS, model_path
from tests.bench.peers.__main__ import Rounds
from tests.bench.peers.engines import DEFAULT, best, is_known, order, width
from tests.bench.weights import weights
from tests.bench.workload import Case, cases, prompts

SMOL = MODELS["smollm2"]
MACHINE = Machine(bandwidth=52e9, arithmetic=468e9, integer=936e9)


def floor(name: str = "bf16", model: str = "smollm2") -> Floor:
    return Floor(MODELS[model], weights(name, model), MACHINE)


def test_weights_are_those_of_the_published_model():
    # 134,515,008 parameters, of which 61 norms of 576 are no matrices; the embedding is the head.
    assert SMOL.layer_weights + SMOL.head_weights == 134_515_008 - 61 * 576
    tiny = MODELS["tinyllama"]
    assert tiny.layer_weights + 2 * tiny.head_weights == 1_100_048_384 - 45 * 2048


def test_one_stream_is_bound_by_bandwidth_and_many_by_arithmetic():
    one, many = Case(1, 1, 128), Case(64, 1, 128)
    assert floor().decode_rate(one) == pytest.approx(193, rel=0.03)
    assert floor().decode_rate(many) == pytest.approx(468e9 / 269e6, rel=0.05)
    assert (floor().limit(one), floor().limit(many)) == ("bandwidth", "arithmetic")


def test_quantised_weights_lower_both_floors():
    one, many = Case(1, 1, 128), Case(64, 1, 128)
    assert floor("int8").decode_rate(one) / floor().decode_rate(one) == pytest.approx(2, rel=0.03)
    assert floor("int4:symmetric,lm_head").decode_rate(one) / floor().decode_rate(one) == pytest.approx(
        16 / 4.5, rel=0.03
    )
    assert floor("int8").decode_rate(many) / floor().decode_rate(many) == pytest.approx(2, rel=0.03)
    assert floor("int8:float").decode_rate(many) == floor().decode_rate(many)


def test_bits_of_packed_weights_are_those_of_the_file():
    """The demo model's matrices, Q4_1 in the layers and Q8_0 in the head, by the bytes of its file."""
    import gguf

    stored = weights("stored", "smollm2")
    matrices = [t for t in gguf.GGUFReader(model_path("smollm2")).tensors if len(t.shape) == 2]
    expected = SMOL.layer_weights * stored.layer_bits + SMOL.head_weights * stored.head_bits
    assert sum(int(t.n_bytes) for t in matrices) * 8 == expected
    assert weights("int4:g128,asymmetric", "tinyllama").layer_bits == 4.25
    assert weights("int4:g64,no_lm_head", "smollm2").head_bits == 16
    assert [weights(name, "smollm2").integer for name in ("bf16", "int4", "int4:float", "llm_int8")] == [
        False,
        True,
        False,
        True,
    ]
    with pytest.raises(InvalidOption):
        weights("int5", "smollm2")


def test_prefill_counts_the_head_once_and_half_of_the_key_pairs():
    case = Case(1, 2048, 1)
    linear = 2 * (2048 * SMOL.layer_weights + SMOL.head_weights)
    attention = 4 * (2048 * 2049 / 2) * 30 * 576
    assert floor().prefill_seconds(case) == pytest.approx((linear + attention) / 468e9)
    assert floor().overall_rate(case) == pytest.approx(2048 / floor().prefill_seconds(case))
    # Attention stays in floats whatever the weights are.
    assert floor("int8").prefill_seconds(case) == pytest.approx(linear / 936e9 + attention / 468e9)


def test_decode_rate_counts_only_while_all_streams_run():
    early = _Arrivals([(1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1)])
    late = _Arrivals([(2.0, 1), (3.0, 2), (6.0, 1)])
    made = Measurement([early, late])
    assert (made.tokens, made.deltas, made.seconds) == (8, 7, 6.0)
    assert made.decode_rate() == pytest.approx(4 / 2.0)  # after 2 s, until 4 s
    assert made.decode_rate(deltas=True) == pytest.approx(3 / 2.0)
    assert Measurement([_Arrivals([(1.0, 1)]), _Arrivals([(2.0, 1)])]).decode_rate() is None


def test_prompts_differ_between_streams_and_seeds_but_not_between_engines():
    case = Case(8, 128, 4)
    first = prompts(case, 512, "round 0")
    assert first == prompts(case, 512, "round 0")
    assert len({tuple(prompt[:16]) for prompt in first + prompts(case, 512, "round 1")}) == 16
    assert all(len(prompt) == 128 and min(prompt) >= 100 and max(prompt) < 512 for prompt in first)


def test_cases_end_with_the_prefill():
    assert [case.name for case in cases([1, 8], 128, 128, 2048)] == ["1 stream", "8 streams", "prefill of 2048"]
    assert [case.counted for case in cases([8], 128, 64, 2048)] == [512, 2048]


def test_peers_are_compared_with_those_of_their_width():
    assert [width(engine) for engine in ("octavo:bf16", "octavo:int8:float", "octavo:llm_int8")] == [16, 8, 8]
    assert {width(engine) for engine in ("octavo:int4:g128", "octavo:stored", "llamacpp:q4_1", "openvino:int4")} == {4}
    rates = {
        "octavo:int4": 900.0,
        "openvino:int4": 300.0,
        "llamacpp:q4_0": 400.0,
        "vllm:bf16": 500.0,
        "llamacpp:q4_1": None,
    }
    assert best(rates, 4) == 400
    assert best(rates) == 500
    assert best(rates, 8) is None
    for engines in DEFAULT.values():
        assert all(map(is_known, engines))
        assert list(engines) == sorted(engines, key=lambda engine: (order(engine)[0], engines.index(engine)))
    assert not is_known("octavo")
    assert not is_known("openvino:int5")


def test_a_slow_case_is_not_repeated_and_none_wider_is_asked():
    narrow, wide, long = Case(8, 128, 128), Case(64, 128, 128), Case(1, 2048, 1)
    options = Namespace(model="smollm2", patience=60.0, give_up=240.0)
    rounds = Rounds(options, [narrow, wide, long], [])
    assert not rounds.is_spared("slow", narrow)
    rounds.took["slow", narrow] = 61.0
    assert rounds.is_spared("slow", narrow)
    assert not rounds.is_spared("slow", wide)
    assert not rounds.is_spared("fast", narrow)
    rounds.took["slow", narrow] = 241.0
    assert rounds.is_spared("slow", wide)
    assert not rounds.is_spared("slow", long)
