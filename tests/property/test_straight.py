"""A request that one compiled call answers: the same to the last bit as in steps, also while the index changes."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import Candidates, retrieve_many
from schemas.config import Config, RetrievalConfig
from schemas.prior import LearnedPrior
from tests.builders import Record, batch_of, open_index, upserts, vector_of
from tests.property.test_retrieval_brute_force import NOW_MS, PRIORS, SEEDS, an_index, same

NAMES = st.sampled_from([*(f"i{number}" for number in range(60)), "nobody", "", "\ud800", "é" * 300, "i3\0"])
KNOWN = st.sampled_from([f"i{number}" for number in range(8)])
REQUESTS = st.lists(st.builds(Request, st.lists(NAMES, max_size=4) | st.lists(KNOWN, max_size=6)), max_size=70)
CONFIGS = st.builds(
    RetrievalConfig,
    k=st.sampled_from([1, 3, 100, 100_000]),
    indices=st.sampled_from([1, 3, 10_000]),
    scan=st.sampled_from([1, 5, 10**18]),
    probes=st.sampled_from([0, 2, 10**15]),
    vote_share=st.sampled_from([0.0, 1.0]),
    engagement_weight=st.sampled_from([0.0, 0.5]),
    decay=st.sampled_from([-1, 0]),
)


class InSteps(ViewReader):
    """Reads a live view as if it did not lie in memory as a whole."""

    def straight(self, *, neighbours: bool) -> None:  # type: ignore[override]
        """Leaves have to be fetched first."""


def alike(one: Candidates, other: Candidates) -> bool:
    mine, theirs = one.selected, other.selected
    return (
        same(one, other)
        and (mine.facet.tolist(), mine.leaf.tolist()) == (theirs.facet.tolist(), theirs.leaf.tolist())
        and mine.weight.tobytes() == theirs.weight.tobytes()
        and [each.tolist() for each in mine.voters] == [each.tolist() for each in theirs.voters]
    )


@given(seeds=SEEDS, requests=REQUESTS, config=CONFIGS, learned=PRIORS)
def test_one_call_answers_as_the_steps_do(
    seeds: list[int], requests: list[Request], config: RetrievalConfig, learned: LearnedPrior | None
) -> None:
    with an_index(seeds, prior=learned) as index:
        one, other = ViewReader(index.view), InSteps(index.view)
        answers = retrieve_many(one, requests, config, NOW_MS)
        expected = retrieve_many(other, requests, config, NOW_MS)
        assert len(answers) == len(expected) == len(requests)
        assert all(map(alike, answers, expected))
        filtered = [Request(["i0"], exclude=["i1"]), *requests]  # one that is not plain takes all with it
        assert all(map(alike, retrieve_many(one, filtered, config, NOW_MS)[1:65], [*expected][:64]))


def test_readers_follow_a_writer_whose_arrays_move(tmp_path: Path) -> None:
    config, done, told = RetrievalConfig(k=20), threading.Event(), SimpleQueue[bool]()
    with open_index(tmp_path / "store", Config()) as index:
        index.writer.apply(batch_of(upserts(range(20))))
        readers = ViewReader(index.view), InSteps(index.view)

        def ask(seed: int) -> None:
            dice = np.random.default_rng(seed)
            while not done.is_set():
                with readers[0].frozen():
                    names = readers[0].item_ids(dice.integers(0, index.view.totals.next_ordinal, 3))
                    found = [retrieve_many(reader, [Request(names)], config, NOW_MS)[0] for reader in readers]
                told.put(alike(*found))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        answers = []
        try:
            for at in range(20, 1_300, 128):
                names = [f"i{at + number}" for number in range(128)]
                added = [Record("items-0", 2 * at + n, name, 10_000 + at, vector_of(n)) for n, name in enumerate(names)]
                clicks = [Record("engagements-0", at + n, name, 10_500, kind="click") for n, name in enumerate(names)]
                index.writer.apply(batch_of([*added, *clicks]))
                gone = [Record("items-0", 2 * at + 128 + n, f"i{at - 9 + n}", 20_000) for n in range(9)]
                answers += [told.get(timeout=60), told.get(timeout=60)]
                index.writer.apply(batch_of(gone))
        finally:
            done.set()
            for thread in threads:
                thread.join()
        while not told.empty():
            answers.append(told.get())
        assert all(answers)
        assert len(index.view.items) == 1_300
