"""The description of a cluster that ``ray up`` takes: Ray itself accepts it, and its paths agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[2] / "scripts" / "ray_cluster.yaml"


def test_ray_accepts_the_cluster():
    util = pytest.importorskip("ray.autoscaler._private.util")
    pytest.importorskip("jsonschema")  # Ray's own check needs it
    prepared = util.prepare_config(yaml.safe_load(FILE.read_text()))
    util.validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["available_node_types"]["spot"]["max_workers"] <= prepared["max_workers"]
    with pytest.raises(Exception, match="spott"):
        util.validate_config({**prepared, "spott": {}})


def test_the_sources_lie_where_the_search_is_started():
    assert set(re.findall(r"cd (\S+) &&", FILE.read_text())) == {"/shared/cycleqd"}
