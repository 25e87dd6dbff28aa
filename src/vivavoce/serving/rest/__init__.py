"""What the REST dialect is made of; its routes are in `vivavoce.serving.dialects.rest`."""
