"""Which blocks of the key-value cache belong to whom: paged memory with prefix reuse, and no tensor in it.

The cache's positions are cut into blocks of fixed size; a sequence holds a table of block numbers (Kwon et al. 2023,
"PagedAttention", section 4). A full block is known by the tokens up to its end, and a new sequence that begins alike
takes it over instead of computing it again (section 4.4). A block in nobody's hands stays known until its room is
needed: the longest unused goes first.

Blocks that follow each other in memory can be read without copying, so a sequence grows into the neighbouring block
where that is free, and a new one begins in the middle of the longest free run.
"""

from collections import OrderedDict
from collections.abc import Sequence

from llm_journey.core.errors import BadInputError

_Known = tuple[int, tuple[int, ...]]  # the number of the prefix before a block, and the block's tokens
GONE = -1  # stands in a table for a block that was given back
_ROOT = 0  # the number of the empty prefix


class BlockPool:
    """`num_blocks` blocks of `block_size` positions. What is taken must be released exactly once."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if min(num_blocks, block_size) < 1:
            raise BadInputError("num_blocks and block_size must be at least 1")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._holders = [0] * num_blocks
        self._empty = set(range(num_blocks))
        self._unused: OrderedDict[int, None] = OrderedDict()  # known blocks that nobody holds, longest unused first
        self._block_of: dict[_Known, int] = {}
        self._known: dict[int, tuple[_Known, int]] = {}  # block -> how it is known, the number of the prefix to its end
        self._next_prefix = _ROOT + 1
        self._roots: dict[str, int] = {}  # of sequences that another computation fills the blocks of, by its name

    @property
    def num_free(self) -> int:
        """Blocks that can be taken: empty ones, and known ones that nobody holds."""
        return len(self._empty) + len(self._unused)

    def blocks_for(self, num_positions: int) -> int:
        """How many blocks hold so many positions."""
        return -(-num_positions // self.block_size)

    def match(self, ids: Sequence[int], kind: str | None = None) -> list[int]:
        """Take the blocks that hold the longest known beginning of `ids`, in order; only whole blocks are known.

        kind: what they are computed by, where that is not the model alone (an adapter); nothing is shared across kinds.
        """
        table: list[int] = []
        prefix = self._root(kind)
        for start in range(0, len(ids) - self.block_size + 1, self.block_size):
            block = self._block_of.get((prefix, tuple(ids[start : start + self.block_size])))
            if block is None:
                break
            self._holders[block] += 1
            self._unused.pop(block, None)
            prefix = self._known[block][1]
            table.append(block)
        return table

    def grow(self, table: list[int], num_positions: int) -> bool:
        """Extend a table until it holds so many positions; False, with nothing taken, where too few are free."""
        missing = self.blocks_for(num_positions) - len(table)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            table.append(self._take(table[-1] + 1 if table else None))
        return True

    def publish(self, table: Sequence[int], ids: Sequence[int], num_positions: int, kind: str | None = None) -> None:
        """Make a sequence's whole blocks known, now that `num_positions` of its tokens are in the cache. kind: as of
        `match`."""
        prefix = self._root(kind)
        for index in range(num_positions // self.block_size):
            block = table[index]
            if block == GONE:
                return
            if block not in self._known:
                known = (prefix, tuple(ids[index * self.block_size : (index + 1) * self.block_size]))
                if known in self._block_of:  # another sequence computed the same at the same time; its block stands
                    return
                self._block_of[known] = block
                self._known[block] = (known, self._next_prefix)
                self._next_prefix += 1
            prefix = self._known[block][1]

    def release(self, table: list[int]) -> None:
        """Give a sequence's blocks back; the table is empty afterwards."""
        for block in reversed(table):  # the end of a text is less likely to come again than its beginning
            self._give_back(block)
        table.clear()

    def release_before(self, table: list[int], position: int) -> None:
        """Give back the blocks that lie wholly before a position, which a sliding window no longer shows."""
        for index in range(min(position // self.block_size, len(table))):
            self._give_back(table[index])
            table[index] = GONE

    def forget(self) -> None:
        """Drop every known block that nobody holds."""
        while self._unused:
            self._drop(self._unused.popitem(last=False)[0])

    def _root(self, kind: str | None) -> int:
        if kind is None:
            return _ROOT
        if kind not in self._roots:
            self._roots[kind] = self._next_prefix
            self._next_prefix += 1
        return self._roots[kind]

    def _give_back(self, block: int) -> None:
        if block == GONE:
            return
        self._holders[block] -= 1
        if self._holders[block] == 0:
            if block in self._known:
                self._unused[block] = None
            else:
                self._empty.add(block)

    def _take(self, neighbour: int | None) -> int:
        if not self._empty:
            self._drop(self._unused.popitem(last=False)[0])
        block = neighbour if neighbour is not None and neighbour in self._empty else self._middle_of_longest_run()
        self._empty.remove(block)
        self._holders[block] = 1
        return block

    def _drop(self, block: int) -> None:
        known, _ = self._known.pop(block)
        del self._block_of[known]
        self._empty.add(block)

    def _middle_of_longest_run(self) -> int:
        """With everything free that is block 0: the first sequence has the whole cache before it."""
        if len(self._empty) == self.num_blocks:
            return 0
        best_start = best_length = 0
        start, previous = 0, -2
        for block in sorted(self._empty):
            start = block if block != previous + 1 else start
            previous = block
            if block - start + 1 > best_length:
                best_start, best_length = start, block - start + 1
        # A run that follows a held block is halved: the holder may grow into its first part.
        grown_into = best_start > 0
        return best_start + (best_length // 2 if grown_into else 0)
