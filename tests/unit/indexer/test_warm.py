"""What is warm stays warm: ordinary work compiles nothing that warming did not."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, tempfile
from pathlib import Path

import numpy as np
from numba.core.registry import CPUDispatcher

from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import retrieve_many
from indexer.warm import warm_up
from tests.builders import DIM, FACETS, Record, batch_of, config, open_index, rebalance, upserts


def compiled():
    return {
        (name, attribute, str(signature))
        for name, module in list(sys.modules.items())
        if name.startswith("indexer")
        for attribute, found in vars(module).items()
        if isinstance(found, CPUDispatcher)
        for signature in found.signatures
    }


warm_up(FACETS, DIM)
before = compiled()
assert len(before) > 10
settings = config(rebalance={"low": 16, "high": 64})
engaged = [Record("engagements-0", at, f"i{at}", 2_000, kind="click", value=1.0) for at in range(20)]
moved = upserts(range(50, 60), start=2_000, at=3_000)
changed = [each._replace(item_id=f"i{at}") for at, each in enumerate(moved)]
later = upserts(range(100), start=4_000, at=4_000)
gone = [each._replace(item_id=f"i{at + 20}", vector=None) for at, each in enumerate(later)]
steps = [upserts(range(1_000)), engaged, changed, gone]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "store")
    for again in (False, True):
        with open_index(path, settings) as index:
            for step in steps:
                index.writer.apply(batch_of(step), again=again)
                rebalance(index, settings)
            view = index.view
            view.members.embeddings(view.items["leaf"], view.items["state"] == 1, np.arange(3))
            for request in (Request(["i1", "i2"]), Request(["i1", "nobody"], exclude=["i2"], max_age_s=5.0)):
                retrieve_many(ViewReader(index.view), [request, request], settings.retrieval, 10**6)
print(sorted(compiled() - before))
"""


def test_ordinary_work_compiles_nothing_that_warming_did_not() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
