import itertools

import pytest

from janus_jax.errors import InputError
from janus_jax.generate.stops import StopText


def through(pieces, stop):
    gate = StopText(stop)
    shown = [gate.push(piece) for piece in pieces]
    return shown, "".join(shown) + gate.finish(), gate.stopped


@pytest.mark.parametrize(
    ("text", "stop", "want"),
    [
        ("one two", [], "one two"),
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("ababac", ["abac"], "ab"),
        ("ends in ab", ["abc"], "ends in ab"),
        ("二つの絵", ["の"], "二つ"),
    ],
)
def test_a_stop_text_is_found_however_the_stream_is_cut(text, stop, want):
    for cuts in itertools.combinations(range(1, len(text)), 2):
        pieces = [text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text)))]
        shown, whole, stopped = through(pieces, stop)
        assert whole == want and stopped == (want != text)
        assert all(word not in "".join(shown) for word in stop)


def test_a_rule_sees_the_answer_so_far():
    seen = []

    def rule(said):
        seen.append(said)
        return said.count(".") == 2

    assert through(["a.", "b", ".", "c."], rule)[1:] == ("a.b.", True)
    assert seen == ["a.", "a.b", "a.b."]


@pytest.mark.parametrize("stop", ["text", [""], [1]])
def test_unusable_stops_are_refused(stop):
    with pytest.raises(InputError, match="stop is"):
        StopText(stop)
