"""`janus-jax train finetune` on a few pictures: from the JSONL file to a model others can use."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from janus_jax import Janus
from janus_jax.cli import main
from janus_jax.functional import flat_params
from tests.train.data.records.files import picture, turns, write_jsonl
from tests.train.runs import checkpoint, make_idle_step, metrics, params
from train import loop, own_data
from train.checkpoints import Checkpoints
from train.data.records.shards import open_records
from train.previews import ASKED
from train.rundir import read_config, read_json, read_resolved

CAPTIONED, TALKS = 12, 6
STEPS = 4
FLAGS = "--steps 4 --batch-size 6 --preview-every 4 --checkpoint-every 2 --log-every 1"
TARGETS = {f"attn/{m}/kernel" for m in ("q", "k", "v", "out")} | {
    f"mlp/{m}/kernel" for m in ("gate", "up", "down")
}


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory) -> Path:
    """Captions, questions about pictures, text alone; and one line whose picture is missing."""
    folder = tmp_path_factory.mktemp("mine")
    for i in range(CAPTIONED):
        (folder / f"{i}.png").write_bytes(picture(i))
    captions = [{"image": f"{i}.png", "caption": f"a red apple {i}"} for i in range(CAPTIONED)]
    talks = [{"image": f"{i}.png", "turns": turns(i)} for i in range(TALKS)]
    texts = [{"turns": turns(i)} for i in range(4)]
    broken = [{"image": "missing.png", "caption": "nothing"}]
    return write_jsonl(folder / "mine.jsonl", [*captions, *talks, *texts, *broken])


def command(preset: str, model: Path, data: Path, run_dir: Path, *more: str) -> list[str]:
    where = ["--init", str(model), "--data", str(data), "--run-dir", str(run_dir)]
    return ["train", preset, *where, *FLAGS.split(), *more]


@pytest.fixture(scope="module")
def lora(jsonl, debug_dir, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    rank = ("--lora.rank", "4", "--optimizer.learning-rate", "0.01")
    assert main.run(command("finetune-lora", debug_dir, jsonl, run_dir, *rank)) == 0
    return run_dir


@pytest.fixture(scope="module")
def whole(jsonl, debug_dir, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert main.run(command("finetune", debug_dir, jsonl, run_dir)) == 0
    return run_dir


def changed(run_dir: Path, debug_model) -> set[str]:
    before, after = flat_params(debug_model.params), params(run_dir)
    assert before.keys() == after.keys()
    return {path for path in after if not np.array_equal(after[path], before[path])}


def test_the_run_keeps_its_data_and_says_what_it_left_out(lora):
    kinds = {
        side: read_json(lora / "data" / side / "manifest.json")["kinds"]
        for side in ("train", "heldout")
    }
    counts = {
        kind: sum(found.get(kind, {"records": 0})["records"] for found in kinds.values())
        for kind in ("understanding", "text", "generation")
    }
    assert counts == {"understanding": CAPTIONED + TALKS, "text": 4, "generation": CAPTIONED}
    # A twentieth of 16 pictures and texts is one.
    assert 1 <= sum(entry["records"] for entry in kinds["heldout"].values()) <= 3
    (broken,) = (lora / "data" / "broken.jsonl").read_text().splitlines()
    assert json.loads(broken)["reason"] == "image file is missing"
    assert sorted(p.name for p in (lora / "data").iterdir()) == ["broken.jsonl", "heldout", "train"]


def test_the_config_says_what_was_decided_for_the_run(lora):
    content = read_json(lora / "config.json")
    asked, resolved = read_config(lora), read_resolved(lora)
    assert asked.fit_to_data and asked.length == 0 and asked.compute_dtype == "auto"
    assert resolved and content["resolved"]["length"] == resolved.length
    assert resolved.length % 128 == 0 and sum(resolved.samples().values()) == 6
    assert resolved.data == (str(lora / "data" / "train"),) and not resolved.fit_to_data
    saved = Checkpoints(lora / "checkpoints").record().config
    assert saved == json.loads(json.dumps(dataclasses.asdict(resolved)))


def test_what_is_held_out_is_measured_before_and_after(lora, capsys):
    records = metrics(lora)
    measured = [r for r in records if any(k.startswith("heldout_") for k in r)]
    assert [r["step"] for r in measured] == [0, STEPS]
    assert measured[0].keys() == measured[1].keys()
    losses = [k for k in measured[0] if k != "step"]
    assert losses and all(measured[0][k] != measured[1][k] for k in losses)
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    # Six samples a step, in the ratio of the data; each drawn picture has 16 codes.
    assert {r["generation_tokens"] for r in steps} == {2.0 * 16}
    from train.report import print_heldout

    print_heldout(lora)
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["held-out", "loss", "before", "step", "4"]
    assert len(out) == 1 + len(losses)


def test_what_is_held_out_may_hold_none_of_the_kinds_that_are_trained(debug_dir, tmp_path):
    """Of three samples a share of a half keeps both texts out: there is nothing to measure."""
    (tmp_path / "0.png").write_bytes(picture(0))
    captioned = {"image": "0.png", "caption": "mine"}
    data = write_jsonl(
        tmp_path / "few.jsonl", [captioned, {"turns": turns(0)}, {"turns": turns(1)}]
    )
    run_dir = tmp_path / "run"
    more = ("--heldout-share", "0.5", "--steps", "1")
    assert main.run(command("finetune", debug_dir, data, run_dir, *more)) == 0
    kinds = {
        side: set(read_json(run_dir / "data" / side / "manifest.json")["kinds"])
        for side in ("train", "heldout")
    }
    assert kinds == {"train": {"understanding", "generation"}, "heldout": {"text"}}
    assert not any(key.startswith("heldout") for record in metrics(run_dir) for key in record)


def test_previews_show_the_user_s_own_captions(lora):
    sheets = sorted(p.name for p in (lora / "previews").glob("*.png"))
    assert sheets == ["0000000.png", "0000004.png"]
    sheet = np.asarray(Image.open(lora / "previews" / sheets[0]))
    rows, columns = sheet.shape[0] // (18 * 8), sheet.shape[1] // (18 * 8)
    assert rows in (2, 4) and columns == 8


def test_previews_answer_the_user_s_own_questions(lora):
    for step in (0, STEPS):
        header, line, *rows = (lora / "previews" / f"{step:07d}.md").read_text().splitlines()
        assert header.count("|") == line.count("|") == 5
        cells = [row[2:-2].split(" | ")[:3] for row in rows]
        want = []
        for split in ("train", "heldout"):
            records = open_records(lora / "data" / split).kinds.get("understanding", ())
            want += [[split, r.turns[0][1], r.turns[1][1]] for r in records[:ASKED]]
        assert cells == want and {split for split, *_ in cells} >= {"train"}


def test_data_without_pictures_has_no_previews(debug_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_step", make_idle_step)
    data = write_jsonl(tmp_path / "talk.jsonl", [{"turns": turns(i)} for i in range(8)])
    assert main.run(command("finetune", debug_dir, data, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "model").is_dir() and not (tmp_path / "run" / "previews").exists()


def test_lora_changes_its_matrices_alone(lora, debug_model):
    depth = debug_model.config.llm.depth
    assert changed(lora, debug_model) == {
        f"llm/layers/{i}/{target}" for i in range(depth) for target in TARGETS
    }


def test_all_of_it_changes_what_the_preset_names(whole, debug_model):
    parts = {path.split("/")[0] for path in changed(whole, debug_model)}
    assert parts == {"aligner", "gen_aligner", "image_head", "gen_embed", "llm"}


def test_checkpoints_hold_the_low_rank_matrices_and_their_moments(lora):
    saved = checkpoint(lora, STEPS)
    trained = {k for k in saved if k.startswith(".trainable")}
    assert len(trained) == 2 * len(TARGETS) and all("['lora']" in k for k in trained)
    assert all(saved[k].any() for k in trained)
    moments = [k for k in saved if k.startswith(".opt_state") and saved[k].ndim]
    assert len(moments) == 2 * len(trained) and all("['lora']" in k for k in moments)


def test_a_crash_and_the_rest_is_bit_equal_on_the_data_packed_at_first(
    monkeypatch, lora, jsonl, debug_dir, tmp_path
):
    rank = ("--lora.rank", "4", "--optimizer.learning-rate", "0.01")
    words = command("finetune-lora", debug_dir, jsonl, tmp_path / "run", *rank)
    batches_of = loop.prefetch

    def crash(*args, **kwargs):
        for number, found in enumerate(batches_of(*args, **kwargs)):
            if number == 3:
                raise MemoryError
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(loop, "prefetch", crash)
        assert main.run(words) == 1

    def nothing(*args, **kwargs):
        raise AssertionError("packed or fitted again")

    monkeypatch.setattr(own_data, "pack", nothing)
    monkeypatch.setattr(own_data, "fit", nothing)
    assert main.run([*words, "--resume"]) == 0
    assert metrics(tmp_path / "run") == metrics(lora)
    found, want = params(tmp_path / "run"), params(lora)
    assert all(np.array_equal(found[k], want[k]) for k in want)


def test_the_model_draws_and_answers(lora):
    model = Janus.from_pretrained(lora / "model")
    ((image,),) = model.generate_images(["a red apple 3"], seed=1)
    assert image.size == (16, 16)
    answer = model.chat("Which number is it?", images=[image], max_tokens=3)
    assert isinstance(answer, str)
    card = (lora / "model" / "MODEL_CARD.md").read_text()
    assert "finetune-lora" in card and "mine.jsonl" in card


def test_the_model_goes_on_as_another_s_start_in_bfloat16(lora, jsonl, tmp_path):
    """What does not train is kept as it was read, in half the memory."""
    words = command("finetune-lora", lora / "model", jsonl, tmp_path / "run")
    words[words.index("--steps") + 1] = "1"
    half = ["--lora.rank", "4", "--preview-every", "0", "--compute-dtype", "bfloat16"]
    assert main.run([*words, *half]) == 0
    saved = checkpoint(tmp_path / "run", 1)
    frozen = {str(v.dtype) for k, v in saved.items() if k.startswith(".frozen")}
    trained = {str(v.dtype) for k, v in saved.items() if k.startswith(".trainable")}
    assert (frozen, trained) == ({"bfloat16"}, {"float32"})
    before, after = params(lora), flat_params(Janus.from_pretrained(tmp_path / "run/model").params)
    for path, value in after.items():
        kept = np.asarray(before[path].astype("bfloat16"), np.float32)
        same = np.array_equal(np.asarray(value, np.float32), kept)
        assert same or path.startswith("llm/layers"), path


def test_it_exports_to_transformers_with_lora_merged(lora, tmp_path):
    out = tmp_path / "hf"
    assert main.run(["convert", str(lora / "model"), str(out), "--to", "hf"]) == 0
    peer, info = transformers.JanusForConditionalGeneration.from_pretrained(
        out, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    ours = flat_params(Janus.from_pretrained(lora / "model").params)
    theirs = peer.state_dict()
    for i in range(2):
        name = f"model.language_model.layers.{i}.self_attn.q_proj.weight"
        kernel = np.asarray(ours[f"llm/layers/{i}/attn/q/kernel"], np.float32)
        assert np.array_equal(theirs[name].numpy().T, kernel)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--data", "--data"),
        ("", "--data is missing"),
        ("--data nowhere.jsonl", "nowhere.jsonl"),
        ("--data {jsonl} --max-bad-samples 0", "1 of 35 records are broken"),
        ("--data {jsonl} --captions understanding --heldout-share 1", "--heldout-share 1.0"),
        ("--data {jsonl} --length 8", "none of the samples can be used in rows of 8"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(jsonl, debug_dir, tmp_path, capsys, words, named):
    argv = ["train", "finetune", "--init", str(debug_dir), "--run-dir", str(tmp_path / "run")]
    assert main.run([*argv, *words.format(jsonl=jsonl).split()]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("janus-jax: error: ") and named in line
