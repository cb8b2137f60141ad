"""Every option of `conf/` composes, becomes settings, and stays in step with the dataclasses it fills."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from training import configuration
from training.configuration import Choices, ConfigurationError, Range, held, settings
from training.cycle import CycleSettings

GROUPS = configuration.groups()
ROOTS = configuration.roots()
TRAINED = ("demo", "train", "export", "nightly")
NEEDED = {"ml-1m": ["data.root=x"], "ml-latest-small": ["data.root=x"], "parquet": ["data.root=x"]}
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]


def root_of(group: str) -> str:
    return {"server": "serve", "contract": "nightly", "limits": "monitor"}.get(group, "train")


def targets(tree: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield path, tree
        for name, value in tree.items():
            yield from targets(value, f"{path}.{name}")


@pytest.mark.parametrize("root", ROOTS)
def test_every_entry_point_has_settings_by_default(root: str) -> None:
    assert is_dataclass(settings(root, []))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_becomes_settings(group: str, option: str) -> None:
    made = settings(root_of(group), [f"{group}={option}", *NEEDED.get(option, [])])
    assert is_dataclass(made)


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
@pytest.mark.parametrize("root", TRAINED)
def test_every_experiment_goes_with_every_training_entry_point(root: str, experiment: str) -> None:
    made = settings(root, [f"experiment={experiment}"])
    assert made.cycle != settings(root, []).cycle


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_experiment_says_how_it_is_run(experiment: str) -> None:
    text = (configuration.FOLDER / "experiment" / f"{experiment}.yaml").read_text()
    assert f"experiment={experiment}" in text.partition("defaults:")[0]


@pytest.mark.parametrize("path", sorted(configuration.FOLDER.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", sorted(configuration.FOLDER.glob("*/default.yaml")), ids=lambda path: path.parent.name)
def test_a_default_holds_every_field_of_its_dataclass_with_the_same_value(path: Path) -> None:
    for at, tree in targets(OmegaConf.to_container(OmegaConf.load(path)), path.parent.name):
        target = get_object(tree["_target_"])
        written = {name for name in tree if name != "_target_"}
        assert written == {field.name for field in fields(target)}, at
        for field in fields(target):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if default is not MISSING and not is_dataclass(default):
                expected = list(default) if isinstance(default, tuple) else default
                assert tree[field.name] == expected, f"{at}.{field.name}"


@pytest.mark.parametrize("root", TRAINED)
def test_every_field_of_the_cycle_can_be_set(root: str) -> None:
    text = configuration.as_yaml(root, [])
    assert all(f"\n{field.name}:" in f"\n{text}" for field in fields(CycleSettings))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["towers.epocs=3"], "towers.epochs"),
        (["tower.epochs=3"], "towers.epochs"),
        (["towers=smal"], "small"),
        (["data=wrld"], "world"),
        (["+towers.epoch=3"], "towers.epochs"),
        (["sed=1"], "seed"),
    ],
)
def test_an_unknown_key_or_option_names_the_nearest_that_exists(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"nearest is '{message}'"):
        settings("train", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["towers.epochs=0"], "towers: epochs is 0; it must be at least 1"),
        (["towers.epochs=three"], "towers.epochs is 'three'; a whole number is needed"),
        (["towers.temperature=warm"], "towers.temperature is 'warm'; a number is needed"),
        (["policy.weights.hide=1"], "policy: weights.hide is 1"),
        (["data=ml-1m"], "data.root must be given"),
        (["towers"], "'towers' is not key=value"),
        (["seed=1,2"], "Ambiguous value for argument 'seed=1,2'"),
    ],
)
def test_a_value_that_a_setting_refuses_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings("train", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["index.kind=ivff"], "index: kind is 'ivff'; it must be one of exact, .*hnsw, or null"),
        (["index.recall_target=0"], r"index: recall_target is 0\.0; it must be above 0 and at most 1"),
        (["index.recall_target=1.5"], r"index: recall_target is 1\.5; it must be above 0 and at most 1"),
        (["index.k=0"], "index: k is 0; it must be at least 1"),
        (["index.lists=0"], "index: lists is 0; it must be at least 1"),
        (["index.effort=-1"], "index: effort is -1; it must be at least 1"),
        (["index.shards=0"], "index: shards is 0; it must be at least 1"),
        (["index.shards=many"], "index.shards is 'many'; a whole number is needed"),
        (["gates.shrink=1.2"], r"gates: shrink is 1\.2; it must be from 0 to 1"),
        (["gates.index_recall=-1"], r"gates: index_recall is -1\.0; it must be from 0 to 1"),
        (["index=ivff"], "nearest is 'ivf'"),
        (["activate=maybe"], "activate is 'maybe'; true or false is needed"),
    ],
)
def test_what_a_rebuild_refuses_to_be_told_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings("rebuild", overrides)


@pytest.mark.parametrize("option", [each for each in GROUPS["index"] if each not in ("default", "sharded")])
def test_an_option_of_the_index_is_named_after_its_kind(option: str) -> None:
    assert settings("rebuild", [f"index={option}"]).index.kind == option


def test_values_become_the_types_that_the_fields_declare() -> None:
    made = settings("train", ["towers.temperature=1", "output=some/where", "ranker.shape.hidden=[8,4]", "log=~/log"])
    assert made.cycle.towers.temperature == 1.0
    assert isinstance(made.cycle.towers.temperature, float)
    assert made.output == Path("some/where")
    assert made.cycle.ranker.shape.hidden == (8, 4)
    assert made.log == Path("~/log").expanduser()


def test_a_mapping_of_free_names_takes_new_ones() -> None:
    assert settings("train", ["policy.weights.share=2"]).cycle.policy.weights["share"] == 2


@pytest.mark.parametrize("value", ["/data/my folder (1)", "it's", "a=b", "[x", "C:\\films"])
def test_a_path_needs_no_quoting_for_hydra(value: str) -> None:
    assert str(settings("train", [f"output={value}"]).output) == value


def test_keys_of_the_server_may_be_named_with_or_without_it() -> None:
    assert settings("serve", ["server.port=7"]) == settings("serve", ["port=7"]) != settings("serve", [])


def test_the_demo_names_its_folder_after_data_and_seed() -> None:
    assert settings("demo", ["seed=7"]).output == Path("outputs/demo-world-7")


def test_a_sweep_runs_every_combination_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = configuration.sweep(
        "train",
        ["towers.epochs=1,2", "seed=5,6", "hydra.sweep.dir=swept"],
        lambda made: (made.cycle.towers.epochs, made.seed, made.output.name),
    )
    assert sorted(seen.values()) == [(1, 5, "0"), (1, 6, "1"), (2, 5, "2"), (2, 6, "3")]
    assert "towers.epochs=2 seed=5" in seen


def test_a_sweep_over_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"nearest is 'towers\.epochs'"):
        configuration.sweep("train", ["towers.epocs=1,2"], lambda made: made)


@pytest.mark.parametrize("option", GROUPS["sweep"])
def test_every_range_of_a_sweep_is_of_a_key_that_takes_it_and_holds_its_default(option: str) -> None:
    space = settings("train", [f"sweep={option}"]).sweep.space
    ranges = {key: held(key, text) for key, text in space.items()}
    for end in (0, -1):
        settings("train", [f"{key}={each.ends[end]}" for key, each in ranges.items()])
    default = settings("train", []).cycle
    for key, each in ranges.items():
        value: Any = default
        for name in key.split("."):
            value = getattr(value, name)
        if isinstance(each, Choices):
            assert str(value) in each.texts, key
        else:
            assert each.low <= value <= each.high, key


def test_a_range_joins_the_space_of_a_sweep_and_a_value_leaves_it() -> None:
    whole = settings("train", ["sweep=tower"]).sweep.space
    words = ["sweep=tower", "towers.batch=256,512", "towers.learning_rate=0.01", "towers.temperature=0.1,0.2"]
    made = settings("train", words)
    assert dict(made.sweep.space) == {
        **{key: text for key, text in whole.items() if key != "towers.learning_rate"},
        "towers.batch": "256,512",
        "towers.temperature": "0.1,0.2",
    }
    assert made.cycle.towers.learning_rate == 0.01
    assert made.cycle.towers.batch == settings("train", []).cycle.towers.batch
    assert made.origin.words == ("sweep=tower", "towers.learning_rate=0.01")
    assert made.output == Path("outputs/sweeps/tower")


def test_without_a_sweep_there_is_none_and_settings_know_what_they_were_made_of() -> None:
    made = settings("train", ["seed=3", "towers.epochs=2"])
    assert made.sweep is None
    assert made.origin.words == ("seed=3", "towers.epochs=2")
    assert made.origin.config["towers"]["epochs"] == 2
    assert made.origin.config["data"]["seed"] == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16,32", Choices(("16", "32"))),
        ("choice(true, false)", Choices(("True", "False"))),
        ("[8],[16, 8]", Choices(("[8]", "[16,8]"))),
        ("range(0, 4)", Range(low=0, high=3, step=1, log=False)),
        ("range(9, 1, -3)", Range(low=3, high=9, step=3, log=False)),
        ("interval(0, 1)", Range(low=0.0, high=1.0, step=None, log=False)),
        ("int(interval(8, 64))", Range(low=8, high=64, step=None, log=False)),
        ("tag(log, interval(0.001, 0.1))", Range(low=0.001, high=0.1, step=None, log=True)),
    ],
)
def test_ranges_are_read_as_hydra_writes_them(text: str, expected: Choices | Range) -> None:
    found = held("x.y", text)
    assert found == expected
    if isinstance(found, Range) and isinstance(expected, Range):
        assert found.whole == expected.whole


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("5", "x.y=5 is one value"),
        ("interval(2, 1)", "the range is empty"),
        ("range(5, 1)", "the range is empty"),
        ("tag(log, interval(0, 1))", "with log, the low end must be above 0"),
        ("tag(log, range(1, 9))", "a range has steps and goes without log"),
    ],
)
def test_a_range_that_is_none_is_named(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        held("x.y", text)
