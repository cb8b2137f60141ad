"""Redis as it should not be: a cluster of real servers, and a proxy that does to a connection what networks do."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import redis

from serving.state.local_redis import server_executable

Ill = Literal["", "reset", "silent", "garbage", "wrong type", "shut"]
_SLOTS = 16_384


class RedisProxy:
    """Passes bytes on between clients and a Redis on a Unix socket, or does what `ill` says to every answer."""

    def __init__(self, socket_path: str) -> None:
        self._target = socket_path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peers: list[socket.socket] = []
        self.ill: Ill = ""
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection there is."""
        peers, self._peers = self._peers, []
        for peer in peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                if self.ill == "shut":
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                self._peers += [client, server]
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while said := client.recv(1 << 16):
                server.sendall(said)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while said := server.recv(1 << 16):
                match self.ill:
                    case "reset":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        client.close()
                        return
                    case "garbage":
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    case "wrong type":
                        client.sendall(b":7\r\n" * 8)
                    case "silent":
                        continue
                    case _:
                        client.sendall(said)


class ClusterNode:
    """One redis-server of a cluster."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self._folder = folder
        self.process = self._begun()

    def begin_again(self) -> None:
        self.process = self._begun()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _begun(self) -> "subprocess.Popen[bytes]":
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "cluster-enabled": "yes",
            "cluster-require-full-coverage": "no",
            "cluster-node-timeout": 1000,
            "save": "",
            "appendonly": "no",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return subprocess.Popen(
            [server_executable(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )


@contextmanager
def redis_cluster(folder: Path, *, nodes: int = 3) -> Iterator[tuple[ClusterNode, ...]]:
    """Real servers on 127.0.0.1, each with its share of the slots, until the `with` ends."""
    made = tuple(ClusterNode(port, folder / str(port)) for port in _free_ports(nodes))
    try:
        share = -(-_SLOTS // nodes)
        for n, node in enumerate(made):
            with closing(_connected(node)) as client:
                _raw(client, "CLUSTER", "ADDSLOTS", *range(n * share, min((n + 1) * share, _SLOTS)))
                _raw(client, "CLUSTER", "MEET", "127.0.0.1", made[0].port)
        end = time.monotonic() + 20
        for node in made:
            with closing(_connected(node)) as client:
                while len(_owners(client)) < nodes or b"cluster_state:ok" not in _info(client):
                    assert time.monotonic() < end, "the cluster does not come together"
                    time.sleep(0.05)
        yield made
    finally:
        for node in made:
            node.end()


def _connected(node: ClusterNode) -> redis.Redis:
    client = redis.Redis("127.0.0.1", node.port, socket_timeout=5)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with suppress(redis.RedisError):
            client.ping()
            break
        time.sleep(0.02)
    return client


def _owners(client: redis.Redis) -> set[Any]:
    return {tuple(each[2][:2]) for each in _raw(client, "CLUSTER", "SLOTS")}


def _info(client: redis.Redis) -> bytes:
    return bytes(_raw(client, "CLUSTER", "INFO"))


def _raw(client: redis.Redis, *words: str | int) -> Any:
    connection: Any = client.connection_pool.get_connection()
    try:
        connection.send_command(*words)
        return connection.read_response(disable_decoding=True)
    finally:
        client.connection_pool.release(connection)


def _free_ports(count: int) -> list[int]:
    """Ports below 50000, whose bus port, 10000 above, is free too."""
    found: list[int] = []
    for port in range(21_000 + time.time_ns() % 20_000, 50_000):
        with suppress(OSError), socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            found.append(port)
        if len(found) == count:
            break
    return found
