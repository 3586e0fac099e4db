"""The simulated cluster against what can be said in closed form, and as a command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, one_line, run_command, run_here

from pipeline.errors import InputError
from tools.simulate_cluster import Plan, main, measured_rate, shares, simulate

PLAIN = Plan(pictures=2000 * 103, shard_size=2000, machines=3, cores=4, rate=400.0)  # nothing but cores


@pytest.mark.parametrize(("shards", "cores"), [(1, 4), (12, 4), (13, 4), (103, 1), (103, 4)])
def test_cores_alone_take_whole_rounds(shards: int, cores: int) -> None:
    plan = replace(PLAIN, pictures=2000 * shards, cores=cores)
    found = simulate(plan)
    rounds = ceil(shards / (3 * cores))
    assert found.made == pytest.approx(rounds * 2000 / 400)
    assert found.bound == "cores"
    last = shards - (rounds - 1) * 3 * cores  # cores that have work in the last round
    assert found.idle == pytest.approx((3 * cores - last) / (3 * cores * rounds))


def test_the_last_shard_may_be_short_and_reads_may_wait() -> None:
    assert simulate(replace(PLAIN, pictures=12 * 2000 + 500)).made == pytest.approx(2000 / 400 + 500 / 400)
    assert simulate(replace(PLAIN, pictures=12 * 2000, latency=0.0025)).made == pytest.approx(2000 / 200)
    listed = simulate(replace(PLAIN, latency=0.001, listing=0.002))
    assert listed.listed == pytest.approx(PLAIN.pictures * 0.003)  # one process, one after the other


def test_shared_storage_alone_takes_its_bytes() -> None:
    """To within the time of one shard that has the storage to itself: until then the cores ask for more than there is."""
    plan = replace(PLAIN, read=110e3, written=22e3, storage=1e8)
    found, least = simulate(plan), PLAIN.pictures * 132e3 / 1e8
    assert least * (1 - 1e-9) <= found.made <= least + 2000 / 400
    assert found.bound == "storage"


def test_the_machines_networks_alone_take_their_bytes() -> None:
    plan = replace(PLAIN, pictures=2000 * 12 * 8, read=110e3, written=22e3, network=4e7)  # the same number of shards for every core
    assert simulate(plan).made == pytest.approx(plan.pictures * 132e3 / (3 * 4e7))
    assert simulate(plan).bound == "network"
    one = replace(plan, machines=1, pictures=2000 * 5)  # the fifth shard has what four shared
    assert simulate(one).made == pytest.approx(4 * 2000 * 132e3 / 4e7 + max(2000 * 132e3 / 4e7, 2000 / 400))


def test_the_parent_alone_takes_one_shard_after_the_other() -> None:
    plan = replace(PLAIN, handling=10.0)
    first = 2000 / 400
    assert simulate(plan).made == pytest.approx(first + 103 * 10.0)
    assert simulate(plan).bound == "parent"
    assert simulate(replace(plan, handling=0.01)).bound == "cores"


def test_shares_are_max_min_fair() -> None:
    assert shares(np.array([4, 1, 0]), 10.0, 20.0, 1e9).tolist() == [5.0, 10.0, 10.0]  # only the network of the first is short
    assert shares(np.array([4, 1, 0]), 10.0, 20.0, 25.0).tolist() == [5.0, 5.0, 5.0]
    assert shares(np.array([4, 1, 0]), 10.0, 8.0, 9.0).tolist() == pytest.approx([1.8, 1.8, 1.8])
    assert shares(np.array([8, 1, 1]), 10.0, 8.0, 20.0).tolist() == [1.0, 6.0, 6.0]  # what the first cannot take is the others'


def test_dead_workers_cost_the_shards_that_they_had() -> None:
    """Also checked by its sum: the time of all cores went into whole shards, lost parts, restarts and the idle end."""
    plan = replace(PLAIN, pictures=2000 * 2000, deaths=60.0, restart=3.0)  # a worker dies every minute; a shard takes 5 s
    found, undisturbed = simulate(plan), simulate(replace(plan, deaths=0.0))
    assert found.redone > 100
    assert undisturbed.redone == 0
    worked = found.made * 12 * (1 - found.idle)
    lost = worked - 2000 * 5.0
    assert found.redone * 3.0 * 0.9 < lost < found.redone * (3.0 + 5.0) * 1.1 + 12 * 3.0  # a death costs the restart, and less than a shard
    assert simulate(plan) == found
    assert simulate(replace(plan, seed=1)) != found


def test_workers_that_die_too_fast_are_refused() -> None:
    with pytest.raises(InputError, match="deaths an hour leave hardly a worker"):
        simulate(replace(PLAIN, deaths=3600.0 * 10))


def test_the_rate_is_the_measured_one(tmp_path: Path) -> None:
    path = tmp_path / "shards.json"
    with pytest.raises(InputError, match=r"shards\.json is not there; .*--rate"):
        measured_rate(path)
    rows = [("ours-sums", 1, 300.0), ("ours-sums", 2, 250.0), ("ours", 2, 270.0)]
    path.write_text(json.dumps({"rows": [{"row": row, "processes": count, "per_core": {"median": rate}} for row, count, rate in rows]}))
    assert measured_rate(path) == 250.0
    for content in ("{", "[]", '{"rows": []}', '{"rows": [{"row": "ours-sums", "processes": 2}]}'):
        path.write_text(content)
        with pytest.raises(InputError, match="holds no rate of ours-sums"):
            measured_rate(path)


def test_the_table_of_the_docs_is_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    commands = re.findall(r"^    python (tools/simulate_cluster\.py .*)$", page, re.MULTILINE)
    assert commands
    for command in commands:
        found = run_command(*command.split())
        assert found.returncode == 0, found.stderr
        rows = [line for line in found.stdout.splitlines() if line.startswith("|")]
        assert len(rows) > 2
        assert "\n".join(rows) in page


@pytest.mark.parametrize("given", [("--storage", 0), ("--cores", 0), ("--rate", "nan"), ("--deaths", -1), ("--shard-size", 1)])
def test_numbers_that_make_no_sense_are_refused(given: tuple[str, object]) -> None:
    one_line(run_here(main, "--rate", 400, *given), given[0])
