"""Whole speech language models: assembly from a recipe, checkpoints, the verbs."""

from vivavoce.systems.assembly import assemble, build, fingerprint
from vivavoce.systems.chain import ChainLM
from vivavoce.systems.checkpoint import load, save
from vivavoce.systems.codec_model import CodecModel, Resynthesis
from vivavoce.systems.exports import save_as
from vivavoce.systems.model import MissingVerb, Model
from vivavoce.systems.speech_lm import Features, SpeechLM
from vivavoce.systems.token_lm import TokenLM
from vivavoce.systems.tokenizers import load_tokenizer

__all__ = [
    "ChainLM",
    "CodecModel",
    "Features",
    "MissingVerb",
    "Model",
    "Resynthesis",
    "SpeechLM",
    "TokenLM",
    "assemble",
    "build",
    "fingerprint",
    "load",
    "load_tokenizer",
    "save",
    "save_as",
]
