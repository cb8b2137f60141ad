"""What each command of `cascade` does once its words are parsed. Everything that is printed is printed here."""

import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from training.cli import LATEST, REPORTS
from training.reports import printed
from training.reports.findings import utc

if TYPE_CHECKING:
    from serving.client import CascadeClient, ShownSlate
    from serving.client.channels import Access
    from serving.server import Address

_DEADLINE_S = 10.0
_OUT = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def job(given: Namespace) -> None:
    """A job with a configuration: `training.jobs` gets its settings and returns what to print."""
    from training import configuration

    overrides = _overrides(given)
    if given.show:
        print(configuration.as_yaml(given.command, overrides), end="")
        return
    if given.command == "demo":
        from training import demo

        demo.run(configuration.settings("demo", overrides))
        return
    if given.command == "train" and (named := [text for text in overrides if _names_sweep(text)]):
        _sweep(overrides, named[0])
        return
    from training import jobs
    from training.learning import run_record

    run = {"train": run_record.train, "nightly": _nightly, "batch": _batch}.get(given.command) or getattr(
        jobs, given.command
    )
    if getattr(given, "multirun", False):
        results = configuration.sweep(given.command, overrides, run)
        names = dict.fromkeys(name for result in results.values() for name in result)
        _OUT.print(
            printed.tabulated({name: {of: result.get(name) for of, result in results.items()} for name in names})
        )
        return
    result: Any = run(configuration.settings(given.command, overrides))
    if given.command == "ope":
        from training.reports import estimate_report

        _OUT.print(printed.tabulated(estimate_report.told(result)), "")
        for finding in result["findings"]:
            _OUT.print(finding["text"])
        _OUT.print(f"\n{result['page']}")
    elif given.command == "experiment":
        from training.reports import experiment_report

        _OUT.print(printed.tabulated(experiment_report.told(result)), "")
        for finding in result["findings"]:
            _OUT.print(finding["text"])
        _OUT.print(f"\n{result['page']}")
    elif given.command == "monitor":
        from training.monitoring import page

        _OUT.print(printed.tabulated(page.told(result)), f"\n{result['page']}")
    else:
        _OUT.print(printed.tabulated(result))


def _nightly(settings: Any) -> dict[str, Any]:
    from serving.clock import now_ms
    from training import jobs
    from training.nightly import line

    return line.nightly(settings, holder=jobs.holder(), now_ms=now_ms())


def _batch(settings: Any) -> dict[str, Any]:
    from training import batch_slates

    return batch_slates.recommend(settings)


def _names_sweep(text: str) -> bool:
    return text.lstrip("+").partition("=")[0].partition(".")[0] == "sweep" and text != "sweep=null"


def _sweep(overrides: list[str], named: str) -> None:
    from training.learning import run_record

    run_record.require("optuna", named)
    from training.learning import sweep

    shown = sys.stderr.isatty()
    swept = sweep.run(overrides, tell=lambda line: print(line, file=sys.stderr) if shown else None)
    _OUT.print(printed.tabulated(swept.rows))
    _OUT.print(f"\nbest: trial {swept.trial}, {swept.metric} = {swept.value:.6g}; the same again:")
    print(swept.command)


def serve(given: Namespace) -> None:
    """Serve until stopped, with the bundled Redis beside it where that is asked for."""
    from training import configuration

    if given.show:
        print(configuration.as_yaml("serve", given.options), end="")
        return
    from serving.front import serve as serve_until_stopped
    from serving.observability.log_lines import say
    from serving.settings import ServerSettings
    from serving.state.local_redis import LocalRedis
    from serving.state.user_state import UserState

    settings: ServerSettings = configuration.settings("serve", given.options)
    say(settings.log_format)
    if not settings.generations.is_dir():
        raise ValueError(f"{settings.generations} holds no generations; `cascade demo` or `cascade export` makes one")
    with ExitStack() as stack:
        if settings.redis == "local":
            redis = stack.enter_context(LocalRedis())
            settings = replace(settings, redis=redis.url)
            history = settings.log.with_name("history.parquet")
            if history.exists():
                import polars as pl

                from training.materialise import materialise

                state = UserState(redis.url, timeout_s=5.0)
                users = materialise(pl.read_parquet(history), state)
                state.close()
                _OUT.print(f"what {users:,} users did is taken over from {history}")
        elif settings.redis == "none":
            settings = replace(settings, redis="")
        serve_until_stopped(settings, on_ready=_announce)


def console(given: Namespace) -> None:
    """A page in the browser, until stopped."""
    from training import configuration
    from training.learning import run_record

    settings = configuration.settings("console", given.options)
    if given.show:
        print(configuration.as_yaml("console", given.options), end="")
        return
    run_record.require("uvicorn", "cascade console")
    from training.console import running

    running.run(settings, on_ready=lambda address: _OUT.print(f"{address} shows {settings.target}; Ctrl-C stops"))


def call(given: Namespace) -> None:
    """One request to a server."""
    if given.method == "ready":
        _call_ready(given)
        return
    with _client(given) as (client, at_ms):
        match given.method:
            case "status":
                _call_status(given, client)
            case "rules" | "traffic" | "ramp" | "stop":
                _call_admin(given, client)
            case "event":
                _call_event(given, client)
            case "forget":
                _call_forget(given, client)
            case "suggest":
                _call_suggest(given, client, at_ms)
            case "recommend" | "search" | "rank":
                _call_slate(given, client, at_ms)
            case _:
                _call_change(given, client)


def _call_status(given: Namespace, client: "CascadeClient") -> None:
    from google.protobuf.json_format import MessageToDict

    status = MessageToDict(client.status(), preserving_proto_field_name=True)
    if given.json:
        print(json.dumps(status))
        return
    stages = {each.pop("stage"): each for each in status.pop("stages", [])}
    _OUT.print(printed.tabulated(status))
    if stages:
        _OUT.print("", printed.tabulated(stages))


def _call_ready(given: Namespace) -> None:
    from serving.client.probe import is_serving

    with _server(given) as (target, _, _):
        if not is_serving(target, given.service, access=_access(given)):
            about = f" as {given.service}" if given.service else ""
            raise ValueError(f"{target} is not ready{about}")
    _OUT.print(json.dumps({"ready": True}) if given.json else "ready")


def _call_admin(given: Namespace, client: "CascadeClient") -> None:
    from training import admin_commands
    from training.catalog_changes import json_of

    read = (json_of(given.file), given.file) if getattr(given, "file", None) else None
    print(admin_commands.answered(given, client, read))


def _call_event(given: Namespace, client: "CascadeClient") -> None:
    from serving.client import Event
    from serving.clock import now_ms

    event = Event(given.item, given.action, now_ms(), user_id=given.user, request_id=given.request)
    (answer,) = client.write_events([event])
    if given.json:
        print(json.dumps(asdict(answer)))
    else:
        _OUT.print(printed.tabulated(asdict(answer)))


def _call_suggest(given: Namespace, client: "CascadeClient", at_ms: int) -> None:
    lines = [asdict(each) for each in client.suggest(given.prefix, user_id=given.user, size=given.size, time_ms=at_ms)]
    if given.json:
        print(json.dumps(lines))
    else:
        _OUT.print(printed.tabulated({each["text"]: f"{each['kind'].lower()} {each['item_id']}" for each in lines}))


def _call_slate(given: Namespace, client: "CascadeClient", at_ms: int) -> None:
    asked: dict[str, Any] = {
        "size": given.size,
        "filter": given.filter,
        "include_scores": True,
        "time_ms": at_ms,
    }
    if given.method == "recommend":
        slate = client.recommend(given.user, seed_item_ids=given.near, **asked)
    elif given.method == "search":
        from serving.records import STEPS

        options = dict.fromkeys(STEPS, "off") if given.as_typed else None
        slate = client.search(given.query, user_id=given.user, query_options=options, **asked)
    else:
        slate = client.rank(given.items, user_id=given.user, query=given.query, **asked)
    if given.json:
        print(json.dumps(asdict(slate)))
    else:
        _print_slate(slate, _titles(slate, client, at_ms))


def _call_forget(given: Namespace, client: "CascadeClient") -> None:
    record = client.forget_user(given.user, reference=given.reference)
    print(json.dumps({"audit_id": record})) if given.json else _OUT.print(f"forgotten; the record is number {record}")


def _call_change(given: Namespace, client: "CascadeClient") -> None:
    """
    Raises:
        ValueError: where entries were not taken, with the reason of the first.
    """
    from training.catalog_changes import changed

    answers = changed(given, client)
    if given.json:
        print(json.dumps([asdict(answer) for answer in answers]))
    else:
        _OUT.print(printed.tabulated(Counter(answer.status.lower() for answer in answers)))
    refused = [f"{answer.item_id}: {answer.reason}" for answer in answers if answer.reason]
    if refused:
        raise ValueError(f"{len(refused)} of {len(answers)} were not taken; the first is {refused[0]}")


def state(given: Namespace) -> None:
    """What users did, into a Redis that lost it or is new."""
    from training.materialise import rebuild

    log = given.log if given.log or given.history else LATEST / "log"
    users = rebuild(given.redis, log=log, history=given.history, generations=given.generations)
    _OUT.print(
        f"what {users:,} users did is taken over from {' and '.join(map(str, filter(None, (log, given.history))))}"
    )


def token(given: Namespace) -> None:
    """Make a bearer token: the only time that it is shown."""
    from serving.security import new_token

    print(new_token(given.file, name=given.name, roles=tuple(given.role)))


def generations(given: Namespace) -> None:
    """Look after a store."""
    from index.generations import GenerationStore
    from serving.clock import now_ms
    from serving.experiments.traffic import generations_named

    if not given.store.is_dir():
        raise ValueError(f"{given.store} is no store of generations; name one with --store")
    store = GenerationStore(given.store)
    match given.action:
        case "list":
            _OUT.print(printed.listed(store))
        case "show":
            shown = given.id or store.current()
            if shown is None:
                raise ValueError(f"no generation of {given.store} is current; name one: generations show <id>")
            manifest = asdict(store.manifest(shown))
            manifest["files"] = {name: f"{entry['bytes']:,} bytes" for name, entry in manifest["files"].items()}
            _OUT.print(printed.tabulated(manifest))
        case "diff":
            _OUT.print(printed.differences(asdict(store.diff(given.old, given.new)), given.old, given.new))
        case "activate":
            reason = given.reason or "cascade generations activate"
            before = store.activate(given.id, time_ms=now_ms(), reason=reason, by=_operator())
            _OUT.print(f"{given.id} is current; before: {before or 'none'}")
        case "rollback":
            reason, left = given.reason or "cascade generations rollback", store.current()
            back = store.rollback(time_ms=now_ms(), reason=reason, by=_operator())
            _OUT.print(f"{back} is current again; before: {left}")
        case "history":
            _OUT.print(printed.audited(store))
        case "prune":
            removed = store.prune(given.keep, named=generations_named(store))
            _OUT.print(f"removed {', '.join(removed) or 'nothing'}; {len(store.ids())} left")


def _operator() -> str:
    from getpass import getuser
    from socket import gethostname

    return f"{getuser()} on {gethostname()}"


def evaluate(given: Namespace) -> None:
    """A readable table, then one JSON object as the last line."""
    from training.evaluation import tasks

    result = tasks.run(given.task, tasks.pairs(given.options))
    _OUT.print(printed.tabulated(result["metrics"]))
    print(json.dumps(result))


def explain(given: Namespace) -> None:
    """Why a request was answered as it was."""
    from google.protobuf.json_format import MessageToDict

    from training.reports import explanation

    told = explanation.explanation(
        given.log, given.generations, given.request_id, item_ids=given.item, features=given.features
    )
    if given.json:
        print(json.dumps(MessageToDict(told, preserving_proto_field_name=True)))
        return
    for line in explanation.laid_out(told):
        _OUT.print(line)


def report(given: Namespace) -> None:
    """A run's numbers, and its page drawn again; or one of the jobs `REPORTS`."""
    if str(given.folder) in REPORTS:
        given.command = given.folder.name
        named = given.options[:1] if given.command == "experiment" and "=" not in "".join(given.options[:1]) else []
        given.options = [*(f"name={each}" for each in named), *given.options[len(named) :]]
        job(given)
        return
    if given.options:
        raise ValueError(f"{given.options[0]!r} goes with `cascade report skew`, not with the folder {given.folder}")
    from training.reports import report as reports

    summary, figures = reports.read(given.folder)
    page = reports.write(summary, figures, given.folder)
    _OUT.print(reports.terminal_table(summary))
    _OUT.print(f"\n{page}")


def _overrides(given: Namespace) -> list[str]:
    return [*([f"mode={given.mode}"] if hasattr(given, "mode") else []), *given.options]


def _announce(address: "Address") -> None:
    metrics = f", metrics on {address.metrics_target}" if address.metrics_target else ""
    _OUT.print(f"serving on {address.target}, admin on {address.admin_target}{metrics}; Ctrl-C stops")


def _access(given: Namespace) -> "Access":
    from serving.client.channels import Access

    token = given.token_file.read_text().strip() if given.token_file else ""
    return Access(ca=given.ca, certificate=given.certificate, key=given.key, token=token)


@contextmanager
def _client(given: Namespace) -> "Iterator[tuple[CascadeClient, int]]":
    """Of the server that is meant, and the time to ask for: 0 for now."""
    from serving.client import CallFailed, CascadeClient

    with (
        _server(given) as (target, admin_target, at_ms),
        CascadeClient(target, admin_target=admin_target, deadline_s=_DEADLINE_S, access=_access(given)) as client,
    ):
        try:
            yield client, at_ms
        except CallFailed as error:
            if error.code != "DEADLINE_EXCEEDED":
                raise
            raise ValueError(f"{target} gave no answer within {_DEADLINE_S:g} s; does a server listen there?") from None


@contextmanager
def _server(given: Namespace) -> Iterator[tuple[str, str, int]]:
    """Where a server and its admin port listen: the one named, the last run's, or one of our own for this call.

    Our own is a look at the last run. Its log goes when it goes, so that the run's stays as it is; hence it takes no
    events. It answers as of when the run last saw the user: the run's data may end years ago.
    """
    if given.target:
        yield given.target, given.admin, 0
        return
    try:
        address = json.loads((LATEST / "server.json").read_text())
        os.kill(address["pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        address = None
    if address is not None:
        yield address["target"], address["admin_target"], 0
        return
    generations, history = LATEST / "generations", LATEST / "history.parquet"
    alone = given.method in ("recommend", "search", "rank", "suggest")
    if not (alone and generations.is_dir() and history.exists()):
        raise ValueError("no server is running; start one: `cascade serve`, or name one: --target HOST:PORT")
    from training.server_process import last_seen, server_process

    at_ms, seen = last_seen(history, given.user)
    print(
        f"cascade: no server is running; one is started for this call and answers as of {utc(at_ms)}, "
        f"just after {seen} was last seen "
        "(to keep one, which answers as of now: `cascade serve`)",
        file=sys.stderr,
    )
    with TemporaryDirectory(prefix="cascade-call-") as name:
        folder = Path(name)
        (folder / history.name).symlink_to(history.resolve())
        overrides = (
            f"generations={generations.resolve()}",
            f"log={folder / 'log'}",
            *("service.clock=request", "lame_duck_s=0"),
        )
        with server_process(folder, overrides) as (target, admin_target):
            yield target, admin_target, at_ms


def _print_slate(slate: "ShownSlate", titles: Mapping[str, str]) -> None:
    """
    Args:
        titles: of the items that reasons name.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("#", "title", "category", "score", "propensity", "sources", "reasons"):
        numeric = name in ("#", "score", "propensity")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for position, item in enumerate(slate.items, start=1):
        table.add_row(
            str(position),
            item.title or item.item_id,
            item.category,
            f"{item.score:.3f}",
            f"{item.propensity:.3g}",
            ", ".join(item.sources),
            ", ".join(in_words(reason, titles) for reason in item.reasons),
        )
    _OUT.print(table if slate.items else "nothing to show")
    told = {"searched for": slate.corrected_query, "also for": slate.expanded_query, "only": slate.extracted_filter}
    for name, text in {**told, "nothing is": slate.dropped_filter}.items():
        if text:
            _OUT.print(f"{name} {text}", markup=False)
    degraded = f", degraded: {', '.join(slate.degraded)}" if slate.degraded else ""
    _OUT.print(
        f"\nrequest {slate.request_id} by generation {slate.generation}, "
        f"P(this slate) = exp({slate.log_propensity:.2f}){degraded}"
    )


def _titles(slate: "ShownSlate", client: "CascadeClient", at_ms: int) -> dict[str, str]:
    """Titles of the items that reasons name."""
    named = {reason.partition(":")[2] for item in slate.items for reason in item.reasons if ":" in reason}
    if not named:
        return {}
    return {item.item_id: item.title for item in client.rank(sorted(named), time_ms=at_ms, no_log=True).items}


def in_words(reason: str, titles: Mapping[str, str]) -> str:
    """A reason as a person reads it: SIMILAR_TO:12 is "similar to Paper Moons"."""
    kind, _, item_id = reason.partition(":")
    words = kind.lower().replace("_", " ")
    return f"{words} {titles.get(item_id, item_id)}" if item_id else words
