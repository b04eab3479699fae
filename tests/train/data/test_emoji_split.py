"""The split: disjoint, stable, and every promise about what training has seen."""

import hashlib
from collections import Counter, defaultdict

from train.data.emoji import load_emoji
from train.data.naming import split_tone, words
from train.data.split import HELDOUT_RATE, assign_splits, concept_of, draw

TRAIN = [e for e in load_emoji() if e.split == "train"]
HELDOUT = [e for e in load_emoji() if e.split == "heldout"]
CONCEPT = [e for e in load_emoji() if e.split == "concept"]

SPLIT_DIGEST = "623bfed19b71c2a640c293bc632ac0aa1b5b4c0f2a5b7a5ec412bea2839dee6e"
HOT_DOG_DRAW = 0.8174964444001447


def test_split_is_stable():
    """Changes only when names or rules change on purpose; then shipped scores are void."""
    text = "".join(f"{e.codepoints} {e.split}\n" for e in load_emoji())
    assert hashlib.sha256(text.encode()).hexdigest() == SPLIT_DIGEST
    assert draw("heldout", "hot dog") == HOT_DOG_DRAW


def test_adding_a_record_moves_no_other():
    records = [(e.name, e.name_zh, e.kind, e.picture) for e in load_emoji()]
    more = [*records, ("quince", "榅桲", "food", "f" * 16)]
    assert assign_splits(more)[:-1] == [e.split for e in load_emoji()]


def test_sizes():
    assert (len(TRAIN), len(HELDOUT), len(CONCEPT)) == (3546, 210, 185)
    assert Counter(e.kind for e in HELDOUT) == {
        "person-role": 175,
        "body": 27,
        "shape": 6,
        "clock": 2,
    }
    concepts = {concept_of(e.name, e.kind) for e in load_emoji()}
    held = {concept_of(e.name, e.kind) for e in CONCEPT}
    assert (len(held), len(concepts)) == (84, 1628)


def test_nothing_is_shared_between_splits():
    for attribute in ("codepoints", "name", "name_zh", "picture"):
        train = {getattr(e, attribute) for e in TRAIN}
        heldout = {getattr(e, attribute) for e in HELDOUT}
        concept = {getattr(e, attribute) for e in CONCEPT}
        assert not train & heldout
        assert not train & concept
        assert not heldout & concept


def test_combinations_are_disjoint():
    def combinations(records):
        people = {(e.role, e.gender, e.tone) for e in records if e.role and e.role != "family"}
        hands = {(split_tone(e.name)[0], e.tone) for e in records if e.kind == "body"}
        return people | hands | {(e.shape, e.colour) for e in records if e.shape}

    assert not combinations(TRAIN) & combinations(HELDOUT)
    assert len(combinations(HELDOUT)) == len(HELDOUT) - 2  # but for the two clocks


def test_drawings_that_look_alike_are_all_in_training():
    groups = defaultdict(list)
    for e in load_emoji():
        groups[e.picture].append(e.split)
    copies = [splits for splits in groups.values() if len(splits) > 1]
    assert len(copies) == 9
    assert all(set(splits) == {"train"} for splits in copies)


def test_every_heldout_word_and_character_is_in_a_training_name():
    seen_words = {word for e in TRAIN for word in words(e.name)}
    seen_characters = {character for e in TRAIN for character in e.name_zh}
    for e in HELDOUT:
        assert set(words(e.name)) <= seen_words, e.name
        assert set(e.name_zh) <= seen_characters, e.name_zh


def test_every_heldout_attribute_is_in_training_in_another_combination():
    roles = {e.role for e in TRAIN}
    bases = {(e.role, e.gender) for e in TRAIN}
    genders = {e.gender for e in TRAIN}
    tones = {e.tone for e in TRAIN}
    hands = {split_tone(e.name)[0] for e in TRAIN}
    colours, shapes = {e.colour for e in TRAIN}, {e.shape for e in TRAIN}
    for e in HELDOUT:
        assert e.role in roles
        assert e.gender in genders
        assert e.tone in tones
        assert (e.role, e.gender) in bases
        if e.kind == "body":
            assert split_tone(e.name)[0] in hands
        if e.kind == "shape":
            assert e.colour in colours and e.shape in shapes


def test_concepts_are_held_out_whole():
    concepts = {concept_of(e.name, e.kind) for e in CONCEPT}
    for e in (*TRAIN, *HELDOUT):
        assert concept_of(e.name, e.kind) not in concepts
    # Mirrored drawings go with the drawing they mirror.
    kneeling = [e for e in load_emoji() if e.role in ("kneeling", "kneeling facing right")]
    assert len(kneeling) == 36
    assert {e.split for e in kneeling} == {"concept"}


def test_known_assignments():
    split = {e.name: e.split for e in load_emoji()}
    assert split["woman firefighter: medium skin tone"] == "train"
    assert split["man firefighter"] == "heldout"
    assert split["man pilot: light skin tone"] == "heldout"
    assert split["kiss, men: medium skin tone, light skin tone"] == "heldout"
    assert split["orange heart"] == "heldout"
    assert split["four-thirty"] == "heldout"
    assert split["factory worker: dark skin tone"] == "concept"
    assert split["flag: Japan"] == "concept"
    # Drawn to be held out but moved back: without a tone variant it is the only woman genie.
    assert draw("heldout", "woman genie") < HELDOUT_RATE
    assert split["woman genie"] == "train"
