"""Vocoders: units or frames to waveforms."""
