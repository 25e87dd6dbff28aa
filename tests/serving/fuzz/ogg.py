"""Ogg/Opus streams and files with something wrong in them."""

import random
from functools import cache

import numpy as np

from vivavoce.serving.opus import OggOpusOut, checksum, opus_head, opus_tags, page_of

RATE = 24_000


@cache
def pages() -> tuple[bytes, ...]:
    """The pages of a second and a half of sound: head, tags, packets."""
    time = np.arange(int(1.5 * RATE)) / RATE
    data, found = OggOpusOut(RATE).encode((0.25 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)), []
    while data:
        end = 27 + data[26] + sum(data[27 : 27 + data[26]])
        found.append(data[:end])
        data = data[end:]
    return tuple(found)


def signed(page: bytes) -> bytes:
    """The page with a checksum that is right again."""
    return page[:22] + checksum(page[:22] + bytes(4) + page[26:]) + page[26:]


def damaged(rng: random.Random) -> list[bytes]:
    """Pages of a stream, hurt in one way; each is to be sent on its own."""
    made = list(pages()[: rng.randrange(3, 30)])
    at = rng.randrange(len(made))
    page = bytearray(made[at])
    how = rng.randrange(18)
    if how == 0:  # bytes anywhere, checksum not mended
        for _ in range(rng.randrange(1, 9)):
            page[rng.randrange(len(page))] = rng.randrange(256)
        made[at] = bytes(page)
    elif how == 1:  # bytes of the packets, checksum mended: a decoder sees them
        for _ in range(rng.randrange(1, 9)):
            page[rng.randrange(27 + page[26], len(page))] = rng.randrange(256)
        made[at] = signed(bytes(page))
    elif how == 2:
        page[6:14] = rng.choice([bytes(8), b"\xff" * 8, rng.randbytes(8), b"\xff" * 7 + b"\x7f"])
        made[at] = signed(bytes(page))
    elif how == 3:
        page[14:18] = rng.randbytes(4)
        made[at] = signed(bytes(page))
    elif how == 4:
        page[18:22] = rng.choice([b"\xff" * 4, bytes(4), rng.randbytes(4)])
        made[at] = signed(bytes(page))
    elif how == 5:
        page[5] = rng.randrange(256)
        made[at] = signed(bytes(page))
    elif how == 6:
        page[4] = rng.randrange(256)
        made[at] = signed(bytes(page))
    elif how == 7:  # lacing
        page[26] = rng.randrange(256)
        made[at] = signed(bytes(page)) if rng.random() < 0.5 else bytes(page)
    elif how == 8:
        page[27] = rng.randrange(256)
        made[at] = signed(bytes(page)) if rng.random() < 0.5 else bytes(page)
    elif how == 9:
        made = made[rng.choice([1, 2]) :]
    elif how == 10:
        made[at:at] = made[: rng.choice([1, 2])]
    elif how == 11:
        made[at] = made[at][: rng.randrange(len(made[at]))]
    elif how == 12:
        rng.shuffle(made)
    elif how == 13:  # other codecs, other Opus
        heads = [
            b"\x01vorbis" + bytes(23), b"\x7fFLAC\x01\0\0\1fLaC" + bytes(38), b"Speex   1.2" + bytes(69),
            b"OpusHead" + b"\xff" * 11, opus_head(0), opus_head(RATE, 0), opus_head(RATE, 255), opus_head(2**32 - 1),
            b"OpusHead", b"OpusHead\x10" + bytes(10), opus_head(RATE, 8)[:18] + b"\x01\x08\x08" + bytes(8),
            b"fishead\0" + bytes(56),
        ]  # fmt: skip
        made[0] = page_of([rng.choice(heads)], flags=2)
        made[1] = page_of([rng.choice([opus_tags(), b"OpusTags" + b"\xff" * 4, b"OpusTags", b""])], sequence=1)
    elif how == 14:  # packets of every kind, in good pages
        packets = [rng.randbytes(rng.choice([0, 1, 2, 3, 50, 300])) for _ in range(rng.randrange(1, 200))]
        made[2:] = [page_of(packets[n : n + 40], sequence=2 + n) for n in range(0, len(packets), 40)]
    elif how == 15:  # a byte that says "120 ms", over and over; and a packet that never ends
        long = page_of([b"\xff\x3f"] * 255, sequence=2)
        endless = signed(page_of([b"x" * 255 * 254], sequence=2)[:26] + b"\xff" + b"\xff" * 255 + b"x" * 255 * 255)
        made[2:] = rng.choice([[long] * 20, [endless] * 6])
    elif how == 16:
        made = [rng.choice([
            b"OggS", b"OggS\0", b"OggSOggS" * 1000, b"OggS" + bytes(22) + b"\xff" + b"\xff" * 255, bytes(5000),
            rng.randbytes(5000), b"RIFF" + bytes(100), b"",
        ])]  # fmt: skip
    else:
        whole = b"".join(made)
        size = rng.choice([1, 3, 100, 5000])
        made = [whole[n : n + size] for n in range(0, min(len(whole), 300 * size), size)]
    return made
