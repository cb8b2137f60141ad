"""Files and folders that appear whole, or not at all, whatever happens while they are written."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from index.on_disk import sync


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` after the block: a file, or a folder that the block makes.

    It is on the disk before it has its name, and takes the place of what had it. A folder cannot do that in one step:
    for a moment there is none. A block that fails leaves nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    remove(draft)
    try:
        yield draft
        for inside, _, names in os.walk(draft, topdown=False):
            for name in (*names, "."):
                sync(Path(inside, name))
        if draft.is_file():
            sync(draft)
        else:
            remove(path)
        draft.replace(path)
        sync(path.parent)
    except BaseException:
        remove(draft)
        raise


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Files by name, each whole or not at all, in this order."""
    for name, text in texts.items():
        with appearing(folder / name) as draft:
            draft.write_text(text)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
