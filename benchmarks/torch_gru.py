"""The chorales' GRU trained in plain PyTorch: what the row jsb_gru of `polyphonic.py` is like.

One layer of 200, dropout of 0.5, Adam and a cosine from 5e-3 to a tenth of it, 4 chorales an
update, the gradient's norm clipped at 0.4, 50 epochs. The loss is nats a frame of the validation
split, the first frame of a chorale left out. Needs PyTorch, numpy, scipy and nothing of genjax:

  python benchmarks/torch_gru.py --data=JSB_Chorales.mat [--warmup=100] [--zeros] [--seed=0]

--zeros begins as genjax: biases of 0, a head N(0, 0.02^2), and b2 = 0.99 in place of 0.999.
"""

import argparse
import math

import numpy as np
import scipy.io
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, pad

KEYS, WIDTH, BATCH, RATE, EPOCHS = 88, 200, 4, 5e-3, 50


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.GRU(KEYS, WIDTH, batch_first=True)
        self.dropout, self.head = torch.nn.Dropout(0.5), torch.nn.Linear(WIDTH, KEYS)

    def forward(self, frames, counted):
        """Mean nats of a frame, given those before it."""
        logits = self.head(self.dropout(self.layer(pad(frames[:, :-1], (0, 0, 1, 0)))[0]))
        nats = binary_cross_entropy_with_logits(logits, frames, reduction="none").sum(-1)
        return (nats * counted).sum() / counted.sum()


def read(path, split):
    """Chorales [N, T, 88], and which of their frames there are, [N, T]."""
    rolls = [
        torch.tensor(np.asarray(roll, np.float32)) for roll in scipy.io.loadmat(path)[split][0]
    ]
    frames = torch.nn.utils.rnn.pad_sequence(rolls, batch_first=True)
    lengths = torch.tensor([len(roll) for roll in rolls])
    return frames, (torch.arange(frames.shape[1]) < lengths[:, None]).float()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--zeros", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    model = Model()
    if options.zeros:
        for bias in (model.layer.bias_ih_l0, model.layer.bias_hh_l0, model.head.bias):
            torch.nn.init.zeros_(bias)
        torch.nn.init.normal_(model.head.weight, std=0.02)
    betas = (0.9, 0.99 if options.zeros else 0.999)
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas)
    (frames, counted), (held, held_counted) = (
        read(options.data, split) for split in ("traindata", "validdata")
    )
    held_counted[:, 0] = 0
    total = EPOCHS * math.ceil(len(frames) / BATCH)
    step = 0
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(frames)).split(BATCH):
            rate = RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = rate * (min(1, (step + 1) / options.warmup) if options.warmup else 1)
            loss = model.train()(frames[rows], counted[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.4)
            optimizer.step()
            step += 1
        if epoch % 5 == 0:
            with torch.no_grad():
                print(epoch, f"{model.eval()(held, held_counted).item():.3f}", flush=True)


if __name__ == "__main__":
    main()
