"""A small GPT in plain PyTorch, timed for some seconds: the peer of benchmarks/lm_race.py.

The same network, loss, batch and optimizer. Prints one line of JSON. Needs PyTorch, numpy and
nothing of genjax:

  python benchmarks/torch_lm.py --depth=4 --heads=4 --width=128 --length=64 [--compile]
      [--precision=bfloat16] [--adam=fused]
  python benchmarks/torch_lm.py ... --check=golden.npz    # loss and gradients of given parameters
"""

import argparse
import json
import sys

import numpy as np
from racing import measured

try:
    import torch
    from torch import nn
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs PyTorch: pip install -e '.[parity]'")

VALUES, BATCH = 65, 12
ADAM = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}


class Block(nn.Module):
    """Self-attention and a two-layer network behind their norms."""

    def __init__(self, width, heads, bias):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.merge = nn.Linear(width, width, bias=bias)
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.down = nn.Linear(4 * width, width, bias=bias)
        self.heads = heads

    def forward(self, x):
        B, T, D = x.shape
        parts = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.merge(h.transpose(1, 2).reshape(B, T, D))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """A decoder with learned positions and a tied head; its mean loss of a token."""

    def __init__(self, depth, heads, width, length, values=VALUES, bias=False):
        super().__init__()
        self.embed = nn.Embedding(values, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList([Block(width, heads, bias) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, bias=bias)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, token):
        x = self.embed(token[:, :-1]) + self.positions
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.embed.weight.T
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), token[:, 1:].flatten())


def timed(model, options):
    """Steps a second and CPU time a step."""
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.1, **ADAM[options.adam]
    )
    loss = torch.compile(model) if options.compile else model
    low = options.precision == "bfloat16"

    def step():
        token = torch.randint(VALUES, (BATCH, options.length + 1))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            value = loss(token)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return measured(step, options.seconds)


def check(model, path):
    """The loss, and gradients by name, of the parameters and tokens in a file."""
    given = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    model.load_state_dict({name: given[name] for name in model.state_dict()})
    value = model(given["token"].long())
    value.backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters()}
    return {"loss": float(value.detach()), "norms": norms}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--check", default="")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--adam", choices=ADAM, default="default")
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    model = GPT(options.depth, options.heads, options.width, options.length)
    print(json.dumps(check(model, options.check) if options.check else timed(model, options)))


if __name__ == "__main__":
    main()
