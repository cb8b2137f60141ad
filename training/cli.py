"""The command line `cascade`: its shape, its help, and how it ends.

Options of a job are Hydra overrides (`key=value`) of `conf/<job>.yaml`. What a command does is in `training.commands`,
imported when it runs, so that help is quick.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from training import call_arguments

LATEST = Path("outputs/latest")
MISUSE, REFUSED, RETRAIN, DEFECT, INTERRUPTED = 2, 3, 4, 1, 130
REPORTS = ("skew", "experiment", "monitor")
"""Jobs that stand in the place of a run's folder."""
_OURS = ("index", "candidate_gen", "ranking", "policy", "serving", "training")

_JOBS = {
    "demo": (
        "the whole loop on one machine: train, serve, log, train again, replay, estimate, report",
        "Makes a simulated world or reads a data set, trains and publishes a generation, starts a server, sends it "
        "users, trains the next generation on what was logged, swaps it in, replays the log, estimates the new policy "
        "from the old one's log, and writes outputs/<run>/report.html. A data set, which holds no truth, is "
        "trained on, served and replayed.",
        "cascade demo\n"
        "cascade demo seed=7 policy.epsilon=0.1\n"
        "cascade demo data=ml-1m data.root=path/to/ml-1m",
    ),
    "data": (
        "read a data set, check it, show what it holds",
        "Reads a data set in its own form and checks what training relies on: columns, ids, times. "
        "With output=<folder> it also writes the canonical tables as Parquet.",
        "cascade data data=ml-1m data.root=path/to/ml-1m\n"
        "cascade data data=world output=outputs/world",
    ),
    "train": (
        "train the towers or the ranker",
        "Trains one stage on a data set, and on the impression log where one is given, into `output`. "
        "With -m, comma-separated values are swept over, every combination in a folder of its own. "
        "With sweep=tower or sweep=ranker (the extra `sweep`) the best are searched for instead: conf/sweep/ says by "
        "which metric and in which ranges; ranges named here join those, and a key with a value is not searched. "
        "sweep.trials and sweep.workers say how many, and how many at once. Killed, the same command goes on where it "
        "was. Beside what was trained lies run.json, with the command that trains the same again.",
        "cascade train tower data=world towers.epochs=3\n"
        "cascade train ranker data=ml-1m data.root=path/to/ml-1m\n"
        "cascade train tower -m towers.shape.width=32,64 towers.temperature=0.05,0.1\n"
        "cascade train tower -m sweep=tower sweep.trials=40 sweep.workers=2 towers.epochs=8 towers.batch=256,512",
    ),
    "export": (
        "embed, index, pass the gates, publish: towers and ranker become a generation",
        "Takes what `cascade train` left in `output`, embeds all items, builds the index, checks every gate and "
        "publishes a generation. A red gate publishes nothing and says which figure missed which limit.",
        "cascade export data=world output=outputs/train generations=outputs/generations",
    ),
    "rebuild": (
        "fold in what the catalogue was told since, build the index again, pass the gates, publish",
        "Takes a generation and the changes of the catalogue since (upserts, deletes, patches), embeds all items with "
        "the generation's own towers, builds the index, checks every gate, asks the result its first queries and "
        "publishes it; models, users and policy stay. A running server takes it up by itself. A red gate, poison or a "
        "mismatch publishes nothing and says why. Killed at any point, it goes on where it was when it is run again. "
        "Writes rebuild.html.",
        "cascade rebuild\n"
        "cascade rebuild generations=outputs/latest/generations index.recall_target=0.99\n"
        "cascade rebuild index=ivf_sq8 gates.shrink=0.5 activate=false",
    ),
    "log": (
        "look after the impression log: status, compaction, checks, retention",
        "`status` says what is in it. `compact` makes Parquet, a folder a day, of the spools that no server writes to "
        "any more. `verify` reads every file, checks every row, and names what is damaged; with quarantine=true it "
        "sets that aside. `retain` compacts, then drops the days before the last `days`. All may be run while servers "
        "write, and be killed at any point. docs/log.md describes the files.",
        "cascade log status\n"
        "cascade log compact log=outputs/latest/log\n"
        "cascade log verify quarantine=true\n"
        "cascade log retain days=90",
    ),
    "replay": (
        "run the logged requests again",
        "`verify` asks the generation that answered and demands the same slate and the same propensities, bit by bit; "
        "where they differ it names the first stage that does. `counterfactual` asks another generation what it would "
        "have shown, and how likely it was to show what was shown; `cascade ope` makes estimates of that. One process "
        "a core works through the log; killed, the same command goes on where it was.",
        "cascade replay verify log=outputs/latest/log\n"
        "cascade replay verify limit=10000 workers=4\n"
        "cascade replay counterfactual generation=<id>",
    ),
    "ope": (
        "estimate from the log what another generation would have earned",
        "Runs the logged requests through the other generation, weighs what was seen by the ratio of the exact "
        "propensities, prints every estimator with its interval, the uplift and a verdict, and writes ope.html with "
        "plots, slices and what the log can carry. Ends with code 3 where the two policies overlap too little for an "
        "honest number; the page then shows why.",
        "cascade ope log=outputs/latest/log generation=<id>",
    ),
    "skew": (
        "compute the features of a log again, offline, and compare them with the logged bytes",
        "Joins what users did point-in-time, takes items, profiles and vectors from the generation that answered, "
        "computes every feature again and compares bit by bit. Prints the features that differ, writes skew.html and "
        "skew.json, and ends with code 3 where one is over its budget (gates.skew, gates.skew_state, gates.skew_of). "
        "docs/concepts.md says which features cannot always be equal.",
        "cascade report skew\n"
        "cascade report skew log=outputs/latest/log generation=<id> gates.skew_of.tower_score=1",
    ),
    "experiment": (
        "what an experiment shows by now",
        "Compares the arms of an experiment per unit, with an interval that may be looked at any time; sounds an alarm "
        "where units are not where the weights send them; credits drafted slates; holds shadows against what was "
        "shown; tells of canaries that were taken back. Writes experiment.html and experiment.json.",
        "cascade report experiment new-ranker\n"
        "cascade report experiment new-ranker log=outputs/latest/log alpha=0.01",
    ),
    "monitor": (
        "whether the log still looks as it did",
        "Holds a day of the log against the days before: drift of features, scores, vectors and outcomes, calibration, "
        "popularity, sources, slices, broken data, skew, latency. Writes monitor.html, monitor.json and gauges for "
        "Prometheus. Ends with code 4 where it is time to train again, with 3 where something else sounds an alarm.",
        "cascade report monitor\n"
        "cascade report monitor until=2026-11-21 days=1 reference_days=14\n"
        "cascade report monitor limits.psi=0.3 textfile=/var/lib/node_exporter/cascade.prom",
    ),
    "nightly": (
        "the line from the log to what is in force: check, train, embed, index, gates, publish, try, activate",
        "Makes the next generation of everything logged so far, holds it to every gate, tries it beside the one in "
        "force, and puts it in force. The first red gate ends it with code 3 and a page, nightly.html; what is in "
        "force stays. Killed at any point, the same command goes on where it was; done, it does nothing twice. "
        "dry_run=true shows what is to be done; from_stage=ranker does all from there on again. docs/nightly.md "
        "describes stages and gates.",
        "cascade nightly log=outputs/latest/log generations=outputs/latest/generations\n"
        "cascade nightly dry_run=true\n"
        "cascade nightly from_stage=ranker ranker=trees\n"
        "cascade nightly ranker.warm_start=true gates.uplift.hours=24 trial.server=127.0.0.1:50052",
    ),
    "batch": (
        "slates for all users, or a list of them, in Parquet files",
        "`recommend` runs every user through the pipeline that serves, in processes side by side, and writes slates "
        "with their exact propensities. Users are those of the generation and of the log, or of users=<Parquet>. "
        "Stopped, the same command goes on where it was.",
        "cascade batch recommend\n"
        "cascade batch recommend users=users.parquet size=20 output=slates\n"
        "cascade batch recommend generation=<id> quotas.ann=50 workers=2",
    ),
    "serve": (
        "answer requests over gRPC",
        "Serves the store's current generation until it is told to stop, and takes up every later one by itself. "
        "redis=local runs the bundled redis-server for what users did lately; redis=none serves without; otherwise "
        "an address such as redis://host:6379/0 or unix:///path.",
        "cascade serve\n"
        "cascade serve generations=outputs/latest/generations port=50051 redis=none",
    ),
    "console": (
        "a page in the browser over a running server",
        "Look up what somebody is shown and why, try other weights, another policy or generation beside it, search and "
        "see what was understood, activate and roll back generations, see experiments and the last reports. Needs the "
        "extra `console`.",
        "cascade console\n"
        "cascade console target=127.0.0.1:50051 admin=127.0.0.1:50052 port=50080\n"
        "cascade console target=shop:50051 admin=shop:50052 ca=ca.pem token_file=token",
    ),
}  # fmt: skip
_CODES = {
    "InsufficientOverlap": REFUSED,
    "NightStopped": REFUSED,
    "SkewOverBudget": REFUSED,
    "AlarmsRaised": REFUSED,
    "RetrainAdvised": RETRAIN,
}
"""How errors end by which a job says something of the data, not of how it was called."""
_MODES = {
    "batch": ("recommend",),
    "train": ("tower", "ranker"),
    "log": ("status", "compact", "verify", "retain"),
    "replay": ("verify", "counterfactual"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 2 for misuse; 3 for an estimate that is refused, skew over its budget, a red gate of a
        night and alarms; 4 where it is time to train again; 1 for a defect; 130 for Ctrl-C.
    """
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        getattr(import_module("training.commands"), given.run)(given)
    except KeyboardInterrupt:
        print("cascade: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if given.traceback:
            traceback.print_exc()
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    text = " ".join(str(error).split())
    ours = type(error).__module__.partition(".")[0] in _OURS
    if not (ours or isinstance(error, ValueError | OSError)):
        print(f"cascade: defect: {type(error).__name__}: {text} (--traceback shows where)", file=sys.stderr)
        return DEFECT
    print(f"cascade: error: {text or type(error).__name__}", file=sys.stderr)
    return _CODES.get(type(error).__name__, MISUSE)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    unknown = [each for each in rest if each.startswith("-") or not hasattr(given, "options")]
    if unknown:
        parser.error(f"{unknown[0]!r} is not known here; see `cascade {given.command} --help`")
    if rest:
        given.options += rest  # words after a flag, as in `train tower a=1 -m b=2,3`
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "cascade",
        description="Recommendation and search: retrieve, filter, score, select; log what was shown with its exact "
        "probability; learn from the log.",
        epilog="`cascade COMMAND --help` shows options and examples. Start with: cascade demo",
    )
    parser.add_argument("--version", action="version", version=f"cascade {_version()}")
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=os.environ.get("CASCADE_TRACEBACK", "") not in ("", "0"),
        help="show where an error came from (also: CASCADE_TRACEBACK=1)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("demo", "data", "train", "export", "rebuild", "serve", "console"):
        _add_job(commands, name)
    _add_call(commands)
    _add_token(commands)
    for name in ("log", "replay", "ope", "nightly", "batch"):
        _add_job(commands, name)
    _add_generations(commands)
    _add_state(commands)
    _add_evaluate(commands)
    _add_explain(commands)
    _add_report(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("cascade-ranking")
    except metadata.PackageNotFoundError:
        return "of this folder, not installed"


def _add(commands: Any, name: str, *, run: str, summary: str, text: str, examples: str) -> argparse.ArgumentParser:
    indented = "\n".join(f"  {line}" for line in examples.splitlines())
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{indented}",
        formatter_class=_Paragraphs,
    )
    added.set_defaults(run=run)
    return added


class _Paragraphs(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, descriptions wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def _add_job(commands: Any, name: str) -> None:
    summary, text, examples = _JOBS[name]
    run = name if name in ("serve", "console") else "job"
    job = _add(commands, name, run=run, summary=summary, text=text, examples=examples)
    if name in _MODES:
        job.add_argument("mode", choices=_MODES[name])
    job.add_argument("options", nargs="*", metavar="key=value", help=f"overrides of conf/{name}.yaml and its groups")
    if name == "train":
        job.add_argument("-m", "--multirun", action="store_true", help="sweep over lists of values")
    job.add_argument("--show", action="store_true", help="print every setting as it would be, do nothing")


def _add_call(commands: Any) -> None:
    call = _add(
        commands,
        "call",
        run="call",
        summary="ask a server",
        text="Sends one request and prints the answer: position, title, category, score, propensity, sources, reasons. "
        "Finds the server of the last run by itself. Where none runs, recommend, search and rank start one for the "
        "call, which answers as of when the run last saw the user and logs nothing; `cascade serve` keeps one. upsert, "
        "delete, hide and show change the items of a server that runs, users and forget what it stores of people, "
        "rules what its policy has to follow, traffic, ramp and stop its experiments: its next answer knows of it.",
        examples='cascade call recommend --user 1\ncascade call search "space adventure" --user 1\n'
        "cascade call rank 12 7 99 --user 1\ncascade call event 12 --action click --user 1\ncascade call status\n"
        'cascade call recommend --filter \'category = "Drama" AND published_ms >= "2026-11-01"\'\n'
        'echo \'{"item_id": "n1", "title": "Paper Moons", "category": "Drama"}\' | cascade call upsert -\n'
        "cascade call hide 12 7\ncascade call delete n1\n"
        "cascade call forget 1 --reference TICKET-7\n"
        "cascade call rules > rules.json; $EDITOR rules.json; cascade call rules rules.json\n"
        "cascade call traffic traffic.json; cascade call ramp new-ranker candidate 5; cascade call stop new-ranker",
    )
    call_arguments.add(call, latest=LATEST)


def _add_token(commands: Any) -> None:
    token = _add(
        commands,
        "token",
        run="token",
        summary="make a bearer token",
        text="Prints a new token, this once, and adds its hash to the file that a server reads as security.tokens; "
        "servers that run notice it within a second. To take a token back, remove its line. Roles: read (slates), "
        "events (what users did), catalog (items), debug (explanations, reflection), admin (the admin port).",
        examples="cascade token new tokens.txt --name shop --role read --role events\n"
        "cascade serve host=0.0.0.0 security.certificate=server.pem security.key=server.key security.tokens=tokens.txt",
    )
    new = token.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser("new", help="make one")
    new.add_argument("file", type=Path, metavar="FILE", help="of hashed tokens; made where there is none")
    new.add_argument("--name", required=True, help="whose it is")
    new.add_argument("--role", action="append", default=[], required=True, help="what it may do; may be repeated")


def _add_generations(commands: Any) -> None:
    generations = _add(
        commands,
        "generations",
        run="generations",
        summary="list, show, compare, activate, roll back, audit, prune",
        text="Looks after a store of generations. A running server takes up what is made current here.",
        examples="cascade generations list\ncascade generations diff OLD NEW\ncascade generations activate NEW\n"
        "cascade generations rollback --reason 'clicks fell by half'\ncascade generations prune --keep 3",
    )
    actions = generations.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="all of them, newest first")
    actions.add_parser("show", help="one manifest").add_argument("id", nargs="?", help="default: the current one")
    diff = actions.add_parser("diff", help="what differs between two")
    diff.add_argument("old")
    diff.add_argument("new")
    activate = actions.add_parser("activate", help="make one current")
    activate.add_argument("id")
    rollback = actions.add_parser("rollback", help="back to the one before, at once: nothing is built")
    for action in (activate, rollback):
        action.add_argument("--reason", default="", help="why, for the audit log")
    actions.add_parser("history", help="the audit log: when, from what, to what, why, who; newest first")
    prune = actions.add_parser("prune", help="delete old ones, never the current, the one before, or what arms name")
    prune.add_argument("--keep", type=int, default=3, help="how many to keep; default: %(default)s")
    for action in actions.choices.values():
        action.add_argument("--store", type=Path, default=LATEST / "generations", help="default: %(default)s")


def _add_state(commands: Any) -> None:
    state = _add(
        commands,
        "state",
        run="state",
        summary="put what users did into a Redis that lost it, or is new",
        text="`rebuild` reads the outcomes of an impression log, or the events of a table, and puts every user's "
        "newest behind what the user state holds by now. It can be run beside servers, and again: what is there stays. "
        "Several servers have several logs, to be named one after the other.",
        examples="cascade state rebuild --redis redis://host:6379/0\n"
        "cascade state rebuild --redis redis+cluster://host:7000,host:7001 --log server1/log\n"
        "cascade state rebuild --redis redis://host:6379/0 --history events.parquet",
    )
    rebuild = state.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser(
        "rebuild", help="from an impression log, or from events of before there was one"
    )
    rebuild.add_argument("--redis", required=True, metavar="URL", help="as of `cascade serve redis=`")
    rebuild.add_argument("--log", type=Path, help=f"default, without --history: {LATEST / 'log'}")
    rebuild.add_argument("--history", type=Path, metavar="FILE", help="Parquet in the form of the data set's events")
    rebuild.add_argument(
        "--generations", type=Path, default=LATEST / "generations", help="who was forgotten; default: %(default)s"
    )


def _add_evaluate(commands: Any) -> None:
    evaluate = _add(
        commands,
        "evaluate",
        run="evaluate",
        summary="measure a stage on a public task",
        text="Prints a table and, as the last line, one JSON object: task, metrics, seconds, seed, config. Tasks: "
        "retrieval train=F test=F or data=F; sequence data=F; session data=F [test_from=TIME]; search judgments=F "
        "query=COL title=COL relevance=COL [description=COL] [id=COL], or documents=F queries=F qrels=F, or "
        "generation=ID judgments=F; judgments log=F out=F; clicks train=F test=F [users=F items=F "
        "history=F]; ltr train=F test=F. docs/evaluation.md says what they measure.",
        examples="cascade evaluate retrieval train=train.parquet test=test.parquet\n"
        "cascade evaluate sequence data=sequences.parquet seed=2\n"
        "cascade evaluate session data=clicks.parquet\n"
        "cascade evaluate search judgments=judged.parquet query=query title=title relevance=grade\n"
        "cascade evaluate clicks train=train.parquet test=test.parquet users=u.parquet items=i.parquet\n"
        "cascade evaluate ltr train=train.parquet test=test.parquet",
    )
    evaluate.add_argument("task")
    evaluate.add_argument("options", nargs="*", metavar="key=value")


def _add_explain(commands: Any) -> None:
    explain = _add(
        commands,
        "explain",
        run="explain",
        summary="why a request was answered as it was",
        text="From the impression log and the generation that answered: sources and ranks, probabilities, the terms of "
        "every slot's score, what each item beat, where other items were lost. Needs no server.",
        examples="cascade explain 0191f3a2b4c5\ncascade explain 0191f3a2b4c5 --item n1 --features\n"
        "cascade explain 0191f3a2b4c5 --log log --generations generations --json",
    )
    explain.add_argument("request_id", metavar="ID", help="request id, as every response carries it")
    explain.add_argument(
        "--item", action="append", default=[], metavar="ITEM", help="shown or not; default: all that were shown"
    )
    explain.add_argument("--features", action="store_true", help="also what the utility owes to each feature")
    explain.add_argument("--log", type=Path, default=LATEST / "log", help="default: %(default)s")
    explain.add_argument("--generations", type=Path, default=LATEST / "generations", help="default: %(default)s")
    explain.add_argument("--json", action="store_true", help="print JSON")


def _add_report(commands: Any) -> None:
    """With `REPORTS`, jobs in the place of a run's folder."""
    jobs = {name: _JOBS[name] for name in REPORTS}
    told = " ".join(f"`report {name}`: {text[0].lower()}{text[1:]}" for name, (_, text, _) in jobs.items())
    examples = "\n".join(lines for _, _, lines in jobs.values())
    report = _add(
        commands,
        "report",
        run="report",
        summary="print a run's numbers and draw its page again; or hold a log's features to what they should be",
        text="Reads summary.json and figures.json of a run, prints the table, writes report.html. " + told,
        examples=f"cascade report\ncascade report outputs/demo-world-1\n{examples}",
    )
    report.add_argument(
        "folder", nargs="?", type=Path, default=LATEST, help=f"or {', '.join(REPORTS)}; default: %(default)s"
    )
    report.add_argument("options", nargs="*", metavar="key=value", help="for those: name, overrides of their conf")
    report.add_argument("--show", action="store_true", help="for those: print every setting, do nothing")


if __name__ == "__main__":
    sys.exit(main())
