"""Chats from files: four forms, and whatever is wrong named by its line, never silent."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.chat import BadRow, Chat, ChatCounts, read_chats, to_messages
from llm_journey.datasets.chat_files import chat_rows

ASKED, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
BRIEF = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
FORMS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "messages": ({"messages": [BRIEF, ASKED, SAID], "more": 1}, [BRIEF, ASKED, SAID]),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in "Hi"]}, SAID]},
        [ASKED, SAID],
    ),
    "texts": ({"prompt": "Hi", "completion": "Hello"}, [ASKED, SAID]),
    "lists": ({"prompt": [BRIEF, ASKED], "completion": [SAID]}, [BRIEF, ASKED, SAID]),
    "alpaca": ({"instruction": "Hi ", "input": "", "output": " Hello\n"}, [ASKED, SAID]),
    "alpaca with input": (
        {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief."},
        [BRIEF, {"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}],
    ),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
                           {"from": "gpt", "value": "Hello"}]},
        [BRIEF, ASKED, SAID],
    ),
    "calls": (
        {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                      {"role": "tool", "content": "1", "tool_call_id": "x"}, SAID]},
        [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]},
         {"role": "tool", "content": "1", "tool_call_id": "x"}, SAID],
    ),
}  # fmt: skip
BAD: dict[str, Any] = {
    "no JSON object": ["a", 1, None, []],
    "a field is missing": [{}, {"text": "x"}, {"prompt": "x"}, {"instruction": "x"}],
    "the messages are no list, or an empty one": [{"messages": []}, {"messages": "x"}, {"conversations": 1}],
    "a message is no object": [{"messages": ["x"]}, {"conversations": ["x"]}],
    "a role is none of": [{"messages": [{"role": "bot", "content": "x"}]}, {"messages": [{"content": "x"}]}],
    "a speaker is none of": [{"conversations": [{"from": "bot", "value": "x"}]}],
    "a content is no text": [{"messages": [{"role": "user", "content": 5}, SAID]}, {"prompt": 1, "completion": "x"}],
    "a content has parts that are no text": [{"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]}],
    "an empty answer": [{"messages": [ASKED, {"role": "assistant", "content": " \n"}]},
                        {"instruction": "x", "output": ""}],
    "an empty message of the role user": [{"prompt": "", "completion": "x"}],
    "no message of the assistant": [{"messages": [ASKED]}],
    "the assistant speaks first": [{"messages": [SAID]}, {"messages": [BRIEF, SAID]}],
    "a message of the role system that is not the first": [{"messages": [ASKED, BRIEF, SAID]}],
    "tool_calls are no list": [{"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": "f"}]}],
    "tools are no list": [{"messages": [ASKED, SAID], "tools": "f"}],
    "more than 1000 messages": [{"messages": [ASKED, SAID] * 501}],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    row, messages = FORMS[form]
    assert to_messages(row) == (messages, None)
    assert to_messages(row | {"tools": [CALL]}) == (messages, [CALL])


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_counted_by_reason_or_refused_by_line(reason: str) -> None:
    rows = [(f"file:{number}", row) for number, row in enumerate(BAD[reason], 1)]
    counts = ChatCounts()
    assert list(read_chats(rows, counts)) == [] and counts.used == 0
    ((found, number, first),) = counts.rows()
    assert found.startswith(reason) and number == len(rows) and first == "file:1"
    with pytest.raises(BadInputError, match=r"^file:1: "):
        list(read_chats(rows, ChatCounts(), strict=True))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "conversations", "from", "value", "prompt", "completion"])
            | st.sampled_from(["instruction", "input", "output", "tools", "tool_calls", "type", "text", "system"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_chat_or_a_reason(row: Any) -> None:
    try:
        messages, tools = to_messages(row)
    except BadRow as reason:
        assert str(reason) and len(str(reason)) < 200
    else:
        assert messages[-1]["role"] and any(message["role"] == "assistant" for message in messages)
        assert tools is None or tools


def test_files_of_each_kind(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [FORMS[name][0] for name in ("messages", "texts")]
    lines = "\n".join([json.dumps(rows[0]), "", "{broken", json.dumps(rows[1])]) + "\n"
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist([rows[1], rows[1]]), tmp_path / "d.parquet")
    counts = ChatCounts()
    chats = list(read_chats(chat_rows(str(tmp_path)), counts))
    assert [Path(chat.where.split(":")[0]).name for chat in chats] == [
        *["a.jsonl"] * 2, *["b.jsonl.gz"] * 2, *["c.json"] * 2, *["d.parquet"] * 2,
    ]  # fmt: skip
    assert chats[1] == Chat([ASKED, SAID], None, f"{tmp_path / 'a.jsonl'}:4")
    assert counts.rows() == [("no JSON object", 2, f"{tmp_path / 'a.jsonl'}:3")] and counts.used == 8
    assert len(list(chat_rows(str(tmp_path / "*.json*")))) == 8
    assert len(list(chat_rows(str(tmp_path / "d.parquet")))) == 2


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a", encoding="utf-8")
    (tmp_path / "x.json").write_text('{"messages": []}', encoding="utf-8")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "x.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    for source, message in {
        str(tmp_path / "nowhere.jsonl"): "no such file",
        "nowhere": "no such file",
        str(tmp_path / "x.txt"): "no file of chats; known kinds",
        str(tmp_path / "x.json"): "no list of rows",
        str(tmp_path / "x.parquet"): "damaged Parquet",
        str(tmp_path / "x.jsonl.gz"): "damaged gzip",
        str(tmp_path / "*.csv"): "no file of chats there",
    }.items():
        with pytest.raises(BadInputError, match=message):
            list(chat_rows(source))
