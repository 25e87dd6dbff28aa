"""Ray, connected: for what tokenizes a corpus on several machines, and for what serves on them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vivavoce.errors import RequestError, need

SILENT = {"RAY_USAGE_STATS_ENABLED": "0"}  # it reports nothing to Ray's makers


@contextmanager
def connected(address: str | None, purpose: str, environment: Mapping[str, str]) -> Iterator[Any]:
    """The package `ray` while the block runs, connected to the cluster at `address`, or (None) to one of this machine's
    own, whose processes are our children and have `environment` where ours says nothing else.

    Raises `RequestError` where there is none, and `MissingExtra`, which names the `purpose`.
    """
    ray = need("ray", "ray", purpose)
    os.environ.update({**SILENT, **environment, **os.environ})
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(f"Ray could not be reached or started: {error}".split("\n")[0]) from error
    try:
        yield ray
    finally:
        ray.shutdown()
