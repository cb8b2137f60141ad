"""Heavy jobs as tasks of a Ray cluster; `training.engine` says what they are.

A task that dies with its machine is done again on another one, and so are results that lay there. A training that loses
a machine begins again, and goes on from its last checkpoint where it has one. Ray finds out and does it; said here is
how often, and with how many threads.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from index.ray_cluster import connect, ray
from training.durable import remove
from training.engine import answer, answered

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")

_RETRIES = 10
"""After which work counts as what kills whoever does it."""
_AHEAD = 2
"""Parts that are sent for each that is worked on: a worker never waits, and the cluster need not hold all of them."""


def at_once(address: str) -> int:
    """See `RayEngine.at_once`."""
    connect(address)
    threads = torch.get_num_threads()
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    places = sum(each // threads for each in cpus)
    if not places:
        raise ValueError(
            f"no machine of the Ray cluster has {threads} CPUs, as many as this process has threads; it has "
            f"{' and '.join(map(str, cpus)) or 'none'}; OMP_NUM_THREADS=1 asks for one"
        )
    return places


def each(
    address: str, make: Callable[[], Callable[[PartT], ResultT]], parts: Iterable[PartT]
) -> Iterator[tuple[int, ResultT]]:
    """See `RayEngine.each`."""
    ahead = _AHEAD * at_once(address)
    threads = torch.get_num_threads()
    task = ray.remote(_made).options(num_cpus=threads, max_retries=_RETRIES, runtime_env=_environment(threads))
    sent = ray.put(make)
    waiting = enumerate(parts)
    given: dict[Any, int] = {}
    try:
        while True:
            for place, part in islice(waiting, ahead - len(given)):
                given[task.remote(sent, part, threads)] = place
            if not given:
                return
            (ready,), _ = ray.wait(list(given), num_returns=1)
            yield given.pop(ready), answered(_received(ready))
    finally:
        for left in given:
            with suppress(ray.exceptions.RayError):
                ray.cancel(left)


def fit(address: str, train: Callable[[], ResultT], *, folder: Path, processes: int, cuda: bool) -> ResultT:
    """See `RayEngine.fit`."""
    if cuda and processes > 1:
        raise ValueError(f"processes is {processes}, accelerator is 'cuda' and engine 'ray'; Ray trains on one GPU")
    at_once(address)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    threads = torch.get_num_threads()
    storage = folder.absolute() / ".ray"

    def loop() -> bytes:
        torch.set_num_threads(threads)
        told = answer(train)
        if told[2] and processes > 1:
            raise RuntimeError(told[2])  # or the others would wait for this one
        # As Ray sends the results of tasks; Ray Train refuses tensors, which its controller need not know.
        packed: bytes = ray.cloudpickle.dumps(told)
        return packed

    trainer = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=processes, use_gpu=cuda, resources_per_worker={"CPU": threads, "GPU": int(cuda)}
        ),
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        run_config=RunConfig(
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=_RETRIES),
            worker_runtime_env=_environment(threads),
        ),
    )
    try:
        packed = trainer.fit().return_value
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        raise RuntimeError(f"training on Ray failed: {_line(error)}") from error
    finally:
        remove(storage)
    result: ResultT = answered(ray.cloudpickle.loads(packed))
    return result


def _made(make: Callable[[], Callable[[Any], Any]], part: Any, threads: int) -> tuple[Any, str, str]:
    torch.set_num_threads(threads)
    return answer(lambda: make()(part))


def _received(ready: Any) -> tuple[Any, str, str]:
    try:
        told: tuple[Any, str, str] = ray.get(ready)
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a task on Ray died {_RETRIES} times: {_line(error)}") from error
    return told


def _environment(threads: int) -> dict[str, Any]:
    """Of a worker: libraries read it when they are loaded."""
    return {"env_vars": {"OMP_NUM_THREADS": str(threads)}}


def _line(error: Exception) -> str:
    """The last line, which says why; those before it are a traceback from another machine."""
    return str(error).strip().splitlines()[-1]
