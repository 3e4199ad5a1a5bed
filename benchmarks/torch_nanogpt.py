"""nanoGPT's setting for a CPU trained in plain PyTorch: what `gpt_char.py:nanogpt` is held against.

4 layers of width 128, 64 characters, 2,000 steps of 12, AdamW on matrices with a decay of 0.1, a
cosine from 1e-3 to 1e-4 after 100 steps, the gradient's norm clipped at 1, no dropout. The loss is
of all of the last tenth of the text, in windows of 64. Needs PyTorch, numpy and nothing of genjax:

  python benchmarks/torch_nanogpt.py --text=tinyshakespeare.txt [--seed=0] [--std=0.02]

--std is that of the blocks' initial weights: 0.056 as in genjax by default, nanoGPT has 0.02.
"""

import argparse
import math

import numpy as np
import torch
import torch_lm

DEPTH, WIDTH, LENGTH, BATCH, STEPS, WARMUP = 4, 128, 64, 12, 2000, 100


def rate(step):
    """The learning rate of a step."""
    if step < WARMUP:
        return 1e-3 * (step + 1) / (WARMUP + 1)
    share = (step - WARMUP) / (STEPS - WARMUP)
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * 9e-4


def trained(text, std):
    """The model after its steps on `text` [n]."""
    model = torch_lm.GPT(DEPTH, 4, WIDTH, LENGTH)
    for name, parameter in model.blocks.named_parameters():
        if parameter.ndim > 1:
            into_sum = name.endswith(("merge.weight", "down.weight"))
            torch.nn.init.normal_(parameter, std=std / math.sqrt(2 * DEPTH) ** into_sum)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        starts = torch.randint(len(text) - LENGTH, (BATCH,))
        loss = model(torch.stack([text[start : start + LENGTH + 1] for start in starts]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model.eval()


def main():
    """Trains, and prints the loss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", required=True, help="tiny_shakespeare's file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--std", type=float, default=math.sqrt(2 / (5 * WIDTH)))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    with open(options.text, encoding="utf-8") as file:
        characters = np.frombuffer(file.read().encode("utf-32-le"), np.uint32)
    known, ids = np.unique(characters, return_inverse=True)
    if len(known) != torch_lm.VALUES:
        raise SystemExit(f"error: {len(known)} characters, expected {torch_lm.VALUES}")
    ids = torch.from_numpy(ids)
    train, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    model = trained(train, options.std)
    windows = validation.unfold(0, LENGTH + 1, LENGTH)
    with torch.no_grad():
        losses = [model(part) * len(part) for part in windows.split(64)]
    print(f"seed {options.seed}: {float(sum(losses)) / len(windows):.4f} nats a character")


if __name__ == "__main__":
    main()
