"""Recurrent layers, a temporal convolutional network, RMS norm and post-norm layers by torch;
rotary positions by transformers.

/path/to/parity/bin/python tests/golden/make_sequence_networks.py [OUTPUT.npz]
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from transformers.models.llama import modeling_llama as llama  # noqa: E402

B, T, WIDTH, HEADS, INPUT, STATE = 2, 7, 12, 3, 5, 4
KERNEL, CHANNELS = 3, 6
ROPE = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 64,
    },
}


def recurrent(draw) -> dict[str, np.ndarray]:
    """Two layers of each kind from a given state: parameters, what comes out, the last state."""
    arrays = {}
    x = draw(B, T, INPUT)
    for name, cls in (("rnn", torch.nn.RNN), ("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)):
        net = cls(INPUT, STATE, num_layers=2, batch_first=True)
        for parameter in net.parameters():
            parameter.copy_(draw(*parameter.shape))
        state = tuple(draw(2, B, STATE) for _ in range(1 + (name == "lstm")))
        y, last = net(x, state if name == "lstm" else state[0])
        arrays |= {f"{name}/{key}": p.numpy() for key, p in net.named_parameters()}
        arrays |= {f"{name}/x": x.numpy(), f"{name}/y": y.numpy()}
        arrays |= {f"{name}/before": torch.stack(state).numpy()}
        arrays |= {f"{name}/after": torch.stack(last if name == "lstm" else (last,)).numpy()}
    return arrays


def convolutional(draw) -> dict[str, np.ndarray]:
    """Two levels as Bai et al. 2018 have them: parameters and what comes out [B, T, C]."""
    x = draw(B, T, INPUT)
    arrays, h = {"tcn/x": x.numpy()}, x.mT
    for level, features in enumerate((INPUT, CHANNELS)):
        y = h
        for i, channels in enumerate((features, CHANNELS)):
            conv = torch.nn.Conv1d(channels, CHANNELS, KERNEL, dilation=2**level)
            conv = torch.nn.utils.parametrizations.weight_norm(conv)
            for parameter in conv.parameters():
                parameter.copy_(draw(*parameter.shape))
            y = F.relu(conv(F.pad(y, ((KERNEL - 1) * 2**level, 0))))
            arrays |= {f"tcn/{level}/{i}/{key}": p.numpy() for key, p in conv.named_parameters()}
        if features != CHANNELS:
            shortcut = torch.nn.Conv1d(features, CHANNELS, 1)
            for key, parameter in shortcut.named_parameters():
                parameter.copy_(draw(*parameter.shape))
                arrays[f"tcn/{level}/shortcut/{key}"] = parameter.numpy()
            h = shortcut(h)
        h = F.relu(y + h)
    return arrays | {"tcn/y": h.mT.numpy()}


def norms(draw) -> dict[str, np.ndarray]:
    """RMS norm; and two layers that look both ways, with ReLU and norms behind the sums."""
    rms = torch.nn.RMSNorm(WIDTH, eps=1e-2)
    rms.weight.copy_(draw(WIDTH))
    x = draw(B, T, WIDTH)
    arrays = {"rms/x": x.numpy(), "rms/scale": rms.weight.numpy(), "rms/y": rms(x).numpy()}
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation=F.relu, batch_first=True, norm_first=False
    )
    net = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for parameter in net.parameters():
        parameter.copy_(draw(*parameter.shape))
    pad = torch.arange(T) >= torch.tensor([[T], [4]])  # the second example is shorter
    arrays |= {f"post/{name}": p.numpy() for name, p in net.named_parameters()}
    y = net(x, src_key_padding_mask=pad)
    return arrays | {"post/x": x.numpy(), "post/y": y.numpy(), "post/pad": pad.numpy()}


def rotary(draw) -> dict[str, np.ndarray]:
    """Frequencies, and heads [B, T, N, H] turned by their places."""
    arrays, place = {}, torch.randint(0, 500, (B, T))
    x = draw(B, T, HEADS, 16)
    for name, scaling in ROPE.items():
        config = transformers.LlamaConfig(
            head_dim=16,
            max_position_embeddings=512,
            rope_parameters=scaling | {"rope_theta": 500.0},
        )
        table = llama.LlamaRotaryEmbedding(config)
        turned, _ = llama.apply_rotary_pos_emb(x, x, *table(x, place), unsqueeze_dim=2)
        arrays[f"rope/{name}/frequencies"] = table.inv_freq.numpy()
        arrays[f"rope/{name}/y"] = turned.numpy()
    return arrays | {"rope/x": x.numpy(), "rope/place": place.numpy()}


def main(path: pathlib.Path) -> None:
    """Runs all and writes."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.5 * torch.randn(shape)

    arrays = {"peer": f"torch {torch.__version__}, transformers {transformers.__version__}"}
    with torch.no_grad():
        for part in (recurrent, convolutional, norms, rotary):
            arrays |= part(draw)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("sequence_networks.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
