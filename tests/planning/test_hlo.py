"""What is read from compiled programs, against counts by hand.

The programs are compiled here for eight devices. Excerpts of programs for TPUs and GPUs, shortened,
stand beside this file.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from genjax.planning.hlo import read
from genjax.planning.hlo_groups import groups
from genjax.planning.hlo_text import hbm_bytes_of

N = 1024


def spec(*shape, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def compiled(function, *arguments, **options):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return read(text, **options)


def mapped(function, mesh, inputs, outputs):
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def mesh_of(*shape, names=("data", "model")):
    axes = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names[: len(shape)], axis_types=axes)


COLLECTIVES = {
    "all-gather": (lambda x: lax.all_gather(x, "model"), N, 4 * N * 3 / 4),
    "reduce-scatter": (lambda x: lax.psum_scatter(x, "model", tiled=True), N, N * 3 / 4),
    "all-reduce": (lambda x: lax.psum(x, "model"), N, 2 * N * 3 / 4),
    "all-to-all": (lambda x: lax.all_to_all(x.reshape(4, -1), "model", 0, 0), N, N * 3 / 4),
    "collective-permute": (
        lambda x: lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)]),
        *(N, N),
    ),
}


@pytest.mark.parametrize("kind", COLLECTIVES)
@pytest.mark.parametrize("turns", [1, 5])
def test_what_a_collective_sends(kind, turns):
    """Of groups of 4, float32 [N] a device; alone, and in a loop."""
    function, whole, sent = COLLECTIVES[kind]
    whole = 4 * N if kind == "all-gather" else whole

    def looped(x):
        def turn(x, _):
            return jnp.sin(function(x).reshape(-1)[:N].sum() + x), None

        return lax.scan(turn, x, length=turns)[0] if turns > 1 else function(x)

    mesh = mesh_of(2, 4)
    program = compiled(mapped(looped, mesh, jax.P(("data", "model")), jax.P()), spec(8 * N))
    (collective,) = [c for c in program.collectives if c.array_bytes > 4]
    assert (collective.kind, collective.count) == (kind, turns)
    assert collective.group == (2 if kind == "collective-permute" else 4)
    assert collective.array_bytes == 4 * whole
    assert collective.sent_bytes == turns * 4 * sent
    assert not program.unknown_loops


@pytest.mark.parametrize(("axis", "islands"), [("data", 2), ("model", 1)])
def test_which_collectives_leave_a_slice(axis, islands):
    """Devices 0 to 3 and 4 to 7 are slices: of a 2 x 4 mesh the rows."""
    function = mapped(lambda x: lax.psum(x, axis), mesh_of(2, 4), jax.P(("data", "model")), jax.P())
    (collective,) = compiled(function, spec(8 * N), slice_of=lambda device: device // 4).collectives
    assert (collective.group, collective.islands) == (2 if axis == "data" else 4, islands)
    assert collective.crosses == (islands > 1)
    assert not compiled(function, spec(8 * N)).collectives[0].crosses


def test_a_partitioned_product_gathers_its_weights():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, split = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("fsdp",), (None, "fsdp")))
    x, w = spec(64, 128, sharding=rows), spec(128, 256, sharding=split)
    program = compiled(jax.jit(lambda x, w: x @ w, out_shardings=rows), x, w)
    (collective,) = program.collectives
    assert (collective.kind, collective.group, collective.count) == ("all-gather", 8, 1)
    assert collective.sent_bytes == 4 * 128 * 256 * 7 / 8
    assert program.flops == 2 * 64 * 128 * 256 / 8


D, F, B = 64, 128, 32


def layer(x, w):
    return jnp.tanh(x @ w["in"]) @ w["out"], None


def layers(count):
    return spec(B, D), {"in": spec(count, D, F), "out": spec(count, F, D)}


def scanned(x, w):
    return lax.scan(layer, x, w)[0]


def written(x, w):
    for i in range(len(w["in"])):
        x, _ = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], w))
    return x


def test_loops_count_as_if_written_out():
    """FLOPs grow by exactly one layer; bytes by its weights, and never by the whole stack."""
    both = [[compiled(f, *layers(n)) for n in (1, 2, 3, 9)] for f in (scanned, written)]
    one = 4 * B * D * F
    for programs in both:
        assert [p.flops for p in programs] == [one, 2 * one, 3 * one, 9 * one]
    # A turn reads and writes its weights where it cuts them out of the stack, and reads them again.
    weights, loop = 4 * 2 * D * F, both[0]
    growth = (loop[3].hbm_bytes - loop[2].hbm_bytes) / 6
    assert 3 * weights < growth < 5 * weights


def test_bytes_of_memory_by_hand():
    assert compiled(jnp.exp, spec(N, N)).hbm_bytes == 2 * 4 * N * N
    fused = compiled(lambda x, y: jnp.exp(x) * y + 1, spec(N), spec(N))
    assert fused.hbm_bytes == 3 * 4 * N
    largest = compiled(lambda x: jnp.argmax(jnp.exp(x), axis=1), spec(64, N))
    assert largest.hbm_bytes == pytest.approx(4 * 64 * N, rel=0.01)  # one pass, two results
    # Of a stack a turn reads one row, and writes one into another, which began as zeros.
    rows = compiled(lambda s: lax.scan(lambda c, x: (c, x * 2), 0.0, s)[1], spec(64, N))
    assert rows.hbm_bytes == pytest.approx(64 * 3 * 4 * N, rel=0.01)


def test_bytes_of_memory_against_xlas_own():
    """Of a program without loops; XLA's analysis counts a loop's body once."""

    def step(weights, x):
        def loss(weights):
            y = x
            for w, v in weights:
                y = y + jax.nn.silu(y @ w) @ v
                y = (y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True) + 1e-5)
            return (y**2).mean()

        return jax.tree.map(lambda p, g: p - 0.1 * g, weights, jax.grad(loss)(weights))

    weights = [(spec(64, 256), spec(256, 64))] * 3
    executable = jax.jit(step).lower(weights, spec(512, 64)).compile()
    program = read(executable.as_text())
    assert program.hbm_bytes == pytest.approx(
        executable.cost_analysis()["bytes accessed"], rel=0.02
    )
    assert program.flops == (3 * 6 - 1) * 2 * 512 * 64 * 256  # the data have no slope


def test_a_loop_that_does_not_say_how_long_it_runs():
    def function(n, x, w):
        return lax.fori_loop(0, n, lambda i, x: x @ w, x)

    arguments = spec(dtype=jnp.int32), spec(B, D), spec(D, D)
    once, often = compiled(function, *arguments), compiled(function, *arguments, trips=10)
    assert len(once.unknown_loops) == 1
    assert "while" in once.unknown_loops[0]
    assert often.flops == 10 * once.flops == 10 * 2 * B * D * D


def test_a_loop_that_may_end_early_counts_as_often_as_it_can_run():
    def function(done, x, w):
        def goes_on(state):
            return (state[0] < 12) & ~done & ~jnp.isnan(state[1]).all()

        return lax.while_loop(goes_on, lambda state: (state[0] + 2, state[1] @ w), (0, x))

    program = compiled(function, spec(dtype=bool), spec(B, D), spec(D, D))
    assert program.flops == 6 * 2 * B * D * D
    assert not program.unknown_loops


def test_a_convolutions_products_leave_out_zeros():
    def function(x, w, stride=1):
        return lax.conv_general_dilated(
            x, w, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, w = spec(2, 8, 8, 16), spec(3, 3, 16, 24)
    met = 3 * 8 - 2  # pairs of a pixel and a tap along an axis
    assert compiled(function, x, w).flops == 2 * 2 * met**2 * 16 * 24
    gradient = jax.grad(lambda x, w: (function(x, w, 2) ** 2).sum())
    met = 3 * 4 - 1  # with stride 2 the zeros are all behind the image
    assert compiled(gradient, x, w).flops == 2 * (2 * 2 * met**2 * 16 * 24)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]]),
    ],
)
def test_replica_groups(text, expected):
    assert groups(text, 8).tolist() == expected


def test_an_array_of_a_tpu_is_filled_up_to_tiles():
    known = partial(hbm_bytes_of, tpu=True)
    assert known("f32[100,3]{1,0:T(8,128)}") == 4 * 104 * 128
    assert known("f32[100,3]{0,1:T(8,128)}") == 4 * 8 * 128
    assert known("bf16[5,16,256]{2,1,0:T(8,128)(2,1)}") == 2 * 5 * 16 * 256
    assert known("f32[8,128]{1,0:T(8,128)S(1)}") == 0  # in VMEM
    assert known("(f32[8,128]{1,0:T(8,128)}, (s32[]{:T(128)}, pred[2]{0}))") == 4 * 1024 + 4 + 2
    assert hbm_bytes_of("f32[100,3]{1,0:S(1)}", tpu=False) == 1200  # of a GPU's own memory
    assert hbm_bytes_of("f32[100,3]{1,0:S(5)}", tpu=False) == 0  # the host's


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read("module @jit_f { }")


# ---- Programs of other compilers

MIB = 2**20


def of_file(name, **options):
    return read((Path(__file__).parent / name).read_text(), **options)


def summary(program):
    return [
        (c.kind, c.count, c.group, c.islands, c.array_bytes / MIB, c.sent_bytes / MIB)
        for c in program.collectives
    ]


def test_a_program_for_tpus():
    """A scan over 3 layers x + relu(x W) V of width 4,096 and 16,384, on 2 x 8 chips of a v5e.

    The loop tells its length by its condition alone. The gathering of V goes on beside the first
    product, in three fusions. x and the shards are in VMEM. Behind it are the sums of a gradient
    over 8 chips, which are scattered, and over the other 2.
    """
    program = of_file("tpu.txt", slice_of=lambda device: device // 8)
    assert summary(program) == [
        ("all-gather", 3, 8, 1, 128, 3 * 7 / 8 * 128),
        ("all-gather", 3, 8, 1, 128, 3 * 7 / 8 * 128),
        ("reduce-scatter", 1, 8, 1, 128, 7 / 8 * 128),
        ("all-reduce", 1, 2, 2, 16, 16),
    ]
    assert "dot_general" in program.collectives[2].scope
    assert program.flops == 3 * 2 * 2 * 4096 * 4096 * 16384
    assert not program.unknown_loops + program.uncounted
    # MiB. A turn: two shards of 16 cut out of their stacks; x, 32, written into one; W and V, 128
    # each, written and read, as is what comes between the products.
    turn = 2 * 16 + 32 + 3 * 2 * 128
    before = 32 + 2 * (96 + 48)  # x read; two stacks of float32 read, of bfloat16 written
    behind = 128  # the gradient read
    assert program.hbm_bytes / MIB == pytest.approx(before + 3 * turn + behind, rel=1e-6)


def test_a_program_for_gpus():
    """The same of 4 layers of width 1,024 and 4,096 with GELU, on 2 x 8 of H100."""
    program = of_file("gpu.txt", slice_of=lambda device: device // 8)
    assert summary(program) == [("all-gather", 4, 8, 1, 16, 4 * 7 / 8 * 16)]
    assert program.flops == 4 * 2 * 2 * 256 * 1024 * 4096
    x, h, shard, gathered, parts = 0.5, 2, 1, 8, 8  # MiB; 8 parts of a sum, float32
    turn = (
        *(2 * (2 * shard + shard), 2 * (shard + gathered)),  # to bfloat16; gathered
        *(x + gathered + h, 2 * h, h + gathered + parts),  # product, GELU, product
        *(x + parts + x, 2 * x),  # the sum; x is kept for the backward pass
    )
    before = 2 * x + 4 * x + 2 * 8  # x copied, its stack filled with zeros, a stack transposed
    assert program.hbm_bytes / MIB == pytest.approx(before + 4 * sum(turn), rel=1e-5)


def test_what_slices_of_tpus_exchange():
    """A gathering over all devices of 4 slices of 16: between slices first, then inside of each."""
    program = of_file("tpu_slices.txt", slice_of=lambda device: device // 4)
    # MiB: 8,192 float32 a device.
    one = 1 / 32
    assert summary(program) == [
        ("all-gather", 1, 4, 4, 4 * one, 3 * one),
        ("all-gather", 1, 16, 1, 64 * one, 60 * one),
    ]
    assert [c.crosses for c in program.collectives] == [True, False]


@pytest.mark.parametrize(
    ("left", "right", "out", "how", "flops"),
    [
        # Products of 3 x 16 pairs of matrices, which a compiler for TPUs writes as convolutions.
        (
            *("3,16,128,64", "3,16,1024,64", "3,16,128,1024"),
            "window={size=3x16 stride=2x15 lhs_dilate=3x16}, dim_labels=01bf_01oi->01bf",
            2 * 3 * 16 * 128 * 1024 * 64,
        ),
        (
            *("3,16,128,64", "3,16,128,1024", "3,16,1024,64"),
            "window={size=3x16 stride=3x16 pad=2_2x15_15 lhs_dilate=2x15 rhs_reversal=1x1}, "
            "dim_labels=01fb_01io->01fb",
            2 * 3 * 16 * 128 * 1024 * 64,
        ),
        (
            *("768,192,1", "16,1024,768", "16,1024,192"),
            "window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=fb0_0oi->0fb",
            2 * 16 * 1024 * 768 * 192,
        ),
        ("256,1024", "1024,4096", "256,4096", "dim_labels=bf_io->bf", 2 * 256 * 1024 * 4096),
    ],
)
def test_products_that_are_written_as_convolutions(left, right, out, how, flops):
    lines = (
        f"  %x = bf16[{left}] parameter(0)\n  %w = bf16[{right}] parameter(1)\n"
        f"  ROOT %y = f32[{out}] convolution(%x, %w), {how}\n}}\n"
    )
    assert read("HloModule jit_f\n\nENTRY %main () -> f32[] {\n" + lines).flops == flops


SHAPES = {"q": "bf16[2,64,3,16]{3,2,1,0}", "x": "bf16[4,33,33,64]{3,2,1,0}"}
ATTENTION = """\
  %q = {q} parameter(0)
  ROOT %call = ({q}, {q}, {q}, u8[0]{{0}}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax{way}", backend_config={{"cudnn_fmha_backend_config":\
{{"intermediate_tensor_shape":{{"element_type":"BF16","dimensions":["2","3","64","64"],\
"layout":{{"minor_to_major":["3","2","1","0"]}}}},"mask_type":"{mask}"}}}}
"""
CONVOLUTION = """\
  %x = {x} parameter(0)
  %g = bf16[4,16,16,128]{{3,2,1,0}} parameter(1)
  ROOT %call = (bf16[128,3,3,64]{{3,2,1,0}}, u8[4096]{{0}}) custom-call(%x, %g), \
window={{size=3x3 stride=2x2}}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter", backend_config={{"operation_queue_id":"0"}}
"""
PRODUCT = """\
  %x = f32[8,24,40]{{2,1,0}} parameter(0)
  %w = f32[8,40,56]{{2,1,0}} parameter(1)
  ROOT %call = (f32[8,24,56]{{2,1,0}}, s8[4194304]{{0}}) custom-call(%x, %w), \
custom_call_target="__cublas$gemm", backend_config={{"gemm_backend_config":\
{{"alpha_real":1,"dot_dimension_numbers":{{"lhs_contracting_dimensions":["2"],\
"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}}}}
"""
PAIR = 2 * 2 * 3 * 16  # of scores


@pytest.mark.parametrize(
    ("text", "words", "flops"),
    [
        (PRODUCT, {}, 2 * 8 * 24 * 40 * 56),
        (CONVOLUTION, {}, 2 * 4 * 16 * 16 * 128 * 9 * 64),
        (ATTENTION, {"way": "", "mask": "NO_MASK"}, 2 * PAIR * 64 * 64),
        (ATTENTION, {"way": "", "mask": "CAUSAL"}, 2 * PAIR * 64 * 65 // 2),
        (ATTENTION, {"way": "Backward", "mask": "NO_MASK"}, 5 * PAIR * 64 * 64),
    ],
)
def test_products_of_cublas_and_cudnn(text, words, flops):
    program = read(
        "HloModule jit_f\n\nENTRY %main () -> f32[] {\n" + text.format(**SHAPES, **words)
    )
    assert program.flops == flops
    assert not program.uncounted


def test_room_that_a_library_works_in_is_no_traffic():
    program = read("HloModule jit_f\n\nENTRY %main () -> f32[] {\n" + PRODUCT.format())
    assert program.hbm_bytes == 4 * 8 * (24 * 40 + 40 * 56 + 24 * 56)


def test_a_call_that_is_not_known_is_named():
    line = '  ROOT %call = f32[8]{0} custom-call(), custom_call_target="tpu_custom_call"\n'
    program = read("HloModule jit_f\n\nENTRY %main () -> f32[8] {\n" + line + "}\n")
    assert program.uncounted == ("tpu_custom_call",)
