"""The manual as its readers meet it: every link leads somewhere, every page is found, no generated page is stale."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from docs import flow, reference
from docs.reference import settings
from training import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "README.md"]
FOLDERS = (
    "index",
    "candidate_gen",
    "ranking",
    "policy",
    "serving",
    "training",
    "conf",
    "protos",
    "tests",
    "deploy",
    "docs",
)
OWN = ["conf/data/mine.yaml", "conf/data/mine.yaml"]
"""What a reader makes."""
LONGEST = 40
"""Lines of prose that a reader is given before the next heading."""


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tokens(path: Path) -> tuple[Token, ...]:
    return tuple(MarkdownIt("commonmark").enable("table").parse(path.read_text()))


@cache
def anchors(path: Path) -> frozenset[str]:
    """As GitHub and the site make them of headings."""
    found = tokens(path)
    titles = [found[n + 1] for n, each in enumerate(found) if each.type == "heading_open"]
    texts = ["".join(child.content for child in each.children or ()) for each in titles]
    return frozenset(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts)


def targets(path: Path) -> Iterator[str]:
    """Of links and pictures, wherever on the page."""
    for token in tokens(path):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if isinstance(target, str):
                yield target


@pytest.mark.parametrize("path", WRITTEN, ids=ids)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(path: Path) -> None:
    lost = []
    for target in targets(path):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or (anchor and anchor not in anchors(other)):
            lost.append(target)
    assert not lost


@pytest.mark.parametrize("path", WRITTEN, ids=ids)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+\w)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] in ([], OWN)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [
        re.sub(r".*<|>", "", name)
        for token in tokens(DOCS / "index.md")
        if token.type == "fence" and token.info == "{toctree}"
        for name in token.content.splitlines()
        if name and not name.startswith(":")
    ]
    assert sorted(listed) == sorted(path.stem for path in PAGES if path.stem != "index")


@pytest.mark.parametrize("path", WRITTEN, ids=ids)
def test_a_page_has_one_title_and_no_two_headings_of_one_name(path: Path) -> None:
    levels = [token.tag for token in tokens(path) if token.type == "heading_open"]
    assert levels[0] == "h1"
    assert levels.count("h1") == 1
    assert path.name == "CHANGELOG.md" or len(anchors(path)) == len(levels)


@pytest.mark.parametrize("path", WRITTEN, ids=ids)
def test_nothing_of_a_page_is_lost_because_it_looks_like_a_tag(path: Path) -> None:
    tags = [child.content for token in tokens(path) for child in token.children or () if child.type == "html_inline"]
    assert tags == []


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_no_page_is_a_wall_of_text(path: Path) -> None:
    """Code and tables are looked up, not read through."""
    since, at, cells = 0, "", False
    for token in tokens(path):
        if token.type in ("table_open", "table_close"):
            cells = token.type == "table_open"
        elif token.type == "heading_open":
            since, at = 0, token.markup
        elif token.type == "inline" and token.map and not cells:
            at = at or token.content
            at = token.content if at.startswith("#") else at
            since += token.map[1] - token.map[0]
        assert since <= LONGEST, f"{at}: more than {LONGEST} lines without a heading"


@pytest.mark.parametrize("path", reference.PAGES, ids=ids)
def test_a_generated_page_says_what_its_sources_say(path: Path) -> None:
    assert path.read_text() == reference.PAGES[path](), "stale: make reference"


def commands(path: Path) -> Iterator[list[str]]:
    """Every command of `cascade` in the code of a page, less those that leave something open."""
    for token in tokens(path):
        if token.type in ("fence", "code_block"):
            lines = token.content.replace("\\\n", " ").splitlines()
            for command in (part.strip() for line in lines for part in re.split(r"&&|\||; ", line)):
                if command.startswith("cascade ") and not re.search(r"\.\.\.|<|>|\$", command):
                    yield shlex.split(command.removesuffix("&"), comments=True)[1:]


@pytest.mark.parametrize("path", WRITTEN, ids=ids)
def test_every_command_of_a_page_is_one_that_there_is(path: Path) -> None:
    for words in commands(path):
        cli._parse(words)


def test_the_drawn_picture_is_what_its_drawing_says() -> None:
    assert flow.PICTURE.read_text() == flow.drawn(), "stale: make pictures"


@pytest.mark.parametrize("path", sorted(settings.CONF.rglob("*.yaml")), ids=ids)
def test_every_setting_says_what_it_means_where_it_is_first_set(path: Path) -> None:
    found = settings.read(path)
    if any(not option for _, option in found.defaults):
        return  # another option of a group, whose default says it
    told = tuple(each.key for each in found.settings if each.text)
    bare = [each.key for each in found.settings if not each.key.startswith(told)]
    assert bare in ([], ["output"])
