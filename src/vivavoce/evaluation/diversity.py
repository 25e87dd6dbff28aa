"""How much texts repeat themselves and each other: the measures that generated speech is held against.

Two families have one name and are not comparable.

- GSLM's (arXiv:2102.01192, section 4; fairseq's `self_auto_bleu.py`): n-grams of all orders 1 to n, averaged with equal
  weights, of words as a recogniser without punctuation writes them. auto-BLEU looks within a text, self-BLEU at all
  other texts, VERT is the geometric mean of the two.
- Slam's (arXiv:2502.15814; slamkit's `calc_auto_bleu`): n-grams of order n alone, punctuation marks being words.

All are shares, 0 to 1; papers print them in per cent. More is less diverse.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vivavoce.errors import RequestError, need

Averaging = Literal["geometric", "arithmetic"]
Words = Sequence[str]


def spoken_words(text: str) -> list[str]:
    """The words of a transcript in lower case, without punctuation, as GSLM's recogniser writes them."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def written_words(text: str) -> list[str]:
    """The words and punctuation marks of a transcript, as Slam counts them: NLTK's word tokenizer (extra `eval`)."""
    return list(need("nltk.tokenize", "eval", "Slam's auto-BLEU").NLTKWordTokenizer().tokenize(text))


def auto_bleu(words: Words, n: int = 2, averaging: Averaging = "geometric") -> float:
    """GSLM's auto-BLEU of one text: what share of its n-grams stand a second time in it, without overlap; 0 for fewer
    than two words."""
    if len(words) <= 1:
        return 0.0
    return _averaged([_repeated(words, order) for order in _orders(n)], averaging)


def repeated_ngrams(words: Words, n: int = 2) -> float:
    """Slam's auto-BLEU of one text: what share of its n-grams, of this order alone, stand a second time in it, with or
    without overlap; 0 for fewer than n words."""
    found = Counter(_grams(words, n))
    total = sum(found.values())
    return sum(count for count in found.values() if count > 1) / total if total else 0.0


def self_bleu(texts: Sequence[Words], n: int = 2, averaging: Averaging = "geometric") -> list[float]:
    """GSLM's self-BLEU: of each text its BLEU against all others, without a penalty for brevity.

    An n-gram counts at most as often as in the other text that has it oftenest (Papineni et al. 2002, section 2.1). NaN
    where there is no other text. It takes time in proportion to the words, not to pairs of texts.
    """
    if len(texts) < 2:
        return [math.nan] * len(texts)
    shares: list[list[float]] = [[] for _ in texts]
    for order in _orders(n):
        counts = [Counter(_grams(words, order)) for words in texts]
        most: dict[tuple[str, ...], tuple[int, int, int]] = {}  # of an n-gram: most in one text, which, most elsewhere
        for index, found in enumerate(counts):
            for gram, count in found.items():
                first, owner, second = most.get(gram, (0, -1, 0))
                most[gram] = (count, index, first) if count > first else (first, owner, max(second, count))
        for index, found in enumerate(counts):
            kept = 0
            for gram, count in found.items():
                first, owner, second = most[gram]
                kept += min(count, second if owner == index else first)
            shares[index].append(kept / max(1, sum(found.values())))
    # nothing in common is 0 whatever is averaged, as fairseq has it
    return [_averaged(each, averaging) if each[0] else 0.0 for each in shares]


def vert(self_bleus: Sequence[float], auto_bleus: Sequence[float]) -> float:
    """GSLM's VERT of a set of texts: the geometric mean of its mean self-BLEU and its mean auto-BLEU."""
    return math.sqrt(float(np.mean(self_bleus)) * float(np.mean(auto_bleus)))


def _orders(n: int) -> range:
    if n < 1:
        raise RequestError(f"n-grams of order {n}: at least 1")
    return range(1, n + 1)


def _grams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _repeated(words: Words, n: int) -> float:
    """The share of n-grams with another of their kind at least n words away."""
    grams = _grams(words, n)
    first: dict[tuple[str, ...], int] = {}
    last: dict[tuple[str, ...], int] = {}
    for place, gram in enumerate(grams):
        first.setdefault(gram, place)
        last[gram] = place
    again = sum(place - first[gram] >= n or last[gram] - place >= n for place, gram in enumerate(grams))
    return again / len(grams) if grams else 0.0


def _averaged(shares: Sequence[float], averaging: Averaging) -> float:
    if averaging == "arithmetic":
        return sum(shares) / len(shares)
    if averaging != "geometric":
        raise RequestError(f"averaging '{averaging}': there are geometric, arithmetic")
    return math.prod(share ** (1 / len(shares)) for share in shares)
