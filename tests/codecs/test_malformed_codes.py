"""Code tensors that no encoder makes, for the decoder of every codec there is: a clear error, or finite audio."""

import os
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import vivavoce
from small_codecs import SMALL, small
from vivavoce.codecs import Codec
from vivavoce.codecs.registry import CODECS, config_of
from vivavoce.errors import VivavoceError
from vivavoce.tokenizers.blocks import BlockDecoder, Coded
from vivavoce.tokenizers.units import UnitCodec

CASES = 10_000 if os.environ.get("VIVAVOCE_LONG") == "1" else 200
LONGEST = 20.0  # seconds of computing for one case: it hangs

DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8, torch.bool, torch.float32, torch.float64,
          torch.bfloat16, torch.complex64)  # fmt: skip


def drawn(codec, chance: np.random.Generator) -> torch.Tensor:
    """Codes wrong in some way, or in none."""
    most = max(getattr(codec, "ratios", (1,)))
    levels = int(chance.choice([0, 1, codec.codebooks, codec.codebooks, codec.codebooks, codec.codebooks + 1, 40]))
    frames = int(chance.choice([0, 1, 2, most, 4 * most, 7]))
    rows = int(chance.choice([0, 1, 1, 1, 3]))
    shape = [(rows, levels, frames), (levels, frames), (frames,), (), (rows, 1, levels, frames)]
    size = shape[int(chance.choice([0, 0, 0, 0, 0, 0, 1, 2, 3, 4]))]
    codes = torch.from_numpy(chance.integers(0, min(codec.codebook_sizes), size))
    if codes.dim() == 3 and getattr(codec, "ratios", None) and chance.random() < 0.7:
        for level, ratio in enumerate(codec.ratios[: codes.shape[1]]):
            codes[:, level, codes.shape[2] // most * ratio :] = -1
    match int(chance.integers(6)):
        case 0 if codes.numel():
            wrong = [-1, -2, codec.codebook_size, 2**31, -(2**63), 2**63 - 1, 255, 65536]
            codes.view(-1)[int(chance.integers(codes.numel()))] = wrong[int(chance.integers(len(wrong)))]
        case 1:
            codes = codes.to(DTYPES[int(chance.integers(len(DTYPES)))])
        case 2:
            codes = torch.full(codes.shape, [float("nan"), float("inf"), 0.5][int(chance.integers(3))])
        case 3 if codes.dim() > 1:
            codes = codes.transpose(-1, -2)  # as some have it, and not contiguous
        case 4:
            codes = torch.randint(-(2**62), 2**62, codes.shape)
    return codes


def decode_somehow(codec, codes: torch.Tensor, chance: np.random.Generator) -> torch.Tensor:
    """Through one of the doors of the decoder."""
    whole = codes.dtype.is_floating_point or codes.is_complex()  # numpy has not all of them
    match 0 if whole else int(chance.integers(4)):
        case 0:
            return codec.decode(codes)
        case 1:
            wrong = [0, 1, codec.hop * 3, -5, 10**15, 2**63 - 1]
            rows = codes.shape[0] if codes.dim() else 1
            lengths = torch.tensor([wrong[int(chance.integers(len(wrong)))] for _ in range(rows)])
            return codec.decode(codes, lengths)
        case 2:
            state = codec.decoder_state(max(1, codes.shape[0]) if codes.dim() else 1)
            sound, state = codec.decode_step(codes, state)
            return torch.cat([sound, codec.decode_flush(state)[0]], -1)
        case _:
            decoder = BlockDecoder(codec)
            ratios = getattr(codec, "ratios", [1] * codec.codebooks)
            rows = codes[0].numpy() if codes.dim() == 3 and len(codes) else np.zeros((codec.codebooks, 0), np.int64)
            count = rows.shape[1] // max(ratios)
            levels = [row[: count * ratio] for row, ratio in zip(rows, ratios)]
            return torch.from_numpy(np.concatenate([decoder.step(Coded(count, levels)), decoder.flush()], 1))


FOLDERS = (Path(vivavoce.__file__).parent / "recipes" / kind for kind in ("codecs", "units"))
RECIPES = sorted(path.stem for folder in FOLDERS for path in folder.glob("*.yaml"))


@cache
def of_recipe(name: str) -> Codec | UnitCodec | None:
    """The codec of a recipe's smoke size; None where it has none, or only parts of one."""
    found = getattr(vivavoce.build(name, size="smoke").system, "codec", None)
    return found.eval() if isinstance(found, Codec | UnitCodec) else None


@pytest.mark.parametrize("name", [*SMALL, *RECIPES])
def test_malformed_codes(name):
    torch.manual_seed(0)
    codec = small(name) if name in SMALL else of_recipe(name)
    if codec is None:
        return
    chance = np.random.default_rng(sum(name.encode()))
    torch.manual_seed(0)
    refused = heard = 0
    for number in range(CASES):
        codes, begin = drawn(codec, chance), time.process_time()
        try:
            sound = decode_somehow(codec, codes, chance)
            assert bool(torch.isfinite(sound).all()), f"case {number}: {tuple(codes.shape)} {codes.dtype}"
            heard += sound.numel() > 0
        except VivavoceError as error:
            assert str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {tuple(codes.shape)} {codes.dtype}: {error!r}") from error
        assert time.process_time() - begin < LONGEST
    assert refused > CASES // 5 and heard


def test_every_kind_is_among_them():
    """A kind that is new in the registry has a small one above, or a recipe."""
    here = {SMALL[name]["kind"] for name in SMALL}
    for name in RECIPES:
        codec = of_recipe(name)
        here |= set() if not isinstance(codec, Codec) else {(config_of(codec) or {}).get("kind", name)}
    with torch.device("meta"):
        built = {name: build() for name, build in CODECS.items()}
    coding = {name: codec for name, codec in built.items() if isinstance(codec, Codec)}  # mel vocoders have no codes
    kinds = {(config_of(codec) or {}).get("kind", name) for name, codec in coding.items()}
    assert kinds <= here, f"no small codec of {sorted(kinds - here)}"
