"""What the Realtime dialect is made of; its routes are in `vivavoce.serving.dialects.realtime`."""
