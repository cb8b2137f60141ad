"""The client for asyncio: the same methods with the same arguments, to be awaited."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc.aio

from serving.client import calls
from serving.client.attempts import Ask, Attempts, Call, CallFailed, Reply, Send
from serving.client.channels import POOL, REPLICA, Access, Options, failed, replicas_of

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _awaited(
    asked: Callable[_P, calls.Steps[_T]],
) -> Callable[Concatenate["AsyncCascadeClient", _P], Coroutine[Any, Any, _T]]:
    @wraps(asked)
    async def method(self: "AsyncCascadeClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        steps = asked(*args, **kwargs)
        try:
            call = next(steps)
            while True:
                try:
                    reply = await self._reply(call)
                except CallFailed as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(reply)
        except StopIteration as end:
            answer: _T = end.value
            return answer

    return method


class AsyncCascadeClient:
    """To be made, used and closed inside one running event loop.

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

    recommend = _awaited(calls.recommend)
    search = _awaited(calls.search)
    rank = _awaited(calls.rank)
    suggest = _awaited(calls.suggest)
    explain = _awaited(calls.explain)
    write_events = _awaited(calls.write_events)
    upsert_items = _awaited(calls.upsert_items)
    delete_items = _awaited(calls.delete_items)
    patch_items = _awaited(calls.patch_items)
    upsert_users = _awaited(calls.upsert_users)
    forget_user = _awaited(calls.forget_user)
    ready = _awaited(calls.ready)
    status = _awaited(calls.status)
    rules = _awaited(calls.rules)
    put_rules = _awaited(calls.put_rules)
    traffic = _awaited(calls.traffic)
    set_traffic = _awaited(calls.set_traffic)
    generations = _awaited(calls.generations)
    prepare = _awaited(calls.prepare)
    activate = _awaited(calls.activate)
    rollback = _awaited(calls.rollback)

    async def close(self) -> None:
        for channel in (self._pool, self._admin, *self._replicas):
            if channel is not None:
                await channel.close()

    async def __aenter__(self) -> "AsyncCascadeClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _reply(self, call: Call) -> bytes:
        if call.admin and self._admin is None:
            raise ValueError(f"admin_target: empty given, the admin port's host:port is needed for {call.method}")
        plan = self._attempts.of(call, deadline_s=self._deadline_s if call.deadline_s is None else call.deadline_s)
        sent: list[asyncio.Task[None]] = []
        replies: asyncio.Queue[Reply] = asyncio.Queue()
        try:
            step = next(plan)
            while True:
                told: Reply | None = None
                if isinstance(step, Ask):
                    channel = self._admin if call.admin and self._admin is not None else self._pool
                    told = await self._ask(channel, call, step.seconds, wait=True)
                elif isinstance(step, Send):
                    sent.append(asyncio.create_task(self._send(call, step, replies)))
                else:
                    told = await _next(replies, step.seconds)
                step = plan.send(told)
        except StopIteration as end:
            answer: bytes = end.value
            return answer
        finally:
            for task in sent:
                task.cancel()

    async def _ask(self, channel: grpc.aio.Channel, call: Call, seconds: float, *, wait: bool) -> Reply:
        multi: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(call.path)
        try:
            wire = await multi(call.wire, timeout=seconds, metadata=self._metadata, wait_for_ready=wait)
        except grpc.aio.AioRpcError as error:
            return failed(error.code(), error.details(), tuple(error.trailing_metadata()))
        return Reply("OK", wire)

    async def _send(self, call: Call, step: Send, replies: asyncio.Queue[Reply]) -> None:
        reply = await self._ask(self._replicas[step.replica], call, step.seconds, wait=False)
        replies.put_nowait(replace(reply, replica=step.replica))


def _channel(target: str, access: Access, options: Options) -> grpc.aio.Channel:
    credentials = access.channel_credentials(target)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


async def _next(replies: asyncio.Queue[Reply], seconds: float) -> Reply | None:
    try:
        return await asyncio.wait_for(replies.get(), seconds)
    except TimeoutError:
        return None
