"""What an operator says to a server's control plane, and what is told of it."""

import json
from argparse import Namespace
from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from protos.admin_pb2 import GetTrafficResponse, PutRulesRequest, SetTrafficRequest
from serving.client import CascadeClient

Read = tuple[Any, str]
"""JSON, and where it is from."""
_MEASURED = ("set_ms", "arms", "follow_error")
_Request = TypeVar("_Request", bound=Message)


def answered(given: Namespace, client: CascadeClient, read: Read | None) -> str:
    """What to tell of `rules`, `traffic`, `ramp` or `stop`."""
    match given.method:
        case "rules":
            return rules(client, read)
        case "traffic":
            return traffic(client, read)
        case "ramp":
            return ramp(client, given.experiment, given.arm, given.weight)
    return stop(client, given.experiment)


def rules(client: CascadeClient, read: Read | None) -> str:
    """The rules in force as JSON, or what became of those that were read: what is printed can be put."""
    if read is None:
        return _printed(client.rules())
    put = _parsed(read, PutRulesRequest())
    answer = client.put_rules(put.rules, etag=put.etag)
    return f"{len(answer.rules)} rules are in force, etag {answer.etag}"


def traffic(client: CascadeClient, read: Read | None) -> str:
    """Likewise of experiments. What a server measures is printed with them, and passed over when it is read."""
    if read is None:
        return _printed(client.traffic())
    tree, where = read
    asked = {name: each for name, each in tree.items() if name not in _MEASURED} if isinstance(tree, dict) else tree
    put = _parsed((asked, where), SetTrafficRequest())
    answer = client.set_traffic(put.experiments, etag=put.etag, reason=put.reason)
    return f"{len(answer.experiments)} experiments are in force, etag {answer.etag}"


def ramp(client: CascadeClient, experiment: str, arm: str, weight: float) -> str:
    """Another weight for an arm; all else stays.

    Raises:
        ValueError: there is no such experiment or arm.
    """
    now = client.traffic()
    arms = now.experiments[_position(now, experiment)].arms
    chosen = [each for each in arms if each.name == arm]
    if not chosen:
        raise ValueError(f"{experiment} has no arm {arm!r}; it has {_names(arms)}")
    chosen[0].weight = weight
    return _set(client, now, f"{experiment}: weight of {arm} is {weight:g}")


def stop(client: CascadeClient, experiment: str) -> str:
    """An end to an experiment; the others go on.

    Raises:
        ValueError: there is none of this name.
    """
    now = client.traffic()
    del now.experiments[_position(now, experiment)]
    return _set(client, now, f"{experiment} stopped")


def _set(client: CascadeClient, now: GetTrafficResponse, reason: str) -> str:
    return f"{reason}; etag {client.set_traffic(now.experiments, etag=now.etag, reason=reason).etag}"


def _position(now: GetTrafficResponse, experiment: str) -> int:
    names = [each.name for each in now.experiments]
    if experiment not in names:
        raise ValueError(f"no experiment {experiment!r} is in force; {_names(now.experiments) or 'none'} is")
    return names.index(experiment)


def _parsed(read: Read, request: _Request) -> _Request:
    tree, where = read
    try:
        return ParseDict(tree, request)
    except ParseError as error:
        raise ValueError(f"{where}: {error}") from None


def _printed(response: Message) -> str:
    return json.dumps(MessageToDict(response, preserving_proto_field_name=True), indent=2)


def _names(named: Iterable[Any]) -> str:
    return ", ".join(each.name for each in named)
