"""Speech synthesizers that are programs of the system: run one, read the wav file that it writes."""

from __future__ import annotations

import os
import subprocess
import tempfile

import numpy as np

from vivavoce.errors import DataError

WAV = "said.wav"  # what a call of `record` is to write into the folder that it runs in


def run(program: str, *arguments: str, script: str | None = None, folder: str | None = None) -> str:
    """Standard output of one call, `script` on its standard input; in a `folder` it is to write `WAV`.

    Raises `DataError` with the program's name and its complaint where it cannot run, takes over two minutes, fails, or
    writes no file.
    """
    name = os.path.basename(program)
    command = [os.path.abspath(program), *arguments]  # a relative path would be looked for in `folder`
    try:
        done = subprocess.run(
            command, input=script, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{name} could not run: {error}") from error
    # Flite ends with status 0 where it cannot write: the file is looked for too.
    if done.returncode != 0 or (folder is not None and not os.path.isfile(os.path.join(folder, WAV))):
        raise DataError(f"{name} failed with status {done.returncode}: {done.stderr.strip() or 'no message'}")
    return done.stdout


def record(program: str, *arguments: str, script: str | None = None) -> tuple[np.ndarray, int, str]:
    """Samples float32 [channels, n] of the file `WAV` that one call writes, their rate in Hz, its standard output.

    Raises `DataError` as `run`, and for a file that is not audio.
    """
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        printed = run(program, *arguments, script=script, folder=folder)
        try:
            samples, sample_rate = soundfile.read(os.path.join(folder, WAV), dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise DataError(f"{os.path.basename(program)} wrote a file that cannot be read: {error}") from error
    return np.ascontiguousarray(samples.T), sample_rate, printed
