"""The page's files: all there, of the right type, guarded by headers, and nothing in them from anywhere else."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from serving.test_app import get
from vivavoce.serving.dialects.page import FOLDER, KINDS, policy

FILES = sorted(path.name for path in FOLDER.iterdir())
CODE = [name for name in FILES if name.endswith(".js")]


class Links(HTMLParser):
    """Every address in a document, and its inline scripts and styles."""

    def __init__(self):
        super().__init__()
        self.addresses, self.inline, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [given[name] for name in ("src", "href", "action", "poster", "data") if given.get(name)]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and not given.get("src")) else []
        self.ids += [given["id"]] if "id" in given else []


@pytest.fixture(scope="module")
def document():
    links = Links()
    links.feed((FOLDER / "index.html").read_text())
    return links


def test_the_page_and_its_files_are_served(serve):
    port, _ = serve("echo", dialects=("page",))
    for name in FILES:
        path = "/" if name == "index.html" else f"/page/{name}"
        status, body, headers = get(port, path)
        assert status == 200 and body == (FOLDER / name).read_bytes()
        assert headers["content-type"] == KINDS[name[name.index(".") :]] + "; charset=utf-8"
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-cache"
        assert headers["permissions-policy"].startswith("microphone=(self)")
        rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
        assert rules["default-src"] == "'none'" and rules["script-src"] == rules["style-src"] == "'self'"
        assert rules["connect-src"] == f"'self' ws://127.0.0.1:{port} wss://127.0.0.1:{port}"
        again, rest, headers = get(port, path, **{"If-None-Match": f'"other", W/{headers["etag"]}'})
        assert (again, rest) == (304, b"") and "content-security-policy" in headers


def test_what_is_not_there_is_said_in_words(serve):
    port, _ = serve("echo", dialects=("page",))
    for path, home in (("/page/none.js", "../"), ("/page/a/b", "../../"), ("/page/..%2fdialects/page.py", "../")):
        status, body, headers = get(port, path)
        assert status == 404 and b"There is nothing at this address" in body and f'{home}">here'.encode() in body
        assert headers["content-type"].startswith("text/html") and "content-security-policy" in headers
    assert get(port, "/page/index.html")[0] == 404  # its addresses hold at / alone


def test_a_host_that_is_none_is_not_repeated():
    assert "ws:" not in policy("x; script-src *") and "ws:" not in policy("")
    assert " wss://[::1]:8998;" in policy("[::1]:8998") and " ws://talk.example " in policy("talk.example")


def test_nothing_comes_from_elsewhere(document):
    """The document names its own files alone, no script or style stands in it, and no file names an address."""
    for address in document.addresses:
        parts = urlsplit(address)
        assert parts.scheme in ("", "data") and not parts.netloc, address
        if parts.path.startswith("page/"):
            assert (FOLDER / parts.path.removeprefix("page/")).is_file(), address
        else:
            assert parts.scheme == "data" or address == "#talk", address
    assert not document.inline
    for name in FILES:
        text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "").replace("http://localhost:", "")
        assert not re.search(r"(?:https?|wss?):\\?/\\?/\w|@import|url\(|[\"'`]//\w", text), name


@pytest.mark.parametrize("name", CODE)
def test_modules_import_what_is_there(name, document):
    text = (FOLDER / name).read_text()
    for found in re.findall(r'(?:from|import|new URL\()\s*"([^"]+\.js)"', text):
        assert (FOLDER / found.removeprefix("./")).is_file(), found
    for found in re.findall(r'(?:find|ById)\("([\w-]+)"\)', text):
        assert found in document.ids, found
    assert not re.search(r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", text)
    assert len(document.ids) == len(set(document.ids))


def test_it_is_small():
    assert sum((FOLDER / name).stat().st_size for name in FILES) < 100_000


def test_the_page_needs_nothing_but_its_dialect_and_health(serve):
    port, _ = serve("echo", dialects=("live", "page"))
    assert json.loads(get(port, "/health")[1])["model"] == "echo"
