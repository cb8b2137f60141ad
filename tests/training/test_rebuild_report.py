"""The page of a rebuild draws what was measured, needs nothing from outside, and says the same as its JSON."""

import json
import re
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

import pytest

from index.generations import FileEntry, Manifest
from training.gates import Gate
from training.reports import rebuild_report


def curve(k: int) -> list[dict[str, Any]]:
    points = [(1.0, False, effort, 0.8 + effort / 50, 0.05 * effort) for effort in (1, 2, 4, 8)]
    points += [(share, regions, 8, 0.99, 0.3 * share) for share in (0.1, 0.01, 0.001) for regions in (False, True)]
    return [
        {
            "k": k,
            "share": share,
            "regions": regions,
            "effort": effort,
            "working": effort == 8,
            "recall": recall,
            "low": recall - 0.01,
            "latency_ms": latency_ms,
        }
        for share, regions, effort, recall, latency_ms in points
    ]


def a_report(**changes: Any) -> dict[str, Any]:
    drifted = [{"generation": f"00000{n}-abcdef01", "items": 9.0, "cosine": 0.9, "overlap": 0.7} for n in (2, 3)]
    return {
        "generation": "000003-abcdef01",
        "parent": "000002-abcdef01",
        "catalog_seq": 17,
        "changes": 5,
        "items": {"before": 1000.0, "after": 1005},
        "queries": 500,
        "index": {"kind": "ivf", "recall_target": 0.97, "curve": [*curve(100), *curve(500)]},
        "gates": [asdict(Gate("index.items", 1005.0, ">= 800", passed=True))],
        "metrics": {"index.recall_low": 0.975, "drift.cosine": 0.9, "drift.overlap": 0.7, "drift.k": 50.0},
        "bytes": {"index": 130_000, "towers": 90_000},
        "history": [{"generation": "000001-abcdef01", "items": 8.0, "cosine": None, "overlap": None}, *drifted],
        "seconds": {"items": 0.5, "embeddings": 2.0},
        **changes,
    }


def test_everything_is_drawn_and_nothing_is_fetched() -> None:
    text = rebuild_report.html(a_report())
    assert text.count("<svg") == text.count("<figure") == 5
    assert "<script" not in text
    assert "url(http" not in text
    assert not re.findall(r'(?:src|href)="[^#]', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}", drawn)


def test_the_page_names_what_was_made_of_what_and_every_gate() -> None:
    text = rebuild_report.html(a_report())
    for part in ("000003-abcdef01", "000002-abcdef01", "index.items", "&gt;= 800", "97.5%", "129 bytes"):
        assert part in text, part


@pytest.mark.parametrize(
    "changes",
    [
        {"index": {"kind": "exact", "recall_target": 0.97, "curve": []}},
        {"history": []},
        {"queries": 0, "items": {"before": None, "after": 1}},
        {"metrics": {"index.recall_low": None, "drift.cosine": None, "drift.overlap": None, "drift.k": 0.0}},
        {
            "index": {
                "kind": "exact",
                "recall_target": 0.97,
                "curve": [{**each, "latency_ms": None} for each in curve(9)],
            }
        },
        {"index": {"kind": "exact", "recall_target": 0.97, "curve": curve(100)[3:4]}},
        {"bytes": {}, "seconds": {"items": 0.0}},
    ],
)
def test_what_is_missing_breaks_nothing(changes: dict[str, Any]) -> None:
    assert "</html>" in rebuild_report.html(a_report(**changes))
    assert rebuild_report.told(a_report(**changes))["generation"] == "000003-abcdef01"


def test_page_and_json_hold_the_same_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    report = a_report(metrics={**a_report()["metrics"], "drift.cosine": nan})
    page = rebuild_report.write(report, tmp_path / "deep" / "er")
    assert sorted(each.name for each in page.parent.iterdir()) == ["rebuild.html", "rebuild.json"]
    read = json.loads((page.parent / "rebuild.json").read_text())
    assert read["metrics"]["drift.cosine"] is None
    assert {**read, "metrics": 0} == {**report, "metrics": 0}
    assert rebuild_report.html(read) == page.read_text()


def test_sizes_add_up_to_the_generation() -> None:
    files = {"vectors.faiss": 5, "vectors.json": 1, "lexical/a.idx": 7, "embedding_ID.npy": 11, "item_id.keys.npy": 2}
    manifest = Manifest(
        id="000001-abcdef01",
        parent=None,
        created_ms=0,
        data_window=(0, 1),
        fingerprints={},
        config={},
        metrics={},
        files={name: FileEntry("", count) for name, count in files.items()},
    )
    sizes = rebuild_report.sizes(manifest)
    assert sizes == {"embeddings": 11, "text index": 7, "index": 6, "ids, titles, columns": 2}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert sum(sizes.values()) == manifest.bytes
