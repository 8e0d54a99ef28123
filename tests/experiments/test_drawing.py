"""Pictures of stored rows: each finds its numbers, and the ledger's are on disk."""

from __future__ import annotations

import pytest

from experiments import ledger
from experiments.harness.drawing import Panel, Series, draw, drawings, lines_of
from experiments.harness.provenance import ROOT
from robustvae.errors import ConfigError

RADII = Series(
    source="kuzina2022-radii",
    section="By radius (symmetric KL)",
    along="what",
    match="linf (.*)",
    where="MS-SSIM of the (images)",
)


@pytest.mark.parametrize("drawing", drawings(), ids=[one.picture for one in drawings()])
def test_each_panel_finds_numbers(drawing):
    assert (ROOT / "docs" / "img" / drawing.picture).is_file()
    assert drawing.picture in {figure.picture for figure in ledger.read().figures}
    for panel in drawing.panels:
        lines = lines_of(panel.series, drawing.picture)
        assert lines and all(lines.values())
        if panel.form in ("curves", "cloud"):
            assert all(point.place >= 0 for points in lines.values() for point in points)


def test_lines_are_stored_rows():
    lines = lines_of([RADII], "x.png")
    assert list(lines) == ["images"]
    points = {point.place: round(point.y, 4) for point in lines["images"]}
    assert points[0.2] == 0.9198 and len(points) == 7  # docs/results/kuzina2022-radii.md


def test_empty_series_are_refused():
    with pytest.raises(ConfigError, match="no number of kuzina2022-radii fits"):
        lines_of([RADII.model_copy(update={"match": "l2 (.*)"})], "x.png")


def test_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    few = drawings()[0].model_copy(update={"panels": (Panel(series=(RADII,)),)})
    draw(few, tmp_path)
    assert (tmp_path / few.picture).read_bytes().startswith(b"\x89PNG")
