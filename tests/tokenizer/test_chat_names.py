"""A message that spells a special token stays text, however short the token's name is."""

import pytest

from gguf_files import tiny_tokenizer
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import encode_chat


@pytest.mark.parametrize("name", ["§", "<|end|>", "§§"])
def test_names_inside_a_message_are_text(name: str) -> None:
    base = tiny_tokenizer()
    token = base.vocab_size
    template = "{% for m in messages %}{{ m.content }}" + name + "{% endfor %}"
    tokenizer = Tokenizer(
        base.vocabulary,
        base.merges,
        special_tokens={**base.special_tokens, name: token},
        pattern="gpt2",
        chat_template=template,
    )
    ids = encode_chat(tokenizer, [{"role": "user", "content": f"a{name}b"}])
    assert ids == [*tokenizer.encode(f"a{name}b"), token]
