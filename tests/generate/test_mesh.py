"""Drawing over a mesh: the pictures of one device, whatever the company."""

import jax
import numpy as np
import pytest

from janus_jax import Janus
from janus_jax.errors import InputError
from janus_jax.sharding import make_mesh, mesh_of, parse_mesh

APPLE = "a red apple"
LONG = "a green apple on a table beside a window through which one sees the sea and a boat"


@pytest.fixture(scope="module")
def alone(debug_dir) -> Janus:
    return Janus.from_pretrained(debug_dir, dtype="float32")


@pytest.fixture(scope="module")
def eight(alone: Janus) -> np.ndarray:
    """Pictures 0 to 7 of APPLE on one device."""
    return alone.generate_codes([APPLE], 8, seed=5)[0]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["fsdp=2", "tensor=2", "fsdp=2,tensor=4"])
def test_a_mesh_draws_the_pictures_of_one_device(debug_dir, alone, eight, text):
    sizes = parse_mesh(text)
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    model = Janus.from_pretrained(debug_dir, dtype="float32", mesh=mesh)
    assert mesh_of(model.params) is mesh
    single = model.generate_codes([APPLE], 1, seed=5)
    np.testing.assert_array_equal(single[0], eight[:1])
    mixed = model.generate_codes([LONG, "b", APPLE], 8, seed=5)
    np.testing.assert_array_equal(mixed[2], eight)
    drawn = np.asarray(model.decode_codes(single)[0][0], np.int16)
    whole = np.asarray(alone.decode_codes(eight[None, :1])[0][0], np.int16)
    # Sums in another order move a pixel by 1e-6, which can carry it over a step of 8 bits.
    assert np.abs(drawn - whole).max() <= 1


def test_one_device_has_no_mesh(alone):
    assert mesh_of(alone.params) is None


@pytest.mark.parametrize("text", ["", "fsdp", "fsdp=", "fsdp=x", "fsdp=-1", "fsdp=0", "rows=2"])
def test_other_forms_are_refused(text):
    with pytest.raises(InputError, match="mesh"):
        parse_mesh(text)


def test_an_axis_named_twice_is_refused():
    with pytest.raises(InputError, match="mesh 'fsdp=2,fsdp=2'"):
        parse_mesh("fsdp=2,fsdp=2")
    assert parse_mesh("fsdp=2,tensor=4") == {"fsdp": 2, "tensor": 4}
