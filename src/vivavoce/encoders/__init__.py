"""Encoders: waveforms to frames and units."""
