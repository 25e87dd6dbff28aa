"""What somebody said, as text: a recogniser by path or hub id, for models and measures that have none of their own."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vivavoce.audio import Audio
from vivavoce.errors import CheckpointError, RequestError, need

RATE = 16000  # of every published recogniser that is loaded here
SPHINX = "pocketsphinx"
# what a directory of transformers is made of, pickles left out
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
CHUNK = 30.0  # seconds that a recogniser hears at once; longer audio is heard in pieces that overlap


class Transcriber(Protocol):
    """`transcriber(audio)` -> what was said, "" for nothing; audio of any rate, its channels averaged."""

    name: str

    def __call__(self, audio: Audio) -> str: ...


def load_transcriber(name: str | Path, device: str = "cpu", revision: str | None = None) -> Transcriber:
    """A recogniser by name.

    name: "pocketsphinx" (English, offline, in the extra `eval`); a directory or hub id `owner/name[@revision]` of a CTC
    or sequence-to-sequence model in transformers' format (wav2vec 2.0, HuBERT, Whisper, …; extra `hub`); or one of our
    models with the task `transcribe` ("mini" writes down digits). Raises `RequestError` where there is nothing of that
    name or it does not transcribe, `CheckpointError` for a directory that is not whole.
    """
    if str(name) == SPHINX:
        return Sphinx()
    from vivavoce.hub import local_place

    path = Path(name).expanduser()
    if (path.is_dir() and not (path / "config.json").exists()) or not (path.exists() or "/" in str(name)):
        return OwnModel(str(name))
    directory = local_place(name, "recogniser", FILES, revision)
    if (directory / "recipe.yaml").exists():
        return OwnModel(str(directory))
    return Published(directory, str(name), device)


class Sphinx:
    """pocketsphinx with its US English model: free speech, many words wrong; good for tests and for a first look."""

    name = SPHINX

    def __init__(self) -> None:
        sphinx = need("pocketsphinx", "eval", "the recogniser 'pocketsphinx'")
        self._decoder: Any = sphinx.Decoder(samprate=RATE, loglevel="FATAL")

    def __call__(self, audio: Audio) -> str:
        samples = audio.mono().resample(RATE).samples[0]
        self._decoder.start_utt()
        if len(samples):
            self._decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found is not None else ""


class OwnModel:
    """A model of ours that transcribes."""

    def __init__(self, name: str):
        from vivavoce.systems import load

        self.name, self._model = name, load(name)
        if "transcribe" not in getattr(self._model, "tasks", {}):
            raise RequestError(f"'{name}' has no task 'transcribe': name a recogniser")

    def __call__(self, audio: Audio) -> str:
        return str(self._model.reply([("user", audio)], task="transcribe").text or "")


class Published:
    """A CTC or sequence-to-sequence recogniser in transformers' format, through its own pipeline."""

    def __init__(self, directory: Path, name: str, device: str = "cpu"):
        transformers = need("transformers", "hub", f"the recogniser '{name}'")
        self.name = name
        try:
            self._heard: Any = transformers.pipeline(
                "automatic-speech-recognition", model=str(directory), device=device, trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            why = str(error).strip().split("\n")[0]
            raise CheckpointError(f"'{name}' is no recogniser that transformers can load: {why}") from error
        self._rate = int(self._heard.feature_extractor.sampling_rate)
        self._whisper = self._heard.type == "seq2seq_whisper"

    def __call__(self, audio: Audio) -> str:
        samples = audio.mono().resample(self._rate).samples[0]
        if not len(samples):
            return ""
        options: dict[str, Any] = {}
        if len(samples) > CHUNK * self._rate:
            options = {"return_timestamps": True} if self._whisper else {"chunk_length_s": CHUNK}
        found = self._heard({"raw": np.array(samples), "sampling_rate": self._rate}, **options)
        return str(found["text"]).strip()
