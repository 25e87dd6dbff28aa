"""Recurrence in both directions: it hears the whole signal before it answers."""

import torch
from torch import nn

from vivavoce.nn.gathered import WholeSignal


class BidirectionalLSTM(WholeSignal):
    """LSTM layers in both directions, frames [B, T, D] -> [B, T, 2 D]; skip: the input, twice, is added.

    Weights are those of torch.nn.LSTM under `lstm` (SpeechTokenizer's SEANet: `bidirectional`). A row's answer does not
    depend on what stands behind its end.
    """

    def __init__(self, width: int, layers: int = 1, skip: bool = True):
        super().__init__()
        self.inputs, self.skip = width, skip
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, bidirectional=True)

    @property
    def width(self):
        return 2 * self.inputs

    def respond(self, x, lengths):
        # Rows without frames are packed as if they had one, and their answer is padding.
        sizes = lengths.clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, sizes, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return y + torch.cat([x, x], dim=-1) if self.skip else y
