"""Small encoders and rows of noise for tests of what encoders learn from."""

import torch

from vivavoce.encoders.registry import build_encoder
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_masking import mask_rows

WAVE = {
    "kind": "hubert", "conv_widths": [16, 16], "conv_kernels": [10, 8], "conv_strides": [10, 8], "width": 24,
    "layers": 3, "heads": 2, "hidden": 32, "position_kernel": 8, "position_groups": 2,
}  # fmt: skip
MEL = {"kind": "mel_transformer", "mels": 12, "stack": 2, "width": 24, "layers": 2, "heads": 2, "hidden": 32,
       "position_kernel": 8, "position_groups": 2}  # fmt: skip
PAST = {"kind": "mel_recurrent", "mels": 12, "width": 24, "layers": 2}


def encoder(config=None, seed=0):
    torch.manual_seed(seed)
    return build_encoder(config or WAVE).eval()


def batch_of(trunk, masking=None, labels=(), sizes=(8000, 5000)):
    """Two rows of noise, the second shorter."""
    chance = torch.Generator().manual_seed(7)
    lengths = torch.tensor(sizes)
    wave = torch.randn(len(sizes), max(sizes), generator=chance) * 0.1 * valid(lengths, max(sizes))
    counts = trunk.frames(lengths)
    batch = {"wave": wave, "lengths": lengths, "seeds": torch.arange(len(sizes)) + 5}
    if masking is not None:
        chances = [torch.Generator().manual_seed(i) for i in range(len(sizes))]
        batch["mask"] = mask_rows(masking, counts.tolist(), chances)
    batch["labels"] = [torch.randint(0, n, (len(sizes), int(counts.max())), generator=chance) for n in labels]
    return batch, counts
