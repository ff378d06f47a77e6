"""Ratios between systems, on hand-made answers."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.evaluation import lineup
from streamer.evaluation.comparisons import COMPARISONS, WISHES, comparisons
from streamer.evaluation.metrics import Answers, Slices, Users
from streamer.evaluation.outcome import CUTS, Outcome, Record, Requested
from streamer.evaluation.report import Study
from streamer.evaluation.requests import build_requests
from tests.evaluation_logs import log_of

REQUESTS = 40


def study(**shares):
    """Each system finds the targets of the first so many requests; values are (share, items scored, seconds)."""
    log = log_of(
        [(at, 0, at) for at in range(REQUESTS)] + [(at, 1, 100 + at) for at in range(REQUESTS)], [0, 0], REQUESTS
    )
    requests = build_requests(log, 100)
    names = {key: getattr(lineup, key, key) for key in shares}
    answers, records = {}, {}
    for key, (share, scored, seconds) in shares.items():
        hits = (np.arange(REQUESTS) < share * REQUESTS).astype(float)
        name = names[key]
        answers[name] = Answers(dict.fromkeys(CUTS, hits), dict.fromkeys(CUTS, scored))
        records[name] = Record.of(REQUESTS)
        records[name].seconds[100] = [seconds, 10.0]
    everything = np.ones(REQUESTS, bool)
    requested = Requested(everything, np.full(REQUESTS, 9), ~everything, np.full(REQUESTS, 2))
    outcome = Outcome(requested, {}, records, {}, {})
    return Study(log, requests, [outcome], answers, Slices.of(log, requests, outcome), Users(requests.user))


def figure(comparison, slice_="all", cut=100):
    return next(each for each in comparison["figures"] if (each["slice"], each["cut"]) == (slice_, cut))


def test_a_gain_is_relative_and_judged_by_what_was_wanted():
    (only,) = comparisons(study(MFLI_PRIOR=(0.6, 1, 1), ANN=(0.4, 1, 1)), "globo")["wished"]
    found = figure(only)
    assert found["gain"] == pytest.approx(0.5)
    assert found["met"] is True
    assert found["interval"][0] < 0.5 < found["interval"][1]
    assert figure(only, "all", 500)["met"] is True
    (only,) = comparisons(study(MFLI_PRIOR=(0.5, 1, 1), ANN=(0.4, 1, 1)), "globo")["wished"]
    assert figure(only)["met"] is False


def test_a_slice_without_requests_is_no_gain_and_not_met():
    (only,) = comparisons(study(MFLI_PRIOR=(0.6, 1, 1), ANN=(0.4, 1, 1)), "globo")["wished"]
    assert np.isnan(figure(only, "tail")["gain"])
    assert figure(only, "tail")["met"] is None
    made = study(HYBRID=(0.6, 1, 1), POPULAR=(0.5, 0, 1), DECAYED=(0.55, 0, 1), KNN=(0.4, 0, 1))
    (only,) = comparisons(made, "globo")["wished"]
    assert (figure(only, "tail")["wanted"], figure(only, "tail")["met"]) == (0.0, None)


def test_the_best_of_several_is_taken_for_each_figure():
    made = study(HYBRID=(0.6, 1, 1), POPULAR=(0.5, 0, 1), DECAYED=(0.55, 0, 1), KNN=(0.4, 0, 1))
    (only,) = comparisons(made, "globo")["wished"]
    assert figure(only)["best_of_theirs"] == lineup.DECAYED
    assert figure(only)["gain"] == pytest.approx(0.6 / 0.55 - 1)


def test_at_equal_items_scored_the_curve_decides():
    made = study(MFLI_PRIOR=(1.0, 100, 1), RQ=(0.5, 10, 1))
    low = Answers(dict.fromkeys(CUTS, np.zeros(REQUESTS)), dict.fromkeys(CUTS, 1.0))
    made.answers[lineup.on_curve(lineup.MFLI_PRIOR, 1, 1)] = low
    (only,) = comparisons(made, "globo")["wished"]
    assert only["equal_scored"]
    assert figure(only)["ours"] == pytest.approx(0.5)  # half way from 1 to 100 items, by their logarithms
    assert figure(only)["gain"] == pytest.approx(0.0)


def test_a_curve_is_of_one_system_only():
    name = lineup.on_curve(lineup.UNBALANCED, 15, 20)
    assert lineup.is_on_curve(name, lineup.UNBALANCED)
    assert not lineup.is_on_curve(name, lineup.MFLI_PRIOR)  # though that name begins alike
    assert not lineup.is_on_curve(lineup.FEW.format(6), lineup.MFLI_PRIOR)


def test_rates_are_by_the_time_of_the_timed_requests():
    ann = lineup.ANN_PRIOR.format(8)
    made = study(MFLI_PRIOR=(0.6, 1, 0.1), **{ann: (0.4, 1, 1.0)})
    (only,) = comparisons(made, "globo")["wished"]
    assert only["rate"]["ratio"] == pytest.approx(10)
    assert only["rate"]["met"]
    (only,) = comparisons(made, "anything else")["wished"]
    assert only["rate"]["met"] is None
    assert figure(only)["wanted"] is None


def test_what_is_wished_for_is_compared():
    titles = {each.title for each in COMPARISONS}
    for wishes in WISHES.values():
        assert set(wishes) <= titles
