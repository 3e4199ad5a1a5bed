"""Pictures of latent codes: reconstructions, interpolations, traversals and maps.

`decode` is (z [N, Z], like [N]) -> uint8 images [N, H, W, C]; `like` is the row of the batch whose
label, if there are labels, is used for each z. Every picture is uint8 [rows, columns, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

Decode = Callable[[Float[Array, "N Z"], Int[Array, "N"]], UInt8[Array, "N H W C"]]
Pictures = UInt8[Array, "R K H W C"]

# Ten colours that are easy to tell apart on black.
COLOURS = np.array(
    [
        (78, 121, 167), (242, 142, 43), (225, 87, 89), (118, 183, 178), (89, 161, 79),
        (237, 201, 72), (176, 122, 161), (255, 157, 167), (156, 117, 95), (186, 176, 172),
    ],
    np.uint8,
)  # fmt: skip


MARGIN, LEFT = 8, 26  # pixels around a map, above and to the left
LINE, LETTER = 14, 7  # of a legend, in pixels
MOST_NAMES = 18  # in a legend


def most_active(code: Float[Array, "B Z"], count: int) -> Int[Array, "K"]:
    """The dimensions that vary most over the batch, K = min(count, Z), the most varied first."""
    return jnp.argsort(-code.var(0))[:count]


def reconstructions(
    images: UInt8[Array, "B H W C"], made: UInt8[Array, "B H W C"], columns: int = 8, rows: int = 4
) -> Pictures:
    """Rows of images, each above a row of their reconstructions."""
    rows = max(min(rows, len(images) // columns), 1)
    columns = min(columns, len(images))
    stacked = jnp.stack([images, made])[:, : rows * columns]
    stacked = stacked.reshape(2, rows, columns, *images.shape[1:])
    return jnp.swapaxes(stacked, 0, 1).reshape(2 * rows, columns, *images.shape[1:])


def _rows(decode: Decode, z: Float[Array, "R K Z"], like: Int[Array, "R"]) -> Pictures:
    flat = decode(z.reshape(-1, z.shape[-1]), jnp.repeat(like, z.shape[1]))
    return flat.reshape(*z.shape[:2], *flat.shape[1:])


def interpolations(
    code: Float[Array, "B Z"], decode: Decode, columns: int = 8, rows: int = 6
) -> Pictures:
    """Straight lines between the codes of two neighbours in the batch, in equal steps."""
    rows = min(rows, len(code) // 2)
    start, end = code[: 2 * rows : 2, None], code[1 : 2 * rows : 2, None]
    at = jnp.linspace(0.0, 1.0, columns)[:, None]
    return _rows(decode, start + at * (end - start), 2 * jnp.arange(rows))


def traversals(
    code: Float[Array, "B Z"],
    decode: Decode,
    columns: int = 9,
    rows: int = 10,
    reach: float = 3.0,
) -> Pictures:
    """The first code; each row moves one dimension from -reach to reach, the most varied first."""
    moved = most_active(code, rows)
    at = jnp.linspace(-reach, reach, columns)
    z = jnp.broadcast_to(code[0], (len(moved), columns, code.shape[1]))
    z = z.at[jnp.arange(len(moved)), :, moved].set(at)
    return _rows(decode, z, jnp.zeros(len(moved), jnp.int32))


def manifold(decode: Decode, steps: int = 16) -> Pictures:
    """Two-dimensional codes at the prior's quantiles (Kingma & Welling 2014, figure 4)."""
    at = norm.ppf((jnp.arange(steps) + 0.5) / steps)
    z = jnp.stack(jnp.meshgrid(at, -at), axis=-1)
    return _rows(decode, z, jnp.zeros(steps, jnp.int32))


def scatter(
    code: Float[Array, "B Z"],
    label: Int[Array, "B"] | None,
    names: Sequence[str] = (),
    size: int = 256,
    reach: float = 4.0,
    dot: int = 1,
) -> Pictures:
    """A map of the two most varied dimensions from -reach to reach, coloured by label.

    Axes and a legend of the classes are drawn around it.

    Args:
      code: means of q(z | x).
      label: the class of each.
      names: of the classes.
      size: of the map, in pixels.
      reach: of both axes.
      dot: half of a point's side.
    """
    first, second = most_active(code, 2) if code.shape[1] > 1 else (0, 0)
    points = jnp.stack([-code[:, second], code[:, first]], axis=-1)  # row, column
    pixel = jnp.round((points / reach + 1) * (size - 1) / 2).astype(jnp.int32)
    steps = jnp.arange(-dot, dot + 1)
    offsets = jnp.stack(jnp.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    at = (pixel[:, None] + offsets).reshape(-1, 2)
    colour = jnp.full((len(code), 3), 255, jnp.uint8)
    if label is not None:
        colour = jnp.asarray(COLOURS)[label % len(COLOURS)]
    # A negative index would count from the end; one beyond the end is dropped.
    at = jnp.where(at < 0, size, at)
    canvas = jnp.zeros((size, size, 3), jnp.uint8)
    canvas = canvas.at[at[:, 0], at[:, 1]].set(jnp.repeat(colour, len(offsets), 0), mode="drop")
    framed = jnp.asarray(_frame(size, reach, names if label is not None else ()))
    framed = framed.at[MARGIN : MARGIN + size, LEFT : LEFT + size].set(canvas)
    return jax.lax.expand_dims(framed, (0, 1))


def _frame(size: int, reach: float, names: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """The frame of a map: ticks at both ends and 0, and the classes with their colours."""
    shown = [name.encode("ascii", "replace").decode()[:16] for name in names[:MOST_NAMES]]
    if len(names) > MOST_NAMES:
        shown.append(f"+ {len(names) - MOST_NAMES} more")
    legend = 24 + LETTER * max(map(len, shown), default=0) if shown else 8
    height = max(size + MARGIN + 18, MARGIN + LINE * len(shown) + 4)
    picture = Image.new("RGB", (LEFT + size + legend, height), "black")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    edge = (LEFT - 1, MARGIN - 1, LEFT + size, MARGIN + size)
    draw.rectangle(edge, outline=(110, 110, 110))
    for value, at in ((-reach, 0), (0.0, size // 2), (reach, size - 1)):
        text = f"{value:g}"
        draw.text((LEFT + at, MARGIN + size + 4), text, "white", font, anchor="mt")
        draw.text((LEFT - 4, MARGIN + size - 1 - at), text, "white", font, anchor="rm")
    for i, name in enumerate(shown):
        top, left = MARGIN + LINE * i, LEFT + size + 8
        if i < min(len(names), MOST_NAMES):
            colour = tuple(map(int, COLOURS[i % len(COLOURS)]))
            draw.rectangle((left, top + 2, left + 8, top + 10), fill=colour)
        draw.text((left + 13, top), name, "white", font)
    return np.asarray(picture)


def bars(shares: Float[Array, "Q K"], height: int = 64, width: int = 256) -> Pictures:
    """The shares of codes as bars, the largest first, one picture per codebook, stacked.

    The tallest bar has the full height. If there are more codes than pixels, a bar shows the
    largest of its codes.
    """
    Q, K = shares.shape
    per = -(-K // width)
    ordered = jnp.sort(shares, axis=-1)[:, ::-1]
    ordered = jnp.pad(ordered, ((0, 0), (0, -K % per))).reshape(Q, -1, per).max(-1)
    bar = max(width // ordered.shape[1], 1)
    tall = jnp.ceil(height * ordered / jnp.maximum(ordered[:, :1], 1e-12))
    lit = jnp.arange(height)[::-1, None] < jnp.repeat(tall, bar, axis=-1)[:, None]
    shade = jnp.where(lit, 255, 0).astype(jnp.uint8)
    return jnp.broadcast_to(shade[:, None, ..., None], (Q, 1, *shade.shape[1:], 3))
