"""The reader of TPU programs, on small texts whose costs are counted by hand."""

import pytest

from train.plan import costs
from train.plan.hlo import computations, trip_count

CYCLES = 'backend_config={"flag_configs":[],"estimated_cycles":"%d"}'


def fusion(name: str, cycles: int, called: str = "leaf") -> str:
    return (
        f"  %{name} = bf16[8,128]{{1,0:T(8,128)(2,1)}} fusion(%x), kind=kLoop, calls=%{called}, "
        + CYCLES % cycles
    )


def program(*computed: str) -> str:
    return "HloModule jit_step, is_scheduled=true\n\n" + "\n\n".join(computed) + "\n"


def computation(header: str, *lines: str) -> str:
    return "\n".join([header + " (x: bf16[8,128]) -> bf16[8,128] {", *lines, "}"])


LEAF = computation("%leaf", "  ROOT %neg.1 = bf16[8,128]{1,0} negate(%x), " + CYCLES % 999)
# Turns three times: its condition compares with a constant.
CONDITION = computation(
    "%three",
    "  %limit = s32[] constant(3)",
    "  ROOT %less = pred[] compare(%i, %limit), direction=LT",
)
# The constant is in what the condition calls.
CALLED = computation("%compare_five", "  %limit.2 = s32[] constant(5)")
FAR_CONDITION = computation("%five", "  ROOT %less.2 = pred[] fusion(%i), calls=%compare_five")
INNER = computation("%inner", fusion("in.1", 7))
OUTER = computation(
    "%outer",
    fusion("out.1", 100),
    "  %while.1 = (s32[], bf16[8,128]{1,0}) while(%x), condition=%five, body=%inner",
)


def test_cycles_of_loops_within_loops():
    text = program(
        *(LEAF, CONDITION, CALLED, FAR_CONDITION, INNER, OUTER),
        computation(
            "ENTRY %main",
            fusion("once.1", 11),
            "  %while.2 = (s32[], bf16[8,128]{1,0}) while(%x), condition=%three, body=%outer",
            "  %while.3 = (s32[], bf16[8,128]{1,0}) while(%x), condition=%nowhere, body=%inner, "
            'backend_config={"known_trip_count":{"n":"20"}}',
            '  %kernel.4 = bf16[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"',
        ),
    )
    read = computations(text)
    # What is fused is part of its fusion: LEAF's 999 count nowhere.
    assert costs.cycles(read) == 11 + 3 * (100 + 5 * 7) + 20 * 7
    assert costs.custom_calls(read) == {"kernel": 1}
    assert not costs.unknown_loops(read)


def test_a_loop_whose_turns_are_unknown_counts_once_and_is_named():
    text = program(
        LEAF,
        INNER,
        computation("%open", "  ROOT %more = pred[] parameter(0)"),
        computation(
            "ENTRY %main",
            "  %while.9 = (s32[], bf16[8,128]{1,0}) while(%x), condition=%open, body=%inner",
        ),
    )
    read = computations(text)
    assert trip_count(read, read["ENTRY"][0]) is None
    assert costs.cycles(read) == 7
    assert costs.unknown_loops(read) == ["while.9"]


# x [2, 512, 64] times w [64, 256], and the gradient of w, which the TPU compiler writes with the
# rows as a window: x [2, 512, 64] and dy [2, 512, 256] to [64, 256].
PRODUCTS = program(
    computation(
        "%dense",
        "  %x = bf16[2,512,64]{2,1,0} parameter(0)",
        "  %w = bf16[64,256,1]{1,0,2} parameter(1)",
        "  ROOT %y = bf16[2,512,256]{2,1,0} convolution(%x, %w), window={size=1}, "
        "dim_labels=0bf_io0->0bf",
    ),
    computation(
        "%gradient",
        "  %x = bf16[2,512,64]{2,1,0} parameter(0)",
        "  %dy = bf16[2,512,256]{2,1,0} parameter(1)",
        "  ROOT %dw = bf16[64,256,1]{1,0,2} convolution(%x, %dy), window={size=2}, "
        "dim_labels=0fb_0io->bf0",
    ),
    computation(
        "%turns",
        "  %a = bf16[2,512,256] fusion(%x, %w), kind=kOutput, calls=%dense",
        "  %b = bf16[64,256] fusion(%x, %dy), kind=kOutput, calls=%gradient",
    ),
    computation(
        "ENTRY %main",
        "  %while.1 = (s32[]) while(%x), condition=%c, body=%turns, "
        'backend_config={"known_trip_count":{"n":"3"}}',
    ),
)


def test_products_written_as_convolutions():
    flops = 2 * 2 * 512 * 64 * 256
    assert costs.dot_flops(computations(PRODUCTS)) == 3 * 2 * flops


@pytest.mark.parametrize(
    ("window", "size", "taps", "places", "pairs"),
    [
        # SigLIP's patches: every place meets every tap.
        (costs.Window(stride=16), 384, 16, 24, 16 * 24),
        # A whole-width padding, as gradients have: only taps within the input count.
        (costs.Window(low=3), 4, 4, 7, 4 * 4),
        # Every other element of the widened input is real.
        (costs.Window(left_dilation=2), 3, 1, 5, 3),
        (costs.Window(right_dilation=2), 5, 2, 3, 6),
    ],
)
def test_pairs_of_a_window(window, size, taps, places, pairs):
    assert window.pairs(size, taps, places) == pairs


def test_a_plain_dot():
    text = program(
        computation(
            "%dot",
            "  %a = f32[4,8]{1,0} parameter(0)",
            "  %b = f32[8,16]{1,0} parameter(1)",
            "  ROOT %c = f32[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, "
            "rhs_contracting_dims={0}",
        ),
        computation("ENTRY %main", "  %f = f32[4,16]{1,0} fusion(%x), calls=%dot"),
    )
    assert costs.dot_flops(computations(text)) == 2 * 4 * 8 * 16


COLLECTIVES = program(
    # Started in one fusion, going on in another, done in a third: one collective, one channel.
    computation(
        "%start",
        "  %g.1 = bf16[64,128]{1,0} all-gather(%p), channel_id=7, dimensions={0}",
        "  ROOT %s = bf16[64,128]{1,0} custom-call(%g.1), "
        'custom_call_target="AsyncCollectiveStart"',
    ),
    computation(
        "%overlapped",
        "  %g.2 = bf16[64,128]{1,0} all-gather(%p), channel_id=7, dimensions={0}",
    ),
    computation(
        "%layers",
        "  %f.1 = bf16[64,128] fusion(%p), kind=kCustom, calls=%start",
        "  %f.2 = bf16[64,128] fusion(%p), kind=kOutput, calls=%overlapped",
        "  %r.1 = (bf16[64,128]{1,0}, bf16[64]{0}) all-reduce(%a, %b), channel_id=8, to_apply=%add",
    ),
    computation(
        "ENTRY %main",
        "  %while.1 = (s32[]) while(%x), condition=%c, body=%layers, "
        'backend_config={"known_trip_count":{"n":"10"}}',
        "  %cp.1 = (f32[4,128]{1,0}, f32[4,128]{1,0}, u32[], u32[]) "
        "collective-permute-start(%x), channel_id=9",
        "  %s.1 = bf16[8,128]{1,0} reduce-scatter(%x), channel_id=10, replica_groups=[1,8]<=[8]",
        "  %t.1 = bf16[8,128]{1,0} all-to-all(%x), channel_id=11",
    ),
)


def test_collectives_and_which_of_them_overlap():
    moved = costs.collectives(computations(COLLECTIVES))
    gather, reduce = 64 * 128 * 2, 2 * (64 * 128 * 2 + 64 * 2)
    permute, scatter, exchange = 4 * 128 * 4, 8 * 8 * 128 * 2, 8 * 128 * 2
    assert moved.bytes == 10 * (gather + reduce) + permute + scatter + exchange
    assert moved.asynchronous == 10 * gather + permute
    assert moved.async_fraction == moved.asynchronous / moved.bytes
    assert moved.count == {
        "all-gather": 10,
        "all-reduce": 10,
        "collective-permute": 1,
        "reduce-scatter": 1,
        "all-to-all": 1,
    }


def test_no_collectives_leave_nothing_to_overlap():
    text = program(LEAF, computation("ENTRY %main", fusion("one", 1)))
    assert costs.collectives(computations(text)).async_fraction == 1


def test_buffers_of_scores_and_logits_are_seen():
    text = program(
        computation(
            "ENTRY %main",
            "  %w = bf16[4096,4096]{1,0} parameter(0)",
            "  %x = bf16[2,4096,4096]{2,1,0} add(%w, %w)",
            "  %s = f32[2,32,4096,4096]{3,2,1,0} add(%x, %x)",
            "  %head = bf16[4096,102400]{1,0} parameter(1)",
            "  %chunk = f32[1,811,102400]{2,1,0} add(%x, %x)",
            "  %l = f32[2,4096,102400]{2,1,0} add(%x, %x)",
        )
    )
    read = computations(text)
    # 4096 wide too: states and matrices are no scores.
    assert costs.score_buffers(read, 4096, 32, 4096) == [(2, 32, 4096, 4096)]
    every = [(4096, 4096), (2, 4096, 4096), (2, 32, 4096, 4096)]
    assert sorted(costs.score_buffers(read, 4096, 32, 2048), key=len) == every
    assert costs.logit_buffers(read, 811, 102400, {4096}) == [(2, 4096, 102400)]
    assert costs.logit_buffers(read, 512, 102400, {4096}) == [(1, 811, 102400), (2, 4096, 102400)]
