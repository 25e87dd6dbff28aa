"""One address for several processes or machines, by Ray Serve: each replica has a model, its rows and every dialect.

A WebSocket stays with the replica that it was routed to (`router`: the one with the most free rows), and what refers to
a conversation later names its replica (`names`). What one replica cannot know alone, all know: ephemeral keys carry
what they are for (`sealed`), limits count everywhere, `/health` and its like show all (`figures`), chat goes on from
answers of any (`peers`). `scaling` decides how many replicas there are, `deploy` starts them. Needs the extra `ray`.
"""

from vivavoce.errors import MissingExtra, need

PURPOSE = "a server of several processes"
need("ray", "ray", PURPOSE)

try:
    import ray.serve  # noqa: F401
except ImportError as error:  # Ray without its parts for serving
    raise MissingExtra("ray[serve]", "ray", PURPOSE) from error
