"""Work on the segments of a log, in processes side by side; what is done outlives whoever did it.

A journal is a file of JSON lines: first what the work is about, then a line for every segment that is done. A line
that was torn when its writer was killed is left out.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from training.durable import appearing
from training.engine import LocalEngine
from training.log.impression_log import Segment
from training.progress import progress

Result = dict[str, Any]
"""What work on a segment gives: plain values, that JSON holds."""
Work = Callable[[Segment], Result]


class Journal:
    """What is done of one piece of work.

    Args:
        about: everything that the results depend on beside the segments: where any of it differs from what an earlier
            run wrote, that run counts for nothing.
    """

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        self._path = path
        self.done: dict[Segment, Result] = {}
        self.afresh = ""
        """Why what was there counts for nothing; empty where it counts, or where nothing was there."""
        before, done = _read(path)
        differing = [name for name in about if before.get(name) != about[name]]
        if before and differing:
            self.afresh = f"{' and '.join(differing)} differ{'s' if len(differing) == 1 else ''} from the last run's"
        elif before:
            self.done = done
        with appearing(path) as draft:
            lines = [{"about": dict(about)}, *(_line(segment, result) for segment, result in self.done.items())]
            draft.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def add(self, segment: Segment, result: Result) -> None:
        with self._path.open("a") as file:
            file.write(f"{json.dumps(_line(segment, result))}\n")
        self.done[segment] = result

    def remove(self) -> None:
        """Nothing is left to go on with."""
        self._path.unlink()


def over(
    segments: Sequence[Segment], make: Callable[[], Work], *, journal: Journal, workers: int, title: str
) -> Iterator[Result]:
    """The result of every segment, those of the journal first; the others as they come, each noted there.

    Args:
        make: makes what works, once in every process; it and its arguments are sent to fresh ones.
        workers: most processes; what one can do is done here.

    Raises:
        ValueError: what a process refused.
        RuntimeError: what broke in a process, or that it died.
    """
    todo = [each for each in segments if each not in journal.done]
    known = [each for each in segments if each in journal.done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress(*columns) as bar:
        whole, before = (sum(each.rows for each in of) for of in (segments, known))
        task = bar.add_task(title, total=whole, completed=before)
        yield from (journal.done[each] for each in known)
        for place, result in LocalEngine(workers).each(make, todo):
            segment = todo[place]
            journal.add(segment, result)
            bar.advance(task, segment.rows)
            yield result


def cores(workers: int | None) -> int:
    """As many processes as are asked for, or one for each core that this one may use."""
    return workers or len(os.sched_getaffinity(0))


def _read(path: Path) -> tuple[dict[str, str], dict[Segment, Result]]:
    lines = []
    with suppress(FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        for line in path.read_bytes().splitlines():
            lines.append(json.loads(line))
    if not lines:
        return {}, {}
    return lines[0]["about"], {Segment(**each["segment"]): each["result"] for each in lines[1:]}


def _line(segment: Segment, result: Result) -> dict[str, Any]:
    return {"segment": asdict(segment), "result": result}
