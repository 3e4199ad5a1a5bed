"""The bilinear primitives against `jax.lax` in float64: values, derivatives, batches, platforms."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from genjax.nn.convolution import convolution, convolve, image_gradient, kernel_gradient
from genjax.nn.layers import contract, product
from genjax.nn.products import contraction
from genjax.nn.window import Window

NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
# Size of the image, of the kernel, channels in and out, window.
WINDOWS = {
    "line": ((9,), (3,), 2, 4, Window((2,), ((1, 1),), (1,))),
    "gaps": ((9,), (3,), 2, 4, Window((1,), ((4, 0),), (2,))),
    "plain": ((5, 6), (3, 2), 2, 3, Window((1, 1), ((1, 1), (0, 1)), (1, 1))),
    "wide": ((4, 5), (2, 3), 2, 3, Window((1, 1), ((3, 2), (4, 4)), (1, 1))),
    "strided": ((7, 6), (3, 4), 2, 3, Window((2, 3), ((0, 2), (2, 1)), (1, 1))),
    "sparse": ((7, 6), (1, 1), 2, 3, Window((3, 2), ((0, 0), (0, 0)), (1, 1))),
    "both": ((8, 7), (3, 2), 2, 3, Window((2, 1), ((1, 1), (0, 0)), (2, 3))),
    "cropped": ((8, 7), (3, 2), 2, 3, Window((2, 1), ((-1, 2), (1, -2)), (1, 1))),
    "grouped": ((5, 6), (3, 3), 4, 6, Window((2, 1), ((1, 1), (1, 1)), (1, 1), 2)),
    "apart": ((7, 6), (3, 2), 3, 3, Window((2, 1), ((1, 1), (0, 1)), (2, 1), 3)),
    "space": ((4, 5, 3), (2, 3, 2), 2, 3, Window((2, 1, 2), ((0, 1), (1, 1), (1, 0)), (1, 1, 1))),
}
SPECS = {
    "rd,df->rf": ((4, 3), (3, 5)),
    "rd,rf->df": ((4, 3), (4, 5)),
    "tbh,tbf->hf": ((2, 4, 3), (2, 4, 5)),
    "kbtgd,kbsd->kbtgs": ((2, 1, 3, 2, 4), (2, 1, 5, 4)),
    "qnd,qdk->qnk": ((2, 3, 4), (2, 4, 5)),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rand(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def reference(x, w, window):
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=NUMBERS[x.ndim - 2],
        feature_group_count=window.groups,
    )


def arrays(name):
    """The image, the kernel, and a cotangent of the result."""
    size, taps, channels, features, window = WINDOWS[name]
    x = rand(2, *size, channels)
    w = rand(*taps, channels // window.groups, features, seed=1)
    return x, w, rand(*jax.eval_shape(partial(reference, window=window), x, w).shape, seed=2)


def members(name):
    """Each member with the two arrays it takes, and the same of `jax.lax`."""
    (x, w, g), (size, taps, *_, window) = arrays(name), WINDOWS[name]
    plain = partial(reference, window=window)
    return {
        "convolution": (lambda x, w: convolution(x, w, window), plain, x, w),
        "image": (
            lambda g, w: image_gradient(g, w, window, size),
            lambda g, w: jax.vjp(lambda x: plain(x, w), jnp.zeros_like(x))[1](g)[0],
            g,
            w,
        ),
        "kernel": (
            lambda x, g: kernel_gradient(x, g, window, taps),
            lambda x, g: jax.vjp(lambda w: plain(x, w), jnp.zeros_like(w))[1](g)[0],
            x,
            g,
        ),
    }


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", WINDOWS)
def test_members_are_xlas_and_so_are_their_derivatives_backward_and_forward(name):
    for ours, plain, *point in members(name).values():
        jax.tree.map(close, derivatives(ours, *point), derivatives(plain, *point))


def derivatives(f, x, y):
    """The value, the derivative along a direction, the gradient, and that along the direction."""

    def everything(x, y):
        point, along = (x, y), (jnp.cos(x), jnp.sin(y))
        out, moved = jax.jvp(f, point, along)
        g = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
        slope = jax.grad(lambda x, y: jnp.vdot(g, jnp.sin(f(x, y))), (0, 1))
        return out, moved, jax.jvp(slope, point, along)

    return jax.jit(everything)(x, y)


def test_differences_say_the_same_twice_over():
    """Both modes, both orders, through all members one after the other."""
    (x, w, _), (size, taps, *_, window) = arrays("line"), WINDOWS["line"]

    def chain(x, w):
        y = jnp.sin(convolution(x, w, window))
        again = jnp.sin(image_gradient(y, w, window, size))
        return jnp.sin(kernel_gradient(again, y, window, taps))

    check_grads(jax.jit(chain), (x, w), order=2)


@pytest.mark.parametrize("spec", SPECS)
def test_contractions_and_their_derivatives(spec):
    x, y = (rand(*shape, seed=i) for i, shape in enumerate(SPECS[spec]))
    close(contraction(spec, x, y), np.einsum(spec, x, y))
    check_grads(jax.jit(lambda x, y: jnp.sin(contraction(spec, x, y))), (x, y), order=2)


def test_a_hessian():
    """Of a convolution, a product and a transposed convolution, against the same by `jax.lax`."""
    (x, w, _), (size, *_, window) = arrays("strided"), WINDOWS["strided"]
    kernel, h = rand(3, 3), jax.eval_shape(partial(reference, window=window), x, w)

    def net(forward, back, matrix, w):
        h = jnp.tanh(matrix(jnp.tanh(forward(x, w)), kernel))
        return jnp.tanh(back(h, w)).sum()

    def back(h, w):
        return jax.vjp(lambda x: reference(x, w, window), x)[1](h)[0]

    ours = partial(
        net,
        partial(convolution, window=window),
        lambda h, w: image_gradient(h, w, window, size),
        product,
    )
    plain = partial(net, partial(reference, window=window), back, jnp.matmul)
    assert h.shape[-1] == len(kernel)
    expected = jax.jit(jax.hessian(plain))(w)
    close(jax.jit(jax.hessian(ours))(w), expected)
    close(jax.jit(jax.jacrev(jax.jacrev(ours)))(w), expected)


@pytest.mark.parametrize("axes", [(0, None), (None, -1), (1, 2)])
@pytest.mark.parametrize("name", ["strided", "grouped", "space"])
def test_members_under_vmap(name, axes):
    for ours, plain, *given in members(name).values():
        stacked = [
            a if axis is None else jnp.stack([a, jnp.sin(a), jnp.cos(a)], axis)
            for a, axis in zip(given, axes, strict=True)
        ]
        found = jax.jit(jax.vmap(ours, axes, -1))(*stacked)
        expected = [
            plain(
                *(
                    a if axis is None else jnp.take(a, i, axis)
                    for a, axis in zip(stacked, axes, strict=True)
                )
            )
            for i in range(3)
        ]
        close(found, jnp.stack(expected, -1))


@pytest.mark.parametrize("spec", SPECS)
def test_contractions_under_vmap(spec):
    x, y = (rand(*shape, seed=i) for i, shape in enumerate(SPECS[spec]))
    xs, ys = jnp.stack([x, 2 * x + 1], 1), jnp.stack([y, y**2], -1)
    whole = partial(contraction, spec)
    expected = [np.einsum(spec, xs[:, i], ys[..., i]) for i in range(2)]
    close(jax.vmap(whole, (1, -1))(xs, ys), expected)
    close(jax.vmap(whole, (1, None))(xs, y), [np.einsum(spec, xs[:, i], y) for i in range(2)])
    close(jax.vmap(whole, (None, -1))(x, ys), [np.einsum(spec, x, ys[..., i]) for i in range(2)])


def test_in_loops_branches_and_remat():
    x, w = rand(2, 5, 6, 3), rand(3, 3, 3, 3, seed=1)

    def total(conv, wrap, w):
        def body(h, on):
            h = lax.cond(on, lambda h: jnp.tanh(wrap(conv)(h, w)), lambda h: h / 2, h)
            return h, h.sum()

        return lax.scan(body, x, jnp.array([True, False, True]))[1].sum()

    def plain(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS[2])

    expected = jax.grad(partial(total, plain, lambda f: f))(w)
    found = jax.jit(jax.grad(partial(total, partial(convolve, stride=1), jax.checkpoint)))(w)
    close(found, expected)
    along = jax.jvp(partial(total, partial(convolve, stride=1), jax.checkpoint), (w,), (w,))[1]
    close(along, jnp.vdot(expected, w))


def gradients(x, w, kernel):
    """All members and products of a network, of which two convolutions have a stride."""

    def total(x, w, kernel):
        h = jnp.tanh(convolve(jnp.tanh(convolve(x, w, 2)), w, 1))
        return jnp.square(contract("bhwc,cd->bhwd", product(h, kernel), kernel)).sum()

    return jax.grad(total, (0, 1, 2))(x, w, kernel)


def network(batch, dtype):
    return rand(batch, 8, 8, 4, dtype=dtype), rand(3, 3, 4, 4, dtype=dtype), rand(4, 4, dtype=dtype)


def operations(text):
    names = re.findall(r"stablehlo\.(convolution|dot_general|optimization_barrier)\b", text)
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_accelerator_gets_the_standard_operations(platform):
    given = network(2, jnp.bfloat16)
    text = jax.export.export(jax.jit(gradients), platforms=[platform])(*given).mlir_module()
    assert operations(text) == {"convolution": 6, "dot_general": 6}
    dilated = re.findall(r"lhs_dilate = \[2, 2\]", text)  # the gradient of a strided image
    assert len(dilated) == 1
    own = jax.export.export(jax.jit(gradients), platforms=["cpu"])(*given).mlir_module()
    assert operations(own)["optimization_barrier"] > 0
    assert operations(own)["dot_general"] == 7
    assert "lhs_dilate = [2, 2]" not in own


def test_one_program_for_two_platforms_and_its_gradient():
    given = network(2, jnp.float64)
    program = jax.export.export(
        jax.jit(lambda *given: convolve(*given[:2], 2).sum()), platforms=["cpu", "cuda"]
    )(*given)
    found = jax.grad(lambda x: program.call(x, *given[1:]))(given[0])
    close(found, jax.grad(lambda x: convolve(x, given[1], 2).sum())(given[0]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_batch_over_eight_devices_is_not_gathered(dtype):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, *params = network(16, dtype)
    expected = gradients(x, *params)
    with jax.set_mesh(mesh):
        over, everywhere = (jax.NamedSharding(mesh, p) for p in (jax.P("data"), jax.P()))
        given = jax.device_put((x, *params), (over, everywhere, everywhere))
        run = jax.jit(gradients, out_shardings=(over, everywhere, everywhere))
        compiled = run.lower(*given).compile()
        found = compiled(*given)
    bound = 2e-5 if dtype == jnp.float32 else 2**-5
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * np.abs(b).max())
    text = compiled.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_types(dtype):
    x, w, kernel = network(1, dtype)
    assert convolve(x, w, 2).dtype == product(x, kernel).dtype == dtype
    assert contract("bhwc,cd->bhwd", x, kernel).dtype == jnp.promote_types(dtype, jnp.float32)
    assert [g.dtype for g in gradients(x, w, kernel)] == [dtype] * 3


def test_the_precision_is_the_one_asked_for_where_the_product_stands():
    x, w, kernel = network(1, jnp.float32)

    def both(x, w, kernel):
        y = product(x, kernel)
        with jax.default_matmul_precision("highest"):
            return (y * product(convolve(x, w, 1), kernel)).sum()

    text = jax.export.export(jax.jit(jax.grad(both)), platforms=["tpu"])(x, w, kernel).mlir_module()
    lines = re.findall(r"stablehlo\.(?:dot_general|convolution)\(.*|stablehlo.dot_general .*", text)
    high = sum("HIGHEST" in line for line in lines)
    # Of the second product: itself, its gradient, the convolution and its gradient.
    assert (high, len(lines)) == (4, 6)


def test_what_cannot_be_multiplied():
    x, w, kernel = network(1, jnp.float32)
    with pytest.raises(TypeError, match=r"float32.*bfloat16.*cast"):
        product(x, kernel.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="sizes of d differ"):
        contract("bd,df->bf", x[0, 0], kernel[:3])
    with pytest.raises(ValueError, match="does not name the axes"):
        contract("bd,df->bf", x, kernel)
    with pytest.raises(ValueError, match="do not fit"):
        convolve(x[..., :3], w, 1)
    window = Window((1, 1), ((1, 1), (1, 1)), (1, 1))
    with pytest.raises(ValueError, match="do not fit"):
        image_gradient(x, w, window, (9, 8))
    with pytest.raises(ValueError, match="do not fit"):
        kernel_gradient(x, x, window, (2, 3))
