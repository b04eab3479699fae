from bench import fits
from janus_jax import memory
from janus_jax.config import JANUS_PRO_1B
from tests.multiprocess.children import ROOT


def test_the_documentation_holds_the_table_of_now():
    assert f"\n\n{fits.table()}\n\n" in (ROOT / "docs" / "inference.md").read_text()


def test_one_more_picture_would_not_fit():
    device = fits.Device("laptop", 10, cpu=True)
    n = fits.largest(JANUS_PRO_1B, "float32", device)
    size = fits.weights(JANUS_PRO_1B, "float32", False)
    assert n > 0
    for pictures, fitting in ((n, True), (n + 1, False)):
        need = memory.drawing(JANUS_PRO_1B, size, pictures, fits.PROMPT_LENGTH, itemsize=4)
        assert (need.total <= 9.5e9) is fitting


def test_an_int8_model_need_not_fit_in_the_wider_precision():
    small = fits.Device("small", 4)
    narrow = fits.weights(JANUS_PRO_1B, "bfloat16", True)
    assert narrow < small.free < fits.weights(JANUS_PRO_1B, "bfloat16", False)
    assert fits.largest(JANUS_PRO_1B, "int8", small) > 0
    assert fits.largest(JANUS_PRO_1B, "bfloat16", small) == 0
