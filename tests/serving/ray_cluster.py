"""A server of several processes for a test: prints a JSON line with its port, then obeys lines of its input: `kill
NAME` a replica, `stop`. In a process of its own, since Ray connects to this machine's own address.

Usage: python ray_cluster.py SETTINGS, a JSON object for `ClusterSettings`.
"""

import json
import sys

import ray

from vivavoce.serving.cluster.deploy import running
from vivavoce.serving.cluster.settings import ClusterSettings


def kill(replica: str) -> None:
    """End the process of a replica, as a fault would."""
    found = next(a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].endswith(replica))
    ray.kill(ray.get_actor(found["name"], namespace=found["namespace"]), no_restart=True)


with running(ClusterSettings(**json.loads(sys.argv[1])), port=0) as (port, handle):
    print(json.dumps({"port": port}), flush=True)
    for line in sys.stdin:
        command, *names = line.split()
        if command == "stop":
            break
        kill(*names)
        print(json.dumps({"killed": names}), flush=True)
print(json.dumps({"stopped": True}), flush=True)
