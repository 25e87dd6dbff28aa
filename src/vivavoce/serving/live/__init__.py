"""What the Live dialect is made of; its routes are in `vivavoce.serving.dialects.live`."""
