"""Words on a frame clock: a closed vocabulary for the text streams of small systems. Id 0 is the pad (nothing said)."""

from collections.abc import Sequence

from vivavoce.errors import RequestError


class WordVocabulary:
    """id 0: pad; ids 1..n: `words` in order."""

    pad = 0

    def __init__(self, words: Sequence[str]):
        if len(set(words)) != len(words) or not words:
            raise RequestError("a vocabulary needs words, each once")
        self.words = tuple(words)
        self.ids = {word: i + 1 for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`, their case and the marks beside them left out; raises `RequestError` for a word
        that is not in the vocabulary."""
        words = [word for word in (word.strip(".,;:!?") for word in text.lower().split()) if word]
        unknown = [word for word in words if word not in self.ids]
        if unknown:
            raise RequestError(f"'{unknown[0]}' is not in the vocabulary: {', '.join(self.words)}")
        return [self.ids[word] for word in words]

    def spoken(self, text: str) -> list[list[int]]:
        """Ids of each word of `text`, as they stand in consecutive frames: one a word."""
        return [[i] for i in self.encode(text)]

    def text(self, ids: Sequence[int]) -> str:
        """The words of `ids`, pads left out."""
        return " ".join(self.words[i - 1] for i in ids if i > 0)
