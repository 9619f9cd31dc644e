"""The description of a cluster that ``ray up`` takes: Ray itself accepts it, and its paths agree."""

from __future__ import annotations

import os
import re
import subprocess
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


@pytest.mark.parametrize("mounted", [True, False])
def test_the_folder_is_mounted_once(tmp_path, mounted):
    """A second `ray up` runs the commands on the same machine again, and NFS refuses a second mount."""
    for name, text in {"mountpoint": f"exit {int(not mounted)}", "sudo": f"echo $* >> {tmp_path}/calls"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (command,) = yaml.safe_load(FILE.read_text())["initialization_commands"]
    subprocess.run(["bash", "-c", command], check=True, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert calls == ([] if mounted else ["mkdir -p /shared", "mount -t nfs4 NFS_SERVER:/ /shared"])
