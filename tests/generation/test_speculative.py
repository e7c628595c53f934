"""Speculative = plain: greedily token for token, drawn by a chi-square test that a planted bias fails."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from engines import FAMILIES, GREEDY, alone, engine, new_ids, run
from torch import Tensor

from llm_journey.core.errors import BadInputError
from llm_journey.generation import engine as engine_module
from llm_journey.generation.runner import Runner
from llm_journey.generation.sampling import SamplingConfig, draw
from llm_journey.generation.speculative import DraftModel, Guesses, PromptLookup, check_draft, judge
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import random_decoder

PROMPTS = [[5, 6, 7, 8, 9] * 4, [1, 2, 3] * 7, [4] * 9, [7, 8, 9, 11]]
LOOKUP = SamplingConfig(temperature=0, max_new_tokens=12, speculate="lookup")


class Oracle:
    """Guesses what it was told, wrong at every third place."""

    def __init__(self, prompt_length: int, answer: Sequence[int]) -> None:
        self._prompt_length, self._answer = prompt_length, answer

    def guess(self, ids: Sequence[int], limit: int) -> Guesses:
        done = len(ids) - self._prompt_length
        coming = self._answer[done : done + min(limit, 5)]
        return Guesses([token if (done + i) % 3 else (token + 1) % 97 for i, token in enumerate(coming)])


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_speculative_is_plain(name: str) -> None:
    """By lookup, by a draft model that is another one, by one that is the same one, by an oracle; all share passes."""
    decoder, other = random_decoder(**FAMILIES[name]), random_decoder(seed=5, **FAMILIES[name])
    expected = [alone(decoder, ids) for ids in PROMPTS]
    an_engine = engine(decoder)
    requests = [
        an_engine.submit(PROMPTS[0], LOOKUP),
        an_engine.submit(PROMPTS[1], GREEDY, drafter=DraftModel(Runner(other), GREEDY)),
        an_engine.submit(PROMPTS[2], GREEDY, drafter=DraftModel(Runner(decoder), GREEDY)),
        an_engine.submit(PROMPTS[3], GREEDY, drafter=Oracle(len(PROMPTS[3]), expected[3])),
    ]
    run(an_engine)
    assert [new_ids(request) for request in requests] == expected
    assert {request.finish_reason for request in requests} == {"length"}
    same, oracle = requests[2], requests[3]
    assert same.num_kept == same.num_guessed > 0
    assert 0 < oracle.num_kept < oracle.num_guessed
    assert an_engine.pool.num_free == an_engine.pool.num_blocks


def test_lookup_draws_what_plain_sampling_draws() -> None:
    """A guess that was certain costs no random number: the same seed gives the same answer."""
    decoder = random_decoder(scale=0.4)
    an_engine = engine(decoder)
    options = {"temperature": 0.4, "max_new_tokens": 30, "repetition_penalty": 1.1, "frequency_penalty": 0.2}
    configs = [SamplingConfig(seed=seed, **options) for seed in range(4)]  # type: ignore[arg-type]
    lookups = [SamplingConfig(seed=seed, speculate="lookup", **options) for seed in range(4)]  # type: ignore[arg-type]
    requests = [an_engine.submit(ids, config) for ids, config in zip(PROMPTS, lookups, strict=True)]
    run(an_engine)
    assert [new_ids(each) for each in requests] == [
        alone(decoder, *pair) for pair in zip(PROMPTS, configs, strict=True)
    ]
    assert sum(request.num_guessed for request in requests) > 0


def test_guesses_end_with_the_answer_and_never_outlive_it() -> None:
    decoder = random_decoder()
    wanted = alone(decoder, PROMPTS[0], SamplingConfig(temperature=0, max_new_tokens=44))
    for config, stop, expected, reason in (
        (SamplingConfig(temperature=0, max_new_tokens=7), set(), wanted[:7], "length"),
        (SamplingConfig(temperature=0, max_new_tokens=99), set(), wanted, "context"),
        (SamplingConfig(temperature=0, max_new_tokens=99), {wanted[6]}, wanted[: wanted.index(wanted[6])], "stop"),
    ):
        an_engine = engine(decoder)
        drafter = DraftModel(Runner(decoder), config)
        request = an_engine.submit(PROMPTS[0], config, stop_ids=stop, drafter=drafter)
        run(an_engine)
        assert (new_ids(request), request.finish_reason) == (expected, reason)
        assert an_engine.pool.num_free == an_engine.pool.num_blocks


def test_where_blocks_run_out_guesses_are_dropped_first() -> None:
    decoder = random_decoder()
    an_engine = engine(decoder, cache_tokens=64, max_running=4, max_tokens=9)
    requests = [an_engine.submit(ids, GREEDY, drafter=DraftModel(Runner(decoder), GREEDY)) for ids in PROMPTS]
    run(an_engine)
    assert [new_ids(request) for request in requests] == [alone(decoder, ids) for ids in PROMPTS]
    assert an_engine.pool.num_free == an_engine.pool.num_blocks


def test_a_callback_may_cancel_among_kept_guesses() -> None:
    an_engine = engine(decoder := random_decoder())
    seen: list[int] = []

    def stop_at_four(_: object) -> None:
        seen.append(1)
        if len(seen) == 4:
            an_engine.cancel(request)

    drafter = DraftModel(Runner(decoder), GREEDY)
    request = an_engine.submit(PROMPTS[0], GREEDY, drafter=drafter, on_token=stop_at_four)
    run(an_engine)
    assert len(seen) == 4 and request.finish_reason == "cancelled"
    assert an_engine.pool.num_free == an_engine.pool.num_blocks


def test_lookup_finds_the_longest_and_newest_match() -> None:
    for ids, limit, expected in (
        ([1, 2, 3, 4, 9, 2, 3], 9, [4, 9, 2]),
        ([1, 2, 3, 4, 9, 2, 3, 5, 2, 3], 9, [5, 2, 3]),
        ([1, 2, 3, 4, 9, 2, 3, 5, 2, 3, 4], 9, [9, 2, 3]),  # three match, before two
        ([1, 2, 3, 4, 9, 2, 3, 5, 2, 3, 4], 1, [9]),
        ([1, 2, 3], 5, []),
    ):
        in_steps = PromptLookup()
        in_steps.guess(ids[:-2], 1)
        assert PromptLookup().guess(ids, limit).ids == expected
        assert in_steps.guess(ids, limit).ids[:1] == expected[:1]


def test_lookup_guesses_as_many_as_lately_came_true() -> None:
    text = list(range(20))
    lookup = PromptLookup()
    ids = [*text, 0, 1]
    assert lookup.guess(ids, 99).ids == [2, 3, 4]
    assert lookup.guess(ids := [*ids, 2, 3, 4, 5], 99).ids == [6, 7, 8, 9, 10, 11]  # all three: twice as many
    assert lookup.guess(ids := [*ids, 6, 7, 0, 1], 99).ids == [2, 3, 4]  # three of six: as many as these
    assert lookup.guess([*ids, 15, 16], 99).ids == [17]  # one of three


def test_vocabularies_must_be_equal() -> None:
    with pytest.raises(BadInputError, match="a vocabulary of 31 tokens, the model one of 97"):
        check_draft(Runner(random_decoder()), Runner(random_decoder(vocab_size=31)))


P = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0])
Q = torch.tensor([0.1, 0.6, 0.1, 0.0, 0.2])


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    """In standard deviations above its mean, which is the number of cells less one; cells below five are one cell."""
    total = sum(counts)
    cells = [(count, total * share) for count, share in zip(counts, shares, strict=True)]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if sum(expected for _, expected in rare) > 0:
        cells.append((sum(count for count, _ in rare), sum(expected for _, expected in rare)))
    assert all(count == 0 for count, expected in zip(counts, shares, strict=True) if expected == 0)
    freedom = len(cells) - 1
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


def drawn_by(rule: Callable[..., int], count: int = 20_000) -> list[int]:
    generator = torch.Generator().manual_seed(3)
    guesses = draw(Q.expand(count, -1), generator).tolist()
    found = Counter(rule(P, guess, Q, generator) for guess in guesses)
    return [found[token] for token in range(len(P))]


def residual_forgotten(shares_v: Tensor, guess: int, guess_shares_v: Tensor, generator: torch.Generator) -> int:
    """The planted bias: a refused guess is replaced by a draw from p, not from what p has more than q."""
    token = judge(shares_v, guess, guess_shares_v, generator)
    return token if token == guess else int(draw(shares_v[None], generator))


def test_judged_guesses_are_distributed_as_the_model() -> None:
    assert abs(chi_square(drawn_by(judge), P.tolist())) < 5
    assert chi_square(drawn_by(residual_forgotten), P.tolist()) > 50


def _answers(decoder: Decoder, draft: Decoder, prompt: list[int], count: int) -> Counter[tuple[int, ...]]:
    """What the engine draws, three tokens each time."""
    an_engine, runner = engine(decoder), Runner(draft)
    requests = []
    for seed in range(count):
        config = SamplingConfig(temperature=1, seed=seed, max_new_tokens=3)
        drafter = DraftModel(runner, SamplingConfig(temperature=1, seed=count + seed), num_guesses=2)
        requests.append(an_engine.submit(prompt, config, drafter=drafter))
    run(an_engine, limit=3 * count)
    return Counter(tuple(new_ids(request)) for request in requests)


@torch.inference_mode()
def _exact(decoder: Decoder, prompt: list[int], vocab_size: int) -> dict[tuple[int, ...], float]:
    shares = {}
    for answer in itertools.product(range(vocab_size), repeat=3):
        shares_tv = decoder(torch.tensor([[*prompt, *answer]]))[0].softmax(-1)[len(prompt) - 1 :]
        shares[answer] = float(torch.stack([shares_tv[i, token] for i, token in enumerate(answer)]).prod())
    return shares


def test_drawn_speculative_answers_are_distributed_as_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 4, "width": 8, "num_layers": 1, "num_heads": 2, "context": 16}
    decoder, draft = random_decoder(1, 0.9, **sizes), random_decoder(2, 0.9, **sizes)
    shares = _exact(decoder, [1, 2, 3], 4)
    found = _answers(decoder, draft, [1, 2, 3], 1200)
    assert abs(chi_square([found[answer] for answer in shares], list(shares.values()))) < 5
    monkeypatch.setattr(engine_module, "judge", lambda shares_v, guess, *_: guess)  # every guess is kept
    biased = _answers(decoder, draft, [1, 2, 3], 1200)
    assert chi_square([biased[answer] for answer in shares], list(shares.values())) > 20
