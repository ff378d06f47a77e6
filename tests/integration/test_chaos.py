"""The short form of ``make chaos``: every failpoint once, and kills from outside."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chaos.campaign import campaign
from tests.chaos.faults import failpoint_faults, random_faults
from tests.chaos.rig import Rig

if TYPE_CHECKING:
    from tests.kafka.broker import Broker, GivenBroker


@pytest.mark.timeout(2400)
def test_after_a_kill_at_every_failpoint_the_index_is_as_if_nothing_had_happened(
    kafka: Broker | GivenBroker, tmp_path: Path
) -> None:
    seed = 20_261_120
    faults = failpoint_faults() + [fault for fault in random_faults() if fault.kills]
    random.Random(seed).shuffle(faults)
    rig = Rig(tmp_path, kafka.bootstrap, f"chaos-{uuid.uuid4().hex[:8]}", seed)
    rows = campaign(rig, faults, seed, compare_every=9, events=700)
    found = {name: row.verdicts for name, row in rows.items() if not all(verdict.clean for verdict in row.verdicts)}
    assert not found
    assert sum(row.kills for row in rows.values()) >= 25
    # Where rebalancing comes past depends on how far the killed ones before had come.
    assert sum(row.missed for row in rows.values()) <= 4, {name: row.missed for name, row in rows.items()}
