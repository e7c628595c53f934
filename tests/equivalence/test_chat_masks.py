"""What an assistant writes in a chat: trl's masks on trl's own templates, and by hand on five published forms.

trl's assistant-only loss is transformers' `return_assistant_tokens_mask` over a template with generation marks; trl
ships such templates beside the published ones.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer, io
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE, encode_chat
from llm_journey.tokenizer.chat_training import ChatExample, chat_examples
from llm_journey.tokenizer.tokenizer import from_merges

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<s>", "</s>", "[INST]", "[/INST]"),
    *("<start_of_turn>", "<end_of_turn>", "<bos>"),
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "now", "parameters": {"type": "object"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, é字🙂"}],
    "two": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 < 2?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure? <|im_end|>"},
        {"role": "assistant", "content": "Quite.<|im_start|>"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 20}'},
        {"role": "assistant", "content": "20 degrees."},
    ],
}


def tokenizer_with(template: str | None, **roles: str) -> Tokenizer:
    tokenizer = from_merges([], pattern="gpt2", special_tokens=SPECIAL)
    tokenizer.chat_template = template
    for role, name in roles.items():
        setattr(tokenizer.roles, role, name)
    return tokenizer


def written(tokenizer: Tokenizer, example: ChatExample) -> list[str]:
    """The stretches of an example that are trained, as text."""
    stretches: list[list[int]] = []
    before = False
    for token, trained in zip(example.ids, example.trained, strict=True):
        if trained and not before:
            stretches.append([])
        if trained:
            stretches[-1].append(token)
        before = trained
    return [tokenizer.decode(ids) for ids in stretches]


@pytest.mark.parametrize("chat", ["one", "two", "tools"])
@pytest.mark.parametrize("name", ["llama3", "qwen3", "qwen2_5", "phi3", "gemma", "lfm2"])
def test_masks_are_trls(name: str, chat: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    transformers = pytest.importorskip("transformers")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}_training.jinja").read_text(encoding="utf-8")
    messages = [message for message in CHATS[chat] if name != "gemma" or message["role"] != "system"]
    if chat == "tools" and name in ("llama3", "phi3", "gemma", "lfm2"):
        pytest.skip("this template writes no calls")
    if chat == "two":  # transformers lets a message end a turn: ours does not, and so these stay out of the comparison
        messages = [{**message, "content": message["content"].split("<|")[0]} for message in messages]
    ours = tokenizer_with(template)
    io.save(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, chat_template=template, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    (example,) = chat_examples(ours, messages)
    ids = theirs["input_ids"][: len(example.ids)]
    assert example.ids == ids
    mask = [bool(each) for each in theirs["assistant_masks"][: len(example.ids)]]
    # Where trl trains the line end before or behind a turn too, ours does not: the prompt has it, or nobody reads it.
    # Nor the end of the whole text, which phi3 puts behind the last turn.
    if name == "phi3":
        assert ids[-1] == ours.special_tokens["<|endoftext|>"] and mask[-1] and not example.trained[-1]
        mask[-1] = False
    newline = set(ours.encode("\n"))
    for index, (trained, expected) in enumerate(zip(example.trained, mask, strict=True)):
        around = example.trained[index - 1 : index + 2]
        at_an_edge = ids[index] in newline and not trained and any(around)
        assert trained == expected or at_an_edge, (index, ours.decode(ids[index - 3 : index + 3]))
    assert any(example.trained)


SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + '</s>' }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
# Qwen3 as published: reasoning stands in the newest turn alone, an empty one where there was none.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\\n' + (message.reasoning_content or '') "
    "+ '\\n</think>\\n\\n' }}{% endif %}{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (DEFAULT_TEMPLATE, ["Yes.<|im_end|>", "Quite.<|im_start|><|im_end|>"]),
        (SMOLLM2, ["Yes.<|im_end|>", "Quite.<|im_start|><|im_end|>"]),
        (MISTRAL, [" Yes.</s>", " Quite.<|im_start|></s>"]),
    ],
)
def test_exactly_the_assistants_words_and_the_end_of_its_turn(template: str, expected: list[str]) -> None:
    """axolotl#3756: the token that ends a turn was never trained. A name inside a message is text, and ends nothing."""
    tokenizer = tokenizer_with(template)
    messages = CHATS["two"] if template != MISTRAL else CHATS["two"][1:]
    (example,) = chat_examples(tokenizer, messages)
    assert written(tokenizer, example) == expected
    ends = [index for index, token in enumerate(example.ids) if tokenizer.decode([token]) in ("<|im_end|>", "</s>")]
    names = tokenizer.special_tokens
    assert example.ids[ends[-1]] in (names["<|im_end|>"], names["</s>"]) and example.trained[ends[-1]]
    whole = encode_chat(tokenizer, messages)
    assert example.ids == whole  # no merges here, so that pieces and whole are the same


def test_turns_that_a_template_rewrites_are_examples_of_their_own() -> None:
    tokenizer = tokenizer_with(QWEN3)
    messages = [dict(message) for message in CHATS["two"]]
    messages[2]["reasoning"] = "less is less"
    first, last = chat_examples(tokenizer, messages)
    assert written(tokenizer, first) == ["<think>\nless is less\n</think>\n\nYes.<|im_end|>"]
    assert written(tokenizer, last) == ["<think>\n\n</think>\n\nQuite.<|im_start|><|im_end|>"]
    prompt = encode_chat(tokenizer, messages[:2], add_generation_prompt=True)
    assert first.ids[: len(prompt)] == prompt and not any(first.trained[: len(prompt)])
    prompt = encode_chat(tokenizer, messages[:4], add_generation_prompt=True)
    assert last.ids[: len(prompt)] == prompt and not any(last.trained[: len(prompt)])


def test_what_follows_the_last_answer_is_left_out_and_bad_chats_are_named() -> None:
    tokenizer = tokenizer_with(DEFAULT_TEMPLATE)
    chat = CHATS["one"]
    assert chat_examples(tokenizer, [*chat, {"role": "user", "content": "And?"}]) == chat_examples(tokenizer, chat)
    with pytest.raises(BadInputError, match="nothing to learn"):
        chat_examples(tokenizer, chat[:1])
    with pytest.raises(BadInputError, match="no model could stop"):
        chat_examples(tokenizer_with("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"), chat)
    other = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    with pytest.raises(BadInputError, match="otherwise than its generation prompt"):
        chat_examples(tokenizer_with(other), chat)


def test_tools_stand_in_the_prompt() -> None:
    template = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}" + DEFAULT_TEMPLATE
    tokenizer = tokenizer_with(template)
    (example,) = chat_examples(tokenizer, CHATS["one"], tools=[TOOL])
    assert json.dumps(TOOL["function"]["name"]) in tokenizer.decode(example.ids)
    assert written(tokenizer, example) == ["Hello, é字🙂<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llama3_1", "<|eot_id|>"),
        ("llama3_2", "<|eot_id|>"),
        ("qwen2_5", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("qwen3_instruct_2507", "<|im_end|>"),
    ],
)
def test_published_templates_train_calls_and_their_ends(name: str, end: str) -> None:
    """As their makers publish them (trl carries them unchanged): the call and the answer, each with its end."""
    trl = pytest.importorskip("trl")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_with(template)
    examples = chat_examples(tokenizer, CHATS["tools"], tools=[TOOL])
    stretches = [stretch for example in examples for stretch in written(tokenizer, example)]
    assert len(stretches) == 2
    call, answer = stretches
    assert '"weather"' in call and "Köln" in call and call.endswith(end) and "20 degrees" not in call
    assert answer.removeprefix("<think>\n\n</think>\n\n") == f"20 degrees.{end}"


def test_a_template_without_tools_is_not_trained_on_calls() -> None:
    """ChatML passes calls over: an empty answer would be learned in their place, without a word."""
    tokenizer = tokenizer_with(DEFAULT_TEMPLATE)
    with pytest.raises(BadInputError, match="does not write the assistant's tool calls"):
        chat_examples(tokenizer, CHATS["tools"], tools=[TOOL])
    with pytest.raises(BadInputError, match="does not write the chat's tools"):
        chat_examples(tokenizer, CHATS["one"], tools=[TOOL])


def test_a_message_of_weight_zero_is_read_and_not_learned() -> None:
    tokenizer = tokenizer_with(DEFAULT_TEMPLATE)
    messages = [{**message, "weight": 0} if message["content"] == "Yes." else message for message in CHATS["two"]]
    (example,) = chat_examples(tokenizer, messages)
    assert written(tokenizer, example) == ["Quite.<|im_start|><|im_end|>"]
    with pytest.raises(BadInputError, match="nothing to learn"):
        chat_examples(tokenizer, messages[:3])
