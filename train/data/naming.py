"""Reading attributes back out of an emoji's English name.

One parser serves the records of the data set and the scoring of captions a model wrote, so that
"the role is right" means the same thing on both sides. The names it reads have one form,
``<head>`` or ``<head>: <tone>[, <tone>]``, where the head of a person is ``<gender> <role>``.
"""

import re
from dataclasses import dataclass

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""The five skin tones, light to dark. A pair of people with two tones has ``"light, dark"``."""

COLOURS = (
    "light blue",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "brown",
    "black",
    "white",
    "grey",
    "pink",
)

# Longest first: "woman and man holding hands" must not read as the gender "woman".
GENDERS = ("woman and man", "women", "men", "people", "woman", "man", "person")
"""All genders a name can state; the last three are single people, the others pairs or groups."""

TONES_ZH = {
    "light": "较浅肤色",
    "medium-light": "中等浅肤色",
    "medium": "中等肤色",
    "medium-dark": "中等深肤色",
    "dark": "较深肤色",
}
"""The tones in Chinese, as CLDR names them."""

COLOURS_ZH = {
    "light blue": "浅蓝色",
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
    "grey": "灰色",
    "pink": "粉红色",
}
"""The colours in Chinese."""

# Heads whose gender is inside the word.
_IRREGULAR = {
    "woman": ("adult", "woman"),
    "man": ("adult", "man"),
    "person": ("adult", "person"),
    "girl": ("child", "woman"),
    "boy": ("child", "man"),
    "child": ("child", "person"),
    "mermaid": ("merperson", "woman"),
    "merman": ("merperson", "man"),
    "merperson": ("merperson", "person"),
    "princess": ("royalty", "woman"),
    "prince": ("royalty", "man"),
    "Mrs. Claus": ("Claus", "woman"),
    "Santa Claus": ("Claus", "man"),
    "Mx Claus": ("Claus", "person"),
}

# Heads that name a person without a word for the gender.
_NEUTRAL = frozenset(
    (
        "artist",
        "astronaut",
        "baby",
        "baby angel",
        "ballet dancer",
        "breast-feeding",
        "construction worker",
        "cook",
        "detective",
        "elf",
        "factory worker",
        "fairy",
        "farmer",
        "firefighter",
        "genie",
        "guard",
        "health worker",
        "horse racing",
        "judge",
        "mage",
        "mechanic",
        "ninja",
        "office worker",
        "pilot",
        "police officer",
        "scientist",
        "singer",
        "skier",
        "snowboarder",
        "student",
        "superhero",
        "supervillain",
        "teacher",
        "technologist",
        "vampire",
        "zombie",
    )
)
# Roles written before the gender: "deaf woman".
_BEFORE_GENDER = ("bald", "deaf", "old", "pregnant")
# Roles of two people, written "kiss, men".
_BEFORE_COMMA = ("couple with heart", "kiss")

_SIZES = r"(?:large|medium-small|medium|small|hollow)"
_COLOURED = re.compile(rf"(?:({_SIZES}) )?({'|'.join(COLOURS)}) (.+)")


@dataclass(frozen=True)
class Attributes:
    """What a name says about the picture.

    Attributes:
        role: Occupation, activity or kind of person ("firefighter", "holding hands"); None where
            the name is not that of a person.
        gender: One of `GENDERS`; "person" and "people" where the name states neither woman nor
            man; None where the name is not that of a person (or is a family).
        tone: One of `TONES`, or two of them joined by ", " for two people; None without a tone.
    """

    role: str | None
    gender: str | None
    tone: str | None


def split_tone(name: str) -> tuple[str, str | None]:
    """Splits ``"thumbs up: dark skin tone"`` into ``("thumbs up", "dark")``.

    Args:
        name: An English emoji name.

    Returns:
        The name without its tones, and the tones as `Attributes.tone` writes them. A name whose
        part after the colon is anything else ("flag: China") comes back whole, with None.
    """
    head, colon, tail = name.rpartition(": ")
    if colon:
        parts = [part.removesuffix(" skin tone") for part in tail.split(", ")]
        if tail.endswith(" skin tone") and len(parts) <= 2 and all(p in TONES for p in parts):
            return head, ", ".join(parts)
    return name, None


def parse_name(name: str) -> Attributes:
    """Reads role, gender and tone from an English name.

    Args:
        name: A name of the data set, or a caption a model wrote. Any text is accepted; what is not
            recognised is None.

    Returns:
        The attributes; see `Attributes`.
    """
    head, tone = split_tone(name.strip())
    role, gender = _person(head)
    return Attributes(role=role, gender=gender, tone=tone)


def parse_colour(name: str) -> tuple[str | None, str | None]:
    """Reads a leading colour: ``"large orange diamond"`` gives ``("orange", "large diamond")``.

    Args:
        name: An English emoji name.

    Returns:
        (colour, what has it), or (None, None) if the name does not begin with a colour.
    """
    match = _COLOURED.fullmatch(name)
    if match is None or parse_name(name).role is not None:
        return None, None
    size, colour, thing = match.groups()
    return colour, f"{size} {thing}" if size else thing


def words(name: str) -> tuple[str, ...]:
    """The words of an English name, split at everything but letters, digits and apostrophes.

    The unit of the promise that a held-out name has no word training has not seen. Hyphens
    separate, so "seven-thirty" shares its words with "seven o'clock"; the tone "medium-light" is
    one word, because its picture is not a mixture of the pictures of "medium" and "light".
    """
    return tuple(re.findall(r"medium-light|medium-dark|[^\W_]+(?:'[^\W_]+)?|[^\w\s]", name))


def _person(head: str) -> tuple[str | None, str | None]:
    if head in _IRREGULAR:
        return _IRREGULAR[head]
    if head in _NEUTRAL:
        return head, "person"
    if head == "family" or head.startswith("family: "):
        return "family", None
    for role in _BEFORE_COMMA:
        if head.startswith(f"{role}, ") and head.removeprefix(f"{role}, ") in GENDERS:
            return role, head.removeprefix(f"{role}, ")
    for role in _BEFORE_GENDER:
        if head.startswith(f"{role} ") and head.removeprefix(f"{role} ") in GENDERS:
            return role, head.removeprefix(f"{role} ")
    for gender in GENDERS:
        if head.startswith(f"{gender} "):
            return head.removeprefix(f"{gender} "), gender
    return None, None
