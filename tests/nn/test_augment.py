"""Augmentation: each transform against numpy or scipy, how often it applies, the controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from genjax.nn import augment

GREY, COLOUR = (
    jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(6, 9, 9, c)), jnp.float32)
    for c in (1, 3)
)
ada = jax.jit(augment.ada, static_argnames="policy")
KEY = jax.random.key(0)


def repeated(matrix):
    return jnp.repeat(matrix, len(COLOUR), axis=0)


def f32(*values):
    return [jnp.full((1,), v, jnp.float32) for v in values]


def test_nothing_happens_at_p_zero():
    for x in (GREY, COLOUR):
        np.testing.assert_array_equal(ada(x, 0.0, KEY), x)
        assert not np.allclose(ada(x, 1.0, KEY), x)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(k):
    cos, sin = [(0, 1), (-1, 0), (0, -1)][k - 1]
    found = augment.warp(COLOUR, repeated(augment.turn_matrix(*f32(cos, sin))))
    np.testing.assert_array_equal(found, np.rot90(COLOUR, k, axes=(1, 2)))


def test_flips_and_moves_are_those_of_numpy():
    found = augment.warp(COLOUR, repeated(augment.scale_matrix(*f32(-1, 1))))
    np.testing.assert_array_equal(found, COLOUR[:, :, ::-1])
    found = augment.warp(COLOUR, repeated(augment.shift_matrix(*f32(2, -3))))
    padded = np.pad(COLOUR, ((0, 0), (0, 3), (2, 0), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(found, padded[:, 3:, :9])


def test_warp_is_scipys_bilinear_interpolation_with_mirrored_borders():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(6, 3, 3))
    matrix[:, :2, 2] *= 8
    matrix[:, 2] = 0, 0, 1
    found = augment.warp(COLOUR, jnp.asarray(matrix, jnp.float32))
    across, down = np.meshgrid(np.arange(9) - 4.0, np.arange(9) - 4.0)
    for image, m, y in zip(np.asarray(COLOUR, np.float64), matrix, found, strict=True):
        x_in, y_in = np.einsum("ij,jhw->ihw", m[:2], np.stack([across, down, np.ones((9, 9))]))
        for c in range(3):
            expected = ndimage.map_coordinates(
                image[..., c], [y_in + 4, x_in + 4], order=1, mode="mirror"
            )
            np.testing.assert_allclose(y[..., c], expected, atol=1e-4)


def test_hue_is_a_rotation_around_the_axis_of_greys():
    angles = np.linspace(-3, 3, 6)
    found = augment.rotate_hue(COLOUR, jnp.asarray(angles, jnp.float32))
    for x, angle, y in zip(COLOUR, angles, found, strict=True):
        rotation = Rotation.from_rotvec(angle * np.ones(3) / np.sqrt(3)).as_matrix()
        np.testing.assert_allclose(y, x @ rotation.T, atol=1e-5)


def test_hue_and_saturation_leave_greys_alone():
    same = jnp.repeat(GREY, 3, axis=-1)
    expected = ada(GREY, 1.0, KEY, policy=("color",))
    found = ada(same, 1.0, KEY, policy=("color",))
    np.testing.assert_allclose(found, jnp.repeat(expected, 3, axis=-1), atol=1e-5)


def close(share, expected, n):
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_every_transform_applies_with_probability_p():
    p, n = 0.3, 4000
    draw = jax.jit(augment.draw_geometry, static_argnums=(2, 3), static_argnames="policy")
    blit = np.asarray(draw(KEY, p, n, 64, policy=("blit",)))
    assert close((np.linalg.det(blit) < 0).mean(), p / 2, n)
    assert close((np.abs(blit[:, 0, 0]) < 0.5).mean(), p / 2, n)  # one or three of four turns
    moved = blit[:, :2, 2].any(1)
    assert close(moved.mean(), p * (1 - 1 / 16**2), n)
    assert np.abs(blit[:, :2, 2]).max() == 8
    np.testing.assert_array_equal(blit, np.round(blit))
    free = np.asarray(draw(KEY, p, n, 64, policy=("geometry",)))
    still = (np.abs(free - np.eye(3)) < 1e-7).all((1, 2))
    assert close(still.mean(), (1 - p) ** 4, n)  # scale, either rotation, aspect, move
    area = -np.log2(np.linalg.det(free)) / 2
    scaled = np.abs(area) > 1e-5
    assert close(scaled.mean(), p, n)
    np.testing.assert_allclose(area[scaled].std(), 0.2, rtol=0.1)


def test_color_has_the_papers_spread():
    """At p = 1 a grey x becomes s c (x + b): b ~ N(0, 0.2), log2 c ~ N(0, 0.5), s a fair sign."""
    n = 4000
    pair = jnp.broadcast_to(jnp.array([0.0, 1.0])[:, None, None], (n, 2, 1, 1))
    pair = jnp.concatenate([pair, pair], axis=2)
    y = np.asarray(ada(pair, 1.0, KEY, policy=("color",)))
    slope, offset = y[:, 1, 0, 0] - y[:, 0, 0, 0], y[:, 0, 0, 0]
    assert close((slope < 0).mean(), 0.5, n)
    np.testing.assert_allclose(np.log2(np.abs(slope)).std(), 0.5, rtol=0.06)
    np.testing.assert_allclose((offset / slope).std(), 0.2, rtol=0.06)
    half = np.asarray(ada(pair, 0.4, KEY, policy=("color",)))
    still = np.abs(half - pair).max((1, 2, 3)) < 1e-7
    assert close(still.mean(), 0.6 * 0.6 * 0.8, n)


@pytest.mark.parametrize("pipeline", ["ada", "diffaugment"])
def test_gradients_flow_and_are_right(pipeline):
    """Both pipelines are affine in the image, so a difference is a gradient."""
    function = {"ada": lambda x: ada(x, 0.8, KEY), "diffaugment": diffaugment}[pipeline]
    rng = np.random.default_rng(0)
    weight, dx = (jnp.asarray(rng.normal(size=COLOUR.shape), jnp.float32) for _ in range(2))
    gradient = jax.grad(lambda x: jnp.vdot(weight, function(x)))(COLOUR)
    assert (jnp.abs(gradient).max((1, 2, 3)) > 0).all()
    change = jnp.vdot(weight, function(COLOUR + dx) - function(COLOUR))
    np.testing.assert_allclose(jnp.vdot(gradient, dx), change, rtol=1e-3)


diffaugment = jax.jit(lambda x: augment.diffaugment(x, KEY))


def test_translate_and_cutout_are_those_of_numpy():
    rng = np.random.default_rng(0)
    dy, dx, top, left = rng.integers(-4, 5, size=(4, 6))
    moved = augment.translate(COLOUR, dy, dx)
    holed = augment.cutout(COLOUR, jnp.asarray(top), jnp.asarray(left), 4, 5)
    for i in range(6):
        padded = np.pad(COLOUR[i], ((4, 4), (4, 4), (0, 0)))
        y, x = 4 - dy[i], 4 - dx[i]
        np.testing.assert_array_equal(moved[i], padded[y : y + 9, x : x + 9])
        expected = np.array(COLOUR[i])
        expected[max(top[i], 0) : top[i] + 4, max(left[i], 0) : left[i] + 5] = 0
        np.testing.assert_array_equal(holed[i], expected)


def test_diffaugment_has_the_authors_ranges():
    n = 2000
    ones = jnp.ones((n, 16, 16, 1))
    cut = np.asarray(augment.diffaugment(ones, KEY, ("cutout",)))[..., 0]
    assert (cut == 0).sum((1, 2)).max() == 64
    rows, columns = (cut == 0).any(2).sum(1), (cut == 0).any(1).sum(1)
    for size in (rows, columns):
        assert (size.min(), size.max()) == (4, 8)  # the centre may be on the border
    moved = np.asarray(augment.diffaugment(ones, KEY, ("translation",)))[..., 0]
    gone = (moved == 0).all(2).sum(1)
    assert close((gone == 0).mean(), 1 / 5, n)  # -2 ... 2
    assert gone.max() == 2
    ramp = jnp.broadcast_to(jnp.array([-1.0, 1.0])[None, :, None, None], (n, 2, 1, 1))
    ramp = np.asarray(augment.diffaugment(ramp, KEY, ("color",)))[..., 0, 0]
    brightness, contrast = ramp.mean(1), (ramp[:, 1] - ramp[:, 0]) / 2
    for found, (low, high) in ((brightness, (-0.5, 0.5)), (contrast, (0.5, 1.5))):
        assert low <= found.min() < low + 0.02
        assert high - 0.02 < found.max() <= high
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.1


def test_the_controller_moves_p_towards_the_target_at_the_papers_rate():
    sure, fooled = jnp.ones(64), jnp.array([1.0, -1.0] * 32)
    state = augment.ada_init()
    update = jax.jit(augment.ada_update)
    for i in range(8):
        state = update(state, sure)
        np.testing.assert_allclose(state["p"], (i + 1) // 4 * 256 / 500_000, rtol=1e-6)
        assert state["count"] == (i + 1) % 4 * 64
    for _ in range(4):
        state = update(state, fooled)
    np.testing.assert_allclose(state["p"], 256 / 500_000, rtol=1e-6)
    for _ in range(8):
        state = update(state, fooled)
    assert state["p"] == 0.0
    full = {**augment.ada_init(), "p": jnp.float32(1.0)}
    assert augment.ada_update(full, jnp.ones(256))["p"] == 1.0
    # 80 % right is r_t = 0.6: neither up nor down
    even = augment.ada_update({**full, "p": jnp.float32(0.5)}, jnp.ones(320).at[:64].set(-1))
    np.testing.assert_allclose(even["p"], 0.5, atol=1e-3)


def test_parts_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="colour"):
        augment.diffaugment(GREY, KEY, ("colour",))
    with pytest.raises(ValueError, match="cutout"):
        augment.ada(GREY, 0.5, KEY, ("cutout",))


def test_ada_refuses_images_that_are_not_square():
    with pytest.raises(ValueError, match="square"):
        augment.ada(GREY[:, :5], 0.5, KEY)
