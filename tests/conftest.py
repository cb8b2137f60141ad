"""One loop, run once for all tests that need what it makes: a small world, two trained generations, a served log."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import settings as hypothesis_settings

from candidate_gen.towers import TowerShape
from index.generations import GenerationStore
from policy.settings import PolicySettings
from ranking.model import RankerShape
from serving.client import CascadeClient
from serving.generation import Generation
from serving.generations import Generations
from serving.log.impression_log import ImpressionLog
from serving.retrieval import RetrievalSettings
from serving.server import Server
from serving.settings import ServerSettings, ServiceSettings
from serving.state.local_redis import LocalRedis
from serving.state.user_state import UserState
from training import cycle
from training.cycle import CycleSettings
from training.datasets.dataset import Dataset
from training.gates import GateSettings
from training.learning.ranker import RankerSettings
from training.learning.tower import TowerSettings
from training.log.served import ServedLog
from training.materialise import materialise
from training.publish import Published
from training.simulation.traffic import Users, Visit
from training.simulation.world import World

hypothesis_settings.register_profile("cascade", deadline=None)
hypothesis_settings.load_profile("cascade")

OPEN_GATES = GateSettings(index_recall=0.0, ranker_auc=0.0, ranker_ece=1.0, found=0.0, shrink=1.0)
SMALL_RANKER = RankerSettings(shape=RankerShape(dim=4, query_width=8, cross_layers=0, hidden=(8,)), epochs=1)
SMALL = CycleSettings(
    policy=PolicySettings(weights=dict(World.weights), temperature=0.2, epsilon=0.1),
    towers=TowerSettings(shape=TowerShape(width=8, embedding=8, hidden=16, heads=1), epochs=1, batch=128),
    ranker=SMALL_RANKER,
    retrieval=RetrievalSettings(
        quotas={
            "ann": 40,
            "lexical": 20,
            "similar": 20,
            "covisitation": 10,
            "trending": 10,
            "fresh": 15,
            "popular": 15,
        }
    ),
    gates=OPEN_GATES,
)
"""Models that learn next to nothing, quickly."""
FIRST_DAYS, SERVED_DAYS, RETURNING_DAYS = 6, 2, 1
SLATE_SIZE = 6


@dataclass(frozen=True)
class Loop:
    """A world that went through the whole loop. Tests read it and change nothing."""

    world: World
    dataset: Dataset
    """Of the first log."""
    store: GenerationStore
    first: Published
    second: Published
    """Active; trained on what the first served."""
    log: Path
    """Of both generations."""
    served: ServedLog
    """What the second was trained on."""
    everything: ServedLog
    """Of both generations."""
    history: pl.DataFrame
    """Every event, of the first log and of the served one."""
    visits: tuple[Visit, ...]
    generations: tuple[Generation, Generation]

    @property
    def first_end_ms(self) -> int:
        return self.world.day_ms(FIRST_DAYS)

    @property
    def served_end_ms(self) -> int:
        return self.world.day_ms(FIRST_DAYS + SERVED_DAYS)


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """Built once: a first log, cycle 1, a real server with a real Redis, cycle 2, a swap while it serves."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("loop")
    world = World(0, users=120, items=250, days=12)
    first_end = world.day_ms(FIRST_DAYS)
    served_end = world.day_ms(FIRST_DAYS + SERVED_DAYS)
    returning_end = world.day_ms(FIRST_DAYS + SERVED_DAYS + RETURNING_DAYS)
    asked = world.requests(world.start_ms, first_end, 800)
    dataset = world.dataset(*world.first_log(asked, slate_size=SLATE_SIZE))
    store = GenerationStore(folder / "generations")

    def train(as_of_ms: int, served: ServedLog | None) -> Published:
        return cycle.run(
            dataset,
            settings=SMALL,
            store=store,
            folder=folder / f"until-{as_of_ms}",
            as_of_ms=as_of_ms,
            seed=0,
            now_ms=as_of_ms,
            served=served,
        )

    first = train(first_end, None)
    store.activate(first.id, expected=None, time_ms=first_end)
    path = folder / "log"
    settings = ServerSettings(
        generations=store.root,
        log=path,
        port=0,
        admin_port=0,
        lame_duck_s=0.0,
        service=ServiceSettings(clock="request", deadline_s=60.0, eligible_share=1.0),
    )
    with LocalRedis(folder / "redis") as redis, ImpressionLog(path, durability="os") as log:
        state = UserState(redis.url, timeout_s=10.0)
        materialise(dataset.events, state)
        server = Server(Generations(store), state=state, log=log, settings=settings)
        address = server.start()
        try:
            with CascadeClient(address.target, admin_target=address.admin_target, deadline_s=60.0) as client:
                users = Users(client, world, size=SLATE_SIZE)
                visits = users.visit(world.requests(first_end, served_end, 400), until_ms=served_end)
                log.flush()
                served = ServedLog.read(path, until_ms=served_end)
                second = train(served_end, served)
                client.activate(second.id, expected=first.id)
                requests = world.requests(served_end, returning_end, 80)
                returning = users.visit(requests, until_ms=world.day_ms(world.days))
        finally:
            server.stop()
            state.close()
    everything = ServedLog.read(path, until_ms=world.day_ms(world.days))
    return Loop(
        world=world,
        dataset=dataset,
        store=store,
        first=first,
        second=second,
        log=path,
        served=served,
        everything=everything,
        history=pl.concat([dataset.events, everything.events.select(dataset.events.columns)]),
        visits=(*visits, *returning),
        generations=(Generation.load(store, first.id), Generation.load(store, second.id)),
    )
