"""What a fresh machine gets: pins that fit the declared dependencies, a wheel with everything in it, make targets."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in found.items()}


def declared(*extras: str) -> list[Requirement]:
    lists = [PROJECT["project"]["dependencies"], *(PROJECT["project"]["optional-dependencies"][e] for e in extras)]
    return [Requirement(text) for each in lists for text in each]


@pytest.mark.parametrize("lock", ["dev.lock", "docs.lock", "gpu.lock"])
def test_every_line_of_a_lock_is_an_exact_version_and_names_no_place(lock: str) -> None:
    for line in (ROOT / "requirements" / lock).read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("dev.lock", ("cpu", "local", "sweep", "otel", "console", "dev")),
        ("docs.lock", ("docs",)),
        ("gpu.lock", ("gpu",)),
    ],
)
def test_every_declared_dependency_is_pinned_to_a_version_that_it_allows(lock: str, extras: tuple[str, ...]) -> None:
    pinned = pins("dev.lock") | pins(lock)
    for requirement in declared(*extras):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {lock}"
        assert requirement.specifier.contains(version), f"{requirement}, but {lock} has {version}"


def test_every_package_of_the_tree_is_shipped() -> None:
    shipped = {package.replace(".", "/") for package in PACKAGES}
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for package in {name.partition("/")[0] for name in shipped}
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert found == shipped


def test_a_wheel_holds_the_code_the_configuration_and_the_template(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path / "tree"
    for each in {package.partition(".")[0] for package in PACKAGES}:
        shutil.copytree(ROOT / each, tree / each, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    expected = {
        path.relative_to(tree).as_posix()
        for pattern in ("conf/**/*.yaml", "training/templates/**/*.*", "serving/*.json", "protos/*.proto", "*/**/*.py")
        for path in tree.glob(pattern)
        if path.relative_to(tree).parts[0] != "build"
    }
    assert expected - held == set()
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/"))]


def test_make_alone_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert targets
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    told = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    for target in targets[1].split():
        assert f"  make {target} " in told


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_readme_names_both_commands_and_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:index|candidate_gen|ranking|policy|serving|training|conf|protos)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


class _Advisories(BaseHTTPRequestHandler):
    """The database of OSV, to which one package is known."""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        known = {"vulns": [{"id": "PYSEC-1"}]}
        results = [known if query["package"]["name"] == "holed" else {} for query in queries]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"results": results}).encode())

    def log_message(self, *_: object) -> None: ...


def audited(lock: Path, url: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / ".ci" / "audit"), str(lock), url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_pinned_package_with_a_known_vulnerability_ends_the_audit(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("# pins\nsound==1.0\nholed==2.0\n")
    server = HTTPServer(("127.0.0.1", 0), _Advisories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    done = audited(lock, url)
    assert (done.returncode, done.stderr) == (1, "audit: holed 2.0: https://osv.dev/PYSEC-1\n")
    lock.write_text("sound==1.0\n")
    done = audited(lock, url)
    assert (done.returncode, done.stdout) == (0, "audit: 1 packages, 0 with known vulnerabilities\n")
    server.shutdown()
    server.server_close()
    thread.join()
    done = audited(lock, url)
    assert done.returncode == 0
    assert done.stdout.startswith("audit: skipped: the advisory database cannot be reached")
