"""The reader of TPU programs, on a small one whose traffic is counted by hand."""

import json
import subprocess
import sys

import pytest

from bench import decode_hlo, hlo
from train.plan.hlo import computations

# Two caches of 2 * 64 * 2 * 8 bf16 = 4096 bytes; a kernel of 8 * 16 bf16 = 256 bytes that comes
# into VMEM, and one that is read in HBM; the step counter is 4 bytes.
PROGRAM = """\
HloModule jit_advance, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias), \
{1}: (2, {}, may-alias) }, entry_computation_layout={(bf16[8,16]{1,0:T(8,128)(2,1)}, \
bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)}, bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)}, \
/*index=3*/bf16[8,16]{1,0:T(8,128)(2,1)})->(bf16[2,64,2,8]{3,0,2,1}, bf16[2,64,2,8]{3,0,2,1})}

%update (a: bf16[2,64,2,8], b: bf16[2,1,2,8]) -> bf16[2,64,2,8] {
  %a = bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)} parameter(0)
  %b = bf16[2,1,2,8]{3,0,2,1:T(2,128)(2,1)S(1)} parameter(1)
  %slot = s32[]{:T(128)} constant(3)
  ROOT %written = bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)} dynamic-update-slice(%a, %b, %slot)
}

%body (p: (s32[], bf16[2,64,2,8], bf16[2,64,2,8], bf16[8,16], bf16[8,16])) -> (s32[]) {
  %p = (s32[]{:T(128)}, bf16[2,64,2,8]{3,0,2,1}) parameter(0)
  %k = bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)} get-tuple-element(%p), index=1
  %w = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=3
  %u = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=4
  %in = (bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[8,16]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%w)
  %near = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} copy-done(%in)
  %new = bf16[2,1,2,8]{3,0,2,1:T(2,128)(2,1)S(1)} fusion(%near, %u), kind=kLoop, calls=%other
  %grown = bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)} fusion(%k, %new), kind=kLoop, calls=%update
  %read = f32[2,2]{1,0:T(2,128)S(1)} fusion(%grown), kind=kLoop, calls=%other
  ROOT %out = (s32[]{:T(128)}, bf16[2,64,2,8]{3,0,2,1}) tuple(%p, %grown)
}

ENTRY %main (x: bf16[8,16]) -> bf16[2,64,2,8] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %turned.1 = bf16[8,16]{0,1:T(8,128)(2,1)} copy(%x)
  ROOT %while.1 = (s32[]{:T(128)}, bf16[2,64,2,8]{3,0,2,1}) while(%x), condition=%c, body=%body
}
"""
# The kernel that comes in, the other, what is written into the cache, the cache that is read.
MOVED = 256 + 256 + 64 + 4096
ARGUMENTS = 2 * 256 + 2 * 4096


def test_traffic_of_the_loop():
    assert decode_hlo.figures(PROGRAM) == {
        "weights_and_cache_bytes": ARGUMENTS,
        "loop_bytes": MOVED,
        "bytes_over_weights_and_cache": MOVED / ARGUMENTS,
        "largest_copy_in_loop_bytes": 0,
        "copied_before_loop_bytes": 256,
        "caches": 2,
        "caches_aliased": True,
    }


@pytest.mark.parametrize(
    "line",
    [
        "%again = bf16[2,64,2,8]{3,2,1,0:T(2,128)(2,1)} copy(%grown)",
        "%again = bf16[2,64,2,8]{3,2,1,0:T(2,128)(2,1)} fusion(%grown), calls=%turned",
        "%again = (bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)}, bf16[2,64,2,8]{3,0,2,1:T(2,128)S(1)}, "
        "u32[]{:S(2)}) copy-start(%grown)",
    ],
)
def test_a_copy_in_the_loop_is_seen(line):
    """Inside HBM, as a fusion, or out of VMEM."""
    turned = (
        "%turned (a: bf16[2,64,2,8]) -> bf16[2,64,2,8] {\n"
        "  %a = bf16[2,64,2,8]{3,0,2,1:T(2,128)(2,1)} parameter(0)\n"
        "  ROOT %t = bf16[2,64,2,8]{3,2,1,0:T(2,128)(2,1)} transpose(%a), dimensions={0,1,2,3}\n"
        "}\n\n"
    )
    text = PROGRAM.replace("  ROOT %out", f"  {line}\n  ROOT %out")
    text = text.replace("%body (", turned + "%body (")
    assert hlo.largest_copy(computations(text)) == 4096


def test_a_cache_that_is_not_aliased_is_seen():
    text = PROGRAM.replace("{1}: (2, {}, may-alias)", "{1}: (0, {}, may-alias)")
    assert not decode_hlo.figures(text)["caches_aliased"]


def test_a_program_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="0 loops"):
        decode_hlo.figures(PROGRAM.replace(" while(", " call("))


def test_without_libtpu_it_says_how_to_get_it():
    """The tests' environment has none on purpose; see the script's docstring."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.decode_hlo", "--json"], capture_output=True, text=True
    )
    if done.returncode == 0:
        assert json.loads(done.stdout)["caches_aliased"]
    else:
        assert ".venv-tpu/bin/pip install" in done.stderr and "Traceback" not in done.stderr
