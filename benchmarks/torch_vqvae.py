"""The VQ-VAE of configs/vqvae.py and its loss in plain PyTorch.

For benchmarks/torch_steps.py. Modules have the names of genjax's, so that parameters can be carried
over; see genjax/networks/vq_conv.py, genjax/nn/quantize.py and genjax/methods/vqvae.py. The
codebook begins at random: the k-means of genjax's first step is left out.
"""

import torch
from torch import nn
from torch.nn import functional
from torch_unet import group_norm

CODES, WIDTH, CHANNELS, BLOCKS = 512, 32, 64, 2
DECAY, COMMITMENT, RESTART = 0.99, 0.25, 0.1


class ResidualBlock(nn.Module):
    """x + (norm, SiLU, 3x3, norm, SiLU, 1x1)."""

    def __init__(self):
        super().__init__()
        hidden = CHANNELS // 2
        self.norm1, self.norm2 = group_norm(CHANNELS), group_norm(hidden)
        self.conv1 = nn.Conv2d(CHANNELS, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, CHANNELS, 1)

    def forward(self, x):
        h = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(h)))


def blocks():
    return nn.ModuleDict({str(i): ResidualBlock() for i in range(BLOCKS)})


class Encoder(nn.Module):
    """From an image to an image of vectors, four times smaller."""

    def __init__(self):
        super().__init__()
        half = CHANNELS // 2
        second = nn.Conv2d(half, CHANNELS, 4, 2, 1)
        self.downs = nn.ModuleDict({"0": nn.Conv2d(1, half, 4, 2, 1), "1": second})
        self.stem = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.blocks = blocks()
        self.norm = group_norm(CHANNELS)
        self.out = nn.Conv2d(CHANNELS, WIDTH, 1)

    def forward(self, x):
        for layer in self.downs.values():
            x = functional.silu(layer(x))
        x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        return self.out(functional.silu(self.norm(x))).float()


class Decoder(nn.Module):
    """The encoder backwards."""

    def __init__(self):
        super().__init__()
        half = CHANNELS // 2
        self.stem = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)
        self.blocks = blocks()
        self.norm = group_norm(CHANNELS)
        self.ups = nn.ModuleDict({"0": nn.ConvTranspose2d(CHANNELS, half, 4, 2, 1)})
        self.out = nn.ConvTranspose2d(half, 1, 4, 2, 1)

    def forward(self, z):
        x = self.stem(z)
        for block in self.blocks.values():
            x = block(x)
        x = functional.silu(self.ups["0"](functional.silu(self.norm(x))))
        return self.out(x).float()


def rotated(x, code, eps=1e-6):
    """`code`, as x turned and stretched."""
    size, length = (v.norm(dim=-1, keepdim=True) for v in (x.detach(), code))
    a, b = x.detach() / size.clamp(min=eps), code / length.clamp(min=eps)
    r = (a + b) / (a + b).norm(dim=-1, keepdim=True).clamp(min=eps)
    along_r, along_a = ((x * v).sum(-1, keepdim=True) for v in (r, a))
    turned = (x - 2 * along_r * r + 2 * along_a * b) * (length / size.clamp(min=eps))
    return torch.where(size < eps, x + (code - x).detach(), turned)


def likelihood(log_scale, made, x):
    """Mean log of a Gaussian's mass on the bins of 8-bit values."""
    half, scale = 1 / 255, torch.exp(-log_scale)
    made = made.clamp(-10, 10)
    distance = (x - made).abs()
    near, far = (torch.special.log_ndtr(-(distance + edge) * scale) for edge in (-half, half))
    inside = near + torch.log(-torch.expm1(far - near))
    side = torch.where(x < 0, made - x, x - made) - half
    edge = torch.special.log_ndtr(-side * scale)
    return torch.where(x.abs() > 1 - half, edge, inside).mean()


class Autoencoder(nn.Module):
    """Encoder, decoder and a codebook that follows by averages; called, the loss."""

    def __init__(self):
        super().__init__()
        self.autoencoder = nn.ModuleDict({"encoder": Encoder(), "decoder": Decoder()})
        state = {
            "codes": torch.randn(CODES, WIDTH),
            "counts": torch.ones(CODES),
            "shares": torch.zeros(CODES),
            "log_scale": torch.zeros(()),
        }
        for name, value in (state | {"sums": state["codes"].clone()}).items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, image, drawn):
        """`drawn` are the numbers of vectors onto which codes would begin anew."""
        x = image.float() / 127.5 - 1
        z = self.autoencoder["encoder"](x)
        with torch.autocast("cpu", enabled=False):
            rows = z.permute(0, 2, 3, 1).reshape(-1, WIDTH)
            code = self.nearest(rows.detach(), drawn)
            commitment = COMMITMENT * (rows - code).square().mean()
            B, _, H, W = z.shape
            vectors = rotated(rows, code).view(B, H, W, WIDTH).permute(0, 3, 1, 2)
        made = self.autoencoder["decoder"](vectors)
        slope = torch.func.grad(likelihood)(self.log_scale, made.detach(), x)
        self.log_scale += (1 - DECAY) * slope.clamp(-1, 1)
        return (made - x).square().mean() + commitment

    @torch.no_grad()
    def nearest(self, x, drawn):
        """The nearest codes, before the codebook follows."""
        distance = torch.addmm(self.codes.square().sum(-1), x, self.codes.T, alpha=-2)
        index = distance.argmin(-1)
        code = self.codes[index]
        found = torch.zeros(CODES).index_add(0, index, torch.ones(len(x)))
        counts = DECAY * self.counts + (1 - DECAY) * found
        total = torch.zeros_like(self.sums).index_add(0, index, x)
        sums = DECAY * self.sums + (1 - DECAY) * total
        smooth = (counts + 1e-5) / (counts.sum() + CODES * 1e-5) * counts.sum()
        dead, begun = (counts < RESTART)[:, None], x[drawn]
        self.codes.copy_(torch.where(dead, begun, sums / smooth[:, None]))
        self.sums.copy_(torch.where(dead, RESTART * begun, sums))
        self.counts.copy_(counts.clamp(min=RESTART))
        self.shares.lerp_(found / len(x), 1 - DECAY)
        return code
