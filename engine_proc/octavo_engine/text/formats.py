"""Chat formats that checkpoints without a template were trained on: what their authors document, or their code does.

Sources: QwenLM/Qwen (qwen_generation_utils), InternLM (modeling_internlm, build_inputs), baichuan-inc
(generation_utils), databrickslabs/dolly (instruct_pipeline), FlagAI-Open/Aquila2 (predict.py), facebookresearch/llama
and codellama (generation.py), mistralai/mistral-common (InstructTokenizerV3), tatsu-lab/stanford_alpaca,
lm-sys/FastChat (conversation.py, for Vicuna, Falcon and Aquila), and the model cards of Stability-AI/StableLM,
mosaicml/mpt-*, HuggingFaceH4/starchat, microsoft/phi-2, google/gemma and Mistral.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["FORMATS", "ChatFormat"]


class ChatFormat(NamedTuple):
    """template: of the prompt. tokens: that it writes, to be found whole where the vocabulary has them. ends: tokens
    that end an answer. stop: strings that end one where a chat is asked for. ids: template variables that are the
    token with this id, or with the id that generation_config.json gives as NAME_id.
    """

    template: str
    tokens: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    ids: Mapping[str, int] = {}


def _expression(text: str, content: str = "message['content']") -> str:
    """Jinja's for a text with {} for a message's content, {trimmed} for that without spaces around, {role}, {name} for
    a variable. In quotes, so that no newline is taken for a block's."""
    words = f"({content} or '')"
    own = {"{}": words, "{trimmed}": f"({words} | trim)", "{role}": "message['role']", "{lead}": _LEAD}
    parts = [part for part in re.split(r"(\{\w*\})", text) if part]
    return " ~ ".join(own.get(p) or (p[1:-1] if p[0] == "{" else json.dumps(p)) for p in parts)


# A system message that belongs into the first user's.
_LEAD = "(lead if loop.index0 == (1 if messages[0]['role'] == 'system' else 0) else '')"


def _turns(
    user: str,
    assistant: str,
    prompt: str = "",
    *,
    system: str | None = None,
    default: str | None = None,
    without: str = "",
    start: str = "",
) -> str:
    """The template that writes turns so. system: None where the format has no such message; with {lead} in `user` it is
    put there. default: the system message of a chat without one; without: or what stands for it. prompt: what
    begins the answer."""
    head = f"{{{{ {_expression(start)} }}}}" if start else ""
    if system is not None:
        given = _expression(system, "messages[0]['content']")
        other = _expression(system, json.dumps(default)) if default is not None else json.dumps(without)
        value = f"{given} if messages[0]['role'] == 'system' else {other}"
        head += f"{{% set lead = {value} %}}" if "{lead}" in user else f"{{{{ {value} }}}}"
    misplaced = "'a system message stands only at the start of a chat'"
    if system is None:
        misplaced = "'this chat format has no system message'"
    allowed = "not loop.first" if system is not None else "true"
    return (
        f"{head}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{{{{ {_expression(user)} }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {_expression(assistant)} }}}}"
        f"{{% elif message['role'] != 'system' %}}"
        f"{{{{ raise_exception('this chat format has no role ' ~ message['role']) }}}}"
        f"{{% elif {allowed} %}}{{{{ raise_exception({misplaced}) }}}}{{% endif %}}{{% endfor %}}"
        + (f"{{% if add_generation_prompt %}}{{{{ {_expression(prompt)} }}}}{{% endif %}}" if prompt else "")
    )


def _chatml(default: str | None = None) -> str:
    """ChatML takes any role."""
    system = f"<|im_start|>system\n{default}<|im_end|>\n"
    lead = f"{{% if messages[0]['role'] != 'system' %}}{{{{ {json.dumps(system)} }}}}{{% endif %}}" if default else ""
    turn, prompt = _expression("<|im_start|>{role}\n{}<|im_end|>\n"), json.dumps("<|im_start|>assistant\n")
    return (
        f"{lead}{{% for message in messages %}}{{{{ {turn} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
    )


# Tools stand before the last user's words, and the system message within these; calls and what came of them, as JSON,
# where they happened.
_MISTRAL_V3 = """
{%- set ns = namespace(last=-1) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- set words = message['content'] or '' -%}
    {%- if message['role'] == 'user' -%}
        {%- if tools and loop.index0 == ns.last -%}
            {{- '[AVAILABLE_TOOLS] [' -}}
            {%- for tool in tools -%}
                {%- set told = {'type': 'function', 'function': tool['function'] or tool} -%}
                {{- (told | tojson) ~ (', ' if not loop.last else '') -}}
            {%- endfor -%}
            {{- '][/AVAILABLE_TOOLS]' -}}
        {%- endif -%}
        {%- set lead = messages[0]['content'] ~ '\\n\\n' if messages[0]['role'] == 'system' else '' -%}
        {{- '[INST] ' ~ (lead if loop.index0 == ns.last else '') ~ words ~ '[/INST]' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ' ~ words.rstrip() if words else '' -}}
        {%- for call in message['tool_calls'] or [] -%}
            {%- set called = call['function'] -%}
            {%- set told = {'name': called['name'], 'arguments': called['arguments'], 'id': call['id']} -%}
            {{- ('[TOOL_CALLS] [' if loop.first else ', ') ~ (told | tojson) ~ (']' if loop.last else '') -}}
        {%- endfor -%}
        {{- eos_token -}}
    {%- elif message['role'] == 'tool' -%}
        {%- set words = words or '{}' -%}
        {%- set json = words[:1] in ['{', '[', '"'] or words in ['true', 'false', 'null'] or words | float('') != '' -%}
        {{- '[TOOL_RESULTS] {"content": ' ~ (words if json else words | tojson) -}}
        {{- ', "call_id": ' ~ (message['tool_call_id'] | tojson) ~ '}[/TOOL_RESULTS]' -}}
    {%- elif message['role'] != 'system' -%}
        {{- raise_exception('this chat format has no role ' ~ message['role']) -}}
    {%- elif not loop.first -%}
        {{- raise_exception('a system message stands only at the start of a chat') -}}
    {%- endif -%}
{%- endfor -%}
"""
_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
_CURIOUS_USER = _CURIOUS_HUMAN.replace("human", "user")
_STABLELM = """# StableLM Tuned (Alpha version)
- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.
- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered harmful to \
the user.
- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and make \
jokes.
- StableLM will refuse to participate in anything that could harm a human.
"""
_IM = ("<|im_start|>", "<|im_end|>")

FORMATS: dict[str, ChatFormat] = {
    "alpaca": ChatFormat(
        _turns(
            "### Instruction:\n{}\n\n",
            "### Response:{}\n\n",
            "### Response:",
            system="{}\n\n",
            default=_INSTRUCTION,
            start="{bos_token}",
        ),
        stop=("### Instruction:",),
    ),
    "aquila-chat": ChatFormat(
        _turns("Human: {}###", "Assistant: {}###", "Assistant:", system="{}###", default=_CURIOUS_HUMAN),
        ends=("</s>", "[UNK]"),
        stop=("###",),
    ),
    "aquila2": ChatFormat(
        _turns("<|startofpiece|>{}", "<|endofpiece|>{}</s>", "<|endofpiece|>"),
        ("<|startofpiece|>", "<|endofpiece|>"),
        ends=("</s>", "<|endoftext|>"),
    ),
    "aquila2-16k": ChatFormat(
        _turns("Human: {}###", "Assistant: {}</s>", "Assistant:", system="{}###", default=_CURIOUS_HUMAN),
        ends=("</s>", "[UNK]"),
    ),
    "aquila2-34b": ChatFormat(
        _turns("### Human: {}\n", "### Assistant: {}</s>", "### Assistant: ", system="{}\n\n", default=_CURIOUS_HUMAN),
        ends=("</s>", "[UNK]"),
    ),
    "baichuan": ChatFormat(
        _turns("{user_token}{}", "{assistant_token}{}", "{assistant_token}", system="{}"),
        ids={"user_token": 195, "assistant_token": 196},
    ),
    "chatml": ChatFormat(_chatml(), _IM, ends=("<|im_end|>",)),
    "codellama-70b": ChatFormat(
        _turns(
            "Source: user\n\n {trimmed} <step> ",
            "Source: assistant\n\n {trimmed} <step> ",
            "Source: assistant\nDestination: user\n\n ",
            system="Source: system\n\n {trimmed} <step> ",
            without="Source: system <step> ",
            start="{bos_token}",
        ),
        ("<step>",),
        ends=("<step>",),
    ),
    "dolly": ChatFormat(
        _turns(
            "### Instruction:\n{}\n\n",
            "### Response:\n{}\n\n### End\n\n",
            "### Response:\n",
            system="{}\n\n",
            default=_INSTRUCTION,
        ),
        ("### Instruction:", "### Response:", "### End"),
        ends=("### End",),
    ),
    "falcon-chat": ChatFormat(
        _turns("User: {}\n", "Falcon: {}\n", "Falcon:", system="System: {}\n"), stop=("\nUser:",)
    ),
    "falcon-instruct": ChatFormat(
        _turns("User: {}\n\n", "Assistant: {}\n\n", "Assistant:", system="{}\n\n"), stop=("\nUser:",)
    ),
    "gemma": ChatFormat(
        _turns(
            "<start_of_turn>user\n{trimmed}<end_of_turn>\n",
            "<start_of_turn>model\n{trimmed}<end_of_turn>\n",
            "<start_of_turn>model\n",
            start="{bos_token}",
        ),
        ("<start_of_turn>", "<end_of_turn>"),
        ends=("<end_of_turn>",),
    ),
    "internlm": ChatFormat(
        _turns("<|User|>:{}<eoh>\n", "<|Bot|>:{}<eoa>\n", "<|Bot|>:", start="{bos_token}"),
        ("<eoh>", "<eoa>"),
        ends=("<eoa>",),
        stop=("<|User|>",),
    ),
    "llama2": ChatFormat(
        _turns(
            "{bos_token}[INST] {lead}{trimmed} [/INST]",
            " {trimmed} {eos_token}",
            system="<<SYS>>\n{trimmed}\n<</SYS>>\n\n",
        )
    ),
    "mistral": ChatFormat(
        _turns("[INST] {lead}{} [/INST]", " {}{eos_token}", system="{}\n\n", start="{bos_token}"),
    ),
    "mistral-v3": ChatFormat(
        _MISTRAL_V3,
        (
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
    ),
    "mpt-30b-instruct": ChatFormat(
        _turns(
            "### Instruction\n{}\n\n",
            "### Response\n{}\n\n",
            "### Response\n",
            system="{}\n\n",
            default=_INSTRUCTION,
        ),
        stop=("### Instruction",),
    ),
    "mpt-instruct": ChatFormat(
        _turns("### Instruction:\n{}\n", "### Response:\n{}\n", "### Response:\n", system="{}\n", default=_INSTRUCTION),
        stop=("### Instruction:",),
    ),
    "phi-2": ChatFormat(_turns("Instruct: {}\n", "Output: {}\n", "Output:", system="{}\n"), stop=("\nInstruct:",)),
    "phi-2-chat": ChatFormat(_turns("Alice: {}\n", "Bob: {}\n", "Bob:", system="{}\n"), stop=("\nAlice:",)),
    "qwen": ChatFormat(_chatml("You are a helpful assistant."), _IM, ends=("<|im_end|>", "<|im_start|>")),
    "stablelm-tuned": ChatFormat(
        _turns("<|USER|>{}", "<|ASSISTANT|>{}", "<|ASSISTANT|>", system="<|SYSTEM|>{}", default=_STABLELM),
        ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"),
        ends=("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>", "<|padding|>", "<|endoftext|>"),
    ),
    "starchat": ChatFormat(
        _turns(
            "<|user|>\n{}<|end|>\n",
            "<|assistant|>\n{}<|end|>\n",
            "<|assistant|>\n",
            system="<|system|>\n{}<|end|>\n",
            default="",
        ),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ends=("<|end|>",),
    ),
    "vicuna": ChatFormat(
        _turns(
            "USER: {} ",
            "ASSISTANT: {}{eos_token}",
            "ASSISTANT:",
            system="{} ",
            default=_CURIOUS_USER,
            start="{bos_token}",
        )
    ),
    "vicuna-v0": ChatFormat(
        _turns(
            "### Human: {}\n",
            "### Assistant: {}\n",
            "### Assistant:",
            system="{}\n",
            default=_CURIOUS_HUMAN,
            start="{bos_token}",
        ),
        stop=("###",),
    ),
}
"""By the names that EngineOptions.chat_template takes. A message's words stand where the authors' own do; of more than
one turn, which some of them never had, the turns follow each other."""
