"""What lies in deploy/ against what there is: metrics that a server shows, options, commands, ports, times, pages."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.server import LIVE
from serving.settings import ServerSettings
from training import cli, configuration
from training.monitoring.gauges import gauges

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "observability.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
RULES = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
MANIFESTS = [
    each for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())
]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
METRICS_PORT = 9464
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
import pytest
from index.generations import GenerationStore
from serving.server import serve
from serving.state.local_redis import LocalRedis
from serving_cases import NOW_MS, load_fakes, publish, settings

folder = Path(sys.argv[1])
load_fakes(pytest.MonkeyPatch())
store = GenerationStore(folder / "generations")
store.activate(publish(store, 1), time_ms=NOW_MS)
with LocalRedis() as redis:
    chosen = replace(settings(folder), metrics_port=0, redis=redis.url)
    serve(chosen, on_ready=lambda address: print(address.metrics_target, flush=True))
"""


NOTHING_FOUND = {
    "checks": [],
    "alarms": {"quality": 0},
    "verdict": {"retrain": False, "reasons": [], "held_back_by": []},
    "window": {"until_ms": 0},
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of everything that a server with all of its parts shows, and the last report, as queries name it."""
    folder = tmp_path_factory.mktemp("served")
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "serving")))
    server = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert server.stdout is not None
        with urlopen(f"http://{server.stdout.readline().strip()}/metrics", timeout=30) as reply:
            families = list(text_string_to_metric_families(reply.read().decode() + gauges(NOTHING_FOUND)))
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {each.name + suffix for each in families for suffix in suffixes.get(each.type, ("",))}


def metrics_of(query: str) -> set[str]:
    return set(re.findall(r"\b(?:cascade|process|python)_[a-z_]+", re.sub(r"\{[^}]*\}|\([a-z, ]*\)", " ", query)))


def test_every_metric_of_an_alarm_is_shown(shown: set[str]) -> None:
    for rule in RULES:
        used = metrics_of(rule["expr"])
        assert used <= shown, rule["alert"]
        assert used or "up{" in rule["expr"], rule["alert"]


def test_every_metric_of_the_dashboard_is_shown(shown: set[str]) -> None:
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    assert len(targets) > 30
    for target in targets:
        assert metrics_of(target["expr"]), target["expr"]
        assert metrics_of(target["expr"]) <= shown, target["expr"]


def test_every_metric_that_is_shown_has_its_row_and_the_other_way_round(shown: set[str]) -> None:
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in shown if name.startswith("cascade_")}
    assert ours == set(re.findall(r"^\| `(cascade_\w+)`", PAGE, re.MULTILINE))


def test_every_metric_is_on_the_dashboard_or_behind_an_alarm(shown: set[str]) -> None:
    text = json.dumps(DASHBOARD) + json.dumps(RULES)
    seen = {"cascade_requests_started_total", "cascade_catalog_seq"}
    for name in {re.sub("_(bucket|sum|count)$", "", name) for name in shown if name.startswith("cascade_")} - seen:
        assert name in text


def test_every_alarm_leads_to_a_section_that_says_what_it_means_and_what_to_do() -> None:
    sections = dict(re.findall(r"^### (\w+)$\n(.*?)(?=^###? |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
    assert list(sections) == [rule["alert"] for rule in RULES]
    scraping = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["global"]["external_labels"]
    assert set(scraping) == {"manual"}
    for rule in RULES:
        link = f"{{{{ $externalLabels.manual }}}}/runbook.html#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == link
        assert rule["annotations"]["summary"]
        severity = rule["labels"]["severity"]
        assert severity in ("page", "ticket")
        section = sections[rule["alert"]]
        assert section.strip().startswith(f"*{severity.title()}.*"), rule["alert"]
        assert "**Look at**" in section
        assert "**Do**" in section


def test_the_runbook_speaks_of_alarms_that_there_are() -> None:
    assert set(re.findall(r"\bCascade[A-Z]\w+", RUNBOOK)) == {rule["alert"] for rule in RULES}


def test_panels_neither_overlap_nor_share_an_id() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind]
    return dict(found)


def container() -> dict[str, Any]:
    (found,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def dockerfile(instruction: str) -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction} (.*)$", text, re.MULTILINE)


COMMANDS = {
    "Dockerfile CMD": json.loads(dockerfile("CMD")[-1]),
    "Dockerfile HEALTHCHECK": json.loads(dockerfile("HEALTHCHECK")[0].partition("CMD")[2])[1:],
    "compose": COMPOSE["cascade"]["command"],
    "kubernetes": container()["args"],
    **{probe: container()[probe]["exec"]["command"][1:] for probe in PROBES},
}
"""Everything in deploy/ that the image is told to run, without `cascade`."""


@pytest.mark.parametrize("where", COMMANDS)
def test_every_command_is_one_that_there_is(where: str) -> None:
    given = parsed(COMMANDS[where])
    if given.command == "serve":
        known = {field.name for field in fields(ServerSettings)} | {"security"}
        assert {option.partition("=")[0].partition(".")[0] for option in given.options} <= known
        assert served_by(COMMANDS[where]).metrics_port == METRICS_PORT


def parsed(words: list[str]) -> Namespace:
    return cli._parse(words)


def served_by(words: list[str]) -> ServerSettings:
    """Less what decides who may listen beyond loopback: its files are only on the cluster."""
    chosen = [word for word in words[1:] if not word.startswith(("host=", "security."))]
    made: ServerSettings = configuration.settings("serve", chosen)
    return made


def test_ports_are_those_of_the_configuration() -> None:
    settings = served_by(container()["args"])
    assert settings.metrics_port == METRICS_PORT
    ports = {each["name"]: each["containerPort"] for each in container()["ports"]}
    assert ports == {"grpc": settings.port, "admin": settings.admin_port, "metrics": METRICS_PORT}
    assert dockerfile("EXPOSE") == [f"{settings.port} {settings.admin_port} {METRICS_PORT}"]
    assert [each["port"] for each in manifest("Service")["spec"]["ports"]] == [settings.port]
    annotations = manifest("StatefulSet")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(METRICS_PORT)
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"] == [{"targets": [f"127.0.0.1:{METRICS_PORT}"]}]
    assert f'job="{scraped["job_name"]}"' in RULES[0]["expr"]


def test_probes_ask_for_health_names_that_there_are() -> None:
    asked = {}
    for probe in PROBES:
        given = parsed(COMMANDS[probe])
        asked[probe] = given.service
        assert given.target.endswith(f":{served_by(container()['args']).port}")
    assert asked == {"startupProbe": LIVE, "readinessProbe": "", "livenessProbe": LIVE}


def test_nobody_is_killed_while_they_drain() -> None:
    settings = served_by(container()["args"])
    spec = manifest("StatefulSet")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= settings.lame_duck_s + settings.grace_s + 10
    alone = served_by(COMPOSE["cascade"]["command"])
    assert int(COMPOSE["cascade"]["stop_grace_period"].removesuffix("s")) >= alone.lame_duck_s + alone.grace_s + 5


def test_every_mount_has_its_volume_and_every_file_its_mount() -> None:
    spec = manifest("StatefulSet")["spec"]
    claims = [each["metadata"]["name"] for each in spec["volumeClaimTemplates"]]
    volumes_of_pod = spec["template"]["spec"]["volumes"]
    volumes = {each["name"] for each in volumes_of_pod} | set(claims)
    mounts = {each["name"]: each["mountPath"] for each in container()["volumeMounts"]}
    assert set(mounts) == volumes
    store = [each for each in MANIFESTS if each["kind"] == "PersistentVolumeClaim"]
    named = [each["persistentVolumeClaim"]["claimName"] for each in volumes_of_pod if "persistentVolumeClaim" in each]
    assert named == [each["metadata"]["name"] for each in store]
    words = [*container()["args"], *container()["livenessProbe"]["exec"]["command"]]
    for path in (word.partition("=")[2] for word in words):
        assert not path.startswith("/") or path.startswith(tuple(mounts.values())), path


def test_the_server_of_the_manifests_can_do_little_harm_and_is_found() -> None:
    pod, one = manifest("StatefulSet")["spec"]["template"], container()
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert str(pod["spec"]["securityContext"]["runAsUser"]) in dockerfile("USER")
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(one["resources"]) == {"requests", "limits"}
    labels = pod["metadata"]["labels"].items()
    assert manifest("Service")["spec"]["selector"].items() <= labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"] == {
        "apiVersion": manifest("StatefulSet")["apiVersion"],
        "kind": "StatefulSet",
        "name": manifest("StatefulSet")["metadata"]["name"],
    }


def test_nothing_of_compose_listens_beyond_loopback() -> None:
    for name, service in COMPOSE.items():
        assert service["network_mode"] == "host", name
        assert "ports" not in service
    assert served_by(COMPOSE["cascade"]["command"]).host == "127.0.0.1"
    assert COMPOSE["redis"]["command"][1:3] == ["--bind", "127.0.0.1"]
    assert "--web.listen-address=127.0.0.1:9090" in COMPOSE["prometheus"]["command"]
    assert COMPOSE["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_files_that_compose_mounts_are_there() -> None:
    for service in COMPOSE.values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (DEPLOY / volume.partition(":")[0]).is_file(), volume


def test_the_image_gets_all_packages_and_pins_torch_first() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for package in {name.partition(".")[0] for name in packages}:
        assert f"!{package}" in ignored
    installs = [line for line in dockerfile("RUN") if "pip install" in line]
    assert [("torch==" in line, "--constraint requirements/dev.lock" in line) for line in installs] == [
        (True, False),
        (False, True),
    ]
    assert len(dockerfile("FROM")) == 2
    assert [shlex.split(each) for each in dockerfile("USER")] == [["10001"]]
