"""Checkpoint folders in the Hugging Face layout."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import processors

from octavo.options import SamplingParams
from octavo_engine.text import Detokenizer, Text, TextError, load_text
from tests.support.sentencepiece_files import write_sentencepiece
from tests.text.conftest import train_byte_level, write_folder

CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}


@dataclass
class Source:
    """What weights gives."""

    kind: str
    path: Path


def test_a_source_and_its_path_are_the_same(tmp_path: Path) -> None:
    write_folder(tmp_path, train_byte_level(), tokenizer_config=CONFIG, config={"eos_token_id": 1})
    for given in (tmp_path, str(tmp_path), Source("folder", tmp_path), tmp_path / "tokenizer.json"):
        text = load_text(given)
        assert text.decode(text.encode("the fox 日本")) == "the fox 日本"
        assert text.bos_token_id == 0
        assert text.eos_token_ids == {1}
        assert not text.has_chat_template


def test_generation_config_overrides_config(tmp_path: Path) -> None:
    tokenizer = train_byte_level()
    write_folder(tmp_path, tokenizer, config={"eos_token_id": 9})
    assert load_text(tmp_path).eos_token_ids == {9}
    write_folder(tmp_path, config={"eos_token_id": 9}, generation_config={"eos_token_id": [5, 6]})
    assert load_text(tmp_path).eos_token_ids == {5, 6}
    write_folder(tmp_path, generation_config={"max_length": 3}, tokenizer_config=CONFIG)
    assert load_text(tmp_path).eos_token_ids == {9, 1}  # the tokenizer's own too


def test_special_tokens_map_and_flags(tmp_path: Path) -> None:
    tokenizer = train_byte_level()
    write_folder(tmp_path, tokenizer, special_tokens_map={"eos_token": "</s>", "pad_token": "fo"})
    text = load_text(tmp_path)
    assert text.eos_token_ids == {1}
    assert text.decode([1]) == ""
    assert text.decode([1], skip_special_tokens=False) == "</s>"
    # a token that the config adds gets its id, and one with another id than the model's is left out
    size = tokenizer.get_vocab_size()
    extra = {str(size): {"content": "<tool>", "special": True}, str(size + 9): {"content": "<no>", "special": True}}
    write_folder(tmp_path, tokenizer_config={**CONFIG, "added_tokens_decoder": extra})
    text = load_text(tmp_path)
    assert text.encode("<tool>") == [size]
    assert len(text.encode("<no>")) > 1


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("switch", [None, True, False])
def test_bos_as_the_post_processor_or_the_config_says(tmp_path: Path, by_file: bool, switch: bool | None) -> None:
    tokenizer = train_byte_level()
    if by_file:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    switches = {} if switch is None else {"add_bos_token": switch}
    write_folder(tmp_path, tokenizer, tokenizer_config=CONFIG | switches)
    text = load_text(tmp_path)
    wanted = by_file if switch is None else switch
    bare = text.encode("fox", add_special_tokens=False)
    assert text.encode("fox") == ([0] if wanted else []) + bare


def test_padding_and_truncation_of_the_training_are_off(tmp_path: Path) -> None:
    tokenizer = train_byte_level()
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(max_length=4)
    text = load_text(write_folder(tmp_path, tokenizer))
    ids = text.encode("the quick brown fox")
    assert text.decode(ids, skip_special_tokens=False) == "the quick brown fox"


def test_the_template_from_each_place(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    several = [{"name": "tool", "template": "T"}, {"name": "default", "template": "{{ bos_token }}D"}]
    write_folder(tmp_path, train_byte_level(), chat_template={"chat_template": "J"})
    assert load_text(tmp_path).render_chat(messages) == "J"
    write_folder(tmp_path, tokenizer_config=CONFIG | {"chat_template": several})
    text = load_text(tmp_path)
    assert text.render_chat(messages) == "<s>D"
    assert text.encode(text.render_chat(messages), False)[0] == 0
    (tmp_path / "chat_template.jinja").write_text("F{{ messages[0]['content'] }}", encoding="utf-8")
    assert load_text(tmp_path).render_chat(messages) == "Fx"


def test_no_second_bos_in_a_chat(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}"
    config = CONFIG | {"add_bos_token": True, "chat_template": template}
    text = load_text(write_folder(tmp_path, train_byte_level(), tokenizer_config=config))
    assert text.encode("fox").count(0) == 1
    assert text.encode(text.render_chat([{"role": "user", "content": "fox"}]), False) == text.encode("fox")


def test_without_a_tokenizer(tmp_path: Path) -> None:
    text = load_text(write_folder(tmp_path, config={"eos_token_id": [3, 4]}))
    assert (text.has_tokenizer, text.has_chat_template, text.vocab_size) == (False, False, 0)
    assert text.eos_token_ids == {3, 4}
    assert text.decode([5, 6]) == ""
    for ask in (text.encode, text.render_chat, lambda x: text.encode_bad_words([x])):
        with pytest.raises(TextError, match=r"EngineOptions\.tokenizer"):
            ask("x")  # type: ignore[arg-type]


def test_another_tokenizer(tmp_path: Path) -> None:
    model = write_folder(tmp_path / "model", generation_config={"eos_token_id": 7})
    named = write_folder(tmp_path / "tokenizer", train_byte_level(), tokenizer_config=CONFIG)
    text = load_text(model, tokenizer=str(named))
    assert text.has_tokenizer
    assert text.eos_token_ids == {1, 7}
    with pytest.raises(TextError, match=r"EngineOptions\.tokenizer.*no-such"):
        load_text(model, tokenizer="./no-such")
    with pytest.raises(TextError, match="no tokenizer there"):
        load_text(named, tokenizer=str(model))


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TextError, match=r"tokenizer\.json can't be read"):
        load_text(tmp_path)
    write_folder(tmp_path, train_byte_level())
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TextError, match=r"tokenizer_config\.json is not JSON"):
        load_text(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer_config", [], r"holds a list"),
        ("tokenizer_config", {"added_tokens_decoder": ["<s>"]}, r"added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"zero": {"content": "<s>"}}}, r"added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"-1": {"content": "<s>"}}}, r"added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"0": "<s>"}}, r"added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"0": {"special": True}}}, r"`content`.*added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"0": {"content": 5}}}, r"added_tokens_decoder.*content"),
        ("tokenizer_config", {"added_tokens_decoder": {"0": {"content": "a", "lstrip": "no"}}}, r"lstrip"),
        ("tokenizer_config", {"bos_token": {"lstrip": False}}, r"`content`.*bos_token"),
        ("tokenizer_config", {"eos_token": 2}, r"eos_token"),
        ("tokenizer_config", {"added_tokens_decoder": {"\ud800": {"content": "a"}}}, r"surrogates not allowed"),
        ("tokenizer_config", {"additional_special_tokens": "<s>"}, r"additional_special_tokens"),
        ("tokenizer_config", {"extra_special_tokens": [1]}, r"extra_special_tokens"),
        ("tokenizer_config", {"add_bos_token": "false"}, r"add_bos_token"),
        ("tokenizer_config", {"tokenizer_class": ["LlamaTokenizer"]}, r"tokenizer_class"),
        ("tokenizer_config", {"auto_map": "tokenization.Own"}, r"auto_map"),
        ("special_tokens_map", {"pad_token": ["<s>"]}, r"pad_token"),
        ("generation_config", {"eos_token_id": "</s>"}, r"eos_token_id='</s>'"),
        ("config", {"eos_token_id": [[1]]}, r"eos_token_id=\[\[1\]\]"),
    ],
)
@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "tokenizer.model"])
def test_a_malformed_file_and_its_key_are_named(
    vocabulary: str, name: str, content: object, told: str, tmp_path: Path
) -> None:
    if vocabulary == "tokenizer.json":
        train_byte_level().save(str(tmp_path / vocabulary))
    else:
        write_sentencepiece(tmp_path / vocabulary, ["<unk>", "<s>", "</s>", "a"], [0.0] * 4, [2, 3, 3, 1])
    with pytest.raises(TextError, match=rf"{name}\.json.*{told}"):
        load_text(write_folder(tmp_path, **{name: content}))


def test_what_the_files_leave_open_is_none(tmp_path: Path) -> None:
    nothing = {"bos_token": None, "added_tokens_decoder": None, "add_bos_token": None, "auto_map": None, "legacy": None}
    write_folder(tmp_path, train_byte_level(), tokenizer_config=nothing | {"extra_special_tokens": {"image": 1}})
    assert load_text(tmp_path).decode(load_text(tmp_path).encode("fox")) == "fox"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TextError, match=r"chat_template\.jinja is no text in UTF-8"):
        load_text(tmp_path)


def test_slow_files_go_through_transformers(tmp_path: Path) -> None:
    model = json.loads(train_byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>", "tokenizer_class": "GPT2Tokenizer"}
    text = load_text(
        write_folder(tmp_path, tokenizer_config=config | {"add_bos_token": True}, config={"model_type": "gpt2"})
    )
    assert text.eos_token_ids == {1}
    assert text.encode("the fox")[0] == 0
    assert text.decode(text.encode("the fox 日本")) == "the fox 日本"


def test_a_tokenizer_that_only_python_has(tmp_path: Path) -> None:
    """ByT5: a token is a byte, ids from 3 on, and incomplete characters decode to nothing."""
    config = {"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    text = load_text(write_folder(tmp_path, tokenizer_config=config))
    ids = text.encode("aé日", add_special_tokens=False)
    assert ids == [byte + 3 for byte in "aé日".encode()]
    assert text.encode("a") == [100, 1]
    assert text.eos_token_ids == {1}
    detokenizer = Detokenizer(text, SamplingParams())
    assert [detokenizer.push([token]).text for token in [*ids, 1, 100_000]] == ["a", "", "é", "", "", "日", "", ""]
    assert detokenizer.push(ids[:2], final=True).text == "a"


def test_neither_transformers_nor_jinja_is_imported_without_need(tmp_path: Path) -> None:
    write_folder(tmp_path, train_byte_level(), tokenizer_config=CONFIG | {"chat_template": "x"})
    program = (
        "import sys; from octavo_engine.text import load_text\n"
        f"text = load_text({str(tmp_path)!r}); text.decode(text.encode('the fox'))\n"
        "print([m for m in ('transformers', 'jinja2', 'torch', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_text_without_a_template(byte_level: Text) -> None:
    with pytest.raises(TextError, match="no chat template"):
        byte_level.encode(byte_level.render_chat([{"role": "user", "content": "x"}]), False)


def test_the_template_for_tools_from_each_place(tmp_path: Path) -> None:
    messages, tools = [{"role": "user", "content": "x"}], {"tools": [{"name": "f"}]}
    several = [{"name": "tool_use", "template": "T{{ tools[0].name }}"}, {"name": "default", "template": "D"}]
    write_folder(tmp_path, train_byte_level(), tokenizer_config=CONFIG | {"chat_template": several})
    assert [load_text(tmp_path).render_chat(messages, asked) for asked in (None, tools)] == ["D", "Tf"]
    by_name = {entry["name"]: entry["template"] for entry in several}
    write_folder(tmp_path, tokenizer_config=CONFIG | {"chat_template": by_name})
    assert [load_text(tmp_path).render_chat(messages, asked) for asked in (None, tools)] == ["D", "Tf"]
    assert load_text(tmp_path, chat_template="tool_use").render_chat(messages, tools) == "Tf"
    (tmp_path / "chat_template.jinja").write_text("F", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R{{ documents[0] }}", encoding="utf-8")
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("A{{ tools[0].name }}", encoding="utf-8")
    assert [load_text(tmp_path).render_chat(messages, asked) for asked in (None, tools)] == ["F", "Af"]
    rag = load_text(tmp_path, chat_template="rag")
    assert rag.render_chat(messages, {"documents": ["d"]}) == "Rd"
    assert rag.chat_template is not None
    assert rag.chat_template.sources == ["R{{ documents[0] }}"]  # by its name alone, tools or not
