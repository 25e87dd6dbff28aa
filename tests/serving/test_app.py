"""The server on a port: figures, keys, origins, and refusals that say why."""

import json
import urllib.error
import urllib.request

import pytest

from vivavoce.errors import RequestError
from vivavoce.serving.access import Access, Denied, Key, digest_of, read_keys

MINE, EARS = digest_of("secret"), digest_of("ears")
KEYS = {MINE: Key("me", MINE), EARS: Key("ears", EARS, ("talk",))}


def get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_figures_are_shown(serve):
    port, _ = serve("echo", dialects=())
    status, body, _ = get(port, "/health")
    assert status == 200 and json.loads(body)["status"] == "ok" and json.loads(body)["rows"] == 4
    assert json.loads(get(port, "/v1/queue")[1]) == {"waiting": 0, "free": 4, "eta_seconds": 0.0}
    assert json.loads(get(port, "/v1/sessions")[1]) == {"data": []}
    assert b'vivavoce_conversations{model="echo"} 0.0' in get(port, "/metrics")[1]


def test_keys_are_asked_for(serve):
    port, _ = serve("echo", dialects=(), access=Access(KEYS))
    for headers, status, code in (
        ({}, 401, "missing_api_key"), ({"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"X-API-Key": "ears"}, 403, "scope_missing"),
    ):  # fmt: skip
        found, body, _ = get(port, "/v1/sessions", **headers)
        assert (found, json.loads(body)["error"]["code"]) == (status, code)
    assert get(port, "/v1/sessions", Authorization="Bearer secret")[0] == 200
    assert get(port, "/v1/sessions?api_key=secret")[0] == 200
    assert get(port, "/health")[0] == 200  # a load balancer has no key


def test_pages_of_other_sites_are_refused():
    rules = Access()
    rules.visit({"origin": "http://127.0.0.1:8998", "host": "127.0.0.1:8998"}, "a", "talk", 0.0)
    rules.visit({"origin": "http://localhost:3000", "host": "127.0.0.1:8998"}, "a", "talk", 0.0)
    with pytest.raises(Denied, match=r"evil\.example"):
        rules.visit({"origin": "https://evil.example", "host": "127.0.0.1:8998"}, "a", "talk", 0.0)
    with pytest.raises(Denied, match="localhost:3000"):
        rules.visit({"origin": "http://localhost:3000", "host": "talk.example"}, "a", "talk", 0.0, local=False)
    with pytest.raises(Denied) as refused:
        rules.visit({"host": "talk.example"}, "a", "talk", 0.0, local=False)
    assert refused.value.code == "origin_missing"
    Access(origins=("https://good.example",)).visit(
        {"origin": "https://good.example", "host": "talk.example"}, "a", "talk", 0.0, local=False
    )


def test_a_key_has_so_many_conversations_and_no_more():
    rules = Access({digest_of("k"): Key("k", digest_of("k"), conversations=2)})
    visitor = rules.visit({"authorization": "Bearer k"}, "10.0.0.1", "talk", 0.0)
    rules.enter(visitor)
    rules.enter(visitor)
    with pytest.raises(Denied, match="2 conversations already"):
        rules.enter(visitor)
    rules.leave(visitor)
    rules.enter(visitor)


def test_ephemeral_keys_open_one_conversation_for_a_while():
    rules = Access(KEYS)
    owner = rules.visit({"authorization": "Bearer secret"}, "a", "rest", 0.0)
    secret, until = rules.ephemeral(owner, 60.0, 100.0, {"voice": "x"})
    assert secret.startswith("ek_") and until == 160.0
    guest = rules.visit({"origin": "http://localhost", "host": "h"}, "b", "talk", 159.0, protocols=[
        "realtime", f"openai-insecure-api-key.{secret}"])
    assert guest.limits.conversations == 1 and rules.session_of(secret, 159.0) == {"voice": "x"}
    with pytest.raises(Denied, match="does not open rest"):
        rules.visit({"authorization": f"Bearer {secret}"}, "b", "rest", 159.0)
    with pytest.raises(Denied) as refused:
        rules.visit({"authorization": f"Bearer {secret}"}, "b", "talk", 161.0)
    assert refused.value.code == "key_expired"


def test_a_file_of_keys(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(f"me: {{sha256: {digest_of('x')}}}\nears: {{sha256: {digest_of('y')}, scopes: [talk]}}\n")
    assert {k.name: k.scopes for k in read_keys(path).values()} == {"me": ("talk", "rest"), "ears": ("talk",)}
    for text, message in (
        ("me: x", "64 hexadecimal"), ("[1]", "a mapping"), ("a: {sha256: zz}", "64 hexadecimal"),
        ("{", "no file of keys"), (f"me: {{sha256: {digest_of('x')}, scopes: [fly]}}", "'fly' is unknown"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(RequestError, match=message):
            read_keys(path)
