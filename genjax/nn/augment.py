"""Differentiable augmentation of a discriminator's images: DiffAugment and ADA.

Each example gets its own random transforms. All of them are differentiable in the image to any
order and have fixed shapes, so they can be part of the loss.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DIFFAUGMENT = ("color", "translation", "cutout")
ADA = ("blit", "geometry", "color")


def _keys(key: Array):
    """An infinite stream of keys."""
    count = 0
    while True:
        yield jax.random.fold_in(key, count)
        count += 1


def _column(values: Float[Array, "B"]) -> Float[Array, "B 1 1 1"]:
    return values[:, None, None, None]


def diffaugment(
    x: Float[Array, "B H W C"], key: Array, policy: tuple[str, ...] = DIFFAUGMENT
) -> Float[Array, "B H W C"]:
    """DiffAugment (Zhao et al. 2020, section 4 and the authors' ranges), in the policy's order.

    "color" changes brightness (+ U(-0.5, 0.5)), saturation (x U(0, 2)) and contrast
    (x U(0.5, 1.5)); "translation" moves by up to 1/8 of the size and fills with zeros; "cutout"
    sets a square of half the size with a random centre to zero.

    Args:
      x: images in [-1, 1].
      key: for the draws.
      policy: some of `DIFFAUGMENT`.
    """
    keys = _keys(key)
    B, H, W, _ = x.shape
    for name in policy:
        if name == "color":
            b, s, c = (jax.random.uniform(next(keys), (B,)) for _ in range(3))
            x = x + _column(b - 0.5)
            x = _contrast(x, x.mean(-1, keepdims=True), 2 * s)
            x = _contrast(x, x.mean((1, 2, 3), keepdims=True), c + 0.5)
        elif name == "translation":
            most = [int(side / 8 + 0.5) for side in (H, W)]
            dy, dx = (jax.random.randint(next(keys), (B,), -m, m + 1) for m in most)
            x = translate(x, dy, dx)
        elif name == "cutout":
            sizes = [int(side / 2 + 0.5) for side in (H, W)]
            centres = [
                jax.random.randint(next(keys), (B,), 0, side + 1 - size % 2)
                for side, size in zip((H, W), sizes, strict=True)
            ]
            x = cutout(x, *(o - s // 2 for o, s in zip(centres, sizes, strict=True)), *sizes)
        else:
            raise ValueError(f"augmentation {name!r}: expected some of {DIFFAUGMENT}")
    return x


def _contrast(x: Array, centre: Array, factor: Float[Array, "B"]) -> Float[Array, "B H W C"]:
    return centre + (x - centre) * _column(factor)


def translate(
    x: Float[Array, "B H W C"], dy: Int[Array, "B"], dx: Int[Array, "B"]
) -> Float[Array, "B H W C"]:
    """Moves each image down by `dy` and right by `dx` pixels, filling with zeros.

    A product with shifted identities: unlike a gather it has a fast transpose everywhere.
    """

    def shifted(size: int, by: Int[Array, "B"]) -> Float[Array, "B N N"]:
        i = jnp.arange(size)
        return (i[None, :, None] - by[:, None, None] == i[None, None, :]).astype(x.dtype)

    rows, columns = shifted(x.shape[1], dy), shifted(x.shape[2], dx)
    x = jnp.einsum("bij,bjwc->biwc", rows, x, precision="highest")
    return jnp.einsum("bij,bhjc->bhic", columns, x, precision="highest")


def cutout(
    x: Float[Array, "B H W C"], top: Int[Array, "B"], left: Int[Array, "B"], height: int, width: int
) -> Float[Array, "B H W C"]:
    """Sets the rectangle that starts at (top, left) to zero; it may extend over the edge."""

    def inside(size: int, start: Int[Array, "B"], length: int) -> Array:
        i = jnp.arange(size)[None] - start[:, None]
        return (i >= 0) & (i < length)

    rows, columns = inside(x.shape[1], top, height), inside(x.shape[2], left, width)
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0.0, x)


def ada(
    x: Float[Array, "B H W C"],
    p: Float[Array, ""] | float,
    key: Array,
    policy: tuple[str, ...] = ADA,
) -> Float[Array, "B H W C"]:
    """ADA's pipeline (Karras et al. 2020, appendix B), each transform with probability `p`.

    "blit" flips, turns by multiples of 90 degrees and moves by whole pixels; "geometry" scales,
    rotates, scales anisotropically, rotates and moves by fractions; "color" changes brightness,
    contrast, luma's sign, hue and saturation; the last two have no effect on grey images.

    Simpler than the paper: all geometry is one bilinear resampling, whereas the paper resamples at
    twice the resolution between two wavelet low-pass filters; the border is reflected as often as
    needed instead of once.

    Args:
      x: square images in [-1, 1], grey or RGB.
      p: probability, which may be traced. 0 returns `x` exactly.
      key: for the draws.
      policy: some of `ADA`; "blit" and "geometry" always come before "color".

    Raises:
      ValueError: images that are not square, or do not have 1 or 3 channels.
    """
    if unknown := set(policy) - set(ADA):
        raise ValueError(f"augmentations {sorted(unknown)}: expected some of {ADA}")
    B, H, W, C = x.shape
    if H != W or C not in (1, 3):
        raise ValueError(f"ada needs square images of 1 or 3 channels, got {H} x {W} x {C}")
    if "blit" in policy or "geometry" in policy:
        x = warp(x, draw_geometry(jax.random.fold_in(key, 0), p, B, H, policy))
    return _color(x, p, jax.random.fold_in(key, 1)) if "color" in policy else x


def _gate(key: Array, p: Array | float, value: Array, neutral: float) -> Array:
    """`value` for a share `p` of the examples, `neutral` for the others."""
    applies = jax.random.uniform(key, value.shape[:1]) < p
    return jnp.where(applies.reshape(-1, *(1,) * (value.ndim - 1)), value, neutral)


def _matrix(rows: list[list]) -> Float[Array, "B 3 3"]:
    """The homogeneous matrix whose first two rows are given, each entry [B] or a number."""
    entries = jnp.broadcast_arrays(*[jnp.asarray(e, jnp.float32) for row in rows for e in row])
    top = jnp.stack(entries, -1).reshape(-1, 2, 3)
    return jnp.concatenate([top, jnp.broadcast_to(jnp.array([[0.0, 0, 1]]), (len(top), 1, 3))], 1)


def scale_matrix(sx: Float[Array, "B"], sy: Float[Array, "B"]) -> Float[Array, "B 3 3"]:
    """The matrix with which `warp` enlarges by `sx` and `sy`; -1 flips."""
    return _matrix([[1 / sx, 0, 0], [0, 1 / sy, 0]])


def turn_matrix(cos: Float[Array, "B"], sin: Float[Array, "B"]) -> Float[Array, "B 3 3"]:
    """The matrix with which `warp` turns the image anticlockwise by this cosine and sine."""
    return _matrix([[cos, -sin, 0], [sin, cos, 0]])


def shift_matrix(dx: Float[Array, "B"], dy: Float[Array, "B"]) -> Float[Array, "B 3 3"]:
    """The matrix with which `warp` moves the image right by `dx` and down by `dy` pixels."""
    return _matrix([[1, 0, -dx], [0, 1, -dy]])


def draw_geometry(
    key: Array, p: Float[Array, ""] | float, B: int, size: int, policy: tuple[str, ...] = ADA
) -> Float[Array, "B 3 3"]:
    """Draws the matrices of `warp` for "blit" and "geometry" (appendix B, figure 20)."""
    keys = _keys(key)
    matrices = []
    if "blit" in policy:
        flip = _gate(next(keys), p, jax.random.bernoulli(next(keys), 0.5, (B,)), 0)
        turns = _gate(next(keys), p, jax.random.randint(next(keys), (B,), 0, 4), 0)
        move = jax.random.uniform(next(keys), (B, 2), minval=-0.125, maxval=0.125)
        move = jnp.round(_gate(next(keys), p, move, 0.0) * size)
        quarter = jnp.array([1.0, 0.0, -1.0, 0.0])
        matrices += [
            scale_matrix(1.0 - 2.0 * flip, jnp.ones(B)),
            turn_matrix(quarter[turns], quarter[turns - 1]),
            shift_matrix(move[:, 0], move[:, 1]),
        ]
    if "geometry" in policy:
        p_once = 1.0 - jnp.sqrt(1.0 - jnp.clip(p, 0.0, 1.0))  # either rotation: p
        scales, angles = [], []
        for _ in range(2):
            s = jnp.exp2(0.2 * jax.random.normal(next(keys), (B,)))
            scales.append(_gate(next(keys), p, s, 1.0))
            theta = jax.random.uniform(next(keys), (B,), minval=-math.pi, maxval=math.pi)
            angles.append(_gate(next(keys), p_once, theta, 0.0))
        move = _gate(next(keys), p, 0.125 * size * jax.random.normal(next(keys), (B, 2)), 0.0)
        matrices += [
            scale_matrix(scales[0], scales[0]),
            turn_matrix(jnp.cos(angles[0]), jnp.sin(angles[0])),
            scale_matrix(scales[1], 1 / scales[1]),
            turn_matrix(jnp.cos(angles[1]), jnp.sin(angles[1])),
            shift_matrix(move[:, 0], move[:, 1]),
        ]
    total = matrices[0]
    for matrix in matrices[1:]:
        total = jnp.matmul(total, matrix, precision="highest")
    return total


def warp(x: Float[Array, "B H W C"], matrix: Float[Array, "B 3 3"]) -> Float[Array, "B H W C"]:
    """Samples each image bilinearly at the points to which `matrix` maps the output's pixels.

    Coordinates are (x, y) in pixels from the centre. Outside, the image is mirrored at the centres
    of its border pixels.
    """
    B, H, W, C = x.shape
    across, down = jnp.meshgrid(jnp.arange(W) - (W - 1) / 2, jnp.arange(H) - (H - 1) / 2)
    m = matrix[:, :2, :, None, None]
    source = m[:, :, 0] * across + m[:, :, 1] * down + m[:, :, 2]

    def mirror(position: Float[Array, "B H W"], size: int):
        """The two neighbours of a position and the weight of the second."""
        last = max(size - 1, 1)
        position = last - jnp.abs(jnp.abs(position + (size - 1) / 2) % (2 * last) - last)
        low = jnp.floor(position)
        first = low.astype(jnp.int32)
        return first, jnp.minimum(first + 1, size - 1), position - low

    x0, x1, fx = mirror(source[:, 0], W)
    y0, y1, fy = mirror(source[:, 1], H)
    index = jnp.stack([y0 * W + x0, y0 * W + x1, y1 * W + x0, y1 * W + x1], 1)
    weight = jnp.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], 1)
    corners = jnp.take_along_axis(
        x.reshape(B, H * W, C), index.reshape(B, -1)[..., None], axis=1, mode="clip"
    )
    return jnp.sum(corners.reshape(B, 4, H, W, C) * weight[..., None].astype(x.dtype), axis=1)


def _color(x: Float[Array, "B H W C"], p: Array | float, key: Array) -> Float[Array, "B H W C"]:
    """Brightness, contrast, luma flip, hue and saturation (appendix B, figure 20).

    Luma's axis is (1, 1, 1), so a colour's component along it is the mean of its channels.
    """
    keys = _keys(key)
    B, C = x.shape[0], x.shape[-1]

    def normal(neutral: float, function) -> Float[Array, "B 1 1 1"]:
        values = function(jax.random.normal(next(keys), (B,)))
        return _column(_gate(next(keys), p, values, neutral))

    x = x + normal(0.0, lambda n: 0.2 * n)
    x = x * normal(1.0, lambda n: jnp.exp2(0.5 * n))
    flip = _gate(next(keys), p, jax.random.bernoulli(next(keys), 0.5, (B,)), 0)
    x = x - 2.0 * _column(flip) * x.mean(-1, keepdims=True)
    if C == 1:
        return x
    theta = jax.random.uniform(next(keys), (B,), minval=-math.pi, maxval=math.pi)
    theta = _gate(next(keys), p, theta, 0.0)
    x = rotate_hue(x, theta)
    return x + (x - x.mean(-1, keepdims=True)) * (normal(1.0, jnp.exp2) - 1.0)


def rotate_hue(x: Float[Array, "B H W 3"], angle: Float[Array, "B"]) -> Float[Array, "B H W 3"]:
    """Rotates colours by `angle` around the grey axis, anticlockwise as seen from white."""
    chroma = x - x.mean(-1, keepdims=True)
    across = (jnp.roll(chroma, 1, -1) - jnp.roll(chroma, -1, -1)) / math.sqrt(3.0)
    return x + _column(jnp.cos(angle) - 1.0) * chroma + _column(jnp.sin(angle)) * across


def ada_init() -> dict[str, Float[Array, ""]]:
    """The controller's state before training: p = 0 and no images counted."""
    return {name: jnp.float32(0.0) for name in ("p", "signs", "count")}


def ada_update(
    state: dict[str, Float[Array, ""]],
    logits: Float[Array, "N"],
    *,
    target: float = 0.6,
    images: int = 500_000,
    interval: int = 256,
) -> dict[str, Float[Array, ""]]:
    """Adjusts p to the discriminator's certainty on real images (Karras et al. 2020, section 3.2).

    r_t is the mean sign of the logits of real images (eq. 1). After every `interval` images, p
    rises if r_t > `target` and falls if below, by their number divided by `images`: p needs
    `images` real images to go from 0 to 1. The paper's interval is 4 minibatches.

    Args:
      state: `ada_init()`, or the state returned by the last call.
      logits: of the discriminator on real, augmented images.
      target: of r_t.
      images: real images in which p can go from 0 to 1.
      interval: real images between adjustments.

    Returns:
      The next state; p stays in [0, 1].
    """
    signs = state["signs"] + jnp.sign(logits.astype(jnp.float32)).sum()
    count = state["count"] + logits.size
    step = jnp.sign(signs / count - target) * count / images
    due = count >= interval
    moved = jnp.clip(state["p"] + step, 0.0, 1.0)
    return {
        "p": jnp.where(due, moved, state["p"]),
        "signs": jnp.where(due, 0.0, signs),
        "count": jnp.where(due, 0.0, count),
    }
