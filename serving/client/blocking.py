"""The client for threads."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from queue import Empty, SimpleQueue
from typing import Concatenate, ParamSpec, TypeVar

import grpc

from serving.client import calls
from serving.client.attempts import Ask, Attempts, Call, CallFailed, Reply, Send
from serving.client.channels import POOL, REPLICA, Access, Options, failed, replicas_of

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _blocking(asked: Callable[_P, calls.Steps[_T]]) -> Callable[Concatenate["CascadeClient", _P], _T]:
    @wraps(asked)
    def method(self: "CascadeClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        steps = asked(*args, **kwargs)
        try:
            call = next(steps)
            while True:
                try:
                    reply = self._reply(call)
                except CallFailed as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(reply)
        except StopIteration as end:
            answer: _T = end.value
            return answer

    return method


class CascadeClient:
    """
    Args:
        target: `host:port`, or `ipv4:host:port,host:port` for several servers, which are called in turn.
        admin_target: the admin port of one server; without it the admin methods raise ValueError.
        deadline_s: for each call on the data port.
        access: what servers beyond this machine ask for.
    """

    def __init__(
        self, target: str, *, admin_target: str = "", deadline_s: float = 1.0, access: Access | None = None
    ) -> None:
        access = access or Access()
        self._pool = _channel(target, access, POOL)
        self._admin = _channel(admin_target, access, ()) if admin_target else None
        self._replicas = [_channel(each, access, REPLICA) for each in replicas_of(target)]
        self._metadata = access.metadata
        self._deadline_s = deadline_s
        self._attempts = Attempts(replicas=len(self._replicas))

    recommend = _blocking(calls.recommend)
    search = _blocking(calls.search)
    rank = _blocking(calls.rank)
    suggest = _blocking(calls.suggest)
    explain = _blocking(calls.explain)
    write_events = _blocking(calls.write_events)
    upsert_items = _blocking(calls.upsert_items)
    delete_items = _blocking(calls.delete_items)
    patch_items = _blocking(calls.patch_items)
    upsert_users = _blocking(calls.upsert_users)
    forget_user = _blocking(calls.forget_user)
    ready = _blocking(calls.ready)
    status = _blocking(calls.status)
    rules = _blocking(calls.rules)
    put_rules = _blocking(calls.put_rules)
    traffic = _blocking(calls.traffic)
    set_traffic = _blocking(calls.set_traffic)
    generations = _blocking(calls.generations)
    prepare = _blocking(calls.prepare)
    activate = _blocking(calls.activate)
    rollback = _blocking(calls.rollback)

    def close(self) -> None:
        for channel in (self._pool, self._admin, *self._replicas):
            if channel is not None:
                channel.close()

    def __enter__(self) -> "CascadeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self, call: Call) -> bytes:
        if call.admin and self._admin is None:
            raise ValueError(f"admin_target: empty given, the admin port's host:port is needed for {call.method}")
        plan = self._attempts.of(call, deadline_s=self._deadline_s if call.deadline_s is None else call.deadline_s)
        sent: dict[int, grpc.Future[bytes]] = {}
        replies: SimpleQueue[Reply] = SimpleQueue()
        try:
            step = next(plan)
            while True:
                told: Reply | None = None
                if isinstance(step, Ask):
                    told = self._ask(call, step.seconds)
                elif isinstance(step, Send):
                    sent[step.replica] = self._send(call, step, replies)
                else:
                    told = _next(replies, step.seconds)
                step = plan.send(told)
        except StopIteration as end:
            answer: bytes = end.value
            return answer
        finally:
            for future in sent.values():
                future.cancel()

    def _ask(self, call: Call, seconds: float) -> Reply:
        channel = self._admin if call.admin and self._admin is not None else self._pool
        multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(call.path)
        try:
            wire = multi(call.wire, timeout=seconds, metadata=self._metadata, wait_for_ready=True)
        except grpc.RpcError as error:
            return failed(error.code(), error.details(), error.trailing_metadata())
        return Reply("OK", wire)

    def _send(self, call: Call, step: Send, replies: SimpleQueue[Reply]) -> "grpc.Future[bytes]":
        multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._replicas[step.replica].unary_unary(call.path)
        future = multi.future(call.wire, timeout=step.seconds, metadata=self._metadata)
        future.add_done_callback(lambda done: replies.put(_reply_of(done, step.replica)))
        return future


def _channel(target: str, access: Access, options: Options) -> grpc.Channel:
    credentials = access.channel_credentials(target)
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def _reply_of(done: "grpc.Future[bytes]", replica: int) -> Reply:
    if done.cancelled():
        return Reply("CANCELLED", replica=replica)
    error = done.exception()
    if error is None:
        return Reply("OK", done.result(), replica=replica)
    if not isinstance(error, grpc.RpcError):
        return Reply("UNKNOWN", message=repr(error), replica=replica)
    return replace(failed(error.code(), error.details(), error.trailing_metadata()), replica=replica)


def _next(replies: SimpleQueue[Reply], seconds: float) -> Reply | None:
    try:
        return replies.get(timeout=seconds)
    except Empty:
        return None
