"""What `deploy/` and its page say: queries name figures that there are, files are what their programs read."""

import inspect
import json
import math
import re
import shlex

import pytest
import typer
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from shown_commands import ROOT
from vivavoce.cli import load_command
from vivavoce.serving.access import read_keys
from vivavoce.serving.cluster import proxy
from vivavoce.serving.cluster.deploy import application
from vivavoce.serving.cluster.figures import metrics_of
from vivavoce.serving.cluster.settings import ClusterSettings
from vivavoce.serving.metrics import Metrics

DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "deploy.md").read_text()
DASHBOARD = json.loads((DEPLOY / "grafana" / "vivavoce.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
RULES = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
NAME = re.compile(r"vivavoce_[a-z_]+")


def exported():
    """Every name that `/metrics` can show, and the labels of each."""
    metrics = Metrics("m")
    metrics.ended.labels("m", "closed"), metrics.refused.labels("m", "queue_full")
    names: dict[str, set[str]] = {}
    for line in metrics_of({"r": metrics.text().decode()}).decode().splitlines():
        if found := re.match(r"(\w+)\{(.*)\} ", line):
            names.setdefault(found[1], set()).update(re.findall(r'(\w+)="', found[2]))
    return names


@pytest.mark.parametrize("query", [*QUERIES, *RULES])
def test_queries_name_figures_and_labels_that_there_are(query):
    known = exported()
    names = NAME.findall(query)
    assert names or query.startswith("up{"), query
    for name in names:
        assert name in known, name
        if "histogram_quantile" in query:
            assert name.endswith("_bucket") and re.search(r"by \(le\b", query)
    for labels in re.findall(r"by \(([^)]*)\)|\{([^}]*)\}", query):
        for label in re.findall(r"(\w+)(?:[=~!]|,|$)", " ".join(labels)):
            assert label in {*(each for name in names for each in known[name]), "job"}, label
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


def test_figures_that_the_page_names_are_there():
    known = exported()
    assert len(set(NAME.findall(PAGE))) > 6
    for name in NAME.findall(PAGE):
        assert name in known or f"{name}_bucket" in known, name


def test_the_dashboard_is_whole():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"]) > 12
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used <= variables | {"__rate_interval"} and NAME.findall(json.dumps(DASHBOARD["templating"]))
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_alerts_say_what_to_do():
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) == 7  # as the page says
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] in ("page", "ticket") for rule in rules)
    scraping = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert scraping["rule_files"] == ["alerts.yml"] and scraping["scrape_configs"][0]["job_name"] == "vivavoce"


def test_the_file_for_serve_deploy_is_read_and_built(tmp_path):
    config = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    parsed = ServeDeploySchema.model_validate(config)
    [app] = parsed.applications
    assert app.import_path == f"{application.__module__}:{application.__name__}" and parsed.http_options.port == 8998
    [argument] = inspect.signature(application).parameters.values()
    assert argument.annotation is ClusterSettings  # by which Serve checks and converts `args`
    keys = tmp_path / "keys.yaml"
    keys.write_text(re.search(r"```yaml\n(phone:.*?)```", PAGE, re.DOTALL)[1])
    settings = ClusterSettings(**{**app.args, "keys": str(keys)})
    built = application(settings)._bound_deployment
    assert built._deployment_config.autoscaling_config.max_replicas == 8 and len(built.init_args[1]) == 3
    again = application(settings)._bound_deployment
    assert built.init_args[2] == again.init_args[2] == "change-me"  # the same at each deployment
    for text in (PAGE, (DEPLOY / "serve.yaml").read_text()):
        assert f"{proxy.VARIABLE}={proxy.PATH}" in text


def test_the_keys_of_the_page_are_keys(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(re.search(r"```yaml\n(phone:.*?)```", PAGE, re.DOTALL)[1])
    keys = {key.name: key for key in read_keys(path).values()}
    assert keys["prometheus"].scopes == ("metrics",) and keys["website"].conversations == 200


# -- containers and units --


def instructions():
    """The instructions of the Containerfile, with their continuations: [(name, rest)]."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def options_of(command):
    """The options that a command has."""
    return {option for parameter in load_command(command).params for option in parameter.opts}


def test_the_containerfile_builds_what_there_is():
    steps = instructions()
    known = {
        "FROM", "RUN", "ENV", "WORKDIR", "COPY", "ARG", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
        "ENTRYPOINT", "CMD",
    }
    assert {name for name, _ in steps} <= known
    found = dict(steps)
    assert re.search(r":3\.1\d-slim", found["FROM"]) and found["USER"] == "vivavoce"
    names = [name for name, _ in steps]
    assert names.index("USER") < names.index("ENTRYPOINT") and "useradd" in steps[names.index("USER") - 1][1]
    for name, rest in steps:
        if name == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists(), source
    pins = (ROOT / "requirements" / "core.txt").read_text()
    torch = re.search(r"torch==[\d.]+", " ".join(rest for _, rest in steps))[0]
    assert torch in pins.split()
    extras = (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^{found['ARG'].partition('=')[2]} = \[", extras, re.MULTILINE)
    command = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    assert command[:2] == ["vivavoce", "talk"] and {o for o in command if o.startswith("--")} <= options_of("talk")
    check = json.loads(re.search(r"CMD (\[.*\])", found["HEALTHCHECK"])[1])
    compile(check[2], "healthcheck", "exec")
    assert found["EXPOSE"] in check[2]


def test_the_compose_file_and_the_unit_start_the_command():
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = composed["services"]
    own = services["vivavoce"]
    assert {o for o in own["command"] if o.startswith("--")} <= options_of("talk")
    assert (ROOT / own["build"]["dockerfile"]).is_file()
    made = {"keys.yaml", "metrics.key"}  # by the reader, as the file's head says
    for service in services.values():
        assert set(service.get("secrets", ())) <= composed["secrets"].keys() == made
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in composed["volumes"], source
        assert "latest" not in service.get("image", "")
    unit = (DEPLOY / "vivavoce.service").read_text()
    words = shlex.split(re.search(r"ExecStart=(.*)", unit)[1])
    assert words[1] == "talk" and {o for o in words if o.startswith("--")} <= options_of("talk")


def test_proxies_are_told_of_websockets_and_of_the_port():
    nginx, caddy = ((DEPLOY / name).read_text() for name in ("nginx.conf", "Caddyfile"))
    upgrade = ("Upgrade $http_upgrade", "Connection $connection_upgrade", "proxy_http_version 1.1")
    for said in (*upgrade, "proxy_buffering off", "127.0.0.1:8998", "Host $http_host"):
        assert said in nginx, said
    assert nginx.count("{") == nginx.count("}") and "reverse_proxy vivavoce:8998" in caddy


def test_the_options_that_the_page_shows_are_there():
    for line in re.findall(r"vivavoce talk ([^`\n]*)", PAGE):
        assert set(re.findall(r"--[a-z-]+", line)) <= options_of("talk"), line
    assert isinstance(load_command("talk"), typer.core.TyperCommand)


def test_wrong_numbers_of_replicas_are_refused():
    from vivavoce.cli import app

    for wrong in ("0", "4:2", "many"):
        done = CliRunner().invoke(app, ["talk", "tone", "--replicas", wrong, "--port", "0"])
        assert done.exit_code != 0 and "MIN:MAX" in str(done.exception) + done.output


# -- the page's sums --


def test_the_sums_of_the_page_are_right():
    assert "1,000 / (17 · 0.75) = 79 replicas, on 10 machines of 16 cores" in PAGE
    assert math.ceil(1000 / (17 * 0.75)) == 79 and math.ceil(79 / 8) == 10

    def waits(load, rows):  # Erlang's formula C
        blocked = 1.0
        for count in range(1, rows + 1):
            blocked = load * blocked / (count + load * blocked)
        return blocked / (1 - load / rows * (1 - blocked))

    assert [round(1000 * waits(load, rows)) for load, rows in ((10, 16), (10, 20), (130, 160))] == [57, 4, 7]


MACHINES = [(40e9, 16e9), (300e9, 256e9), (300e9, 24e9), (2.039e12, 80e9), (3.35e12, 80e9)]  # bytes a second, bytes


def test_the_table_of_models_follows_from_its_numbers():
    table = re.findall(r"^\| ([^|]+) \| ([\d.]+) GB \| ([\d,]+) MB \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(table) >= 5
    for name, gigabytes, megabytes, cells in table:
        weights, row = float(gigabytes) * 1e9, float(megabytes.replace(",", "")) * 1e6
        for (bandwidth, memory), cell in zip(MACHINES, cells.split(" | "), strict=True):
            step = weights / bandwidth
            rows = min((0.04 - step) * bandwidth / row, (0.9 * memory - weights) / row)
            shown = re.fullmatch(r"([\d.]+) ms, ([\d,]+|none)", cell)
            assert float(shown[1]) == pytest.approx(1000 * step, rel=0.05, abs=0.06), (name, cell)
            if shown[2] == "none":
                assert rows < 1, (name, cell)
            else:
                assert int(shown[2].replace(",", "")) == pytest.approx(rows, rel=0.02, abs=1), (name, cell)
