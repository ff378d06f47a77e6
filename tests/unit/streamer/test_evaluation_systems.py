"""Each system of the comparison on a tiny log, against the plainest way to say what it should answer."""

from __future__ import annotations

import numpy as np
import pytest

from model_runtime.runtime import FrozenModel
from streamer.evaluation.ann import Graphs, MultiAnn
from streamer.evaluation.bench import Stage
from streamer.evaluation.coding import CoTrained, PostHoc
from streamer.evaluation.embeddings import Embeddings
from streamer.evaluation.exact import Exact, Pool
from streamer.evaluation.lists import Clicked, Halves, Listed, Newest
from streamer.evaluation.mfli import Mfli, Unselective
from streamer.evaluation.neighbours import CoEngaged, Histories
from streamer.evaluation.past import Past
from streamer.evaluation.prior import ConfiguredPrior, Worth
from streamer.evaluation.system import Found, Questions, pack, top
from streamer.evaluation.timeline import timeline_of
from tests.evaluation_logs import SETTINGS, log_of, random_log

HALF_LIVES_S = SETTINGS.counters.half_lives_s
NOW = 1_500_000


class Scene:
    """A past in two steps, so that followers hear news, with everything that follows it."""

    def __init__(self, tmp_path, log=None, pool_s=600.0, now=NOW, half_lives_s=()):
        self.log = random_log() if log is None else log
        self.past = Past(timeline_of(self.log), HALF_LIVES_S, pool_s)
        self.stage = Stage(self.log, SETTINGS, tmp_path, 0)
        self.past.advance(now // 2)
        self.model = FrozenModel.untrained(2, 2, 3, 8, half_lives_s=half_lives_s)
        self.embeddings = Embeddings(self.past, self.log.item_ids, self.model)
        self.worth = Worth(self.past, SETTINGS.retrieval, self.model)
        self.histories = Histories(self.log, self.past.happened)
        self.pool = Pool(self.past, self.embeddings)
        self.followers = [self.embeddings, self.worth, self.histories, self.pool]
        self.now = now

    def go_on(self):
        for moment in np.linspace(self.now // 2, self.now, 7).astype(int)[1:].tolist():
            news = self.past.advance(moment)
            for follower in self.followers:
                follower.follow(news)

    def asked(self, *triggers):
        rows = np.full((len(triggers), 5), -1, np.int32)
        for at, each in enumerate(triggers):
            rows[at, : len(each)] = each
        return Questions(self.past.now_ms, rows, [np.array(each, np.int32) for each in triggers])

    def live(self):
        return set(np.flatnonzero(self.past.live).tolist())

    def similarity(self, triggers):
        vectors = self.embeddings.of(np.arange(int(self.past.now_ms >= 0) and len(self.created())))
        return np.einsum("tfd,nfd->tfn", vectors[list(triggers)], vectors).max((0, 1))

    def created(self):
        return [row for row, content in enumerate(self.past.contents) if content is not None]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def best_by(scores, allowed, k):
    return sorted(allowed, key=lambda row: (-scores[row], row))[:k]


def test_top_takes_the_greatest_and_never_what_is_out():
    assert top(np.array([1.0, 3.0, 3.0, -np.inf]), 2).tolist() == [1, 2]
    assert top(np.array([1.0, -np.inf]), 5).tolist() == [0]


def test_lists_leave_out_what_was_seen_and_what_left_the_pool(scene):
    scene.go_on()
    popular = Listed("popular", Clicked(scene.past, None)).answer(scene.asked([1], [2, 3]), 10)
    assert popular.scored.tolist() == [0, 0]
    for rows, seen in zip(popular.rows.tolist(), ([1], [2, 3]), strict=True):
        assert set(rows) <= scene.live() - set(seen)
        counts = scene.past.hour[rows]
        assert (np.diff(counts) <= 0).all()


def test_decayed_popularity_and_recency_follow_their_figures(scene):
    scene.go_on()
    rows = Listed("decayed", Clicked(scene.past, 0)).answer(scene.asked([1]), 10).rows[0]
    assert (np.diff(scene.past.decayed()[rows, 0]) <= 0).all()
    rows = Listed("new", Newest(scene.past)).answer(scene.asked([1]), 10).rows[0]
    assert (np.diff(scene.past.created_at[rows]) <= 0).all()


def test_the_prior_ranks_the_pool(scene):
    scene.go_on()
    g = ConfiguredPrior(SETTINGS.retrieval).score(scene.past.decayed(), scene.past.age_s())
    assert Listed("g", scene.worth).answer(scene.asked([1]), 5).rows[0].tolist() == best_by(g, scene.live() - {1}, 5)


def test_exact_search_is_the_greatest_similarity_with_and_without_prior(scene):
    scene.go_on()
    similarity = scene.similarity([1, 4])
    found = Exact("exact", scene.pool, scene.embeddings).answer(scene.asked([1, 4]), 8)
    assert found.rows[0].tolist() == best_by(similarity, scene.live() - {1, 4}, 8)
    assert found.scored[0] == len(scene.live())
    worth = similarity + scene.worth.scores[: len(similarity)]
    found = Exact("exact", scene.pool, scene.embeddings, scene.worth).answer(scene.asked([1, 4]), 8)
    assert found.rows[0].tolist() == best_by(worth, scene.live() - {1, 4}, 8)


@pytest.mark.parametrize("horizon_s", [100, 10_000])
def test_item_knn_counts_users_who_engaged_both(scene, horizon_s):
    scene.go_on()
    log, past = scene.log, scene.past
    recent = [
        (user, item)
        for user, item, time in zip(log.user.tolist(), log.item.tolist(), log.time.tolist(), strict=True)
        if past.now_ms - horizon_s * 1_000 <= time < past.now_ms
    ]
    users_of = {row: {user for user, item in recent if item == row} for row in range(len(log.item_ids))}
    share = past.hour / past.hour.sum()
    share = share + past.decayed()[:, -1] / (1e3 * past.decayed()[:, -1].sum())
    scores = np.zeros(len(log.item_ids))
    for trigger in (1, 4):
        both = np.array([len(users_of[trigger] & users_of[row]) * (row != trigger) for row in users_of])
        scores += (both + 5 * share) / (len(users_of[trigger]) + 5)
    found = CoEngaged("knn", past, scene.histories, horizon_s, 5.0).answer(scene.asked([1, 4]), 12)
    assert found.rows[0].tolist() == best_by(scores, scene.live() - {1, 4}, 12)


def test_multi_ann_that_fetches_everything_is_exact_search(scene):
    pytest.importorskip("faiss")
    graphs, raised = (Graphs(scene.past, scene.embeddings, worth) for worth in (None, scene.worth))
    scene.followers += [graphs, raised]
    scene.go_on()
    asked = scene.asked([1, 4], [2])
    for worth in (None, scene.worth):
        exact = Exact("exact", scene.pool, scene.embeddings, worth).answer(asked, 8)
        found = MultiAnn("ann", scene.past, scene.embeddings, graphs, 1e3, worth).answer(asked, 8)
        assert np.array_equal(found.rows, exact.rows)
    raised.refresh(scene.model)  # its prior is that of now only when it was just built
    found = MultiAnn("ann", scene.past, scene.embeddings, raised, 1e3).answer(asked, 8)
    assert np.array_equal(found.rows, exact.rows)
    few = MultiAnn("ann", scene.past, scene.embeddings, graphs, 1).answer(asked, 8)
    assert (few.scored <= 16).all()


@pytest.mark.parametrize("coding", [CoTrained(), PostHoc(0)])
def test_the_index_ranks_by_the_models_own_prior(tmp_path, coding):
    scene = Scene(tmp_path, half_lives_s=HALF_LIVES_S)
    index = scene.stage.index(scene.past, scene.embeddings, "index", coding)
    try:
        scene.followers.append(index)
        scene.go_on()
        asked = scene.asked([1, 4], [2])
        for _ in range(2):
            view = index.index.view
            view.age(scene.past.now_ms, view.aged(scene.past.now_ms))
            live = np.flatnonzero(scene.past.live)
            worth = view.heats(view.ordinals_of([scene.log.item_ids[row] for row in live.tolist()]))
            np.testing.assert_allclose(worth, scene.worth.scores[live], atol=5e-3)
            exact = Exact("exact", scene.pool, scene.embeddings, scene.worth).answer(asked, 8)
            found = Mfli("index", index, SETTINGS.retrieval).answer(asked, 8)
            assert (np.sort(found.rows, 1) == np.sort(exact.rows, 1)).mean() > 0.8  # but for what is nearly equal
            index.refresh(scene.model)  # the next generation goes on with what was counted
    finally:
        index.close()


@pytest.mark.parametrize("coding", [CoTrained(), PostHoc(0)])
def test_the_index_that_reads_every_leaf_is_exact_search(scene, coding):
    index = scene.stage.index(scene.past, scene.embeddings, "index", coding)
    try:
        scene.followers.append(index)
        scene.go_on()
        asked = scene.asked([1, 4], [2])
        for worth, prior in ((None, 0.0), (scene.worth, 1.0)):
            exact = Exact("exact", scene.pool, scene.embeddings, worth).answer(asked, 8)
            found = Mfli("index", index, SETTINGS.retrieval, prior).answer(asked, 8)
            assert np.array_equal(np.sort(found.rows, 1), np.sort(exact.rows, 1))
        health = index.health()
        assert sum(health["sizes"]) == 2 * len(scene.live())
        assert health["similarity_within"] > health["similarity_between"]
        index.refresh(scene.model)
        again = Mfli("index", index, SETTINGS.retrieval).answer(asked, 8)
        assert np.array_equal(np.sort(again.rows, 1), np.sort(exact.rows, 1))
    finally:
        index.close()


def test_one_facet_is_indexed_alone_and_nothing_is_rebalanced_when_told_so(scene):
    index = scene.stage.index(scene.past, scene.embeddings, "index", CoTrained(1), balanced=False)
    try:
        scene.followers.append(index)
        scene.go_on()
        assert sum(index.health()["sizes"]) == len(scene.live())
        assert index.health()["splits"] == 0
        found = Mfli("index", index, SETTINGS.retrieval).answer(scene.asked([1]), 5)
        assert set(found.rows[0].tolist()) <= scene.live() - {1}
    finally:
        index.close()


def test_few_leaves_at_random_are_those_of_some_triggers(scene):
    index = scene.stage.index(scene.past, scene.embeddings, "index", CoTrained())
    try:
        settings = SETTINGS.retrieval.model_copy(update={"indices": 2, "probes": 0})
        system = Unselective("random", index, settings, 2, 0)
        asked = scene.asked([1, 4, 7])
        assert np.array_equal(system.answer(asked, 5).rows, system.answer(asked, 5).rows)
        assert system.answer(asked, 5).scored[0] <= Mfli("all", index, SETTINGS.retrieval).answer(asked, 5).scored[0]
    finally:
        index.close()


def test_a_trigger_that_left_the_pool_still_finds_what_is_like_it(tmp_path):
    scene = Scene(
        tmp_path, log_of([(0, 0, 10), (0, 1, 900_000), (0, 2, 900_001)], [0, 1, 2]), pool_s=600, now=1_000_000
    )
    index = scene.stage.index(scene.past, scene.embeddings, "index", CoTrained())
    try:
        scene.followers.append(index)
        scene.go_on()
        assert scene.live() == {1, 2}
        assert set(Mfli("index", index, SETTINGS.retrieval).answer(scene.asked([0]), 5).rows[0, :2].tolist()) == {1, 2}
    finally:
        index.close()


class Fixed:
    name, nested = "fixed", True

    def __init__(self, *rows):
        self.rows = [np.array(each) for each in rows]

    def best(self, k):
        return self.rows[0][:k]

    def answer(self, asked, k):
        return Found(pack(self.rows, k), np.full(len(asked), 7))


def test_half_the_places_are_the_lists_and_what_is_short_is_filled():
    asked = Questions(0, np.array([[9, -1, -1, -1, -1]], np.int32), [np.array([9], np.int32)])
    ranking = Fixed([1, 2, 9, 3, 4, 5])
    found = Halves("h", ranking, Fixed([2, 6, 7, 8, 10])).answer(asked, 4)
    assert found.rows[0].tolist() == [1, 2, 6, 7]
    assert found.scored.tolist() == [7]
    found = Halves("h", ranking, Fixed([2, 6])).answer(asked, 6)
    assert found.rows[0].tolist() == [1, 2, 3, 6, 4, 5]
