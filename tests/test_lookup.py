"""The suffix index against brute force, through any order of pushes, cuts and settling."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hsd.lookup import SuffixIndex


def longest(tokens: list[int], settled: int) -> tuple[int, set[int]]:
    """Length of the longest suffix that also ends inside the settled part earlier, and what followed it there."""
    for size in range(len(tokens) - 1, 0, -1):
        suffix = tokens[len(tokens) - size :]
        ends = [e for e in range(size - 1, min(len(tokens) - 1, settled)) if tokens[e - size + 1 : e + 1] == suffix]
        if ends:
            return size, {tokens[e + 1] for e in ends}
    return 0, set()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 3)),
        st.tuples(st.just("cut"), st.floats(0, 1)),
        st.tuples(st.just("settle"), st.lists(st.integers(0, 3), max_size=6)),
        st.tuples(st.just("accept"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(operations)
def test_the_longest_match_is_found_after_any_history(history):
    index, tokens, settled = SuffixIndex(), [], 0
    for kind, value in history:
        if kind == "push":
            index.push(value)
            tokens.append(value)
        elif kind == "cut":
            length = round(value * len(tokens))
            index.cut(length)
            del tokens[length:]
            settled = min(settled, length)
        else:
            new = tokens[settled:] if kind == "accept" else value
            index.cut(settled)
            index.settle(new)
            tokens = tokens[:settled] + list(new)
            settled = len(tokens)
        assert index.tokens == tokens and len(index) == len(tokens) and index.settled == settled
        size, followed = longest(tokens, settled)
        assert index.match_length == size
        assert index.propose() in followed if size else index.propose() is None


def test_settled_text_that_is_cut_leaves_nothing_behind():
    index, fresh = SuffixIndex(), SuffixIndex()
    index.settle([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2])
    index.cut(4)
    fresh.settle([1, 2, 3, 1])
    for name in ("tokens", "_next", "_link", "_length", "_last", "_matches"):
        assert getattr(index, name) == getattr(fresh, name)


def test_states_grow_linearly_with_the_text():
    index = SuffixIndex()
    index.settle([i * i % 7 for i in range(5000)])
    assert len(index._next) <= 2 * 5000
