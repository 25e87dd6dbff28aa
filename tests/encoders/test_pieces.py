"""Signals of any length in bounded memory: what pieces give, however the signal comes."""

import pytest
import torch

from vivavoce.encoders.pieces import most_samples, pieces, sizes
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RequestError
from vivavoce.tokenizers.units import UnitCodec

HUBERT = {
    "kind": "hubert", "conv_widths": [8] * 3, "conv_kernels": [10, 4, 4], "conv_strides": [5, 4, 4], "width": 16,
    "layers": 2, "heads": 2, "hidden": 16, "position_kernel": 8, "position_groups": 2,
}  # fmt: skip
WHISPER = {"kind": "whisper", "width": 16, "layers": 1, "heads": 2, "hidden": 16, "positions": 20}


def units(config, piece=0.5, around=0.1):
    torch.manual_seed(2)
    encoder = build_encoder(config)
    if config["kind"] != "whisper":
        encoder.piece, encoder.around = piece, around
    made = encoder.features([torch.randn(16000)]).values[0]
    return UnitTokenizer(encoder, made[torch.randperm(len(made))[:24]])


def streamed(codec, wave, chunk):
    """The codes of rows [B, 1, S] that come `chunk` samples at a time."""
    state, found = codec.encoder_state(len(wave)), [[] for _ in wave]
    parts = [lambda s, part=part: codec.encode_step(part, s) for part in wave.split(chunk, dim=2)]
    for part in [*parts, codec.encode_flush]:
        codes, state = part(state)
        for row, count in enumerate(state.emitted.tolist()):
            found[row].append(codes[row, 0, :count])
    return [torch.cat(row) for row in found], state


def test_pieces_cover_the_signal_once_and_hear_their_context():
    for frames in (0, 1, 9, 13, 14, 40, 101):
        found = list(pieces(frames, 10, 3))
        assert [k for piece in found for k in range(piece.first, piece.last)] == list(range(frames))
        for piece in found:
            assert piece.start == max(0, piece.first - 3) and piece.end == min(frames, piece.last + 3)
            assert piece.end - piece.start <= 10 + 3 * 3
    assert len(list(pieces(13, 10, 3))) == 1 and len(list(pieces(14, 10, 3))) == 2


@pytest.mark.parametrize("config", [HUBERT, {"kind": "mfcc"}, WHISPER], ids=lambda config: config["kind"])
@pytest.mark.parametrize("samples", [300, 9_599, 9_600, 30_011])
def test_any_chunks_give_what_the_signal_gives(config, samples):
    codec = UnitCodec(units(config))
    wave = 0.1 * torch.randn(2, 1, samples)
    whole = codec.encode(wave)
    assert whole.shape == (2, 1, codec.frames(samples))
    assert samples < 9_600 or len(whole.unique()) > 10
    for chunk in (1_777, samples):
        rows, state = streamed(codec, wave, chunk)
        assert all(torch.equal(row, other[0]) for row, other in zip(rows, whole))
    # Nothing of the signal is kept but what the next piece would hear.
    assert state["waiting"].shape[1] <= most_samples(codec.units.encoder, 100)


def test_what_is_not_normed_over_the_signal_gives_the_same_whole():
    """Cepstra: pieces are the whole, to the bit but for rounding of equal sums."""
    tokenizer = units({"kind": "mfcc"})
    wave = 0.1 * torch.randn(1, 1, 40_000)
    in_pieces = tokenizer.encode(wave)
    tokenizer.encoder.piece = None
    assert (in_pieces == tokenizer.encode(wave)).float().mean() > 0.995


def listened(tokenizer):
    """What each call of the encoder hears from now on, [batch, samples]."""
    heard, inner = [], tokenizer.encoder.forward
    tokenizer.encoder.forward = lambda wave, *rest: heard.append(tuple(wave.shape)) or inner(wave, *rest)
    return heard


def test_a_signal_of_a_piece_and_its_context_is_heard_whole():
    tokenizer = units(HUBERT)
    most = most_samples(tokenizer.encoder, sum(sizes(tokenizer.encoder)))
    wave = torch.randn(most + 1)
    whole = tokenizer.nearest(tokenizer.encoder.features([wave[:most]]).values)
    heard = listened(tokenizer)
    assert torch.equal(tokenizer.encode([wave[:most]])[:, 0], whole) and heard == [(1, most)]
    assert len(tokenizer.encode([wave])[0, 0]) == tokenizer.frames(most + 1) and len(heard) == 3


def test_memory_is_bounded_by_a_piece():
    """No call of the encoder hears more than a piece with its context, however long the signal."""
    tokenizer = units(HUBERT)
    heard = listened(tokenizer)
    tokenizer.encode([torch.randn(200_000), torch.randn(500)])
    most = round((0.5 + 2 * 0.1) * 16000) + 400
    assert len(heard) > 20 and max(shape[-1] for shape in heard) <= most and all(shape[0] == 1 for shape in heard)


def test_rows_of_different_length_end_by_themselves():
    codec = UnitCodec(units(HUBERT))
    wave = 0.1 * torch.randn(3, 1, 30_000)
    lengths = torch.tensor([30_000, 12_345, 0])
    whole = codec.encode(wave, lengths)
    state = codec.encoder_state(3)
    first, state = codec.encode_step(wave, state, lengths)
    counts = state.emitted.clone()
    rest, state = codec.encode_flush(state)
    for row in range(3):
        got = torch.cat([first[row, 0, : int(counts[row])], rest[row, 0, : int(state.emitted[row])]])
        assert torch.equal(got, whole[row, 0, : int(codec.frames(lengths)[row])])


def test_what_has_no_pieces_says_so():
    with pytest.raises(RequestError, match="not heard in pieces"):
        sizes(build_encoder({"kind": "log_mel"}))
