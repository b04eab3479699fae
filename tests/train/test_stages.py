"""What one step of each real preset changes: exactly its own parts (report, section 2.2).

The runs are the real ones, from the empty directory to the parts they hand on, on the debug model.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from janus_jax.checkpoint import load_model
from janus_jax.config import get_config
from janus_jax.functional import abstract, flat_params
from janus_jax.sharding import param_shardings
from tests.train.runs import checkpoint, metrics, params, tiny
from train.config import PARTS
from train.mesh import training_mesh
from train.objectives.contrastive import ContrastivePart
from train.presets import EMOJI_RECIPE
from train.rundir import read_json
from train.state import create_params
from train.task import make_task

STAGES = ("emoji-stage1", "emoji-stage2", "emoji-stage3")


def part_of(path: str) -> str:
    return path.split("/")[0]


def before(recipe, name: str) -> dict[str, np.ndarray]:
    """Parameters of the run before its one step, from the runs it says it starts from."""
    config = next(run for run in recipe.runs if run.name == name)
    found = {}
    for part, source in config.initial_runs().items():
        handed_on = params(recipe.root / source)
        found |= {path: v for path, v in handed_on.items() if part_of(path) == part}
    return found


def fresh(name: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    config = tiny(name, steps=1)
    mesh = training_mesh(config.mesh)
    task = make_task(config, mesh, Path("unused"))
    where = param_shardings(task.abstract, mesh)
    params = task.to_layers(create_params(task.init, config.seed, nnx.State({}), where))
    return {k: np.asarray(v) for k, v in flat_params(params).items()}, config.trained_children()


def changed(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> set[str]:
    return {path for path in old if not np.array_equal(old[path], new[path])}


@pytest.mark.parametrize("name", STAGES[1:])
def test_a_stage_changes_all_of_its_parts_and_not_a_bit_of_the_others(recipe, name):
    config = next(run for run in recipe.runs if run.name == name)
    old, new = before(recipe, name), params(recipe.root / name)
    assert set(old) == set(new) == set(flat_params(abstract(get_config("debug"))[1]))
    assert changed(old, new) == {p for p in new if part_of(p) in config.trainable}


def test_stage_1_leaves_the_pretrained_parts_to_the_bit(recipe):
    old, new = before(recipe, "emoji-stage1"), params(recipe.root / "emoji-stage1")
    assert {part_of(p) for p in old} == {"vision", "vq", "llm"}
    assert changed(old, new) == set()


@pytest.mark.parametrize("name", ["emoji-vq", "emoji-siglip", "emoji-llm", "emoji-stage1"])
def test_a_run_trains_all_of_its_fresh_parts(recipe, name):
    start, children = fresh(name)
    new = params(recipe.root / name)
    own = {path for path in start if part_of(path) in children and part_of(path) in PARTS}
    assert own and changed({p: start[p] for p in own}, new) == own


def test_the_text_tower_trains_and_is_thrown_away(recipe):
    start, _ = fresh("emoji-siglip")
    tower = {path for path in start if part_of(path) == "text_tower"}
    assert tower
    assert not any(part_of(p) == "text_tower" for p in params(recipe.root / "emoji-siglip"))
    saved = checkpoint(recipe.root / "emoji-siglip", 1)
    for path in tower:
        keys = "".join(f"[{k}]" if k.isdigit() else f"['{k}']" for k in path.split("/"))
        (leaf,) = (v for k, v in saved.items() if k.startswith(f".trainable{keys}"))
        assert not np.array_equal(leaf, start[path]), path


@pytest.mark.parametrize("name", [run.name for run in EMOJI_RECIPE])
def test_only_trained_parameters_have_optimizer_state(recipe, name):
    config = next(run for run in recipe.runs if run.name == name)
    saved = checkpoint(recipe.root / name, 1)
    moments = [k for k in saved if k.startswith(".opt_state") and saved[k].ndim]
    trainable = [k for k in saved if k.startswith(".trainable")]
    scalars = [k for k in trainable if not saved[k].ndim]
    # Two moments for each trained array; a text tower's two scalars have no dimension.
    assert len(moments) == 2 * (len(trainable) - len(scalars))
    for key in moments:
        assert any(f"['{part}']" in key for part in config.trained_children()), key
    frozen = [k for k in saved if k.startswith(".frozen")]
    assert not any(f".frozen['{part}']" in key for key in frozen for part in config.trainable)
    assert int(saved[".step"]) == 1


def test_a_finished_run_says_what_it_holds(recipe):
    for config in recipe.runs:
        done = read_json(recipe.root / config.name / "done")
        parts = {*config.trainable, *config.initial_runs()}
        assert done["parts"] == [part for part in PARTS if part in parts]
        assert done["parameters"] == len(params(recipe.root / config.name))
        assert done["steps"] == 1


def test_the_last_stage_leaves_a_model_that_loads(recipe):
    trained = params(recipe.root / "emoji-stage3")
    loaded = load_model(recipe.root / "emoji-stage3" / "model", dtype="float32")
    assert loaded.processor.image.image_size == loaded.config.image_size == 16
    for path, value in flat_params(loaded.params).items():
        stored = jax.numpy.asarray(trained[path]).astype("bfloat16").astype("float32")
        assert np.array_equal(value, stored), path


def test_a_preview_measures_held_out_data_and_draws_every_name(recipe):
    run_dir = recipe.root / "emoji-stage3"
    step, preview = metrics(run_dir)
    kinds = ("understanding", "text", "generation")
    assert set(step) == {
        *("step", "loss", "grad_norm", "skipped"),
        *(f"{k}_{of}" for k in kinds for of in ("loss", "tokens")),
    }
    losses = ("understanding_loss", "text_loss", "generation_loss")
    assert set(preview) == {"step", *(f"heldout_{k}" for k in losses)}
    # Freshly initialised heads know nothing: about as many nats as the logarithm of the choices.
    assert preview["heldout_generation_loss"] == pytest.approx(np.log(64), rel=0.3)
    from PIL import Image

    sheet = np.asarray(Image.open(run_dir / "previews" / "0000001.png"))
    assert sheet.shape == (4 * 18 * 2, 16 * 18 * 2, 3)
    rows = sheet.reshape(4, 36, 16, 36, 3).swapaxes(1, 2)[:, :, :32, :32]
    assert (rows[0] != rows[1]).any((1, 2, 3)).all()
    assert (rows.reshape(64, -1).std(1) > 0).all()


def test_the_contrastive_module_has_the_vision_tower_of_the_model():
    config = get_config("debug")
    from flax import nnx

    from janus_jax.nn.layers import ShapesOnly

    part = nnx.split(ContrastivePart(config, ShapesOnly()))[1]
    whole = abstract(config)[1]
    shapes = {k: v.shape for k, v in flat_params(part).items() if part_of(k) == "vision"}
    assert shapes == {k: v.shape for k, v in flat_params(whole).items() if part_of(k) == "vision"}
