"""OpenAI Realtime in the beta's spelling."""

from serving.fuzz import realtime
from serving.fuzz.case import Case


def make(seed: int, number: int) -> Case:
    """Case `number` of this spelling."""
    return realtime.make(seed, number, beta=True)
