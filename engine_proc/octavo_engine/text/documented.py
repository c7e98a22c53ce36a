"""Chat formats of families whose checkpoints carry no template: what their authors document, or their code does.

A format is recognised by the config's model_type and by the tokens that the vocabulary has, and gives a template and
the tokens that end an answer. Base models of a family share its vocabulary; a template does them no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["ChatFormat", "chat_format"]

_CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' and system %}"
    "<|im_start|>system\n{{ system }}<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_INTERNLM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|User|>:{{ message['content'] }}<eoh>\n"
    "{% elif message['role'] == 'assistant' %}<|Bot|>:{{ message['content'] }}<eoa>\n"
    "{% else %}{{ raise_exception('InternLM has no role ' + message['role']) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Bot|>:{% endif %}"
)
_BAICHUAN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ user_token }}{% elif message['role'] == 'assistant' %}{{ assistant_token }}"
    "{% elif not loop.first %}{{ raise_exception('Baichuan takes a system message only at the start') }}{% endif %}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ assistant_token }}{% endif %}"
)
_DOLLY = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}\n\n### End\n\n"
    "{% else %}{{ raise_exception('Dolly has no role ' + message['role']) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
_STABLELM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}<|SYSTEM|>"
    "{% elif message['role'] == 'user' %}<|USER|>{% else %}<|ASSISTANT|>{% endif %}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<|ASSISTANT|>{% endif %}"
)


class ChatFormat(NamedTuple):
    """template: of the prompt. stops: tokens that end an answer. variables: what else the template reads."""

    template: str
    stops: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}


class _Known(NamedTuple):
    model_type: str
    tokens: tuple[str, ...]  # all of these are in the vocabulary
    format: ChatFormat


# Sources: QwenLM/Qwen (qwen_generation_utils), InternLM (modeling_internlm, build_inputs), databrickslabs/dolly
# (instruct_pipeline), Stability-AI/StableLM (README), mosaicml/mpt-7b-chat (README).
_KNOWN = (
    _Known(
        "qwen",
        ("<|im_start|>", "<|im_end|>"),
        ChatFormat(_CHATML, ("<|im_end|>", "<|im_start|>"), {"system": "You are a helpful assistant."}),
    ),
    _Known("mpt", ("<|im_start|>", "<|im_end|>"), ChatFormat(_CHATML, ("<|im_end|>",), {"system": ""})),
    _Known("internlm", ("<eoh>", "<eoa>"), ChatFormat(_INTERNLM, ("<eoa>",))),
    _Known("gpt_neox", ("### Instruction:", "### Response:", "### End"), ChatFormat(_DOLLY, ("### End",))),
    _Known(
        "gpt_neox",
        ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"),
        ChatFormat(_STABLELM, ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>", "<|padding|>", "<|endoftext|>")),
    ),
)


def chat_format(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    id_of: Callable[[str], int | None],
    token_of: Callable[[int], str | None],
) -> ChatFormat | None:
    """config, generation: config.json and generation_config.json. id_of, token_of: the vocabulary's."""
    kind = config.get("model_type")
    if kind == "baichuan" and "user_token_id" in generation and "assistant_token_id" in generation:
        user, assistant = token_of(generation["user_token_id"]), token_of(generation["assistant_token_id"])
        if user and assistant:
            return ChatFormat(_BAICHUAN, (), {"user_token": user, "assistant_token": assistant})
    for known in _KNOWN:
        if known.model_type == kind and all(id_of(token) is not None for token in known.tokens):
            return known.format
    return None
