"""Packing: every token once, nothing overlaps, and a packed window computes what its pieces alone do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.data.packing import Piece, assemble, concatenate, document_mask, filled, fit
from vivavoce.errors import DataError, RequestError

documents = st.lists(st.integers(0, 60), max_size=30)


@pytest.mark.parametrize("pack", [concatenate, fit])
@settings(max_examples=60, deadline=None)
@given(lengths=documents, window=st.integers(1, 50), seed=st.none() | st.integers(0, 5))
def test_every_token_has_one_place(pack, lengths, window, seed):
    windows = pack(lengths, window, seed)
    seen = {(d, i): 0 for d, length in enumerate(lengths) for i in range(length)}
    for pieces in windows:
        places = [piece.place + i for piece in pieces for i in range(piece.length)]
        assert places and places == list(range(len(places))) and len(places) <= window
        for piece in pieces:
            for i in range(piece.length):
                seen[piece.document, piece.start + i] += 1
    assert set(seen.values()) <= {1}
    assert windows == pack(lengths, window, seed)
    if pack is concatenate:
        assert len(windows) == -(-sum(lengths) // window)
    else:
        cut = [piece for pieces in windows for piece in pieces if piece.length < lengths[piece.document]]
        assert all(lengths[piece.document] > window for piece in cut)


def test_best_fit_wastes_little_and_cuts_nothing():
    lengths = np.random.default_rng(0).integers(20, 900, 2000)
    assert filled(fit(lengths, 1024), 1024) > 0.97
    assert len([p for pieces in fit(lengths, 1024) for p in pieces]) == 2000
    assert filled(concatenate(lengths, 1024), 1024) > 0.999
    assert fit(lengths, 1024, 1) != fit(lengths, 1024, 2)


def test_windows_hold_the_tokens():
    codes = [np.arange(10).reshape(2, 5), np.arange(20, 26).reshape(2, 3)]
    packed = assemble([Piece(1, 1, 2, 0), Piece(0, 0, 3, 2)], codes, 7, pad=-9)
    assert packed.tokens.tolist() == [[21, 22, 0, 1, 2, -9, -9], [24, 25, 5, 6, 7, -9, -9]]
    assert packed.documents.tolist() == [0, 0, 1, 1, 1, -1, -1]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert assemble([Piece(0, 0, 2, 0)], [np.array([4, 5])], 2).tokens.tolist() == [[4, 5]]
    for wrong in (Piece(0, 4, 2, 0), Piece(0, 0, 3, 5)):
        with pytest.raises(DataError, match="does not fit"):
            assemble([wrong], codes, 7)
    with pytest.raises(DataError, match="does not fit"):
        assemble([Piece(0, 0, 3, 0), Piece(1, 0, 3, 2)], codes, 7)
    with pytest.raises(RequestError, match="window of 0"):
        fit([1], 0)


def test_levels_of_different_rates_are_packed_by_frames():
    documents = [[np.arange(3), np.arange(10, 16)], [np.arange(20, 22), np.arange(30, 34)]]
    packed = assemble([Piece(1, 1, 1, 0), Piece(0, 0, 2, 1)], documents, 4, pad=-1, ratios=(1, 2))
    assert [level.tolist() for level in packed.tokens] == [[21, 0, 1, -1], [32, 33, 10, 11, 12, 13, -1, -1]]
    assert packed.documents.tolist() == [0, 1, 1, -1] and packed.positions.tolist() == [0, 0, 1, 0]
    assert [level.tolist() for level in assemble([], [], 1, ratios=(1, 2)).tokens] == [[0], [0, 0]]
    for wrong, counts in ((Piece(0, 2, 2, 0), (1, 2)), (Piece(0, 0, 3, 0), (1, 3)), (Piece(0, 0, 3, 0), (1, 2, 4))):
        with pytest.raises(DataError, match=r"document of \[3, 6\]"):
            assemble([wrong], documents, 4, ratios=counts)


def test_a_packed_window_computes_what_its_documents_alone_do():
    from vivavoce.nn.transformer import Transformer, TransformerConfig

    torch.manual_seed(0)
    model = Transformer(TransformerConfig(layers=2, width=32, heads=4)).eval()
    table = torch.randn(50, 32)
    lengths = [7, 12, 3, 9, 5]
    texts = [np.random.default_rng(i).integers(0, 50, n) for i, n in enumerate(lengths)]
    windows = fit(lengths, 20)
    packed = [assemble(pieces, texts, 20) for pieces in windows]
    owner = torch.stack([p.documents for p in packed])
    x = table[torch.cat([p.tokens for p in packed])]
    positions = torch.stack([p.positions for p in packed])
    with torch.no_grad():
        together = model(x, positions=positions, mask=document_mask(owner))
        careless = model(x, positions=positions)
        assert torch.isfinite(together).all()
        for row, pieces in enumerate(windows):
            for piece in pieces:
                alone = model(table[torch.as_tensor(texts[piece.document])][None])[0]
                place = slice(piece.place, piece.place + piece.length)
                assert torch.allclose(together[row, place], alone, atol=1e-5)
                if piece.place:
                    assert not torch.allclose(careless[row, place], alone, atol=1e-2)
