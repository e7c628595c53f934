"""Chat templates render as transformers' apply_chat_template does, on templates of the kinds in use."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import io
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE, render
from llm_journey.tokenizer.tokenizer import from_merges

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are of help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Headers and an end of turn per message, today's date in the system turn, tools as indented JSON.
LLAMA_LIKE = """\
{{- bos_token }}
{%- set today = strftime_now("%d %b %Y") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + today + "\\n\\n" + system }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("One tool call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# A namespace, a reverse scan, reasoning cut from older turns, tool calls and results in tags, generation marks.
QWEN_LIKE = """\
{%- if tools %}
<|im_start|>system
# Tools
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
<|im_end|>
{% endif %}
{%- set state = namespace(last_query=-1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if state.searching and message.role == "user" and message.content is string %}
        {%- set state.searching = false %}
        {%- set state.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{ '<|im_end|>\\n' }}{% endif %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {%- set content = message.content or '' %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > state.last_query and reasoning %}
            {{- '<think>\\n' ~ reasoning.strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# Roles must alternate; indented block tags on lines of their own, so that trimming decides about white space.
STRICT = """\
{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate, "user" first') }}
    {% endif %}
    {# a comment #}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] }} [/INST]
    {% else %}
 {{ message['content'] }}{{ eos_token }}
    {% endif %}
{% endfor %}
"""
CORNERS = """\
{% macro show(value, depth=0) %}{{ '  ' * depth }}{{ value | tojson(ensure_ascii=true, sort_keys=true) }}{% endmacro %}
{{ show({'b': '<&>', 'a': 'é'}, depth=2) }} {{ {'b': "'<&>'", 'a': [1, none, true]} | tojson }} {{ dict(x=1) }}
{{ messages | map(attribute='role') | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for key, value in messages[0] | items %}{{ key }}={{ value }};{% else %}none{% endfor %}
{{ "%s-%05d" | format('x', 42) }} {{ undefined_name }} {{ missing is defined }} {{ 7 // 2 }} {{ 'a,b'.split(',')[-1] }}
{% filter upper %}loud{% endfilter %} {%- raw %} {{ raw }} {% endraw %} {{ cycler('a', 'b').next() }} {{ '<b>' }}
"""
TEMPLATES = {
    "default": DEFAULT_TEMPLATE,
    "chatml": CHATML,
    "llama-like": LLAMA_LIKE,
    "qwen-like": QWEN_LIKE,
    "strict": STRICT,
    "corners": CORNERS,
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hi <b>there</b> & 'you', é字🙂"}],
    "system": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "1 < 2?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": ""},
    ],
    "reasoning": [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "<think>\nfour\n</think>\n\n4", "name": None},
        {"role": "user", "content": "3+3"},
        {"role": "assistant", "content": "6", "reasoning": "six"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "n": 1.5}}}
            ],
        },
        {"role": "tool", "content": '{"t": 20}'},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "20 degrees."},
    ],
    "nobody": [{"role": "assistant", "content": "I begin."}],
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "It's <wet>", "parameters": {"city": "é"}}}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import transformers

    directory: Path = tmp_path_factory.mktemp("tokenizer")
    io.save(from_merges([], pattern="gpt2", special_tokens=["<|endoftext|>"]), directory)
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True, "enable_thinking": False}])
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["", "tools"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_equal_to_apply_chat_template(
    peer: Any, name: str, chat: str, tools: list[dict[str, Any]] | None, options: dict[str, bool]
) -> None:
    from jinja2 import TemplateError

    variables: dict[str, Any] = {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    variables |= {key: value for key, value in options.items() if key == "enable_thinking"}

    def ours() -> str:
        return render(
            TEMPLATES[name],
            CHATS[chat],
            tools=tools,
            variables=variables,
            add_generation_prompt=options.get("add_generation_prompt", False),
        )

    try:
        expected = peer.apply_chat_template(
            CHATS[chat], chat_template=TEMPLATES[name], tools=tools, tokenize=False, **options
        )
    except (TemplateError, TypeError) as error:
        with pytest.raises(BadInputError) as caught:
            ours()
        assert " ".join(str(error).split()) in str(caught.value)
    else:
        assert ours() == expected


def test_the_clock_is_the_machines_unless_given() -> None:
    template = "{{ strftime_now('%Y-%m') }}"
    before = datetime.datetime.now().strftime("%Y-%m")
    assert render(template, []) in {before, datetime.datetime.now().strftime("%Y-%m")}


def test_the_cases_do_render() -> None:
    text = render(QWEN_LIKE, CHATS["tools"], tools=[TOOL], add_generation_prompt=True)
    assert json.dumps(TOOL, ensure_ascii=False) in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "n": 1.5}}\n</tool_call>' in text
    assert text.endswith("20 degrees.<|im_end|>\n<|im_start|>assistant\n")
