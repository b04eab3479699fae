"""Broken samples are counted once, and their limit holds however often a run is resumed."""

from pathlib import Path

import pytest

from train.data.bad_samples import BadSample, BadSamples, TooManyBadSamples


def broken(number: int, step: int = 3) -> BadSample:
    return BadSample(step, "data/web", "text", number, f"t{number}", "record cannot be read")


def test_a_resumed_run_does_not_pass_the_limit_that_ended_it(tmp_path: Path):
    log = tmp_path / "bad_samples.jsonl"
    ended = "3 samples are broken, --max-bad-samples allows 2 .* the last: t2: record cannot be"
    first = BadSamples(2, 100, log)
    first.settle([broken(0), broken(1)])
    with pytest.raises(TooManyBadSamples, match=ended):
        first.settle([broken(2)])
    for _ in range(2):
        resumed = BadSamples(2, 100, log)
        assert resumed.count == 3
        # Before the first step, and at a step that meets nothing new.
        for found in ([], [broken(2)]):
            with pytest.raises(TooManyBadSamples, match=ended):
                resumed.settle(found)
    assert len(log.read_text().splitlines()) == 3
    # With a higher limit it goes on from what is known.
    raised = BadSamples(3, 100, log)
    raised.settle([broken(0)])
    with pytest.raises(TooManyBadSamples, match="4 samples are broken, --max-bad-samples allows 3"):
        raised.settle([broken(3)])


def test_a_share_is_of_all_samples():
    bad = BadSamples(0.02, 100)
    bad.settle([broken(0), broken(1), broken(1)])
    assert bad.count == 2 and bad.reasons == {"record cannot be read": 2}
    with pytest.raises(TooManyBadSamples, match=r"allows 2\.000% of 100"):
        bad.settle([broken(2)])
    assert BadSamples(None, 100).settle(map(broken, range(100))) is None
