"""Long short-term memory over frames [B, T, D]: state carried from step to step, rows of any length."""

import torch
from torch import nn

from vivavoce.nn.streaming import INFINITE, State, Streaming, common, lengths_of, zero_padding


class LSTM(Streaming):
    """Unidirectional LSTM layers of one width, with a skip connection around all (as in EnCodec's SEANet).

    Weights are those of torch.nn.LSTM under `lstm`.
    """

    receptive_field = INFINITE

    def __init__(self, width: int, layers: int = 1, skip: bool = True):
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.skip = skip

    @property
    def width(self):
        return self.lstm.hidden_size

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        zero = torch.zeros(batch, self.lstm.num_layers, self.width, **home)
        return State(
            hidden=zero, cell=zero, emitted=torch.zeros(batch, dtype=torch.int64, device=home["device"])
        )

    def step(self, x, state, lengths=None):
        lengths = lengths_of(x, lengths)
        hidden, cell = (state[name].transpose(0, 1).contiguous() for name in ("hidden", "cell"))
        shared = common(lengths)
        # Rows of different lengths walk together, all of them to the end of the shortest, and so on; those that have
        # ended keep their state. So every product has the full number of rows, whatever the lengths are.
        ends = [shared] if shared is not None else sorted(set(lengths.tolist()))
        x = x[:, : ends[-1]] if shared is not None else zero_padding(x, lengths)
        pieces, start = [x[:, :0]], 0
        for end in ends:
            if end == start:
                continue
            y, (new_hidden, new_cell) = self.lstm(x[:, start:end], (hidden, cell))
            if start == 0 and lengths.min() > 0:
                hidden, cell = new_hidden, new_cell
            else:
                runs = (lengths > start)[None, :, None]
                hidden, cell = torch.where(runs, new_hidden, hidden), torch.where(runs, new_cell, cell)
            pieces.append(y)
            start = end
        y = torch.cat(pieces, dim=1)
        if self.skip:
            y = y + x[:, : y.shape[1]]
        return y, State(hidden=hidden.transpose(0, 1), cell=cell.transpose(0, 1), emitted=lengths)

    def extra_repr(self):
        return f"skip={self.skip}"
