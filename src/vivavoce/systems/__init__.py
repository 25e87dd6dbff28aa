"""Whole speech language models: assembly from a recipe, checkpoints, the verbs."""

from vivavoce.systems.assembly import assemble, build, fingerprint
from vivavoce.systems.checkpoint import load, save
from vivavoce.systems.speech_lm import Features, Resynthesis, SpeechLM
from vivavoce.systems.tokenizers import load_tokenizer

__all__ = ["Features", "Resynthesis", "SpeechLM", "assemble", "build", "fingerprint", "load", "load_tokenizer", "save"]
