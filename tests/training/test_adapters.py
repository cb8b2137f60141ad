"""Data sets by name: in code, and in the configuration."""

from pathlib import Path

import hydra
import polars as pl
import pytest
from omegaconf import OmegaConf

from training.adapters import load
from training.data import DataError

NOW_MS = 1_800_000_000_000
CONF = Path(__file__).parents[2] / "conf" / "data"
INTERACTIONS = {"path": "log.parquet", "user": "who", "item": "what", "time": "at"}
ITEMS = {"path": "items.parquet", "item": "sku", "columns": {"price": "number"}}


def _shop(folder: Path) -> None:
    pl.DataFrame({"who": [1, 2], "what": ["a", "b"], "at": [10, 20]}).write_parquet(folder / "log.parquet")
    pl.DataFrame({"sku": ["a", "b"], "price": [1.5, 2.5]}).write_parquet(folder / "items.parquet")


def test_an_unknown_data_set_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"no data set 'ml1m', there are ml-1m, .*did you mean 'ml-1m'"):
        load("ml1m", Path(), now_ms=NOW_MS)


def test_load_passes_a_mapping_to_parquet(tmp_path: Path) -> None:
    _shop(tmp_path)
    assert load("parquet", tmp_path, now_ms=NOW_MS, mapping={"interactions": INTERACTIONS}).events.height == 2


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_data_configuration_makes_what_it_says(path: Path, tmp_path: Path) -> None:
    whole = OmegaConf.to_container(OmegaConf.create({"seed": 3, "data": OmegaConf.load(path)}), resolve=True)
    assert isinstance(whole, dict)
    config = whole["data"]
    if path.stem == "world":
        assert hydra.utils.instantiate(config, users=5, items=5).seed == 3
        return
    assert config["root"] == "???"
    config["root"] = str(tmp_path)
    if path.stem == "parquet":
        _shop(tmp_path)
        config |= {"interactions": INTERACTIONS, "items": ITEMS}
        assert hydra.utils.instantiate(config, now_ms=NOW_MS).item_columns == {"price": None}
    else:
        with pytest.raises(hydra.errors.InstantiationException, match="MovieLens is to be had"):
            hydra.utils.instantiate(config, now_ms=NOW_MS)
