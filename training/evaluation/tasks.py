"""The tasks of `cascade evaluate`: names, options, and the one form of their results.

A task is a module of this package with `evaluate(**options) -> Mapping[str, float]`; its signature says which options
there are, of which type, and which are required.
"""

import inspect
import math
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

AVAILABLE = ("retrieval", "sequence", "session", "search", "judgments", "clicks", "ltr")


def run(task: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Run a task.

    Args:
        options: as typed; they become what the task's signature declares.

    Returns:
        `task`, `metrics` (a metric that is undefined is None), `seconds`, `seed`, `config` (twelve digits that name
        the task with all its options).

    Raises:
        ValueError: for a task or an option that does not exist, with the nearest that does; for one that is missing;
            for a value of another type.
    """
    function = _function(task)
    called = arguments(task, function, options)
    started = time.perf_counter()
    metrics = function(**called)
    named = repr((task, sorted((name, str(value)) for name, value in called.items())))
    return {
        "task": task,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "seconds": round(time.perf_counter() - started, 3),
        "seed": called.get("seed"),
        "config": sha256(named.encode()).hexdigest()[:12],
    }


def pairs(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a mapping."""
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not key=value")
        if name in options:
            raise ValueError(f"{name} is given twice: {options[name]!r} and {value!r}")
        options[name] = value
    return options


def arguments(task: str, function: Callable[..., Mapping[str, float]], options: Mapping[str, str]) -> dict[str, Any]:
    """Every argument of the task's function, defaults included, in its declared type."""
    parameters = inspect.signature(function, eval_str=True).parameters
    for name in options:
        if name not in parameters:
            nearest = get_close_matches(name, list(parameters), 1, 0.0)
            raise ValueError(
                f"evaluate {task} has no option {name!r}; the nearest is {nearest[0]!r} "
                f"(there are {', '.join(parameters)})"
            )
    called: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in options:
            called[name] = _converted(name, options[name], parameter.annotation)
        elif parameter.default is inspect.Parameter.empty:
            raise ValueError(f"evaluate {task} needs {name}=...")
        else:
            called[name] = parameter.default
    return called


def _function(task: str) -> Callable[..., Mapping[str, float]]:
    if task not in AVAILABLE:
        nearest = get_close_matches(task, AVAILABLE, 1, 0.0)[0]
        raise ValueError(f"no task {task!r}; the nearest is {nearest!r} (there are {', '.join(AVAILABLE)})")
    function: Callable[..., Mapping[str, float]] = import_module(f"training.evaluation.{task}").evaluate
    return function


def _converted(name: str, text: str, declared: Any) -> Any:
    if isinstance(declared, types.UnionType) or typing.get_origin(declared) is typing.Union:
        if text.lower() in ("none", "null"):
            return None
        declared = next(each for each in typing.get_args(declared) if each is not types.NoneType)
    if typing.get_origin(declared) is typing.Literal:
        choices = typing.get_args(declared)
        if text not in choices:
            raise ValueError(f"{name} is {text!r}; it must be one of {', '.join(choices)}")
        return text
    try:
        if declared is bool:
            return {"true": True, "false": False}[text.lower()]
        if declared in (int, float):
            return declared(text)
    except (ValueError, KeyError):
        needed = {bool: "true or false", int: "a whole number", float: "a number"}[declared]
        raise ValueError(f"{name} is {text!r}; {needed} is needed") from None
    return Path(text).expanduser() if declared is Path else text
