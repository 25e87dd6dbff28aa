"""Words on a frame clock: a closed vocabulary for the text streams of small systems. Id 0 is the pad (nothing said)."""

from collections.abc import Sequence

from vivavoce.errors import RequestError


class WordVocabulary:
    """id 0: pad; ids 1..n: `words` in order. With `end_of_pad` one id more, n + 1, stands in the frame before a word
    (see `vivavoce.tokenizers.pieces`). unknown: the one of `words` that stands for every word that is none of them."""

    pad = 0

    def __init__(self, words: Sequence[str], end_of_pad: bool = False, unknown: str | None = None):
        if len(set(words)) != len(words) or not words:
            raise RequestError("a vocabulary needs words, each once")
        if unknown is not None and unknown not in words:
            raise RequestError(f"'{unknown}' is to stand for unknown words, and is not among the words")
        self.words = tuple(words)
        self.ids = {word: i + 1 for i, word in enumerate(self.words)}
        self.unknown = self.ids[unknown] if unknown is not None else None
        self.end_of_pad = len(self.words) + 1 if end_of_pad else None

    def __len__(self) -> int:
        return len(self.words) + 1 + (self.end_of_pad is not None)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`, their case and the marks beside them left out; raises `RequestError` for a word
        that is not in the vocabulary, unless one stands for such words."""
        words = [word for word in (word.strip(".,;:!?") for word in text.lower().split()) if word]
        unknown = [word for word in words if word not in self.ids]
        if unknown and self.unknown is None:
            raise RequestError(f"'{unknown[0]}' is not in the vocabulary: {', '.join(self.words)}")
        return [self.ids.get(word, self.unknown or 0) for word in words]

    def word(self, text: str, first: bool = False) -> list[int]:
        """The id of one word on the frame clock, as `encode` finds it."""
        return self.encode(text)

    def spoken(self, text: str) -> list[list[int]]:
        """Ids of each word of `text`, as they stand in consecutive frames: one a word, `end_of_pad` before it."""
        before = [] if self.end_of_pad is None else [self.end_of_pad]
        return [[*before, i] for i in self.encode(text)]

    def text(self, ids: Sequence[int]) -> str:
        """The words of `ids`, pads left out."""
        return " ".join(self.words[i - 1] for i in ids if 0 < i <= len(self.words))
