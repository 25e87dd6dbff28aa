"""Framing: the published counts, and what each frame holds."""

import pytest
import torch

from vivavoce.audio.framing import frame, frame_count
from vivavoce.errors import RequestError


@pytest.mark.parametrize("edges", ["snip", "reflect", "centre"])
@pytest.mark.parametrize("window,hop", [(400, 160), (7, 3), (4, 4), (2, 5)])
def test_counts_hold_for_every_length(edges, window, hop):
    for samples in [*range(0, 30), 399, 400, 401, 1000]:
        if edges == "centre" and samples <= window // 2:
            continue
        x = torch.arange(samples).float()
        assert frame(x, window, hop, edges).shape == (frame_count(samples, window, hop, edges), window)
    lengths = torch.tensor([0, 1, 399, 400, 5000])
    assert frame_count(lengths, 400, 160, edges).tolist() == [frame_count(int(n), 400, 160, edges) for n in lengths]


def test_what_frames_hold():
    x = torch.arange(1.0, 7.0)
    assert frame(x, 4, 2).tolist() == [[1, 2, 3, 4], [3, 4, 5, 6]]
    assert frame(x, 4, 2, "reflect").tolist() == [[1, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 6]]
    assert frame(x, 4, 3, "centre").tolist() == [[3, 2, 1, 2], [2, 3, 4, 5], [5, 6, 5, 4]]


def test_centred_frames_are_those_of_torch_stft():
    x = torch.randn(2, 1000)
    taper = torch.hann_window(128)
    ours = torch.fft.rfft(frame(x, 128, 50, "centre") * taper)
    theirs = torch.stft(x, 128, 50, window=taper, return_complex=True).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)


def test_impossible_framing_is_refused():
    with pytest.raises(RequestError, match="too few to centre"):
        frame(torch.zeros(100), 400, 160, "centre")
    with pytest.raises(RequestError, match="hop 0"):
        frame_count(100, 10, 0)
