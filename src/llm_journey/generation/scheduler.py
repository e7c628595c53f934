"""What the next pass reads: continuous batching with chunked prompts, and no tensor in it.

Each pass takes one new token of every sequence that is answering, then pieces of prompts, first come first served, up
to a budget of tokens (Yu et al. 2022, "Orca": a sequence joins and leaves between any two passes; Agrawal et al. 2024,
"Sarathi-Serve": a long prompt is read in chunks so that it holds nobody up). Where blocks run out, the sequence that
came last gives its own back and is read again later; the ids that it has written stay.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llm_journey.core.errors import BadInputError
from llm_journey.generation.blocks import BlockPool


@dataclass(eq=False)
class LiveSequence:
    """A sequence on its way: `ids` are prompt and answer so far, of which `computed` are in the cache."""

    ids: list[int]
    max_length: int  # of prompt and answer together
    adapter: str | None = None  # what else than the model it is computed by
    computed: int = 0
    table: list[int] = field(default_factory=list)
    reused: int = 0  # tokens of the prompt that another sequence had computed
    guesses: list[int] = field(default_factory=list)  # of the tokens behind `ids`, for the next pass alone

    @property
    def num_waiting(self) -> int:
        """Tokens that are not in the cache yet; once it is answering, the newest alone."""
        return len(self.ids) - self.computed


@dataclass(frozen=True)
class Planned:
    """`count` tokens of a sequence, from its first one that is not computed; its guesses are read behind them."""

    sequence: LiveSequence
    count: int


class Scheduler:
    """Sequences that wait and sequences that run, over one pool of blocks.

    max_running: sequences in a pass. max_tokens: tokens in a pass, but always one of each that is answering.
    reuse: whether sequences that begin alike share blocks. window: of sliding attention; what left it is given back.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_running: int = 16,
        max_tokens: int = 512,
        reuse: bool = True,
        window: int | None = None,
    ) -> None:
        if min(max_running, max_tokens) < 1:
            raise BadInputError("max_running and max_tokens must be at least 1")
        self.pool, self.max_running, self.max_tokens = pool, max_running, max_tokens
        self.reuse, self.window = reuse, window
        self.waiting: deque[LiveSequence] = deque()
        self.running: list[LiveSequence] = []
        self.preempted = 0

    def add(self, sequence: LiveSequence) -> None:
        """Queue a sequence. Raises BadInputError, naming both numbers, where the whole pool could not hold it."""
        needed = self.pool.blocks_for(sequence.max_length)
        if self.window is None and needed > self.pool.num_blocks:
            room = self.pool.num_blocks * self.pool.block_size
            raise BadInputError(
                f"prompt and answer may take {sequence.max_length} tokens, the cache holds {room}: ask for fewer new "
                "tokens, shorten the prompt, or give the cache more room"
            )
        self.waiting.append(sequence)

    def remove(self, sequence: LiveSequence) -> None:
        """Let a sequence go, wherever it stands; what it computed stays known."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def plan(self) -> list[Planned]:
        """The next pass; empty where nothing is left to do. Blocks for it are taken."""
        planned: list[Planned] = []
        budget = self.max_tokens
        # Answers first: those who wait for their next token wait least.
        for sequence in sorted(self.running, key=lambda each: each.num_waiting > 1):
            if sequence not in self.running:  # given up for an older one a moment ago
                continue
            count = min(sequence.num_waiting, max(budget, 1 if sequence.num_waiting == 1 else 0))
            if count > 0 and self._make_room(sequence, count):
                planned.append(Planned(sequence, count))
                budget -= count
                self._fit_guesses(sequence, budget)
                budget -= len(sequence.guesses)
        planned = [each for each in planned if each.sequence in self.running]
        while self.waiting and len(self.running) < self.max_running and budget > 0:
            sequence = self.waiting[0]
            self._match(sequence)
            count = min(sequence.num_waiting, budget)
            if not self.pool.grow(sequence.table, sequence.computed + count):
                self._release(sequence)
                break
            self.waiting.popleft()
            self.running.append(sequence)
            planned.append(Planned(sequence, count))
            budget -= count
        return planned

    def computed(self, planned: Sequence[Planned]) -> None:
        """Note that a pass is done: its tokens are in the cache, and its whole blocks become known."""
        for each in planned:
            sequence = each.sequence
            sequence.computed += each.count
            if self.window is not None:
                self.pool.release_before(sequence.table, sequence.computed + 1 - self.window)
            elif self.reuse:
                self.pool.publish(sequence.table, sequence.ids, sequence.computed, sequence.adapter)

    def __iter__(self) -> Iterator[LiveSequence]:
        yield from self.running
        yield from self.waiting

    def _match(self, sequence: LiveSequence) -> None:
        """Take over what is known of its beginning; the last token is always read, since its logits are wanted."""
        if self.reuse and self.window is None and not sequence.table:
            sequence.table = self.pool.match(sequence.ids[:-1], sequence.adapter)
            sequence.computed = len(sequence.table) * self.pool.block_size
            sequence.reused = sequence.computed

    def _make_room(self, sequence: LiveSequence, count: int) -> bool:
        """Blocks for `count` more tokens; the youngest others give theirs back. False where it gave up itself."""
        while not self.pool.grow(sequence.table, sequence.computed + count):
            youngest = self.running[-1]
            self.running.remove(youngest)
            self._release(youngest)
            self.waiting.appendleft(youngest)
            self.preempted += 1
            if youngest is sequence:
                return False
        return True

    def _fit_guesses(self, sequence: LiveSequence, budget: int) -> None:
        """Drop guesses beyond the budget, and all of them where they would need another sequence's blocks."""
        del sequence.guesses[max(budget, 0) :]
        if sequence.guesses and not self.pool.grow(sequence.table, len(sequence.ids) + len(sequence.guesses)):
            sequence.guesses.clear()

    def _release(self, sequence: LiveSequence) -> None:
        self.pool.release(sequence.table)
        sequence.computed = 0
        sequence.guesses.clear()
