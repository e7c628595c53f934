"""The block pool keeps its books: every block is held, known or empty, and what is known is what was computed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.generation.blocks import BlockPool

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["new", "grow", "release"]), st.integers(0, 9), st.integers(1, 9)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_no_block_is_lost_or_held_by_two_who_differ(actions: list[tuple[str, int, int]]) -> None:
    pool = BlockPool(12, 2)
    live: list[tuple[list[int], list[int]]] = []  # (ids, table)
    contents: dict[int, tuple[int, ...]] = {}  # what the cache would hold: a block's prefix to its end
    for action, which, count in actions:
        if action == "new":
            ids = [which % 3] * count + [count]
            table = pool.match(ids)
            for index, block in enumerate(table):
                assert contents[block] == tuple(ids[: 2 * (index + 1)])
            if not pool.grow(table, len(ids)):
                pool.release(table)
                continue
        elif live:
            ids, table = live[which % len(live)]
            if action == "release":
                del live[which % len(live)]
                pool.release(table)
                assert table == []
                continue
            if not pool.grow(table, len(ids) + count):
                continue
            ids.extend([which] * count)
        else:
            continue
        if action == "new":
            live.append((ids, table))
        for index in range(len(ids) // 2):
            contents[table[index]] = tuple(ids[: 2 * (index + 1)])
        pool.publish(table, ids, len(ids))
        held = {block for _, each in live for block in each}
        assert pool.num_free == pool.num_blocks - len(held)
        for ids, table in live:
            assert len(table) == pool.blocks_for(len(ids)) and len(set(table)) == len(table)
            for index in range(len(ids) // 2):  # nobody wrote into what another holds
                assert contents[table[index]] == tuple(ids[: 2 * (index + 1)])
    for _, table in live:
        pool.release(table)
    pool.forget()
    assert pool.num_free == pool.num_blocks


def test_a_lone_sequence_lies_in_one_piece_and_a_second_leaves_it_room() -> None:
    pool = BlockPool(64, 4)
    first: list[int] = []
    second: list[int] = []
    assert pool.grow(first, 10) and pool.grow(second, 10)
    assert pool.grow(first, 100) and pool.grow(second, 100)
    for table in (first, second):
        assert table == list(range(table[0], table[0] + len(table)))


def test_too_much_is_refused_with_nothing_taken() -> None:
    pool = BlockPool(4, 4)
    table: list[int] = []
    assert not pool.grow(table, 17) and table == [] and pool.num_free == 4
