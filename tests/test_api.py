import numpy as np
import pytest
from PIL import Image

from janus_jax import BadPrompts, InputError, Janus
from janus_jax.locate import assets_directory

PICTURE = Image.new("RGB", (30, 20), (200, 30, 60))


@pytest.fixture(scope="module")
def janus(debug_dir) -> Janus:
    return Janus.from_pretrained(debug_dir, dtype="float32")


def test_pictures_come_by_prompt_and_number(janus):
    rows = janus.generate_images(["a red apple", "b"], n=2, seed=3)
    assert [len(row) for row in rows] == [2, 2]
    for image in (image for row in rows for image in row):
        assert (image.mode, image.size) == ("RGB", (16, 16))
    alone = janus.generate_images(["b"], seed=3)
    assert np.array_equal(rows[1][0], alone[0][0])
    codes = janus.generate_codes(["b"], seed=3)
    assert codes.shape == (1, 1, janus.config.num_image_tokens)
    assert np.array_equal(janus.decode_codes(codes)[0][0], alone[0][0])


def test_pictures_are_handed_over_as_they_are_drawn(janus):
    events = []
    rows = janus.generate_images(
        ["a red apple", "b"],
        n=2,
        first=3,
        at_once=2,
        progress=lambda done, total: events.append(done / total),
        drawn=lambda place, number, picture: events.append((place, number, picture)),
    )
    given = [event for event in events if isinstance(event, tuple)]
    assert [event[:2] for event in given] == [(0, 3), (0, 4), (1, 3), (1, 4)]
    assert [picture for *_, picture in given] == [picture for row in rows for picture in row]
    # The first two are there before the others are begun.
    assert events.index(given[1]) < events.index(1.0) < events.index(given[2])
    assert events[events.index(given[1]) + 1] > 0.5


def test_bad_prompts_are_named_before_anything_is_drawn(janus):
    prompts, drawn = ["a red apple", " ", "word " * 600, "b"], []
    with pytest.raises(BadPrompts, match=r"^prompt 2 of 4.*\(nor can these be used: 3\)") as caught:
        janus.generate_images(prompts, drawn=lambda *event: drawn.append(event))
    assert drawn == [] and list(caught.value.problems) == [1, 2]
    assert "too long" in str(caught.value.problems[2])
    problems = janus.check_prompts(prompts)
    assert [problem is None for problem in problems] == [True, False, False, True]
    assert str(problems[2]) == str(caught.value.problems[2])


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}])
def test_settings_reach_the_sampler(janus, settings):
    plain = janus.generate_codes(["a red apple"], 4)
    assert not np.array_equal(janus.generate_codes(["a red apple"], 4, **settings), plain)


def test_chat_whole_and_in_pieces(janus):
    whole = janus.chat("What is this?", [PICTURE], max_tokens=30)
    pieces = list(janus.chat("What is this?", images=[PICTURE], max_tokens=30, stream=True))
    assert "".join(pieces).strip() == whole
    assert len(pieces) > 1
    assert isinstance(janus.chat("hello", max_tokens=5), str)


def test_a_picture_may_be_a_file_or_its_bytes(janus, tmp_path):
    path = tmp_path / "x.png"
    PICTURE.save(path)
    answers = {
        janus.chat("What is this?", [source], max_tokens=10)
        for source in (PICTURE, path, str(path), path.read_bytes())
    }
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.generate_images("a red apple"), r"prompts is .* allowed: a list"),
        (lambda m: m.generate_images(np.array(["a", "b"])), r"prompts is .* allowed: a list"),
        (
            lambda m: m.generate_images(["a", None]),
            "prompt 2 of 2: the prompt is given as NoneType",
        ),
        (lambda m: m.generate_images(["a"], n=0), "^n is 0"),
        (lambda m: m.generate_images(["a"], top_p=0.0), "^top_p is"),
        (lambda m: m.chat(""), "^the question is ''"),
        (lambda m: m.chat("x", PICTURE), "images is one picture"),
        (lambda m: m.chat("x", None), "images is given as NoneType"),
        (lambda m: m.chat("x", [np.zeros((4, 4, 3), np.uint8)]), "given as ndarray.*fromarray"),
        (lambda m: m.chat("x", system=5), "the system prompt is given as int"),
        (lambda m: m.chat("x", ["nope.png"]), r"'nope\.png' does not exist"),
        (lambda m: m.chat("x", [PICTURE] * 40), r"too long: .* and 40 pictures"),
        (lambda m: m.chat("word " * 600, stream=True), "too long"),
        (lambda m: m.chat("x", max_tokens=0), "^max_tokens is 0"),
    ],
)
def test_bad_input_is_named_before_anything_runs(janus, call, match):
    with pytest.raises(InputError, match=match):
        call(janus)


def test_codes_that_are_no_pictures_are_named(janus):
    size, most = janus.config.num_image_tokens, janus.config.vq.codebook_size - 1
    good = np.full((1, 2, size), most)
    assert [len(row) for row in janus.decode_codes(good)] == [2]
    for bad in (good[0], good[:, :, 1:], good[:0], good.astype(np.float32)):
        with pytest.raises(InputError, match=rf"^codes is .*integers of shape .* {size}\)"):
            janus.decode_codes(bad)
    for bad in (good + 1, good - most - 1):
        with pytest.raises(InputError, match=rf"^codes holds .* allowed: 0 to {most}$"):
            janus.decode_codes(bad)


def test_numbers_may_be_of_numpy(janus):
    want = janus.generate_codes(["b"], 2, first=100, seed=7, top_k=5, at_once=1)
    small = np.int8
    got = janus.generate_codes(
        ["b"], small(2), first=small(100), seed=small(7), top_k=small(5), at_once=small(1)
    )
    np.testing.assert_array_equal(got, want)
    assert janus.chat("hello", max_tokens=small(5)) == janus.chat("hello", max_tokens=5)


def test_a_saved_model_is_the_same_model(janus, tmp_path):
    janus.save_pretrained(tmp_path / "copy")
    copy = Janus.from_pretrained(tmp_path / "copy", dtype="float32")
    assert copy.fingerprint == janus.fingerprint
    assert np.array_equal(copy.generate_codes(["a"]), janus.generate_codes(["a"]))


def test_half_precision_runs(debug_dir):
    half = Janus.from_pretrained(debug_dir, dtype="bfloat16")
    assert str(half.dtype) == "bfloat16"
    assert half.generate_images(["a"])[0][0].size == (16, 16)


def test_the_shipped_model_draws_and_describes():
    emoji = Janus.from_pretrained("emoji")
    name = "woman firefighter: medium skin tone"
    [[first]] = emoji.generate_images([name], seed=1)
    assert np.array_equal(emoji.generate_images(["red apple", name], seed=1)[1][0], first)
    assert first.size == (48, 48)
    low, high = first.convert("L").getextrema()
    assert high - low > 60
    assert emoji.chat("What is this?", images=[first], max_tokens=40)
    size = sum(p.stat().st_size for p in assets_directory().rglob("*") if p.is_file())
    assert size <= 12_000_000


def test_debug_is_the_small_architecture_with_the_shipped_vocabulary():
    debug = Janus.from_pretrained("debug", dtype="float32")
    assert debug.config.name == "debug"
    assert debug.tokenizer.vocab_size <= debug.config.llm.vocab_size
    assert debug.processor.image.image_size == debug.config.image_size
