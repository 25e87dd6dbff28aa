"""What can go wrong in a training that the user must know about."""

from vivavoce.errors import VivavoceError


class TrainingError(VivavoceError):
    """A training cannot go on: a loss that is not a number, a disk that is full. Names the last good checkpoint."""


class Interrupted(TrainingError):
    """The training was asked to stop (SIGINT, SIGTERM) and has saved a checkpoint; starting it again goes on."""
