"""The manual's commands and programs, run as a reader runs them: the blocks below a comment `runs`, page after page."""

import ast
import asyncio
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, redirect_stdout
from dataclasses import dataclass, field
from inspect import iscoroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from training import cli

ROOT = Path(__file__).parents[1]
PATIENCE_S = 180.0
"""With a machine that does other things: as long as the servers and clients of a reader would never wait."""
TARGET = "127.0.0.1:50051"
"""Where the pages' server listens. The tests' listens on a free port."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block and what the comment above it says of it."""

    language: str
    text: str
    told: str
    """runs; runs slow: leaves CI alone; prints: what the block before prints."""


def blocks(page: str) -> Iterator[Block]:
    tokens = MarkdownIt("commonmark").parse((ROOT / "docs" / page).read_text())
    for above, token in pairwise(tokens):
        comment = re.fullmatch(r"<!-- (runs|runs slow|prints) -->", above.content.strip())
        if comment:
            assert token.type == "fence", f"{page}: no block below {above.content}"
            yield Block(token.info, token.content, comment[1])


@dataclass
class Reader:
    """Types what a page says, in a folder of their own."""

    stack: ExitStack
    variables: dict[str, str] = field(default_factory=dict)
    server: "subprocess.Popen[bytes] | None" = None
    printed: str = ""

    def follow(self, page: str, *, slow: bool = False) -> int:
        """Run a page's blocks; how many ran."""
        count = 0
        for block in blocks(page):
            if block.told == "prints":
                assert self.printed.split() == block.text.split(), page
            elif slow or block.told == "runs":
                (self.program if block.language == "python" else self.shell)(block.text)
                count += 1
        return count

    def shell(self, text: str) -> None:
        out = io.StringIO()
        for line in re.findall(r'^\w+="[^"]*"|^cascade [^\n#]*', text, re.MULTILINE):
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line, re.DOTALL):
                self.variables[assigned[1]] = " ".join(assigned[2].split())
                continue
            given = shlex.split(re.sub(r"\$(\w+)", lambda name: self.variables[name[1]], line))[1:]
            if given[-1] == "&":
                self.serve(given[:-1])
                continue
            with redirect_stdout(out):
                assert cli.main(given) == 0, line
        self.printed = out.getvalue()

    def serve(self, given: list[str]) -> None:
        command = [sys.executable, "-m", "training.cli", *given, "port=0", "admin_port=0"]
        path = os.environ.get("PYTHONPATH", "")
        self.server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"})
        self.stack.callback(self.stop)
        until = time.monotonic() + PATIENCE_S
        while not Path("outputs/latest/server.json").exists():
            assert self.server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self.server is None or self.server.poll() is not None:
            return
        try:
            self.server.send_signal(signal.SIGINT)
            assert self.server.wait(PATIENCE_S) == 0
        finally:
            self.server.kill()

    def program(self, text: str) -> None:
        if TARGET in text:
            address = json.loads(Path("outputs/latest/server.json").read_text())
            text = re.sub(r"deadline_s=[\d.]+", f"deadline_s={PATIENCE_S}", text.replace(TARGET, address["target"]))
        held: dict[str, Any] = {}
        with redirect_stdout(io.StringIO()) as out:
            done = eval(compile(text, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), held)
            if iscoroutine(done):
                asyncio.run(done)
        self.printed = out.getvalue()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    with chdir(tmp_path), ExitStack() as stack:
        yield Reader(stack)


def test_two_csv_files_become_slates_that_clients_get_and_a_log_that_others_read(reader: Reader) -> None:
    assert reader.follow("data.md") == 6
    assert reader.follow("clients.md") == 2
    reader.stop()
    assert reader.follow("log.md") == 2
    assert "home" in reader.printed


@pytest.mark.slow
def test_the_night_after_learns_from_what_was_served(reader: Reader) -> None:
    assert reader.follow("data.md", slow=True) == 7
    assert "mismatches" in reader.printed
