"""Text as pieces of words, by a published model's own file: SentencePiece's `….model`, or a `tokenizer.json`.

On a frame clock a piece stands in a frame, and two ids mean that none does (arXiv:2410.00037, section 3.4.4): `pad`,
and in the frame before a word `end_of_pad`. Pieces that begin a word begin with a blank when they are read as text.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vivavoce.errors import CheckpointError, RequestError, need

SPELLING = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 ' , . ! ? -"
BLANK = "▁"  # SentencePiece's mark of a word's beginning


class Pieces:
    """What both kinds do. size: ids of the vocabulary (None: those of the file)."""

    file = ""  # how the file ends that `save` writes

    def __init__(self, size: int | None, pad: int, end_of_pad: int | None):
        self.size, self.pad, self.end_of_pad = size, pad, end_of_pad

    def __len__(self) -> int:
        return self._count() if self.size is None else self.size

    def _count(self) -> int:
        raise NotImplementedError

    def _fits(self, where: str) -> None:
        """Refuse a file with more pieces than the vocabulary has ids."""
        if self.size is not None and self._count() > self.size:
            raise CheckpointError(f"{where} has {self._count()} pieces; the model's vocabulary has {self.size}")

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of `text`, one behind another."""
        raise NotImplementedError

    def text(self, ids: Sequence[int]) -> str:
        """The text of `ids`; pads and control ids are left out, and a word's first piece begins with a blank."""
        raise NotImplementedError

    def word(self, text: str, first: bool = False) -> list[int]:
        """Ids of one word on the frame clock; `first`: of those that are said."""
        return self.encode(text)

    def spoken(self, text: str) -> list[list[int]]:
        """Ids of each word of `text` as they stand in consecutive frames, `end_of_pad` before them."""
        before = [] if self.end_of_pad is None else [self.end_of_pad]
        found = [self.word(word, n == 0) for n, word in enumerate(text.split())]
        return [before + ids for ids in found if ids]

    def save(self, path: Path) -> None:
        """Write the file that `read` takes."""
        raise NotImplementedError

    def read(self, path: Path) -> None:
        """Take the pieces of a file. `CheckpointError` where it is none."""
        raise NotImplementedError


class SentencePieces(Pieces):
    """A SentencePiece model. Without a `path` it spells, letter by letter: a stand-in until one is read.

    pad: the id for "nothing is said"; end_of_pad: the id in the frame before a word (None: none). Moshi's: 3 and 0.
    """

    file = ".model"

    def __init__(
        self, path: str | Path | None = None, size: int | None = None, pad: int = 3, end_of_pad: int | None = 0
    ):
        super().__init__(size, pad, end_of_pad)
        self._model: Any = _processor(_spelling()) if path is None else None
        if path is not None:
            self.read(Path(path).expanduser())
        self._fits("the stand-in" if path is None else str(path))

    def _count(self) -> int:
        return int(self._model.get_piece_size())

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self._model.encode(text)]

    def text(self, ids: Sequence[int]) -> str:
        found, raw = "", b""
        for i in ids:
            said = 0 <= i < self._count() and i not in (self.pad, self.end_of_pad) and not self._model.is_control(i)
            piece = self._model.id_to_piece(i) if said else ""
            if said and self._model.is_byte(i):
                raw += bytes([int(piece[3:5], 16)])
                continue
            found += raw.decode("utf-8", "ignore") + piece.replace(BLANK, " ")
            raw = b""
        return found + raw.decode("utf-8", "ignore")

    def save(self, path: Path) -> None:
        path.write_bytes(self._model.serialized_model_proto())

    def read(self, path: Path) -> None:
        try:
            self._model = _processor(path.read_bytes())
        except FileNotFoundError:
            raise RequestError(f"{path} is missing: a SentencePiece model is expected there") from None
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no SentencePiece model: {str(error).splitlines()[0]}") from error
        self._fits(str(path))


def _processor(proto: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def _spelling() -> bytes:
    """A SentencePiece model of letters, with Moshi's special ids: unknown 0, begin 1, end 2, pad 3."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SPELLING]), model_writer=model, model_type="char", vocab_size=100, pad_id=3, unk_id=0,
        bos_id=1, eos_id=2, hard_vocab_limit=False, character_coverage=1.0, num_threads=1, minloglevel=2,
    )
    return model.getvalue()


class JsonPieces(Pieces):
    """A `tokenizer.json` of the package `tokenizers`, as transformers' directories have it.

    pad, end_of_pad: as `SentencePieces` has them.
    """

    file = ".json"

    def __init__(
        self, path: str | Path | None = None, size: int | None = None, pad: int = 3, end_of_pad: int | None = 0
    ):
        super().__init__(size, pad, end_of_pad)
        self._file: Any = None
        self._special: set[int] = set()
        if path is not None:
            self.read(Path(path).expanduser())
        elif size is None:
            raise RequestError("tokenizer_json: without a path, give the size of the vocabulary")

    def _loaded(self) -> Any:
        if self._file is None:
            raise RequestError("this tokenizer_json has no file yet: give its path, or load a model that brings it")
        return self._file

    def _count(self) -> int:
        return int(self._loaded().get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        return list(self._loaded().encode(text, add_special_tokens=False).ids)

    def word(self, text: str, first: bool = False) -> list[int]:
        # Byte-level vocabularies mark a word's beginning by the blank before it.
        return self.encode(text if first else f" {text}")

    def text(self, ids: Sequence[int]) -> str:
        file = self._loaded()
        said = [i for i in ids if i not in (self.pad, self.end_of_pad) and i not in self._special and i >= 0]
        if not said:
            return ""
        first = file.id_to_token(said[0]) or ""
        text = file.decode(said, skip_special_tokens=True)
        return f" {text}" if first.startswith((BLANK, "Ġ")) and not text[:1].isspace() else text

    def save(self, path: Path) -> None:
        path.write_text(self._loaded().to_str(), encoding="utf-8")

    def read(self, path: Path) -> None:
        package = need("tokenizers", "hub", f"the text tokenizer {path}")
        if not path.is_file():
            raise RequestError(f"{path} is missing: a tokenizer.json is expected there")
        try:
            self._file = package.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain exceptions
            raise CheckpointError(f"{path} is no tokenizer.json: {str(error).splitlines()[0]}") from error
        self._special = {i for i, token in self._file.get_added_tokens_decoder().items() if token.special}
        self._fits(str(path))
