"""One family of errors. Each message says what was wrong, where (file, field, sample), and what to do about it.

The command line turns a `VivavoceError` into one line on stderr and the class's exit code; anything else is a
fault of ours and keeps its stack trace behind `--debug`.
"""


class VivavoceError(Exception):
    """Base of all errors that a user can mend. `exit_code` is what the command line returns: 1 = the work failed."""

    exit_code = 1


class RequestError(VivavoceError, ValueError):
    """The request itself was wrong: an argument, a shape, a name that does not exist (exit code 2)."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe does not say something that can be built; the message carries the path inside the file."""


class AudioError(VivavoceError, ValueError):
    """A waveform or audio file cannot be used (corrupt, empty, not audio, NaN, wrong shape)."""


class DataError(VivavoceError, ValueError):
    """A corpus, manifest or token store is unusable or not the one that the model expects."""


class CheckpointError(VivavoceError, ValueError):
    """Weights on disk do not fit the model that should hold them."""


class MissingExtra(VivavoceError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package '{package}': pip install 'vivavoce[{extra}]'")


def need(package: str, extra: str, purpose: str):
    """Import and return an optional `package` (dotted names allowed) or raise `MissingExtra` naming its `extra`."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        if error.name is not None and not package.startswith(error.name.split(".")[0]):
            raise
        raise MissingExtra(package.split(".")[0], extra, purpose) from error
