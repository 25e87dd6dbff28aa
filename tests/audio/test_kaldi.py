"""Kaldi features: deltas, lengths, and rows of a padded batch."""

import pytest
import torch

from vivavoce.audio.kaldi import deltas, kaldi_fbank, kaldi_frames, kaldi_mfcc
from vivavoce.errors import RequestError


def test_the_delta_of_a_ramp_is_its_slope():
    ramp = torch.arange(10.0)[None, :, None] * 3
    slope = deltas(ramp)
    assert torch.allclose(slope[0, 2:-2], torch.full((6, 1), 3.0))
    assert float(slope[0, 0]) == pytest.approx(3 * (1 * 1 + 2 * 2) / 10)
    assert deltas(torch.zeros(1, 0, 5)).shape == (1, 0, 5)


def test_cepstra_with_deltas_have_three_times_the_width():
    x = torch.randn(1, 8000) * 0.1
    cepstra = kaldi_mfcc(x, use_energy=False, orders=2)
    assert cepstra.shape == (1, 48, 39)
    assert torch.equal(cepstra[..., 26:], deltas(cepstra[..., 13:26]))


def test_padded_rows_have_the_frames_of_single_rows():
    rows = [torch.randn(n) for n in (300, 400, 5000)]
    batch = torch.zeros(3, 5000)
    for b, row in enumerate(rows):
        batch[b, : len(row)] = row
    together = kaldi_fbank(batch)
    counts = kaldi_frames(torch.tensor([len(r) for r in rows]))
    assert counts.tolist() == [0, 1, 29]
    for b, row in enumerate(rows):
        torch.testing.assert_close(together[b, : counts[b]], kaldi_fbank(row[None])[0])


def test_a_taper_that_there_is_not():
    with pytest.raises(RequestError, match="taper 'hann' is unknown; there are povey, hanning, hamming"):
        kaldi_mfcc(torch.randn(1, 8000), taper="hann")
