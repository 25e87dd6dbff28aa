"""The page's files, the figures, and whatever else answers plain HTTP."""

from serving.fuzz.case import Case, random_of, request
from serving.fuzz.plain import PATHS, plain, slow


def make(seed: int, number: int) -> Case:
    """Case `number` of these paths."""
    rng = random_of("page", seed, number)
    case = Case("page", number, "")
    if rng.random() < 0.02:
        return slow(case, rng, request("GET", rng.choice(PATHS)))
    return plain(case, rng)
