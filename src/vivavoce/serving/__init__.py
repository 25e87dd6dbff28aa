"""Conversations with a model over the network: one core, several dialects, many people. Needs the extra `serve`."""

from vivavoce.errors import need

need("starlette", "serve", "a server")
