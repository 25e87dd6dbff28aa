"""Codes at rest: what goes in comes out, in as few bits as it should; damage is noticed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.errors import DataError
from vivavoce.tokenizers.compact_file import CodesHeader, code_bits, pack_codes, read_codes, unpack_codes


def header(sizes: list[int], frames: int) -> CodesHeader:
    return CodesHeader("some", "abc", 24000, frames * 1920, frames, sizes)


@given(st.lists(st.integers(1, 70000), min_size=1, max_size=9), st.integers(0, 40), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_goes_in_comes_out(sizes, frames, seed):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, frames) for size in sizes])
    back, told = unpack_codes(pack_codes(codes, header(sizes, frames)))
    assert np.array_equal(back, codes) and told.sizes == sizes and told.samples == frames * 1920


def test_known_bits():
    """Codebooks of 4 and 3 entries: two bits each; 0 1 2 3 | 2 1 0 2 is 00011011 10010010."""
    packed = pack_codes(np.array([[0, 1, 2, 3], [2, 1, 0, 2]]), header([4, 3], 4))
    assert packed[-2:] == bytes([0b00011011, 0b10010010])
    assert [code_bits(size) for size in (1, 2, 3, 256, 257, 2048)] == [1, 1, 2, 8, 9, 11]


def test_levels_of_different_rates():
    """One, two and four codes a frame: each level as long as its rate says, what stands behind it is not kept."""
    told = CodesHeader("some", "abc", 24000, 6144, 3, [16, 16, 300], ratios=[1, 2, 4])
    codes = np.full((3, 12), -1)
    for level, count in enumerate((3, 6, 12)):
        codes[level, :count] = np.arange(count)
    packed = pack_codes(codes, told)
    back, header = unpack_codes(packed)
    assert np.array_equal(back, codes) and header.ratios == [1, 2, 4]
    assert len(packed) == 8 + int.from_bytes(packed[4:8], "little") + -(-(9 * 4 + 12 * 9) // 8)
    with pytest.raises(DataError, match="header says"):
        pack_codes(codes[:, :9], told)
    with pytest.raises(DataError, match="codebook 1"):
        pack_codes(np.where(codes == 5, -1, codes), told)
    with pytest.raises(DataError, match="2 ratios for 3 levels"):
        unpack_codes(packed.replace(b"[1, 2, 4]", b"[1, 7]   "))


def test_wrong_codes_are_refused():
    with pytest.raises(DataError, match="codebook 1"):
        pack_codes(np.array([[0, 1], [0, 3]]), header([4, 3], 2))
    with pytest.raises(DataError, match="header says"):
        pack_codes(np.zeros((1, 2), int), header([4, 3], 2))


def test_damage_is_noticed(tmp_path):
    packed = pack_codes(np.arange(16)[None] % 16, header([16], 16))
    for broken in (b"", b"RIFF" + packed[4:], packed[:-1], packed + b"x", packed[:20], packed[:-1] + b"\0"):
        with pytest.raises(DataError):
            unpack_codes(broken)
    with pytest.raises(DataError, match="no such file"):
        read_codes(tmp_path / "none.vvc")
