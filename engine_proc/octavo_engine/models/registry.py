"""Architectures by the name that a config gives, and the one way to load a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.loading import Checkpoint, CheckpointMismatch, Loader, Progress
from octavo_engine.models.baichuan import Baichuan
from octavo_engine.models.base import CausalLM, ModelBuilder
from octavo_engine.models.bloom import Bloom
from octavo_engine.models.cohere import Cohere
from octavo_engine.models.cohere2 import Cohere2
from octavo_engine.models.ernie4_5 import Ernie45
from octavo_engine.models.exaone4 import Exaone4
from octavo_engine.models.falcon import Falcon
from octavo_engine.models.gemma import Gemma
from octavo_engine.models.gemma2 import Gemma2
from octavo_engine.models.gemma3 import Gemma3, Gemma3Multimodal
from octavo_engine.models.glm import Glm, Glm4
from octavo_engine.models.gpt2 import GPT2
from octavo_engine.models.gpt_bigcode import GPTBigCode, SantaCoder
from octavo_engine.models.gpt_neox import GPTNeoX
from octavo_engine.models.gptj import GPTJ
from octavo_engine.models.granite import Granite
from octavo_engine.models.internlm import InternLM, InternLM3
from octavo_engine.models.internlm2 import InternLM2
from octavo_engine.models.llama import Llama
from octavo_engine.models.minicpm import MiniCPM
from octavo_engine.models.mistral import Mistral, Mistral3
from octavo_engine.models.mixtral import Mixtral
from octavo_engine.models.mpt import MPT
from octavo_engine.models.olmo import Olmo
from octavo_engine.models.olmo2 import Olmo2
from octavo_engine.models.olmo3 import Olmo3
from octavo_engine.models.olmoe import Olmoe
from octavo_engine.models.opt import OPT
from octavo_engine.models.packed import packed_contents, packed_loader, quantization_of
from octavo_engine.models.phi import Phi
from octavo_engine.models.phi3 import Phi3
from octavo_engine.models.qwen import Qwen
from octavo_engine.models.qwen2 import Qwen2
from octavo_engine.models.qwen2_moe import Qwen2MoE
from octavo_engine.models.qwen3 import Qwen3
from octavo_engine.models.qwen3_moe import Qwen3MoE
from octavo_engine.models.seed_oss import SeedOss
from octavo_engine.models.smollm3 import SmolLM3
from octavo_engine.models.stablelm import StableLM
from octavo_engine.models.starcoder2 import Starcoder2
from octavo_engine.quant.formats import choose_formats, storage
from octavo_engine.weights.packed_file import PackedFile
from octavo_engine.weights.source import Source, SourceError

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.options import Quantization
    from octavo_engine.layers.lora import Adapters
    from octavo_engine.ops import LinearWeight, Ops
    from octavo_engine.weights.quantized_cache import QuantizedCache

__all__ = ["ARCHITECTURES", "FAMILIES", "Family", "load_model"]


class Family(NamedTuple):
    """models: what people call them. architectures: of config.json; types: its model_type, where a config has none.
    gguf: general.architecture of GGUF files."""

    models: str
    builder: ModelBuilder
    architectures: tuple[str, ...]
    types: tuple[str, ...]
    gguf: tuple[str, ...] = ()


# One line a family; README's table is made of it (tests/support/readme.py).
FAMILIES = (
    Family("Aquila, Aquila2", Llama, ("AquilaModel", "AquilaForCausalLM"), ("aquila",)),
    Family(
        "Baichuan 7B and 13B, Baichuan2",
        Baichuan,
        ("BaiChuanForCausalLM", "BaichuanForCausalLM"),
        ("baichuan",),
        ("baichuan",),
    ),
    # BloomModel: as the first uploads say
    Family("BLOOM, BLOOMZ", Bloom, ("BloomForCausalLM", "BloomModel"), ("bloom",), ("bloom",)),
    Family("Command R, R+", Cohere, ("CohereForCausalLM",), ("cohere",), ("command-r",)),
    Family("Command R7B, Command A", Cohere2, ("Cohere2ForCausalLM",), ("cohere2",), ("cohere2",)),
    Family("ERNIE 4.5, dense", Ernie45, ("Ernie4_5ForCausalLM",), ("ernie4_5",), ("ernie4_5",)),
    Family("EXAONE 4", Exaone4, ("Exaone4ForCausalLM",), ("exaone4",), ("exaone4",)),
    Family(
        "Falcon 7B, 40B, 180B, 11B, RW",
        Falcon,
        ("FalconForCausalLM", "RWForCausalLM"),
        ("falcon", "RefinedWeb", "RefinedWebModel"),
        ("falcon",),
    ),
    Family("Gemma", Gemma, ("GemmaForCausalLM",), ("gemma",), ("gemma",)),
    Family("Gemma 2", Gemma2, ("Gemma2ForCausalLM",), ("gemma2",), ("gemma2",)),
    Family("Gemma 3", Gemma3, ("Gemma3ForCausalLM",), ("gemma3_text",), ("gemma3",)),
    Family("Gemma 3 with images, its text model", Gemma3Multimodal, ("Gemma3ForConditionalGeneration",), ("gemma3",)),
    Family("GLM-4-9B (-hf)", Glm, ("GlmForCausalLM",), ("glm",)),
    Family("GLM-4-0414, 9B and 32B", Glm4, ("Glm4ForCausalLM",), ("glm4",), ("glm4",)),
    Family("GPT-2", GPT2, ("GPT2LMHeadModel",), ("gpt2",), ("gpt2",)),
    Family("GPT BigCode: StarCoder", GPTBigCode, ("GPTBigCodeForCausalLM",), ("gpt_bigcode",), ("starcoder",)),
    Family("GPT BigCode: SantaCoder", SantaCoder, ("GPT2LMHeadCustomModel",), ()),
    Family("GPT-J", GPTJ, ("GPTJForCausalLM",), ("gptj",), ("gptj",)),
    Family("GPT-NeoX, Pythia, Dolly 2, StableLM-alpha", GPTNeoX, ("GPTNeoXForCausalLM",), ("gpt_neox",), ("gptneox",)),
    Family("Granite 3", Granite, ("GraniteForCausalLM",), ("granite",), ("granite",)),
    Family("InternLM", InternLM, ("InternLMForCausalLM",), ("internlm",)),
    Family("InternLM2, 2.5", InternLM2, ("InternLM2ForCausalLM",), ("internlm2",), ("internlm2",)),
    Family("InternLM3", InternLM3, ("InternLM3ForCausalLM",), ("internlm3",)),
    # LLaMA: as the first conversions spelled it
    Family(
        "LLaMA 1, 2, 3, TinyLlama, SmolLM2", Llama, ("LlamaForCausalLM", "LLaMAForCausalLM"), ("llama",), ("llama",)
    ),
    Family("MiniCPM 1B, 2B", MiniCPM, ("MiniCPMForCausalLM",), ("minicpm",), ("minicpm",)),
    Family(
        "Mistral, Mistral Small 3, Ministral",
        Mistral,
        ("MistralForCausalLM", "MinistralForCausalLM"),
        ("mistral", "ministral"),
        ("llama",),
    ),
    Family(
        "Mistral Small 3.1, 3.2 with images, its text model",
        Mistral3,
        ("Mistral3ForConditionalGeneration",),
        ("mistral3",),
    ),
    Family("Mixtral", Mixtral, ("MixtralForCausalLM",), ("mixtral",), ("llama",)),
    Family("MPT, Replit Code", MPT, ("MPTForCausalLM", "MptForCausalLM"), ("mpt",), ("mpt",)),
    Family("OLMo", Olmo, ("OlmoForCausalLM",), ("olmo",), ("olmo",)),
    Family("OLMo 2", Olmo2, ("Olmo2ForCausalLM",), ("olmo2",), ("olmo2",)),
    Family("OLMo 3", Olmo3, ("Olmo3ForCausalLM",), ("olmo3",), ("olmo2",)),
    Family("OLMoE", Olmoe, ("OlmoeForCausalLM",), ("olmoe",), ("olmoe",)),
    Family("OPT, Galactica", OPT, ("OPTForCausalLM",), ("opt",)),
    Family(
        "Phi-1, 1.5, 2",
        Phi,
        ("PhiForCausalLM", "MixFormerSequentialForCausalLM"),
        ("phi", "phi-msft", "mixformer-sequential"),
        ("phi2",),
    ),
    Family("Phi-3, 3.5, 4, 4-mini", Phi3, ("Phi3ForCausalLM",), ("phi3",), ("phi3",)),
    Family("Qwen", Qwen, ("QWenLMHeadModel",), ("qwen",), ("qwen",)),
    Family("Qwen2, 2.5", Qwen2, ("Qwen2ForCausalLM",), ("qwen2",), ("qwen2",)),
    Family("Qwen1.5-MoE, Qwen2-MoE", Qwen2MoE, ("Qwen2MoeForCausalLM",), ("qwen2_moe",), ("qwen2moe",)),
    Family("Qwen3", Qwen3, ("Qwen3ForCausalLM",), ("qwen3",), ("qwen3",)),
    Family("Qwen3-MoE", Qwen3MoE, ("Qwen3MoeForCausalLM",), ("qwen3_moe",), ("qwen3moe",)),
    Family("Seed-OSS", SeedOss, ("SeedOssForCausalLM",), ("seed_oss",), ("seed_oss",)),
    Family("SmolLM3", SmolLM3, ("SmolLM3ForCausalLM",), ("smollm3",), ("smollm3",)),
    Family(
        "StableLM 3B, StableLM 2",
        StableLM,
        ("StableLmForCausalLM", "StableLMEpochForCausalLM"),
        ("stablelm", "stablelm_epoch"),
        ("stablelm",),
    ),
    Family("StarCoder2", Starcoder2, ("Starcoder2ForCausalLM",), ("starcoder2",), ("starcoder2",)),
)
ARCHITECTURES: dict[str, ModelBuilder] = {name: family.builder for family in FAMILIES for name in family.architectures}
_BY_MODEL_TYPE = {name: family.builder for family in FAMILIES for name in family.types}


class ModelSource(Protocol):
    """What load_model reads of octavo_engine.weights.Source."""

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def checkpoint(self) -> Checkpoint: ...


def find_model(config: dict[str, Any]) -> ModelBuilder:
    """By `architectures`, or by `model_type` where a config has none. Raises UnsupportedModel."""
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and config.get("model_type") in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[config["model_type"]]
    raise UnsupportedModel("architectures", names or config.get("model_type"), ", ".join(ARCHITECTURES))


def load_model(
    source: ModelSource,
    ops: Ops,
    dtype: torch.dtype,
    progress: Progress | None = None,
    *,
    quantization: str | Quantization | None = None,
    max_model_len: int | None = None,
    cache: QuantizedCache | None = None,
    made: dict[str, LinearWeight | Tensor] | None = None,
    trust_remote_code: bool = False,
    adapters: Adapters | None = None,
    step_tokens: int = 2048,
) -> CausalLM:
    """Read, pack and check the whole checkpoint, one tensor at a time.

    dtype: float32, bfloat16 or float16, of the weights that stay in floats. quantization: as EngineOptions has it: of
    linear layers, and by its flags of the head and the token embedding; norms, biases and position embeddings stay in
    floats. What a file holds in 4 or 8 bits is turned to floats before another scheme rounds it. max_model_len: where
    the engine serves other lengths than the checkpoint's own max_position; it sizes the rotation tables. cache: where
    what is quantised here is kept, and looked for first. made: takes what layers hold, by name. A folder whose
    architecture has no file here goes to transformers (models/fallback); trust_remote_code: it may run the checkpoint's
    own code. adapters: gets to know the linear layers, which then take adapters. step_tokens: the most that a forward
    will be given.
    Raises UnsupportedModel, CheckpointMismatch, NotQuantizable, SourceError.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedModel("dtype", dtype, "float32, bfloat16, float16")
    config = ConfigReader(source.config)
    if config.get("quantization_config", default=None) is not None:
        raise UnsupportedModel("quantization_config", config.get("quantization_config"), "float checkpoints")
    scheme = quantization_of(source.checkpoint, quantization)
    try:
        builder = find_model(source.config)
    except UnsupportedModel:
        if adapters is not None:
            raise UnsupportedModel("enable_lora", True, "models that have a file in octavo") from None
        if not isinstance(source, Source) or source.kind != "folder" or made is not None:
            raise  # transformers reads folders, and what it holds can't be written as a packed checkpoint
        from octavo_engine.models.fallback import load_fallback  # brings transformers with it

        formats = choose_formats(scheme, dtype)
        return load_fallback(source.path, source.config, ops, formats, dtype, trust_remote_code=trust_remote_code)

    def build(loader: Loader) -> CausalLM:
        loader.adapters, loader.step_tokens = adapters, step_tokens
        with _one_torch_thread():
            model = builder(config, loader, max_model_len)
        loader.finish()
        return model

    if isinstance(source.checkpoint, PackedFile):
        assert scheme is not None
        return build(packed_loader(source.checkpoint, ops, dtype, scheme, progress))
    entry = None
    if cache is not None and isinstance(source, Source) and scheme is not None and scheme.scheme != "none":
        entry = cache.entry(source, storage(scheme), str(dtype))
    file = entry.open() if entry is not None else None
    if entry is not None and file is not None and scheme is not None:
        try:
            return build(packed_loader(file, ops, dtype, scheme, progress))
        except (SourceError, CheckpointMismatch) as error:
            entry.damaged(error)
    made = {} if made is None else made
    formats = choose_formats(scheme, dtype, stored=hasattr(source.checkpoint, "get_quantized"))
    model = build(Loader(ops, source.checkpoint, dtype, formats, progress, made=made))
    if entry is not None and scheme is not None:
        entry.write(*packed_contents(ops, made, scheme, dtype), progress)
    return model


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Conversions of one tensor are short: with another process on the cores, torch's two threads took 0.8 to 3.5 s
    to wait for each other over SmolLM2 where one takes 0.3."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
