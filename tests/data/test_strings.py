"""Texts without an object each."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everydream.data.strings import Strings

texts = st.lists(st.text(st.characters(exclude_categories=()), max_size=12), max_size=20)


@given(texts, st.integers(-25, 25), st.integers(-25, 25))
def test_they_are_what_a_list_of_them_is(plain: list[str], first: int, last: int) -> None:
    """Lone surrogates included, which JSON may hold."""
    strings = Strings.of(plain)
    assert strings == plain and list(strings) == plain and len(strings) == len(plain)
    assert [strings[n] for n in range(-len(plain), len(plain))] == plain + plain
    assert strings[first:last] == plain[first:last] and strings[::-2] == plain[::-2]
    assert pickle.loads(pickle.dumps(strings)) == strings
    assert strings.take(reversed(range(len(plain)))) == plain[::-1]
    assert sorted(range(len(plain)), key=strings.raw) == sorted(range(len(plain)), key=plain.__getitem__)


def test_places_that_are_none() -> None:
    for place in (2, -3):
        with pytest.raises(IndexError, match=f"text {place} of 2"):
            Strings.of(["a", "b"])[place]
    assert Strings.of(["a"]) != ["b"] and Strings.of(["ab", "c"]) != Strings.of(["a", "bc"])
