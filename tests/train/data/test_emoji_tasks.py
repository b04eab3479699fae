"""The four tasks: known examples, balance, both languages, nothing from outside training."""

from collections import Counter

import numpy as np

from train.data import tasks
from train.data.emoji import load_emoji
from train.data.tasks import (
    QA,
    caption_examples,
    generation_prompts,
    question_examples,
    text_examples,
    tokenizer_corpus,
)

RECORDS = {e.name: e for e in load_emoji()}


def test_generation_and_caption():
    e = RECORDS["woman firefighter: medium skin tone"]
    assert generation_prompts(e) == (
        "woman firefighter: medium skin tone",
        "女消防员：中等肤色",
    )
    assert caption_examples(e) == (
        QA("What is this?", "woman firefighter: medium skin tone"),
        QA("这是什么？", "女消防员：中等肤色"),
    )


def test_pictures_with_several_names_have_one_caption():
    for name in ("family: man, boy", "family: woman, girl", "family: adult, child"):
        assert caption_examples(RECORDS[name])[0].answer == "family: man, boy"
        assert generation_prompts(RECORDS[name])[0] == name
    captions: dict[str, set] = {}
    for e in load_emoji():
        captions.setdefault(e.picture, set()).add(caption_examples(e))
    assert all(len(found) == 1 for found in captions.values())


def test_questions_of_known_records():
    assert question_examples(RECORDS["woman firefighter: medium skin tone"]) == (
        QA("What kind?", "person"),
        QA("什么类？", "人"),
        QA("What skin tone?", "medium"),
        QA("什么肤色？", "中等肤色"),
        QA("Who is it?", "woman"),
        QA("是谁？", "女人"),
        QA("Is it a woman?", "yes"),
        QA("是女人吗？", "是"),
        QA("Is it a person?", "yes"),
        QA("是人吗？", "是"),
    )
    heart = question_examples(RECORDS["red heart"])
    assert QA("What colour?", "red") in heart and QA("什么颜色？", "红色") in heart
    assert QA("What shape?", "heart") in heart and QA("什么形状？", "心形") in heart
    assert QA("What time is it?", "three o'clock") in question_examples(RECORDS["three o'clock"])
    assert QA("谁的旗？", "中国") in question_examples(RECORDS["flag: China"])
    assert QA("Who is it?", "girl") in question_examples(RECORDS["girl"])
    assert QA("Is it food?", "yes") in question_examples(RECORDS["hot dog"])
    couple = question_examples(RECORDS["kiss, men: light skin tone, dark skin tone"])
    assert QA("What skin tone?", "light, dark") in couple
    assert QA("什么肤色？", "较浅肤色、较深肤色") in couple


def test_yes_and_no_are_balanced_in_every_split():
    for split in ("train", "heldout", "concept"):
        answers = Counter(
            (qa.question, qa.answer)
            for e in load_emoji()
            if e.split == split
            for qa in question_examples(e)
            if qa.answer in ("yes", "no", "是", "不是")
        )
        questions = {question for question, _ in answers}
        for question in questions:
            yes = answers[question, "yes"] + answers[question, "是"]
            no = answers[question, "no"] + answers[question, "不是"]
            if question in ("Is it a woman?", "是女人吗？"):
                assert abs(yes - no) <= 0.15 * (yes + no), (split, question, yes, no)
            else:
                assert yes == no, (split, question)
    train = [e for e in load_emoji() if e.split == "train"]
    asked = {qa.question for e in train for qa in question_examples(e)}
    assert {"Is it food?", "Is it an animal?", "Is it a flag?", "是食物吗？"} <= asked


def test_yes_means_yes():
    for e in load_emoji():
        for qa in question_examples(e):
            if qa.question == "Is it food?":
                assert (qa.answer == "yes") == (e.kind == "food")


def test_every_record_has_examples_in_both_languages():
    for e in load_emoji():
        questions = question_examples(e)
        assert len(questions) >= 2 and len(questions) % 2 == 0
        for english, chinese in zip(questions[::2], questions[1::2], strict=True):
            assert english.question.endswith("?") and english.question.isascii()
            assert chinese.question.endswith("？")
            assert len(english.question.split()) <= 5
        assert len(set(questions)) == len(questions)


def test_text_examples():
    texts = text_examples(RECORDS["man pilot: dark skin tone"])
    assert texts[:2] == (
        QA("man pilot: dark skin tone in Chinese?", "男飞行员：较深肤色"),
        QA("男飞行员：较深肤色，英文？", "man pilot: dark skin tone"),
    )
    assert QA("man pilot: dark skin tone. What skin tone?", "dark") in texts
    assert QA("男飞行员：较深肤色。是谁？", "男人") in texts
    assert len(texts) == 2 + len(question_examples(RECORDS["man pilot: dark skin tone"]))


def test_samplers_are_deterministic_and_reach_everything():
    e = RECORDS["red heart"]
    for sample, everything in (
        (tasks.sample_generation, generation_prompts(e)),
        (tasks.sample_caption, caption_examples(e)),
        (tasks.sample_question, question_examples(e)),
        (tasks.sample_text, text_examples(e)),
    ):
        first = [sample(e, rng) for rng in [np.random.default_rng(7)] for _ in range(200)]
        again = [sample(e, rng) for rng in [np.random.default_rng(7)] for _ in range(200)]
        assert first == again
        assert set(first) == set(everything)


def test_tokenizer_corpus_holds_training_only():
    corpus = set(tokenizer_corpus())
    assert {"What is this?", "这是什么？", "hot dog", "热狗", "Whose flag?"} <= corpus
    for e in load_emoji():
        if e.split != "train":
            assert f"{e.name}. What kind?" not in corpus
            assert f"{e.name} in Chinese?" not in corpus
            assert f"{e.name_zh}，英文？" not in corpus
