"""A console over a real server, and what a visitor sees of it.

The server serves a copy of the loop of `conftest.py`: real models, real searches, and generations to change.
"""

import http.client
import shutil
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from conftest import Loop

from index.generations import GenerationStore
from serving.client import CascadeClient
from serving.generations import Generations
from serving.log.impression_log import ImpressionLog
from serving.server import Address, Server
from serving.settings import ServerSettings, ServiceSettings
from training.console.running import address, listener, prepared
from training.console.settings import ConsoleSettings


@contextmanager
def server_of(loop: Loop, folder: Path, *, port: int = 0, admin_port: int = 0) -> Iterator[Address]:
    """Serves a copy of the loop's store, and writes a log of its own."""
    store = GenerationStore(folder / "generations")
    if not store.root.exists():
        shutil.copytree(loop.store.root, store.root)
    settings = ServerSettings(
        generations=store.root,
        log=folder / "log",
        port=port,
        admin_port=admin_port,
        lame_duck_s=0.0,
        service=ServiceSettings(deadline_s=60.0),
    )
    generations = Generations(store)
    with ImpressionLog(folder / "log", durability="os") as log:
        server = Server(generations, state=None, log=log, settings=settings)
        at = server.start()
        try:
            yield at
        finally:
            server.stop()
            generations.close()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True, slots=True)
class Visitor:
    """A browser of few words."""

    url: str
    ca: Path | None
    """Of a page that is encrypted."""

    def get(self, path: str = "/", **headers: str) -> Answer:
        return self._ask("GET", path, None, headers)

    def look_up(self, **words: str) -> Answer:
        """The page of a look-up, whose draw the console chooses where none is given."""
        answer = self.get(self.asking(**words))
        return self.get(answer.headers["location"]) if answer.status == 303 else answer

    def asking(self, **words: str) -> str:
        return "/?" + urlencode(words)

    def post(self, form: Mapping[str, str], **headers: str) -> Answer:
        """The form, sent from the page itself unless `origin` says otherwise."""
        given = {"origin": self.url.rstrip("/"), "content-type": "application/x-www-form-urlencoded", **headers}
        return self._ask("POST", "/generations", urlencode(form), given)

    def change(self, **form: str) -> Answer:
        """With what the page put into its forms."""
        return self.post({"secret": Page.of(self.get().text).hidden["secret"], **form})

    def _ask(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> Answer:
        at = urlsplit(self.url)
        connection: http.client.HTTPConnection
        if self.ca is not None:
            context = ssl.create_default_context(cafile=str(self.ca))
            connection = http.client.HTTPSConnection(str(at.hostname), at.port, timeout=60, context=context)
        else:
            connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            reply = connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode())
        finally:
            connection.close()


class Page(HTMLParser):
    """What of a page matters to those who cannot see it, and what it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.labels: set[str] = set()
        self.fields: list[Mapping[str, str]] = []
        """Inputs and selects that can be reached."""
        self.hidden: dict[str, str] = {}
        self.headings: list[int] = []
        self.targets: list[str] = []
        """Of links inside the page."""
        self.tags: list[tuple[str, Mapping[str, str]]] = []

    @classmethod
    def of(cls, text: str) -> "Page":
        page = cls()
        page.feed(text)
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "label":
            self.labels.add(given["for"])
        if tag in ("input", "select") and given.get("type") == "hidden":
            self.hidden[given["name"]] = given["value"]
        elif tag in ("input", "select"):
            self.fields.append(given)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag == "a" and given["href"].startswith("#"):
            self.targets.append(given["href"][1:])


@contextmanager
def console_of(target: str, admin: str, **changes: Any) -> Iterator[Visitor]:
    """The page, on a free port."""
    settings = replace(ConsoleSettings(target=target, admin=admin, reports=(), port=0), **changes)
    with CascadeClient(target, admin_target=admin, deadline_s=30.0, access=settings.access()) as client:
        server, bound = prepared(settings, client), listener(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Visitor(address(settings, bound), ca=settings.security.certificate)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def eventually(visitor: Visitor, words: str, *, within_s: float = 30.0) -> Answer:
    """The page once it says so."""
    until = time.monotonic() + within_s
    while True:
        answer = visitor.get()
        if words in answer.text or time.monotonic() > until:
            assert words in answer.text
            return answer
        time.sleep(0.2)
