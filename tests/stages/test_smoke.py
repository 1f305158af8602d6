"""The whole flow once, as small as it gets: the first test to run after any change."""

import json
import re

import pytest

pytestmark = pytest.mark.pipeline


def test_every_stage_leaves_what_the_next_one_reads(finished):
    weights = json.loads((finished / "mixture" / "weights.json").read_text())
    assert abs(sum(weights["weights"]) - 1) < 1e-9
    losses = (finished / "affinity" / "losses.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in losses[:2]] == ["model", "base"]
    assert len(losses) == 2 + len(weights["tasks"])
    assert len(json.loads((finished / "evaluation" / "results.json").read_text()))
    assert "<html" in (finished / "report" / "index.html").read_text()


def test_the_page_stands_alone(finished):
    page = (finished / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page
    # Examples may speak of addresses; nothing is fetched from one.
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page and "url(http" not in page
