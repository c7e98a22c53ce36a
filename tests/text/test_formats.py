"""Chat formats of families whose checkpoints carry none: what each renders, and which checkpoint gets one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from octavo_engine.text import Text, TextError, WrongOption, load_text
from octavo_engine.text.formats import FORMATS
from tests.text.conftest import sentencepiece_metadata, train_byte_level, write_folder

CHAT = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}, {"role": "user", "content": "Q2"}]
SYSTEM = [{"role": "system", "content": "S"}, *CHAT]
INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
USER = HUMAN.replace("human", "user")
STABLELM = (
    "<|SYSTEM|># StableLM Tuned (Alpha version)\n- StableLM is a helpful and harmless open-source AI language model"
)
NO_SYSTEM = "this chat format has no system message"

# name: (a chat without a system message, how one with "S" begins)
RENDERED = {
    "alpaca": (
        f"<s>{INSTRUCTION}\n\n### Instruction:\nQ1\n\n### Response:A1\n\n### Instruction:\nQ2\n\n### Response:",
        "<s>S\n\n### Instruction:\nQ1",
    ),
    "aquila-chat": (f"{HUMAN}###Human: Q1###Assistant: A1###Human: Q2###Assistant:", "S###Human: Q1"),
    "aquila2": ("<|startofpiece|>Q1<|endofpiece|>A1</s><|startofpiece|>Q2<|endofpiece|>", NO_SYSTEM),
    "aquila2-16k": (f"{HUMAN}###Human: Q1###Assistant: A1</s>Human: Q2###Assistant:", "S###Human: Q1"),
    "aquila2-34b": (
        f"{HUMAN}\n\n### Human: Q1\n### Assistant: A1</s>### Human: Q2\n### Assistant: ",
        "S\n\n### Human: Q1",
    ),
    "baichuan": ("<reserved_106>Q1<reserved_107>A1<reserved_106>Q2<reserved_107>", "S<reserved_106>Q1"),
    "chatml": (
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1",
    ),
    "dolly": (
        f"{INSTRUCTION}\n\n### Instruction:\nQ1\n\n### Response:\nA1\n\n### End\n\n### Instruction:\nQ2\n\n"
        "### Response:\n",
        "S\n\n### Instruction:\nQ1",
    ),
    "codellama-70b": (
        "<s>Source: system <step> Source: user\n\n Q1 <step> Source: assistant\n\n A1 <step> Source: user\n\n Q2 "
        "<step> Source: assistant\nDestination: user\n\n ",
        "<s>Source: system\n\n S <step> Source: user\n\n Q1 <step>",
    ),
    "falcon-chat": ("User: Q1\nFalcon: A1\nUser: Q2\nFalcon:", "System: S\nUser: Q1"),
    "falcon-instruct": ("User: Q1\n\nAssistant: A1\n\nUser: Q2\n\nAssistant:", "S\n\nUser: Q1"),
    "gemma": (
        "<s><start_of_turn>user\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n<start_of_turn>user\nQ2"
        "<end_of_turn>\n<start_of_turn>model\n",
        NO_SYSTEM,
    ),
    "internlm": ("<s><|User|>:Q1<eoh>\n<|Bot|>:A1<eoa>\n<|User|>:Q2<eoh>\n<|Bot|>:", NO_SYSTEM),
    "llama2": ("<s>[INST] Q1 [/INST] A1 </s><s>[INST] Q2 [/INST]", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ1 [/INST] A1"),
    "mistral": ("<s>[INST] Q1 [/INST] A1</s>[INST] Q2 [/INST]", "<s>[INST] S\n\nQ1 [/INST] A1"),
    "mistral-v3": (
        "<s>[INST] Q1[/INST] A1</s>[INST] Q2[/INST]",
        "<s>[INST] Q1[/INST] A1</s>[INST] S\n\nQ2[/INST]",
    ),
    "mpt-30b-instruct": (
        f"{INSTRUCTION}\n\n### Instruction\nQ1\n\n### Response\nA1\n\n### Instruction\nQ2\n\n### Response\n",
        "S\n\n### Instruction\nQ1",
    ),
    "mpt-instruct": (
        f"{INSTRUCTION}\n### Instruction:\nQ1\n### Response:\nA1\n### Instruction:\nQ2\n### Response:\n",
        "S\n### Instruction:\nQ1",
    ),
    "phi-2": ("Instruct: Q1\nOutput: A1\nInstruct: Q2\nOutput:", "S\nInstruct: Q1"),
    "phi-2-chat": ("Alice: Q1\nBob: A1\nAlice: Q2\nBob:", "S\nAlice: Q1"),
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1",
    ),
    "stablelm-tuned": (
        f"{STABLELM} developed by StabilityAI.\n"
        "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered "
        "harmful to the user.\n"
        "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and "
        "make jokes.\n- StableLM will refuse to participate in anything that could harm a human.\n"
        "<|USER|>Q1<|ASSISTANT|>A1<|USER|>Q2<|ASSISTANT|>",
        "<|SYSTEM|>S<|USER|>Q1",
    ),
    "starchat": (
        "<|system|>\n<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n<|assistant|>\n",
        "<|system|>\nS<|end|>\n<|user|>\nQ1",
    ),
    "vicuna": (f"<s>{USER} USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:", "<s>S USER: Q1 ASSISTANT: A1"),
    "vicuna-v0": (
        f"<s>{HUMAN}\n### Human: Q1\n### Assistant: A1\n### Human: Q2\n### Assistant:",
        "<s>S\n### Human: Q1",
    ),
}
CONFIG = {"bos_token": "<s>", "eos_token": "</s>"}


def folder_text(path: Path, model_type: str = "llama", tokens: tuple[str, ...] = (), **more: Any) -> Text:
    """A base checkpoint with these tokens besides; more: generation's keys, or what load_text takes."""
    tokenizer = train_byte_level()
    tokenizer.add_special_tokens(list(tokens))
    generation = {"eos_token_id": 1, **more.pop("generation", {})}
    config = {"model_type": model_type, **more.pop("config", {})}
    write_folder(path, tokenizer, tokenizer_config=CONFIG, config=config, generation_config=generation)
    return load_text(path, **more)


def gguf_text(architecture: str, tokens: tuple[str, ...] = (), kind: int = 3, **more: Any) -> Text:
    vocab = json.loads(train_byte_level().to_str())["model"]["vocab"]
    words = [*sorted(vocab, key=vocab.__getitem__), *tokens]
    metadata = {
        "general.architecture": architecture,
        "general.name": more.pop("general_name", None),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(vocab) - 2), *[kind] * len(tokens)],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **more.pop("metadata", {}),
    }
    return load_text(metadata={key: value for key, value in metadata.items() if value is not None}, **more)


def test_the_table_is_whole() -> None:
    assert RENDERED.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_each_format_by_its_name(name: str, tmp_path: Path) -> None:
    reserved = ("<reserved_106>", "<reserved_107>")
    tokens = tuple(dict.fromkeys((*reserved, *FORMATS[name].tokens)))
    size = train_byte_level().get_vocab_size()
    ids = {"user_token_id": size, "assistant_token_id": size + 1}
    text = folder_text(tmp_path, tokens=tokens, generation=ids, chat_template=name)
    plain, begins = RENDERED[name]
    assert text.render_chat(CHAT) == plain
    if begins == NO_SYSTEM:
        with pytest.raises(TextError, match=NO_SYSTEM):
            text.render_chat(SYSTEM)
    else:
        assert text.render_chat(SYSTEM).startswith(begins)
        assert text.render_chat(SYSTEM)[len(begins) :] in plain
    for token in tokens:
        assert text.encode(token, add_special_tokens=False) == [size + tokens.index(token)]
    told = text.render_chat(CHAT, {"add_generation_prompt": False})
    assert plain.startswith(told)
    assert told.count("Q2") == 1
    assert text.chat_stop == FORMATS[name].stop


@pytest.mark.parametrize("name", ["alpaca", "falcon-instruct", "llama2", "baichuan", "codellama-70b"])
def test_a_role_or_place_that_a_format_lacks_is_refused(name: str, tmp_path: Path) -> None:
    ids = {"user_token_id": 2, "assistant_token_id": 3}
    text = folder_text(tmp_path, generation=ids, chat_template=name)
    with pytest.raises(TextError, match="no role tool"):
        text.render_chat([*CHAT, {"role": "tool", "content": "x"}])
    with pytest.raises(TextError, match="system message stands only at the start"):
        text.render_chat([*CHAT, {"role": "system", "content": "x"}])


WEATHER = {"name": "weather", "description": "Get é", "parameters": {"type": "object", "properties": {}}}
NOW = {"name": "now", "description": "", "parameters": {}}
TOLD = (
    '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "weather", "description": "Get é", "parameters": '
    '{"type": "object", "properties": {}}}}, {"type": "function", "function": {"name": "now", "description": "", '
    '"parameters": {}}}][/AVAILABLE_TOOLS]'
)
CALLED = (
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zü"}, "id": "abcdefghi"}, '
    '{"name": "now", "arguments": {}, "id": "abcdefghj"}]</s>'
)


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("22", "22"),
        ('{"t": "noon"}', '{"t": "noon"}'),
        ('sunny, "hot"', '"sunny, \\"hot\\""'),
        ("2024-01-01", '"2024-01-01"'),
        ("true", "true"),
        ("", "{}"),
    ],
)
def test_mistral_s_tools_stand_where_its_own_encoder_puts_them(said: str, written: str, tmp_path: Path) -> None:
    """The texts are those of mistral-common's InstructTokenizerV3."""
    text = folder_text(tmp_path, chat_template="mistral-v3")
    tools = {"tools": [{"type": "function", "function": WEATHER}, {"type": "function", "function": NOW}]}
    calls = [("abcdefghi", "weather", '{"city": "Zü"}'), ("abcdefghj", "now", "{}")]
    calling = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls],
    }
    told = [CHAT[0], calling, {"role": "tool", "tool_call_id": "abcdefghi", "content": said}]
    result = f'[TOOL_RESULTS] {{"content": {written}, "call_id": "abcdefghi"}}[/TOOL_RESULTS]'
    assert text.render_chat(told, tools) == f"<s>{TOLD}[INST] Q1[/INST]{CALLED}{result}"
    assert text.render_chat([SYSTEM[0], *told, *CHAT[1:]], tools) == (
        f"<s>[INST] Q1[/INST]{CALLED}{result} A1</s>{TOLD}[INST] S\n\nQ2[/INST]"
    )
    with pytest.raises(TextError, match="no role developer"):
        text.render_chat([{"role": "developer", "content": "x"}])


def test_quotes_braces_and_newlines_of_a_message_stay_as_they_are(tmp_path: Path) -> None:
    text = folder_text(tmp_path, chat_template="vicuna")
    said = "\n\n'\"{{ 1 }}{% x %}\\n日本\n"
    assert f"USER: {said} ASSISTANT:" in text.render_chat([{"role": "user", "content": said}])


# model_type, what marks the chat variant, the format's name and the ids that end an answer besides </s>
MARKED: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("gpt_neox", {"tokens": ("### Instruction:", "### Response:", "### End")}, "dolly", ["### End"]),
    (
        "gpt_neox",
        {"tokens": ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>")},
        "stablelm-tuned",
        ["<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"],
    ),
    ("gpt_bigcode", {"tokens": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")}, "starchat", ["<|end|>"]),
    ("mpt", {"tokens": ("<|im_start|>", "<|im_end|>")}, "chatml", ["<|im_end|>"]),
    (
        "qwen",
        {"tokens": ("<|im_start|>", "<|im_end|>"), "generation": {"chat_format": "chatml"}},
        "qwen",
        ["<|im_end|>", "<|im_start|>"],
    ),
    ("baichuan", {"generation": {"user_token_id": 5, "assistant_token_id": 6}}, "baichuan", []),
    ("internlm", {"tokens": ("<eoh>", "<eoa>"), "generation": {"eos_token_id": [1, 403]}}, "internlm", ["<eoa>"]),
]


@pytest.mark.parametrize(("model_type", "marks", "name", "ends"), MARKED, ids=[m[2] for m in MARKED])
def test_a_chat_variant_is_known_by_what_it_has(
    model_type: str, marks: dict[str, Any], name: str, ends: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="octavo.engine"):
        text = folder_text(tmp_path / "model", model_type, **marks)
    assert f"in the format '{name}'" in caplog.text
    assert text.chat_template is not None
    assert text.chat_template.sources == [FORMATS[name].template]
    assert text.eos_token_ids == {1, *(text.encode(end)[0] for end in ends)}
    # no other family's, and not where the mark is missing
    assert not folder_text(tmp_path / "other", "opt", **marks).has_chat_template
    tokens = marks.get("tokens", ()) if "generation" in marks else marks["tokens"][:-1]
    assert not folder_text(tmp_path / "base", model_type, tokens=tokens).has_chat_template


NAMED = [
    ("aquila", "BAAI/AquilaChat-7B", "aquila-chat"),
    ("aquila", "BAAI/AquilaChat2-7B", "aquila2"),
    ("aquila", "BAAI/AquilaChat2-7B-16K", "aquila2-16k"),
    ("aquila", "BAAI/AquilaChat2-34B", "aquila2-34b"),
    ("aquila", "BAAI/AquilaChat2-70B-Expr", None),  # whose format its authors don't tell
    ("aquila", "BAAI/Aquila-7B", None),
    ("falcon", "tiiuae/falcon-7b-instruct", "falcon-instruct"),
    ("RefinedWebModel", "/models/falcon-40b-instruct/", "falcon-instruct"),
    ("falcon", "tiiuae/falcon-180B-chat", "falcon-chat"),
    ("falcon", "tiiuae/falcon-7b", None),
    ("falcon", "OpenAssistant/falcon-7b-sft-mix-2000", None),
    ("phi", "microsoft/phi-2", "phi-2"),
    ("phi", "phi-2.Q4_K_M.gguf", "phi-2"),
    ("phi", "microsoft/phi-1_5", None),
    ("phi", "someone/dolphin-2_6-phi-2", None),
    ("phi", "someone/phi-2-orange", None),
    ("mpt", "mosaicml/mpt-7b-instruct", "mpt-instruct"),
    ("mpt", "mosaicml/mpt-7b-8k-instruct", "mpt-instruct"),
    ("mpt", "mosaicml/mpt-30b-instruct", "mpt-30b-instruct"),
    ("mpt", "mosaicml/mpt-7b-chat", "chatml"),
    ("mpt", "mosaicml/mpt-7b", None),
    ("mpt", "mosaicml/mpt-7b-storywriter", None),
    ("llama", "lmsys/vicuna-7b-v1.5", "vicuna"),
    ("llama", "vicuna-13b-v1.3.Q4_0.gguf", "vicuna"),
    ("llama", "vicuna-13b-delta-v0", "vicuna-v0"),
    ("llama", "chavinlo/alpaca-native", "alpaca"),
    ("llama", "huggyllama/llama-7b", None),
    ("llama", "/data/llama-2-7b-chat.Q4_K_M.gguf", "llama2"),
    ("llama", "meta-llama/Llama-2-7b-chat-hf", "llama2"),
    ("llama", "meta-llama/Llama-2-7b-hf", None),
    ("llama", "codellama/CodeLlama-7b-Instruct-hf", "llama2"),
    ("llama", "codellama/CodeLlama-70b-Instruct-hf", "codellama-70b"),
    ("llama", "codellama/CodeLlama-70b-hf", None),
    ("mistral", "mistralai/Mistral-7B-Instruct-v0.1", "mistral"),
    ("llama", "mistralai_mistral-7b-instruct-v0.2", "mistral"),
    ("mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
    ("mistral", "mistralai/Mistral-7B-Instruct-v0.3", "mistral-v3"),
    ("llama", "Mistral-7B-Instruct-v0.3.Q4_K_M.gguf", "mistral-v3"),
    ("mixtral", "mistralai/Mixtral-8x22B-Instruct-v0.1", "mistral-v3"),
    ("mistral", "mistralai/Mistral-7B-v0.1", None),
    ("mistral", "mistralai/Mistral-7B-v0.3", None),
    ("gemma", "google/gemma-1.1-2b-it", "gemma"),
    ("gemma", "google/gemma-2b", None),
    ("qwen", "Qwen/Qwen-7B-Chat", "qwen"),
    ("qwen", "Qwen/Qwen-1_8B-Chat", "qwen"),
    ("qwen", "qwen7b-chat-q4_0.gguf", "qwen"),
    ("qwen", "Qwen/Qwen-7B", None),
    ("internlm", "internlm/internlm-chat-7b-v1_1", "internlm"),
    ("internlm", "internlm/internlm-7b", None),
    ("gpt_neox", "databricks/dolly-v2-3b", "dolly"),
    ("gpt_neox", "EleutherAI/pythia-1b", None),
    ("gpt2", "openai-community/gpt2", None),
    ("opt", "facebook/opt-1.3b", None),
    ("bloom", "bigscience/bloomz-560m", None),
    ("gpt_bigcode", "bigcode/starcoder", None),
]


@pytest.mark.parametrize(("model_type", "name", "wanted"), NAMED, ids=[name for _, name, _ in NAMED])
def test_or_by_the_name_it_is_published_under(model_type: str, name: str, wanted: str | None, tmp_path: Path) -> None:
    text = folder_text(tmp_path, model_type, name=name)
    found = text.chat_template.sources[0] if text.chat_template else None
    assert found == (FORMATS[wanted].template if wanted else None)
    if found is None:
        with pytest.raises(TextError, match=r"no chat template.*EngineOptions\.chat_template \(alpaca, .*vicuna-v0;"):
            text.render_chat(CHAT)


def test_every_place_of_a_name_counts(tmp_path: Path) -> None:
    wanted = [FORMATS["vicuna"].template]
    by_folder = folder_text(tmp_path / "vicuna-7b-v1.5")
    by_config = folder_text(tmp_path / "a", config={"_name_or_path": "lmsys/vicuna-7b-v1.5"})
    by_metadata = gguf_text("llama", general_name="Vicuna 7B V1.5")
    for text in (by_folder, by_config, by_metadata):
        assert text.chat_template is not None
        assert text.chat_template.sources == wanted
    assert not gguf_text("llama", general_name="LLaMA v2").has_chat_template


def test_baichuan_as_gguf_has_its_tokens_by_their_ids() -> None:
    text = gguf_text("baichuan", name="Baichuan2-7B-Chat.Q4_0.gguf")
    prompt = text.encode(text.render_chat([{"role": "user", "content": "fox"}]), False)
    assert (prompt[0], prompt[-1]) == (195, 196)
    assert text.decode([195, *text.encode("fox"), 196]) == "fox"
    values = sentencepiece_metadata()
    short = values | {f"tokenizer.ggml.{key}": values[f"tokenizer.ggml.{key}"][:190] for key in ("tokens", "scores")}
    short["tokenizer.ggml.token_type"] = short["tokenizer.ggml.token_type"][:190]
    with pytest.raises(TextError, match="'baichuan' writes token 195, and the vocabulary has none"):
        load_text(metadata=short, chat_template="baichuan")


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize(
    "end", ["<eoa>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<turn|>", "[EOS]"]
)
def test_what_ends_a_turn_ends_a_generation_of_a_gguf_file(end: str, kind: int) -> None:
    text = gguf_text("llama", (end,), kind)
    (token,) = text.encode(end)
    assert text.eos_token_ids == {1, token}
    assert text.decode([token]) == ""
    assert not text.has_chat_template  # it may be a base model all the same


def test_the_option_wins_over_everything(tmp_path: Path) -> None:
    own = {"metadata": {"tokenizer.chat_template": "own"}}
    assert gguf_text("llama", **own).render_chat(CHAT) == "own"
    assert gguf_text("llama", name="vicuna-7b-v1.5", **own).render_chat(CHAT) == "own"
    chatml = gguf_text("llama", ("<|im_start|>", "<|im_end|>"), chat_template="chatml", **own)
    assert chatml.render_chat(CHAT) == RENDERED["chatml"][0]
    assert gguf_text("llama", chat_template="{{ messages|length }} turns", **own).render_chat(CHAT) == "3 turns"
    path = tmp_path / "mine.jinja"
    path.write_text("{{ bos_token }}é{{ messages[0].content }}<|im_end|>", encoding="utf-8")
    text = folder_text(tmp_path / "model", tokens=("<|im_end|>",), chat_template=str(path))
    assert text.render_chat(CHAT) == "<s>éQ1<|im_end|>"
    assert text.eos_token_ids == {1, *text.encode("<|im_end|>")}


def test_an_option_that_names_nothing_is_answered_with_what_there_is(tmp_path: Path) -> None:
    several = {"metadata": {"tokenizer.chat_templates": ["rag"], "tokenizer.chat_template.rag": "R"}}
    with pytest.raises(TextError, match=r"chat_template='chatlm': no template.*alpaca, .*the checkpoint's own are rag"):
        gguf_text("llama", chat_template="chatlm", **several)
    assert gguf_text("llama", chat_template="rag", **several).render_chat(CHAT) == "R"
    with pytest.raises(WrongOption, match=r"chat_template='vicuna': the checkpoint has no tokenizer"):
        load_text(write_folder(tmp_path, config={}), chat_template="vicuna")


def test_the_templates_of_a_gguf_file() -> None:
    names = {"tokenizer.chat_templates": ["rag", "tool_use"], "tokenizer.chat_template": "D"}
    names |= {"tokenizer.chat_template.rag": "R", "tokenizer.chat_template.tool_use": "T{{ tools[0].name }}"}
    text = gguf_text("llama", metadata=names)
    assert text.render_chat(CHAT) == "D"
    assert text.render_chat(CHAT, {"tools": [{"name": "f"}]}) == "Tf"
