"""A small U-Net of EDM2 and its gradients by PyTorch, written block by block from the paper.

/path/to/parity/bin/python tests/golden/make_edm2.py [OUTPUT.npz]

Images of 8 x 4 with 3 channels, three classes, levels of 4 and 8 channels with one block each,
self-attention in the second. Every block stands here in full, and is computed in float64 from
weights of any length, with gains that are not zero and a bound that clips. Equations are those of
Karras et al. 2024, arXiv:2312.02696; the structure is that of its figure 21, config G. Arrays are
in genjax's layouts and under its names: images [B, H, W, C], kernels [k, k, in, out].
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

EPS, CLIP, HEAD = 1e-4, 1.6, 4
LABEL_T, RESIDUAL_T, ATTENTION_T, CONCAT_T = 0.4, 0.3, 0.25, 0.6
BATCH, CLASSES, EMBEDDING = 3, 3, 8

Params = dict[str, torch.Tensor]
# Of each block: channels in and out, channels that its first convolution sees, self-attention.
BLOCKS = {
    "encoder/0": (4, 4, 4, False),
    "encoder/1": (4, 4, 4, False),  # after halving
    "encoder/2": (4, 8, 8, True),
    "decoder/0": (8, 8, 8, True),
    "decoder/1": (8, 8, 8, False),
    "decoder/2": (16, 8, 16, True),
    "decoder/3": (12, 8, 12, True),
    "decoder/4": (8, 8, 8, False),  # after doubling
    "decoder/5": (12, 4, 12, False),
    "decoder/6": (8, 4, 8, False),
}


def unit(v: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Unit magnitude along the axes; of channels, this is eq. 30."""
    return v / (EPS + v.square().mean(axes, keepdim=True).sqrt())


def conv(x: torch.Tensor, w: torch.Tensor, gain: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Eq. 47: of weights [F, C, k, k], or [F, C] for a pixel alone or a vector."""
    axes = tuple(range(1, w.ndim))
    w = gain * unit(w, axes) / w[0].numel() ** 0.5
    if x.ndim == 2:
        return x @ w.T
    return F.conv2d(x, w if w.ndim == 4 else w[:, :, None, None], padding="same")


def silu(x: torch.Tensor) -> torch.Tensor:
    """Eq. 81."""
    return x * torch.sigmoid(x) / 0.596


def mix(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Eq. 88."""
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def join(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Eq. 103."""
    na, nb = a.shape[1], b.shape[1]
    c = ((na + nb) / ((1 - t) ** 2 + t**2)) ** 0.5
    return torch.cat([c * (1 - t) / na**0.5 * a, c * t / nb**0.5 * b], 1)


def attention(p: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    """Softmax of the cosines of queries and keys, times sqrt(HEAD), over values of length one."""
    heads = []
    q, k, v = (conv(x, p[f"{name}/{part}/mp_kernel"]) for part in ("query", "key", "value"))
    for start in range(0, x.shape[1], HEAD):
        own = slice(start, start + HEAD)
        qh, kh, vh = (unit(part[:, own].flatten(2), (1,)) for part in (q, k, v))
        weights = torch.softmax(qh.mT @ kh / HEAD**0.5, 2)  # [B, queries, keys]
        heads.append((weights @ vh.mT).mT.unflatten(2, x.shape[2:]))
    return conv(torch.cat(heads, 1), p[f"{name}/out/mp_kernel"])


def block(p: Params, name: str, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """A block behind its resampling and its skip connection."""
    cin, cout, _, attends = BLOCKS[name]
    shortcut = p.get(f"{name}/shortcut/mp_kernel")
    if name.startswith("encoder"):
        x = unit(x if shortcut is None else conv(x, shortcut), (1,))
    scale = 1 + conv(embedding, p[f"{name}/modulation/mp_kernel"], p[f"{name}/gain"])
    y = conv(silu(x), p[f"{name}/conv1/mp_kernel"])
    y = conv(silu(y * scale[:, :, None, None]), p[f"{name}/conv2/mp_kernel"])
    if name.startswith("decoder") and cin != cout:
        x = conv(x, shortcut)
    x = mix(x, y, RESIDUAL_T)
    if attends:
        x = mix(x, attention(p, f"{name}/attention", x), ATTENTION_T)
    return x.clamp(-CLIP, CLIP)


def fourier(fixed: Params, c_noise: torch.Tensor) -> torch.Tensor:
    """Eq. 75."""
    angle = 2 * np.pi * (c_noise[:, None] * fixed["frequencies"] + fixed["phases"])
    return 2**0.5 * angle.cos()


def unet(p: Params, fixed: Params, x: torch.Tensor, c_noise, label) -> torch.Tensor:
    """Images [B, C, H, W] to two channels."""
    one_hot = F.one_hot(label, CLASSES + 1)[:, :CLASSES].to(x.dtype)
    e = conv(fourier(fixed, c_noise), p["noise/mp_kernel"])
    e = silu(mix(e, conv(one_hot * CLASSES**0.5, p["label/mp_kernel"]), LABEL_T))
    a = conv(torch.cat([x, torch.ones_like(x[:, :1])], 1), p["stem/mp_kernel"])
    b = block(p, "encoder/0", a, e)
    c = block(p, "encoder/1", F.avg_pool2d(b, 2), e)
    d = block(p, "encoder/2", c, e)
    h = block(p, "decoder/0", d, e)
    h = block(p, "decoder/1", h, e)
    h = block(p, "decoder/2", join(h, d, CONCAT_T), e)
    h = block(p, "decoder/3", join(h, c, CONCAT_T), e)
    h = block(p, "decoder/4", F.interpolate(h, scale_factor=2, mode="nearest"), e)
    h = block(p, "decoder/5", join(h, b, CONCAT_T), e)
    h = block(p, "decoder/6", join(h, a, CONCAT_T), e)
    return conv(h, p["head/mp_kernel"], p["gain"])


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every parameter, as PyTorch has them."""
    found = {"noise/mp_kernel": (EMBEDDING, 4), "label/mp_kernel": (EMBEDDING, CLASSES)}
    found |= {"stem/mp_kernel": (4, 4, 3, 3), "head/mp_kernel": (2, 4, 3, 3), "gain": ()}
    for name, (cin, cout, seen, attends) in BLOCKS.items():
        found[f"{name}/conv1/mp_kernel"] = (cout, seen, 3, 3)
        found[f"{name}/conv2/mp_kernel"] = (cout, cout, 3, 3)
        found[f"{name}/modulation/mp_kernel"] = (cout, EMBEDDING)
        found[f"{name}/gain"] = ()
        if cin != cout:
            found[f"{name}/shortcut/mp_kernel"] = (cout, cin)
        for part in ("query", "key", "value", "out") if attends else ():
            found[f"{name}/attention/{part}/mp_kernel"] = (cout, cout)
    return found


def layout(w: torch.Tensor) -> np.ndarray:
    """A weight as genjax has it."""
    w = w.detach()
    w = w.permute(2, 3, 1, 0) if w.ndim == 4 else w.T if w.ndim == 2 else w
    return w.float().numpy()


def main(path: pathlib.Path) -> None:
    """Draws, runs and writes."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape).double()  # of float32, so that genjax is given the same

    p = {}
    for name, shape in shapes().items():
        scale = 1 if name.endswith("gain") else torch.empty(()).uniform_(0.5, 2)
        p[name] = (scale * torch.randn(shape)).double().requires_grad_()
    fixed = {"frequencies": draw(4), "phases": torch.rand(4).double()}
    x, along = draw(BATCH, 3, 8, 4), draw(BATCH, 2, 8, 4)
    t = (400 * torch.randn(BATCH)).double()
    label = torch.tensor([2, CLASSES, 0])
    x.requires_grad_()
    y = unet(p, fixed, x, t / 1000, label)
    (y * along).sum().backward()
    arrays = {"x": x, "along": along, "y": y, "gradient/x": x.grad}
    arrays = {k: v.detach().permute(0, 2, 3, 1).float().numpy() for k, v in arrays.items()}
    arrays |= {f"params/{name}": layout(w) for name, w in p.items()}
    arrays |= {f"gradient/params/{name}": layout(w.grad) for name, w in p.items()}
    arrays |= {f"fourier/{name}": value.float().numpy() for name, value in fixed.items()}
    weight = draw(1, 4)
    u = conv(fourier(fixed, t / 1000), weight)[:, 0]
    arrays |= {"uncertainty/mp_kernel": layout(weight), "uncertainty/y": u.float().numpy()}
    arrays |= {"t": t.float().numpy(), "label": label.int().numpy()}
    arrays |= {"peer": f"torch {torch.__version__}"}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("edm2.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
