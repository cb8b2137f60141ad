"""Redis, or a Redis Cluster, as whoever needs it soon or not at all sees it: batches, deadlines, no second try.

All commands of a batch are about keys of one slot, so that a batch is one round trip to one node whatever the size of
the cluster, and a node that is ill is only missed by those whose keys it holds.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError
from redis.retry import Retry

from serving.breaker import Breaker

Command = tuple[bytes | str | int, ...]
"""A name and its arguments."""
Batch = Sequence[Command]

_SINGLE = ("redis", "rediss", "unix")
_CLUSTER = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_SLOTS = 16_384
_WATCH_S = 0.25
_LOGGER = logging.getLogger("cascade.serving")


class StateUnavailable(RuntimeError):
    """The state cannot be had now; the caller goes on without it."""


class LeftAlone(StateUnavailable):
    """No node was even asked, because it did not answer before, or none is known: that has been said."""


@dataclass(frozen=True, slots=True)
class _Node:
    """One redis-server."""

    name: str
    pool: redis.ConnectionPool
    breaker: Breaker

    def ask(self, batch: Batch) -> list[Any]:
        """What the node says to each command, a refusal as the `ResponseError` itself.

        Only silence and what is no answer count against the node: one that refuses does answer.

        Raises:
            RedisError, OSError: and it is not known which commands were executed.
        """
        replies: list[Any] = []
        try:
            connection: Any = self.pool.get_connection()
            try:
                connection.send_packed_command(connection.pack_commands(batch))
                for _ in batch:
                    try:
                        replies.append(connection.read_response(disable_decoding=True))
                    except redis.ResponseError as refusal:
                        replies.append(refusal)
            except BaseException:
                connection.disconnect()  # what is still to come must not be taken for the next answer
                raise
            finally:
                self.pool.release(connection)
        except (redis.RedisError, OSError):
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return replies


class RedisStore:
    """One Redis or a cluster of them.

    A node that fails some calls in a row is left alone, and callers are refused at once; in the background it is asked
    whether it is back, so that no caller pays for finding out.

    Args:
        url: `redis://host:port/db`, `rediss://...`, `unix:///path`, or the nodes of a cluster to begin with:
            `redis+cluster://host:port,host:port`, `rediss+cluster://...`. User and password as in any URL.
        timeout_s: for connecting and for an answer, each; nothing is tried twice.
        breaker: makes one for each node.

    Raises:
        ValueError: where the address is none of those, or the time is not positive.
    """

    def __init__(self, url: str, *, timeout_s: float, breaker: Callable[[], Breaker] = Breaker) -> None:
        scheme, mark, rest = url.partition("://")
        if not mark or scheme not in (*_SINGLE, *_CLUSTER):
            allowed = ", ".join(f"{each}://" for each in (*_SINGLE, *_CLUSTER))
            raise ValueError(f"redis: an address that begins with {scheme!r} given, allowed: {allowed}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        self._timeout_s = timeout_s
        self._new_breaker = breaker
        self._nodes: dict[str, _Node] = {}
        self._node_of_slot: list[_Node | None] = []
        """Empty where there is but one node."""
        self._changing = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        if scheme in _CLUSTER:
            credentials, at, hosts = rest.rpartition("@")
            self._prefix = f"{_CLUSTER[scheme]}://{credentials}{at}"
            self._seeds = tuple(self._node(host) for host in hosts.rstrip("/").split(","))
            self._node_of_slot = [None] * _SLOTS
            self._stale = True
            self._map_slots()
            if self._stale:
                _LOGGER.warning("no node of the Redis Cluster answers yet")
        else:
            self._prefix = ""
            self._seeds = (self._node(url),)
            self._stale = False
        self._watcher = threading.Thread(target=self._watch, name="redis-watch", daemon=True)
        self._watcher.start()

    def ask(self, key: str, batch: Batch) -> list[Any]:
        """One round trip to the node that holds a key; a refusal comes as the `ResponseError` itself.

        Args:
            batch: commands about keys of that key's slot.

        Raises:
            StateUnavailable: it is not known which of them were executed.
        """
        if not self._node_of_slot:
            return self._asked(self._seeds[0], batch)
        slot = key_slot(key.encode())
        replies = self._followed(self._asked(self._node_of_slot[slot], batch), batch)
        moved = self._moved(replies)
        if moved is None:
            return replies
        owner = self._node(f"{moved.host}:{moved.port}")
        self._node_of_slot[slot] = owner
        return self._asked(owner, batch)

    def ask_all(self, batches: Mapping[str, Batch]) -> dict[str, list[Any]]:
        """`ask` for many keys: one round trip for each node. Keys whose node does not answer are left out."""
        keys_of: dict[str, list[str]] = {}
        for key in batches:
            node = self._node_of_slot[key_slot(key.encode())] if self._node_of_slot else self._seeds[0]
            keys_of.setdefault(node.name if node else "", []).append(key)
        found: dict[str, list[Any]] = {}
        for name, keys in keys_of.items():
            batch = [each for key in keys for each in batches[key]]
            try:
                replies = self._followed(self._asked(self._nodes.get(name), batch), batch)
            except LeftAlone:
                continue
            except StateUnavailable as error:
                _LOGGER.warning("%d keys are not told or asked: %s", len(keys), error)
                continue
            if self._moved(replies) is None:
                said = iter(replies)
                found |= {key: [next(said) for _ in batches[key]] for key in keys}
        return found

    @property
    def available(self) -> bool:
        """Whether every node would be asked now."""
        return all(node is not None and node.breaker.closed for node in set(self._node_of_slot) or self._seeds)

    def ping(self) -> bool:
        """Whether every node answers now; asks them even while a breaker is open."""
        nodes = {node.name: node for node in self._node_of_slot if node} or {each.name: each for each in self._seeds}
        return all(_answers(node) for node in nodes.values())

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._watcher.join()
        for node in self._nodes.values():
            node.pool.close()

    def _asked(self, node: _Node | None, batch: Batch) -> list[Any]:
        if node is None:
            raise LeftAlone("redis: no node is known to hold this key")
        if not node.breaker.closed:
            raise LeftAlone("redis: the breaker is open")
        try:
            return node.ask(batch)
        except (redis.RedisError, OSError) as error:
            self._stale = bool(self._node_of_slot)
            raise StateUnavailable(f"redis: {error}") from error

    def _followed(self, replies: list[Any], batch: Batch) -> list[Any]:
        """The replies, with those of the nodes to which keys are on their way: the owner sends whoever asks for such a
        key there, this once. A command about several keys is refused (TRYAGAIN) until all of them are there."""
        away: dict[str, list[int]] = {}
        for n, each in enumerate(replies):
            if isinstance(each, AskError) and not isinstance(each, MovedError):
                away.setdefault(f"{each.host}:{each.port}", []).append(n)
        for name, at in away.items():
            said = self._asked(self._node(name), [each for n in at for each in (("ASKING",), batch[n])])
            for n, reply in zip(at, said[1::2], strict=True):
                replies[n] = reply
        return replies

    def _moved(self, replies: Sequence[Any]) -> MovedError | None:
        """That a slot is held by another node than it was, which is then looked up."""
        moved = next((each for each in replies if isinstance(each, MovedError)), None)
        if moved is not None and self._node_of_slot:
            self._stale = True
            self._wake.set()
        return moved

    def _node(self, name: str) -> _Node:
        with self._changing:
            if name not in self._nodes:
                pool = redis.ConnectionPool.from_url(
                    self._prefix + name,
                    socket_timeout=self._timeout_s,
                    socket_connect_timeout=self._timeout_s,
                    retry=Retry(NoBackoff(), 0),
                    protocol=2,  # 3 costs a round trip on connecting
                )
                self._nodes[name] = _Node(name, pool, self._new_breaker())
            return self._nodes[name]

    def _watch(self) -> None:
        while not self._closing:
            self._wake.wait(_WATCH_S)
            self._wake.clear()
            for node in list(self._nodes.values()):
                if not node.breaker.closed and node.breaker.admit() and _answers(node):
                    _LOGGER.warning("redis answers again")
            if self._stale:
                self._map_slots()

    def _map_slots(self) -> None:
        """Ask the nodes, one after the other, which of them holds what, until one knows."""
        for node in (*self._seeds, *self._nodes.values()):
            try:
                shards = node.ask([("CLUSTER", "SLOTS")])[0] if node.breaker.closed else []
                for first, last, (host, port, *_), *_ in shards:
                    owner = self._node(f"{host.decode() or _host(node)}:{port}")
                    self._node_of_slot[first : last + 1] = [owner] * (last + 1 - first)
            except (redis.RedisError, OSError, ValueError, TypeError, AttributeError):
                continue
            if shards:
                self._stale = False
                return


def _answers(node: _Node) -> bool:
    try:
        return bool(node.ask([("PING",)])[0] == b"PONG")
    except (redis.RedisError, OSError):
        return False


def _host(node: _Node) -> str:
    return node.name.rpartition(":")[0]
