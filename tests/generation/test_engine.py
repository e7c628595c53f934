"""The engine: batched = alone, reused = fresh, chunked = whole, preempted = undisturbed; nothing is lost or kept."""

import pytest
import torch
from engines import FAMILIES, GREEDY, alone, engine, new_ids, run

from llm_journey.core.errors import BadInputError
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.generation.stream import Stream
from llm_journey.parity.random_models import random_decoder, random_ids

PROMPTS = [random_ids(1, length, 97, seed=length)[0].tolist() for length in (3, 17, 9, 30, 1, 12)]


@pytest.mark.parametrize("name", FAMILIES)
def test_batched_is_alone(name: str) -> None:
    decoder = random_decoder(**FAMILIES[name])
    an_engine = engine(decoder)
    requests = [an_engine.submit(ids, GREEDY) for ids in PROMPTS]
    run(an_engine)
    assert [new_ids(request) for request in requests] == [alone(decoder, ids) for ids in PROMPTS]
    assert {request.finish_reason for request in requests} == {"length"}


def test_batched_is_alone_when_tokens_are_drawn() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder)
    configs = [SamplingConfig(temperature=0.9, top_k=20, seed=seed, max_new_tokens=10) for seed in range(len(PROMPTS))]
    requests = [an_engine.submit(ids, config) for ids, config in zip(PROMPTS, configs, strict=True)]
    run(an_engine)
    for request, ids, config in zip(requests, PROMPTS, configs, strict=True):
        assert new_ids(request) == alone(decoder, ids, config)


def test_a_prompt_read_in_pieces_is_the_prompt_read_at_once() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder, max_tokens=5, max_running=3)
    requests = [an_engine.submit(ids, GREEDY) for ids in PROMPTS]
    run(an_engine)
    assert [new_ids(request) for request in requests] == [alone(decoder, ids) for ids in PROMPTS]


def test_a_beginning_that_is_known_is_not_computed_again_and_changes_nothing() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder)
    shared = PROMPTS[3][:21]
    first = an_engine.submit(shared, GREEDY)
    run(an_engine)
    for tail in ([1, 2], [5], PROMPTS[2]):
        request = an_engine.submit([*shared, *tail], GREEDY)
        run(an_engine)
        assert request.sequence.reused == 20  # whole blocks of 4
        assert new_ids(request) == alone(decoder, [*shared, *tail])
    again = an_engine.submit(shared, GREEDY)
    run(an_engine)
    assert again.sequence.reused == 20 and new_ids(again) == new_ids(first)


def test_where_blocks_run_out_the_youngest_waits_and_all_is_as_alone() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder, cache_tokens=64, max_running=6)
    requests = [an_engine.submit(ids, GREEDY) for ids in PROMPTS]
    run(an_engine)
    assert an_engine.scheduler.preempted > 0
    assert [new_ids(request) for request in requests] == [alone(decoder, ids) for ids in PROMPTS]
    assert an_engine.pool.num_free == an_engine.pool.num_blocks


def test_cancelled_requests_leave_at_once_and_give_their_blocks_back() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder, max_tokens=4, max_running=2)
    ends: list[str] = []
    requests = [an_engine.submit(ids, GREEDY, on_finish=ends.append) for ids in PROMPTS]
    for _ in range(3):
        an_engine.step()
    an_engine.cancel(requests[1])  # its prompt is half read
    an_engine.cancel(requests[5])  # it waits
    assert ends == ["cancelled", "cancelled"]
    run(an_engine)
    kept = [request for index, request in enumerate(requests) if index not in (1, 5)]
    assert [new_ids(request) for request in kept] == [alone(decoder, PROMPTS[index]) for index in (0, 2, 3, 4)]
    assert an_engine.pool.num_free == an_engine.pool.num_blocks and not new_ids(requests[5])


def test_cancelling_from_within_the_callback() -> None:
    an_engine = engine()
    seen: list[int] = []

    def stop_after_three(token: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            an_engine.cancel(request)

    request = an_engine.submit(PROMPTS[0], GREEDY, on_token=stop_after_three)
    run(an_engine)
    assert len(seen) == 3 and request.finish_reason == "cancelled"
    assert an_engine.pool.num_free == an_engine.pool.num_blocks


def test_stop_ids_and_context_end_a_request() -> None:
    decoder = random_decoder()
    wanted = alone(decoder, PROMPTS[0])
    an_engine = engine(decoder)
    request = an_engine.submit(PROMPTS[0], GREEDY, stop_ids={wanted[4]})
    full = an_engine.submit(random_ids(1, 60, 97)[0].tolist(), GREEDY)
    whole = an_engine.submit(random_ids(1, 64, 97)[0].tolist(), GREEDY)
    run(an_engine)
    assert new_ids(request) == wanted[: wanted.index(wanted[4])] and request.finish_reason == "stop"
    assert len(new_ids(full)) == 4 and full.finish_reason == "context"
    assert new_ids(whole) == [] and whole.finish_reason == "context"


def test_logprobs_are_the_models() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder)
    request = an_engine.submit(PROMPTS[1], SamplingConfig(temperature=0.7, seed=3, max_new_tokens=4), logprobs=5)
    run(an_engine)
    ids = PROMPTS[1] + new_ids(request)
    with torch.inference_mode():
        logprobs_tv = decoder(torch.tensor([ids]))[0].log_softmax(-1)[len(PROMPTS[1]) - 1 :]
    for token, row_v in zip(request.tokens, logprobs_tv, strict=False):
        assert token.logprob == pytest.approx(float(row_v[token.id]), abs=1e-4)
        assert [each for each, _ in token.top] == row_v.topk(5).indices.tolist()


def test_a_stream_is_what_the_engine_gives() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder)
    beside = an_engine.submit(PROMPTS[1], GREEDY)
    stream = Stream(an_engine, an_engine.submit(PROMPTS[2], GREEDY))
    assert [token.id for token in stream] == alone(decoder, PROMPTS[2]) == stream.new_ids
    assert stream.finish_reason == "length" and beside.tokens


def test_what_cannot_be_held_is_refused_with_both_numbers() -> None:
    an_engine = engine(random_decoder(context=256), cache_tokens=256)
    with pytest.raises(BadInputError, match="the prompt has 300 tokens, the model's context holds 256"):
        an_engine.submit([1] * 300, GREEDY)
    small = engine(random_decoder(), cache_tokens=16)
    with pytest.raises(BadInputError, match="may take 29 tokens, the cache holds 16"):
        small.submit(PROMPTS[1], GREEDY)
    assert not small.busy
