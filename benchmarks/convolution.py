"""What convolutions cost on this machine, forward and backward, at the sizes of small networks.

Milliseconds for a batch of 64 float32 images, the least of many calls, for each member of the
family in genjax.nn.convolution: the convolution, its gradient in the image, its gradient in the
kernel; in three forms: the layer's, XLA's own (`lax.conv_general_dilated` and its autodiff), and
windows gathered into one matrix product. Then stride-2 transposed convolutions, forward and with
both gradients: the layer's and `lax.conv_transpose`. Then both gradients as they stand and inside a
branch (`lax.cond`), the layer's and XLA's own. With --torch also PyTorch's forward, and forward
and backward together.

  python benchmarks/convolution.py [--batch=64] [--calls=20] [--torch]
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from genjax.nn.convolution import convolve, correlate, spread

NUMBERS = ("NHWC", "HWIO", "NHWC")
CONVOLUTIONS = (  # side, channels in and out, kernel, stride
    (28, 1, 64, 4, 2),
    (14, 64, 128, 4, 2),
    (28, 1, 64, 5, 2),
    (14, 64, 128, 5, 2),
    (28, 64, 64, 3, 1),
    (14, 64, 64, 3, 1),
    (14, 128, 128, 3, 1),
    (7, 128, 128, 3, 1),
)
TRANSPOSED = ((7, 128, 64, 4), (14, 64, 1, 4), (7, 128, 64, 5), (7, 128, 64, 3))


def milliseconds(functions, arrays, calls):
    """The least time of each function; they take turns, so that all see the same machine."""
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    best = dict.fromkeys(functions, np.inf)
    for call in range(calls + 1):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            if call:
                best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best


def xla(x, w, stride):
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=NUMBERS)


def gathered(x, w, stride):
    """Windows in one array, first along the width, and one product with the kernel."""
    taps, size = w.shape[0], x.shape[1]
    out = -(-size // stride)
    total = max((out - 1) * stride + taps - size, 0)
    pad = (total // 2, total - total // 2)
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))

    def windows(x, axis):
        last = (out - 1) * stride + 1
        parts = [lax.slice_in_dim(x, t, t + last, stride, axis) for t in range(taps)]
        return jnp.stack(parts, 3).reshape(*parts[0].shape[:3], -1)

    patches = windows(windows(x, 2), 1)
    return patches @ w.reshape(-1, w.shape[-1])


def members(function, x, w, stride):
    """The three members as autodiff derives them from a forward function."""
    return {
        "forward": lambda x, w, g: function(x, w, stride),
        "image": lambda x, w, g: jax.vjp(lambda x: function(x, w, stride), x)[1](g)[0],
        "kernel": lambda x, w, g: jax.vjp(lambda w: function(x, w, stride), w)[1](g)[0],
    }


def torch_times(shape, batch, calls):
    import torch

    torch.set_num_threads(2)
    side, cin, cout, taps, stride = shape
    x = torch.randn(batch, cin, side, side).to(memory_format=torch.channels_last)
    w = torch.randn(cout, cin, taps, taps).to(memory_format=torch.channels_last)
    x.requires_grad_(), w.requires_grad_()

    def forward():
        with torch.no_grad():
            torch.nn.functional.conv2d(x, w, stride=stride, padding=(taps - 1) // 2)

    def both():
        y = torch.nn.functional.conv2d(x, w, stride=stride, padding=(taps - 1) // 2)
        torch.autograd.grad(y, (x, w), y.detach())

    times = []
    for function in (forward, both):
        function()
        best = np.inf
        for _ in range(calls):
            start = time.perf_counter()
            function()
            best = min(best, 1000 * (time.perf_counter() - start))
        times.append(best)
    return times


def arrays(shape, batch):
    """Images, kernel and cotangent of a convolution."""
    side, cin, cout, taps, stride = shape
    rng, out = np.random.default_rng(0), -(-side // stride)
    sizes = (batch, side, side, cin), (taps, taps, cin, cout), (batch, out, out, cout)
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]


def convolution_row(shape, options):
    side, cin, cout, taps, stride = shape
    x, w, g = arrays(shape, options.batch)
    forms = {
        "layer": {
            "forward": lambda x, w, g: convolve(x, w, stride),
            "image": lambda x, w, g: spread(g, w, stride, (side, side)),
            "kernel": lambda x, w, g: correlate(x, g, stride, taps),
        },
        "xla": members(xla, x, w, stride),
        "gather": members(gathered, x, w, stride),
    }
    cells = []
    for member in ("forward", "image", "kernel"):
        functions = {form: table[member] for form, table in forms.items()}
        best = milliseconds(functions, (x, w, g), options.calls)
        cells.append(" ".join(f"{best[form]:7.2f}" for form in forms))
    name = f"{side}x{side} {cin}->{cout} {taps}x{taps}/{stride}"
    print(f"{name:22} | {' | '.join(cells)}", end="", flush=True)
    if options.torch:
        forward, both = torch_times(shape, options.batch, options.calls)
        print(f" | {forward:7.2f} {both:7.2f}", end="")
    print(flush=True)


def transposed_row(side, cin, cout, taps, options):
    rng = np.random.default_rng(0)
    x, w, g = (
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in (
            (options.batch, side, side, cin),
            (taps, taps, cin, cout),
            (options.batch, 2 * side, 2 * side, cout),
        )
    )

    def layer(x, w):
        return spread(x, w[::-1, ::-1].swapaxes(2, 3), 2, (2 * side, 2 * side))

    def plain(x, w):
        return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=NUMBERS)

    cells = []
    for derive in (
        lambda function: lambda x, w, g: function(x, w),
        lambda function: lambda x, w, g: jax.vjp(function, x, w)[1](g),
    ):
        functions = {"layer": derive(layer), "xla": derive(plain)}
        best = milliseconds(functions, (x, w, g), max(options.calls // 4, 2))
        cells.append(" ".join(f"{best[form]:8.2f}" for form in functions))
    print(f"{f'{side}x{side} {cin}->{cout} {taps}x{taps}':22} | {' | '.join(cells)}", flush=True)


def branch_row(shape, options):
    side, cin, cout, taps, stride = shape
    x, w, g = arrays(shape, options.batch)

    def gradients(function):
        return lambda x, w, g, on: jax.vjp(partial(function, stride=stride), x, w)[1](g)

    def branch(function):
        run = gradients(function)
        return lambda x, w, g, on: lax.cond(on, run, lambda x, w, g, on: (x, w), x, w, g, on)

    def layer(x, w, stride):
        return convolve(x, w, stride)

    functions = {
        (kind, form): derive(function)
        for kind, derive in (("straight", gradients), ("branch", branch))
        for form, function in (("layer", layer), ("xla", xla))
    }
    best = milliseconds(functions, (x, w, g, jnp.bool_(True)), max(options.calls // 4, 2))
    cells = " | ".join(
        " ".join(f"{best[kind, form]:8.2f}" for form in ("layer", "xla"))
        for kind in ("straight", "branch")
    )
    print(f"{f'{side}x{side} {cin}->{cout} {taps}x{taps}/{stride}':22} | {cells}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--torch", action="store_true", help="compare with PyTorch")
    options = parser.parse_args()
    if options.torch:
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            parser.error("--torch needs PyTorch: pip install -e '.[parity]'")
    columns = " | ".join(
        f"{member:>7} {'xla':>7} {'gather':>7}" for member in ("forward", "image", "kernel")
    )
    print(f"{'convolution, ms':22} | {columns}" + (" | torch f torch fb" if options.torch else ""))
    for shape in CONVOLUTIONS:
        convolution_row(shape, options)
    print(f"\n{'transposed, ms':22} |  forward      xla | gradients    xla")
    for shape in TRANSPOSED:
        transposed_row(*shape, options)
    print(f"\n{'gradients, ms':22} |    layer      xla |  in cond      xla")
    for shape in CONVOLUTIONS[-2:]:
        branch_row(shape, options)


if __name__ == "__main__":
    main()
