"""ECAPA-TDNN: whose voice it is, as one vector of a whole signal (Desplanques et al., arXiv:2005.07143).

With zeros before and behind the signal; with batch norms as there, or without them as SoCodec has it (hhguo/SoCodec,
socodec/networks/common/ecapa_tdnn.py, after SpeechBrain's).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import valid

LEAST = 1e-12  # variance


class TimeDelay(nn.Conv1d):
    """A dilated convolution of as many frames [B, D, T], zeros around them, a ReLU and perhaps a batch norm."""

    def __init__(self, inputs: int, width: int, kernel: int, dilation: int = 1, norm: bool = False):
        super().__init__(inputs, width, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
        self.norm = nn.BatchNorm1d(width) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(super().forward(x))
        return y if self.norm is None else self.norm(y)


class SqueezedRes2Net(nn.Module):
    """A residual branch: channels in `scale` parts, each convolved with what came of the part before, and all weighed
    by what their mean over time says of them."""

    def __init__(self, width: int, kernel: int, dilation: int, scale: int, squeezed: int, norm: bool = False):
        super().__init__()
        self.scale = scale
        self.enter, self.leave = (TimeDelay(width, width, 1, norm=norm) for _ in range(2))
        part = width // scale
        self.parts = nn.ModuleList(TimeDelay(part, part, kernel, dilation, norm) for _ in range(scale - 1))
        self.squeeze, self.excite = nn.Conv1d(width, squeezed, 1), nn.Conv1d(squeezed, width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, D, T], mask [B, 1, T]: 1 where a frame counts."""
        first, *others = (self.enter(x) * mask).chunk(self.scale, dim=1)
        made: list[Tensor] = [first]
        for number, (part, layer) in enumerate(zip(others, self.parts)):
            made.append(layer(part + made[-1] if number else part) * mask)
        y = self.leave(torch.cat(made, dim=1))
        mean = (y * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp(min=1)
        return (x + y * torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))) * mask


def statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, D] of x [B, D, T] under weights [B, 1 or D, T] of sum 1."""
    mean = (weights * x).sum(2)
    return mean, (weights * (x - mean[..., None]).square()).sum(2).clamp(min=LEAST).sqrt()


class ECAPA(nn.Module):
    """Frames [B, T, inputs] -> a vector of each signal [B, outputs].

    widths, kernels, dilations: of the first layer, of each squeezed Res2Net block (all of one width), and of the layer
    that hears what all blocks have made. scale, squeezed: of the blocks; attended: channels of the attention that
    weighs the frames, each channel for itself. norms: whether there are batch norms, in training of the whole batch.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int] = (256, 256, 256, 256, 768),
        kernels: Sequence[int] = (5, 3, 3, 3, 1),
        dilations: Sequence[int] = (1, 2, 3, 4, 1),
        scale: int = 2,
        squeezed: int = 64,
        attended: int = 64,
        norms: bool = False,
    ):
        super().__init__()
        (first, *blocks, last), sizes = widths, list(zip(widths, kernels, dilations, strict=True))
        if not blocks or set(blocks) != {first} or first % scale or any(kernel % 2 == 0 for kernel in kernels):
            raise RequestError(
                f"widths {list(widths)}, kernels {list(kernels)}: blocks of the first width, a multiple of {scale}, "
                "and odd kernels are needed"
            )
        self.first = TimeDelay(inputs, *sizes[0], norm=norms)
        self.blocks = nn.ModuleList(SqueezedRes2Net(*size, scale, squeezed, norms) for size in sizes[1:-1])
        self.joint = TimeDelay(len(blocks) * first, *sizes[-1], norm=norms)
        self.attend, self.weigh = TimeDelay(3 * last, attended, 1, norm=norms), nn.Conv1d(attended, last, 1)
        self.norm = nn.BatchNorm1d(2 * last) if norms else None
        self.last = nn.Linear(2 * last, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """lengths [B] in frames; what stands beyond them is not heard. A signal without frames gives that of none."""
        return self.pooled(self.frames(x, lengths), lengths)

    def frames(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames [B, T, inputs] -> [B, T, width of the last layer], zero beyond lengths [B]."""
        mask = valid(lengths, x.shape[1])[:, None].to(x.dtype)
        y = self.first(x.transpose(1, 2) * mask) * mask
        heard = []
        for block in self.blocks:
            y = block(y, mask)
            heard.append(y)
        return (self.joint(torch.cat(heard, dim=1)) * mask).transpose(1, 2)

    def pooled(self, y: Tensor, lengths: Tensor) -> Tensor:
        """What `frames` gives -> a vector of each signal [B, outputs]."""
        mask = valid(lengths, y.shape[1])[:, None].to(y.dtype)
        y = y.transpose(1, 2)
        around = torch.stack(statistics(y, mask / mask.sum(2, keepdim=True).clamp(min=1)))
        beside = around[..., None].expand(-1, -1, -1, y.shape[2])
        scores = self.weigh(torch.tanh(self.attend(torch.cat([y, *beside], dim=1))))
        weights = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min).softmax(2) * mask
        found = torch.cat(statistics(y, weights), dim=1)
        return self.last(found if self.norm is None else self.norm(found))
