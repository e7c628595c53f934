"""Answers to held-out chats: written by the model itself, token after token, and compared with what stands there.

An answer is right where it says the same: as text without white space around it, or, where both are JSON, as values.
The share comes with Wilson's interval (Wilson 1927) of 95%. Legend: B batch, T positions, S positions so far.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_journey.datasets.chat_preparation import held_out_chats
from llm_journey.generation.kv_cache import KVCache
from llm_journey.model.decoder import Decoder
from llm_journey.model.kinds import Model
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import encode_chat
from llm_journey.tokenizer.chat_training import chat_examples
from llm_journey.training.inputs import Inputs

_ROWS = 16
_SLACK = 8  # tokens that an answer may be longer than the longest expected one
_Z = 1.959963984540054  # of 95%


@dataclass(frozen=True)
class Asked:
    """One held-out chat: what the model is given, and the answer that stands there."""

    prompt: list[int]
    expected: str
    length: int


def asked_of(tokenizer: Tokenizer, chats: Iterator[dict[str, Any]], most: int) -> list[Asked]:
    """The last turns of the assistant of the first `most` chats."""
    found: list[Asked] = []
    for chat in chats:
        if len(found) == most:
            break
        example = chat_examples(tokenizer, chat["messages"], tools=chat["tools"])[-1]
        end = max(index for index, trained in enumerate(example.trained) if trained) + 1
        start = end
        while start and example.trained[start - 1]:
            start -= 1
        last = max(index for index, message in enumerate(chat["messages"]) if message["role"] == "assistant")
        prompt = encode_chat(tokenizer, chat["messages"][:last], add_generation_prompt=True, tools=chat["tools"])
        text = tokenizer.decode(example.ids[start : end - 1])  # without the token that ends the turn
        found.append(Asked(prompt, text, end - start))
    return found


def answer_figures(
    most: int, stop_ids: Callable[[Tokenizer], Collection[int]]
) -> Callable[[Model, Inputs], dict[str, float]]:
    """What judges a run by its answers to the first `most` held-out chats: exact_match, and its interval's ends."""

    def judge(model: Model, inputs: Inputs) -> dict[str, float]:
        assert isinstance(model, Decoder)
        asked = asked_of(inputs.tokenizer, held_out_chats(inputs.directory), most)
        longest = max(each.length for each in asked) + _SLACK
        ends = frozenset(stop_ids(inputs.tokenizer))
        found = greedy_answers(model, [each.prompt for each in asked], stop_ids=ends, max_new_tokens=longest)
        right = sum(
            same_answer(inputs.tokenizer.decode(ids), each.expected) for ids, each in zip(found, asked, strict=True)
        )
        low, high = wilson_interval(right, len(asked))
        return {"exact_match": right / len(asked), "exact_match_low": low, "exact_match_high": high}

    return judge


def greedy_answers(
    model: Decoder, prompts: Sequence[Sequence[int]], *, stop_ids: Collection[int], max_new_tokens: int
) -> list[list[int]]:
    """The likeliest tokens after each prompt, up to a stop id (left out), `max_new_tokens` or the context.

    Rows of like length go together, padded on the left. Nothing of the model but its `hidden` is used, so that one with
    adapters answers too; its training mode is put back.
    """
    was_training = model.training
    model.eval()
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    try:
        with torch.inference_mode():
            for start in range(0, len(order), _ROWS):
                rows = order[start : start + _ROWS]
                written = _written(model, [prompts[index] for index in rows], frozenset(stop_ids), max_new_tokens)
                for index, ids in zip(rows, written, strict=True):
                    answers[index] = ids
    finally:
        model.train(was_training)
    return answers


def _written(
    model: Decoder, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    longest = max(map(len, prompts))
    capacity = min(longest + max_new_tokens, model.config.context)
    ids_bt = torch.zeros(len(prompts), longest, dtype=torch.long, device=model.device)
    mask_bs = torch.zeros(len(prompts), capacity, dtype=torch.bool, device=model.device)
    for row, prompt in enumerate(prompts):
        ids_bt[row, longest - len(prompt) :] = torch.tensor(list(prompt), device=model.device)
        mask_bs[row, longest - len(prompt) :] = True
    positions_bs = (mask_bs.long().cumsum(1) - 1).clamp(min=0)
    cache = KVCache(model.config, batch=len(prompts), capacity=capacity, device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    start, stop = 0, longest
    while True:
        next_b = _next(model, ids_bt, cache, mask_bs[:, :stop], positions_bs[:, start:stop])
        for row, token in enumerate(next_b.tolist()):
            done[row] = done[row] or token in stop_ids
            if not done[row]:
                answers[row].append(token)
        if all(done) or stop == capacity or max(map(len, answers)) >= max_new_tokens:
            return answers
        ids_bt, start, stop = next_b[:, None], stop, stop + 1


def _next(model: Decoder, ids_bt: Tensor, cache: KVCache, mask_bs: Tensor, positions_bt: Tensor) -> Tensor:
    hidden_btd = model.hidden(ids_bt, cache=cache, padding_mask_bs=mask_bs, positions_bt=positions_bt)
    return torch.nn.functional.linear(hidden_btd[:, -1], model.head_weight).argmax(-1)


def same_answer(found: str, expected: str) -> bool:
    """Whether two answers say the same."""
    if found.strip() == expected.strip():
        return True
    try:
        left, right = json.loads(found), json.loads(expected)
    except (ValueError, RecursionError):
        return False
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Of a share, 95%: (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, square = right / count, _Z * _Z / count
    half = _Z * math.sqrt(share * (1 - share) / count + square / 4 / count)
    return (share + square / 2 - half) / (1 + square), (share + square / 2 + half) / (1 + square)
