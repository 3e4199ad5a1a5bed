"""FLOPs counted from jaxprs, against counts by hand and XLA's own of programs without loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from genjax import config as configs
from genjax.config import construct
from genjax.networks.decoder import Network as Decoder
from genjax.networks.transformer import Transformer
from genjax.networks.unet import Network as UNet
from genjax.nn.attention import attention
from genjax.nn.convolution import convolve
from genjax.nn.functional import functional
from genjax.nn.fused_attention import fused_attention
from genjax.nn.layers import product
from genjax.planning.flops import count


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def counted(function, *arguments, **options):
    return count(jax.make_jaxpr(function)(*arguments), **options)


def of_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_a_product_is_2mnk():
    x, w = spec(24, 40), spec(40, 56)
    for function in (jnp.matmul, product):
        flops = counted(function, x, w)
        assert flops.total == 2 * 24 * 40 * 56
        assert flops == (flops.total, 0, 0, (), ())
    assert of_xla(jnp.matmul, x, w) == 2 * 24 * 40 * 56
    assert counted(lambda x: jnp.exp(x) + 1, x).elementwise == 2 * 24 * 40


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_by_hand(stride):
    """Forwards and each gradient have as many products, by this project's operations and JAX's."""
    B, H, C, F, k = 3, 16, 5, 7, 4
    by_hand = 2 * B * (H // stride) ** 2 * k * k * C * F
    x, w = spec(B, H, H, C), spec(k, k, C, F)

    def ours(x, w):
        return convolve(x, w, stride)

    def jaxs(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=numbers)

    for function in (ours, jaxs):
        assert counted(function, x, w).total == by_hand
        gradient = jax.grad(lambda x, w, f=function: (f(x, w) ** 2).sum(), (0, 1))
        assert counted(gradient, x, w).total == pytest.approx(3 * by_hand, rel=0.02)
    assert counted(jax.grad(lambda x, w: ours(x, w).sum(), (0, 1)), x, w).total == 2 * by_hand


def test_groups_and_gaps_by_hand():
    x, w = spec(2, 9, 9, 8), spec(3, 3, 2, 12)

    def grouped(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=4
        )

    assert counted(grouped, x, w).total == of_xla(grouped, x, w) == 2 * 2 * 49 * 9 * 2 * 12

    def spread(x, w):  # between two pixels is a zero: of 9 results' 3 taps, 2 meet none, or 1
        return lax.conv_transpose(x, w, (2, 2), "VALID")

    flops = counted(spread, spec(1, 4, 4, 2), spec(3, 3, 2, 5)).total
    assert flops == 2 * (5 * 2 + 4 * 1) ** 2 * 2 * 5


def test_attention_by_hand():
    B, T, N, D = 2, 512, 3, 16
    q = spec(B, T, N, D)
    assert counted(attention, q, q, q).total == 4 * B * N * T * T * D
    # Eight blocks of 64 queries, each with the keys up to its own.
    seen = sum(64 * 64 * (i + 1) for i in range(8))
    causal = counted(lambda q: attention(q, q, q, causal=True), q)
    assert causal.total == 4 * B * N * seen * D


def block(x, weights):
    return jnp.tanh(x @ weights["in"]) @ weights["out"], None


D, F, B, L = 16, 48, 8, 5
X = spec(B, D)
STACKED = {"in": spec(L, D, F), "out": spec(L, F, D)}
ONE = 2 * B * D * F  # of one product


def test_a_scan_counts_as_if_written_out():
    def scanned(x, w):
        return lax.scan(block, x, w)[0]

    def written(x, w):
        for i in range(L):
            x, _ = block(x, jax.tree.map(lambda leaf, i=i: leaf[i], w))
        return x

    assert counted(scanned, X, STACKED) == counted(written, X, STACKED)
    assert counted(scanned, X, STACKED).total == 2 * L * ONE
    slopes = [
        counted(jax.value_and_grad(lambda w, x, f=f: f(x, w).sum(), (0, 1)), STACKED, X)
        for f in (scanned, written)
    ]
    assert slopes[0].total == slopes[1].total == 6 * L * ONE


def test_loops_and_branches():
    w = spec(D, D)
    one = 2 * B * D * D

    def turns(first, last):
        return lambda x, w: lax.fori_loop(first, last, lambda i, x: x @ w, x)

    assert counted(turns(2, 9), X, w).total == 7 * one
    assert counted(turns(jnp.int32(2), jnp.int32(9)), X, w) == counted(turns(2, 9), X, w)

    def unknown(n, x, w):
        return lax.fori_loop(0, n, lambda i, x: x @ w, x)

    once = counted(unknown, spec(dtype=jnp.int32), X, w)
    assert once.total == one
    assert [name.split()[0] for name in once.unknown_loops] == ["while"]
    assert counted(unknown, spec(dtype=jnp.int32), X, w, trips=30).total == 30 * one

    def early(done, x, w):  # at most
        def goes_on(state):
            return (state[0] < 12) & ~done & ~jnp.isnan(state[1]).all()

        return lax.while_loop(goes_on, lambda state: (state[0] + 2, state[1] @ w), (0, x))

    assert counted(early, spec(dtype=bool), X, w).total == 6 * one
    # A known number that passes through a compiled function stays known.
    assert counted(lambda x, w: jax.jit(unknown)(jnp.int32(3) * 2, x, w), X, w).total == 6 * one

    def twice(x, w):
        return lax.scan(lambda x, _: (turns(0, 3)(x, w), None), x, length=4)[0]

    assert counted(twice, X, w).total == 12 * one

    def either(p, x, w):
        return lax.cond(p, lambda x: x @ w, lambda x: x @ w @ w, x)

    assert counted(either, spec(dtype=bool), X, w).total == 2 * one


def test_what_no_result_needs_is_not_executed():
    def step(x, w):
        def body(carry, _):
            used, unused = carry
            return (used @ w, unused @ w), unused @ w

        (used, _), _ = lax.scan(body, (x, x), length=3)
        return used

    assert counted(step, X, spec(D, D)).total == 3 * 2 * B * D * D

    def chain(x, w):  # what the next turn takes of this one is needed
        def body(carry, _):
            total, term = carry
            return (total + term, term @ w), None

        return lax.scan(body, (x, x), length=3)[0][0]

    assert counted(chain, X, spec(D, D)).total == 3 * 2 * B * D * D


def test_a_shard_mapped_program_counts_on_every_device():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    whole = counted(lambda x, w: x @ w, spec(8, 16), spec(16, 32))
    parts = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(jax.P("data"), jax.P(None, "model")),
        out_specs=jax.P("data", "model"),
    )
    assert counted(parts, spec(8, 16), spec(16, 32)).total == whole.total


@pytest.mark.parametrize("scanned", [True, False])
def test_remat_counts_what_is_computed_again(scanned):
    """The second product of a block has no need to be: nothing backwards takes its result."""

    def loss(w, x, wrap):
        run = wrap(block)
        if scanned:
            return lax.scan(run, x, w)[0].sum()
        for i in range(L):
            x, _ = run(x, jax.tree.map(lambda leaf, i=i: leaf[i], w))
        return x.sum()

    def of(wrap):
        return counted(jax.value_and_grad(lambda w, x: loss(w, x, wrap), (0, 1)), STACKED, X)

    plain, again = of(lambda f: f), of(jax.checkpoint)
    assert plain.total == plain.model == 6 * L * ONE
    assert again.total == 7 * L * ONE
    assert again.recomputed == L * ONE
    assert again.model == plain.total


def test_a_transformers_model_flops_do_not_depend_on_remat():
    B, T, D, L = 2, 64, 32, 3
    per_token = 12 * D * D

    def of(remat):
        net = functional(
            lambda rngs: Transformer(width=D, depth=L, heads=4, remat=remat, rngs=rngs)
        )
        params, mutable = jax.eval_shape(net.init, jax.random.key(0))

        def loss(params, x):
            (y, _), _ = net.apply(params, mutable, x)
            return (y**2).sum()

        x = spec(B, T, D)
        return counted(loss, params, x).total, counted(jax.grad(loss, (0, 1)), params, x)

    for remat, least in (("none", 0.0), ("dots", 0.0), ("full", 0.6)):
        forward, step = of(remat)
        assert forward == L * (2 * per_token * B * T + 4 * B * T * T * D)
        assert step.model == 3 * forward
        assert least < step.recomputed / forward < 1


def test_cudnns_attention_by_hand():
    B, T, N, H = 2, 32, 3, 8
    q = jnp.zeros((B, T, N, H), jnp.bfloat16)
    nothing = jnp.zeros(())
    more = {"scale": 1.0, "seed": 0, "dropout_rate": 0.0, "variadic_args": (False, False)}
    more |= {"layout": 0, "sliding_window_length": None}

    def run(q, mask):
        offsets = jnp.zeros((1,))
        pages = jnp.zeros((1, 1))
        rest = (nothing, nothing, nothing, offsets, offsets, pages, pages)
        forward = cudnn._dot_product_attention_fwd_p_wrapper.bind(
            *(q, q, q, *rest), mask_type=mask, is_training=True, **more
        )
        back = cudnn._dot_product_attention_bwd_p_wrapper.bind(
            *(q, q, q, *rest, forward[1], forward[0], forward[0]), mask_type=mask, **more
        )
        return forward, back

    def of(mask):
        return counted(lambda q: run(q, mask), q)

    pair = 2 * B * N * H
    whole, causal = of(cudnn.MaskType.NO_MASK), of(cudnn.MaskType.CAUSAL)
    assert (whole.total, whole.model) == (7 * pair * T * T, 6 * pair * T * T)
    assert causal.total == 7 * pair * T * (T + 1) // 2


@pytest.mark.parametrize(("causal", "window"), [(True, 0), (False, 0), (True, 3)])
def test_attention_as_the_networks_call_it(causal, window):
    """As of the mesh of an accelerator: a primitive, whose kernels are those below and above."""
    B, T, N, K, H = 2, 8, 4, 2, 16
    pairs = B * N * (T * (T + 1) // 2 if causal else T * T)
    pairs = B * N * (1 + 2 + 3 * (T - 2)) if window else pairs
    arrays = [spec(B, T, n, H) for n in (N, K, K)]

    def attend(q, k, v):
        return fused_attention(q, k, v, causal=causal, window=window)

    def backward(q, k, v):
        return jax.vjp(attend, q, k, v)[1](q)

    assert counted(attend, *arrays).total == 2 * 2 * pairs * H
    both = counted(backward, *arrays)
    assert both.total == 2 * 7 * pairs * H  # what it gives is not needed forward
    assert both.recomputed == 2 * 3 * pairs * H


def test_splash_attention_by_hand():
    """Of causal blocks those on the diagonal are computed whole, those above it not at all."""
    T, N, H, size = 512, 2, 64, 128
    sizes = splash.BlockSizes(
        **{name: size for name in ("block_q", "block_kv", "block_kv_compute")},
        **{name: size for name in ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")},
        **{name: size for name in ("block_q_dq", "block_kv_dq")},
    )
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * N)
    q = spec(N, T, H)

    def loss(q, k, v):
        kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
        return kernel(q, k, v).sum()

    def parts(q, k, v):  # its masks are known on all devices, backwards too
        each = jax.vmap(loss)
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        options = {"mesh": mesh, "in_specs": jax.P("data"), "out_specs": jax.P("data")}
        return jax.shard_map(each, **options, check_vma=False)(q, k, v).sum()

    seen = size * size * sum(i + 1 for i in range(T // size))
    forward = counted(loss, q, q, q)
    assert forward.total == 4 * N * seen * H
    step = counted(jax.grad(loss, (0, 1, 2)), q, q, q)
    # Backwards one kernel for keys and values and one for queries: both make the scores and the
    # weights' slope. Beside them there is a product of each result with its slope.
    whole = (2 + 4 + 3) * 2 * N * seen * H
    assert step.total == whole + 2 * N * T * H
    assert step.model == 3 * forward.total + 2 * N * T * H
    batch = spec(16, N, T, H)
    everywhere = counted(jax.grad(parts, (0, 1, 2)), batch, batch, batch)
    assert (everywhere.total, everywhere.uncounted) == (16 * step.total, ())


# ---- Whole networks


def of_network(build, *inputs, **options):
    net = functional(build)
    params, mutable = jax.eval_shape(net.init, jax.random.key(0))
    return params, counted(lambda p, *x: net.apply(p, mutable, *x, **options), params, *inputs)


def unet_by_hand(size, channels, multipliers, blocks, attention, folded):
    """Multiplications of the U-Net of Ho et al. 2020, appendix B, for one image.

    In order: the embedding of time; the stem; on the way down residual blocks, with attention at
    some sizes, and a convolution of stride 2; the middle; on the way up the same with one block
    more, on what came down beside it, and a convolution behind each doubling; the head.
    """

    def conv(n, cin, cout, k=3):
        return n * n * k * k * cin * cout

    def residual(n, cin, cout):
        shortcut = conv(n, cin, cout, 1) if cin != cout else 0
        return conv(n, cin, cout) + 4 * channels * cout + conv(n, cout, cout) + shortcut

    def mixing(n, c):  # four projections; scores of all pairs, and their means of values
        return 4 * n**2 * c**2 + 2 * n**4 * c

    total = channels * 4 * channels + (4 * channels) ** 2 + conv(size, folded, channels)
    skips, width, n = [channels], channels, size
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            total += residual(n, width, channels * multiplier)
            width = channels * multiplier
            total += mixing(n, width) if n in attention else 0
            skips.append(width)
        if level < len(multipliers) - 1:
            n //= 2
            total += conv(n, width, width)
            skips.append(width)
    total += 2 * residual(n, width, width) + mixing(n, width)
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            total += residual(n, width + skips.pop(), channels * multiplier)
            width = channels * multiplier
            total += mixing(n, width) if n in attention else 0
        if level:
            n *= 2
            total += conv(n, width, width)
    return total + conv(size, width, folded)


@pytest.mark.parametrize(("preset", "side", "colours"), [("mnist", 28, 1), ("cifar10", 32, 3)])
def test_ddpms_unet_by_hand(preset, side, colours):
    o = configs.load(f"configs/ddpm.py:{preset}").model.denoiser
    shape = (side, side, colours)
    options = {"shape": shape, "out_channels": colours, "dtype": jnp.float32}
    _, flops = of_network(
        lambda rngs: construct(UNet, o, "model.denoiser", **options, rngs=rngs),
        *(spec(4, *shape), spec(4)),
    )
    by_hand = unet_by_hand(
        *(side // o.patch_size, o.channels, o.multipliers, o.blocks, o.attention),
        colours * o.patch_size**2,
    )
    assert flops.total == pytest.approx(4 * 2 * by_hand, rel=1e-6)


def test_a_gpts_forward_by_hand():
    """2 FLOPs a parameter of a matrix and token, and the attention's."""
    V, D, L, B, T = 96, 48, 3, 2, 128
    build = {"width": D, "depth": L, "heads": 4}
    params, flops = of_network(
        lambda rngs: Decoder(V, T, **build, rngs=rngs), spec(B, T, dtype=jnp.int32)
    )
    sizes = jax.tree_util.tree_leaves_with_path(params)
    matrices = sum(
        np.prod(leaf.shape)
        for path, leaf in sizes
        if "kernel" in jax.tree_util.keystr(path) or "embedding" in jax.tree_util.keystr(path)
    )
    assert matrices == 12 * D * D * L + V * D
    seen = 64 * 64 + 64 * 128  # of T^2 = 2 blocks of 64 queries, as `attention` goes through them
    assert flops.total == 2 * matrices * B * T + 4 * B * seen * L * D
