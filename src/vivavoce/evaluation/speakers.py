"""Whose voice it is, as a vector: a speaker encoder by path or hub id, for measures of similarity."""

from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.errors import CheckpointError, need

FILES = ("*.json", "*.safetensors")


class SpeakerEncoder:
    """`encoder(audio)` -> unit vector of the voice in it [width]; audio of any rate, its channels averaged."""

    def __init__(self, directory: Path, name: str):
        transformers = need("transformers", "hub", f"the speaker encoder '{name}'")
        self.name = name
        try:
            self._features: Any = transformers.AutoFeatureExtractor.from_pretrained(directory)
            self._model: Any = transformers.AutoModelForAudioXVector.from_pretrained(directory, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            why = str(error).strip().split("\n")[0]
            raise CheckpointError(f"'{name}' is no encoder of x-vectors that transformers can load: {why}") from error
        self._model.eval()

    def __call__(self, audio: Audio) -> np.ndarray:
        import torch

        rate = int(self._features.sampling_rate)
        given = self._features(audio.mono().resample(rate).samples[0], sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            vector = self._model(**given).embeddings[0].double().numpy()
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def load_speaker_encoder(name: str) -> SpeakerEncoder:
    """An encoder of x-vectors in transformers' format (WavLM, wav2vec 2.0, …): a directory or hub id
    `owner/name[@revision]`. Raises `RequestError` where there is none, `CheckpointError` where it is something else."""
    from vivavoce.hub import local_place

    return SpeakerEncoder(local_place(name, "speaker encoder", FILES), name)
