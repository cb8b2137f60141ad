"""What `cascade call` can be asked for, and how."""

import argparse
from pathlib import Path


def add(call: argparse.ArgumentParser, *, latest: Path) -> None:
    """Every method as a subcommand.

    Args:
        latest: folder of the last run.
    """
    methods = call.add_subparsers(dest="method", required=True, metavar="METHOD")
    recommend = methods.add_parser("recommend", help="a slate for a user, or near items, or both")
    recommend.add_argument("--near", action="append", default=[], metavar="ITEM", help="an item to be similar to")
    search = methods.add_parser("search", help="a slate for a typed query")
    search.add_argument("query")
    search.add_argument("--as-typed", action="store_true", help="correct nothing, add nothing, filter nothing")
    suggest = methods.add_parser("suggest", help="what somebody who has typed so much may search for")
    suggest.add_argument("prefix")
    suggest.add_argument("--user", default="", help="default: anonymous")
    suggest.add_argument("--size", type=int, default=10, help="lines to show; default: 10")
    rank = methods.add_parser("rank", help="your own items, put in order")
    rank.add_argument("items", nargs="+", metavar="ITEM")
    rank.add_argument("--query", default="", help="what was typed, where the list came from a search")
    for method in (recommend, search, rank):
        method.add_argument("--user", default="", help="default: anonymous")
        method.add_argument("--size", type=int, default=10, help="items to show; default: 10")
        method.add_argument("--filter", default="", metavar="CONDITION", help="only items that satisfy it")
    event = methods.add_parser("event", help="tell what a user did")
    event.add_argument("item", metavar="ITEM")
    event.add_argument("--action", default="click", help="default: click")
    event.add_argument("--user", default="", help="default: anonymous")
    event.add_argument("--request", default="", help="id of the slate it happened in")
    upsert = methods.add_parser("upsert", help="add or replace items")
    upsert.add_argument(
        "file",
        metavar="FILE.json|-",
        help="one JSON object or a list of them: item_id, title, and optionally category, creator, published_ms, "
        "description, price, available, attributes",
    )
    users = methods.add_parser("users", help="add users, or replace their stored columns")
    users.add_argument(
        "file", metavar="FILE.json|-", help="one JSON object or a list of them: user_id, and optionally attributes"
    )
    forget = methods.add_parser("forget", help="remove a person from user state, stored columns and later trainings")
    forget.add_argument("user", metavar="USER")
    forget.add_argument("--reference", default="", help="of the demand; the record keeps it")
    for name, text in (
        ("delete", "take items out of the catalogue"),
        ("hide", "stop showing items; `show` undoes it"),
        ("show", "show hidden items again"),
    ):
        methods.add_parser(name, help=text).add_argument("items", nargs="+", metavar="ITEM")
    methods.add_parser("status", help="what the server is doing")
    ready = methods.add_parser("ready", help="whether it answers; exit code 2 where not, for probes")
    ready.add_argument(
        "--service", default="", help="a name of grpc.health.v1, such as live; default: whether a slate can be had"
    )
    for name, what in (("rules", "business rules"), ("traffic", "experiments")):
        methods.add_parser(name, help=f"print the {what} in force, or put others in their place").add_argument(
            "file",
            nargs="?",
            metavar="FILE.json|-",
            help=f"{what.split()[-1]} as this command prints them, with the etag of those before",
        )
    ramp = methods.add_parser("ramp", help="give an arm of an experiment another weight")
    ramp.add_argument("experiment")
    ramp.add_argument("arm")
    ramp.add_argument("weight", type=float, help="its share is its weight over the sum of the weights")
    methods.add_parser("stop", help="end an experiment").add_argument("experiment")
    for method in methods.choices.values():
        method.add_argument("--target", metavar="HOST:PORT", help=f"the server; default: as {latest}/server.json says")
        method.add_argument("--admin", metavar="HOST:PORT", default="", help="its admin port, for status")
        method.add_argument("--json", action="store_true", help="print JSON")
        for name, text in (
            ("ca", "who signed the server's certificate, where it has one (PEM)"),
            ("certificate", "your own certificate, where the server asks for one (PEM)"),
            ("key", "of your certificate (PEM)"),
            ("token-file", "holds your bearer token"),
        ):
            method.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)
