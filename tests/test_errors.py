import pickle

from janus_jax import BadPrompts, InputError
from janus_jax.errors import RunFailed


def test_the_message_is_one_line_with_every_part():
    error = InputError("--image a.txt is\n not an image.", "PNG or JPEG", "convert it first.")
    assert (
        str(error) == "--image a.txt is not an image; allowed: PNG or JPEG; fix: convert it first"
    )
    assert isinstance(error, ValueError)


def test_empty_parts_leave_no_trace():
    assert str(InputError("--prompt is empty")) == "--prompt is empty"
    assert str(InputError("a", fix="b")) == "a; fix: b"


def test_it_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(InputError("what", "allowed", "fix")))
    assert (error.what, error.allowed, error.fix) == ("what", "allowed", "fix")
    assert str(error) == "what; allowed: allowed; fix: fix"


def test_a_failed_run_is_one_line_too():
    error = RunFailed("step 4: the loss\n is nan.")
    assert str(error) == "step 4: the loss is nan"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert not isinstance(error, InputError)


def test_bad_prompts_are_told_by_place():
    error = BadPrompts({1: InputError("prompt 2 is empty", "a text"), 4: InputError("prompt 5")})
    assert str(error) == "prompt 2 is empty (nor can these be used: 5); allowed: a text"
    assert isinstance(error, InputError)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and list(again.problems) == [1, 4]
    assert str(BadPrompts({0: InputError("x", "y")})) == "x; allowed: y"
