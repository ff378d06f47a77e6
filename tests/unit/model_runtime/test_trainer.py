"""A tiny training from end to end: items of two genres, users who like one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_runtime.runtime import FrozenModel
from model_runtime.training.data import TrainingLog
from model_runtime.training.trainer import train
from schemas.artifact import FacetLabel, FeatureSpec
from schemas.errors import UsageError
from schemas.events import ItemContent
from schemas.training import TrainingConfig

ITEMS, USERS = 120, 60
CONFIG = TrainingConfig(
    labels=(FacetLabel(name="next", kind="next"), FacetLabel(name="liked", kind="explicit", min_value=4)),
    codewords=4,
    dim=8,
    token_dim=16,
    hidden=(16,),
    features=FeatureSpec(buckets=1 << 12),
    steps=80,
    pairs=64,
    negatives=32,
    learning_rate=1e-2,
    threads=1,
)


def made_up_log(seed: int = 0) -> TrainingLog:
    """Which genre an item has, only its title's last word tells; users stay with their genre."""
    rng = np.random.default_rng(seed)
    genre = np.arange(ITEMS) % 2
    words = [["north", "snow", "ice"], ["south", "sand", "sun"]]
    contents = tuple(ItemContent(title=f"t{i} {words[genre[i]][i % 3]}") for i in range(ITEMS))
    events = USERS * 20
    user = rng.integers(0, USERS, events)
    item = rng.integers(0, ITEMS // 2, events) * 2 + user % 2
    return TrainingLog(
        item_ids=tuple(str(i) for i in range(ITEMS)),
        contents=contents,
        created_at=np.zeros(ITEMS, np.int64),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=np.sort(rng.integers(1_000, 3_600_000, events)),
        kind=np.zeros(events, np.int32),
        value=rng.integers(1, 6, events).astype(np.float32),
        session=np.full(events, -1, np.int32),
        users=USERS,
        kinds=("rating",),
        skipped={},
    )


@pytest.fixture(scope="module")
def trained():
    return train(made_up_log(), CONFIG)


def test_items_of_one_genre_come_together_and_new_items_join_them(trained):
    model = FrozenModel(trained.artifact)
    assert model.prior is not None
    new = [ItemContent(title="never seen snow"), ItemContent(title="never seen sun")]
    vectors = model.encode([*made_up_log().contents, *new]).vectors[:, 0].astype(np.float32)
    likeness = vectors[ITEMS:] @ vectors[:ITEMS].T
    for genre in (0, 1):
        assert likeness[genre, genre::2].mean() > likeness[genre, 1 - genre :: 2].mean() + 0.3


def test_all_layers_were_started_and_the_codes_are_used(trained):
    assert (np.abs(trained.artifact.codewords).max(axis=(2, 3)) > 0).all()
    assert trained.codes.facets[0].leaves.perplexity > 4
    metrics = trained.artifact.manifest.metrics
    assert metrics["stopped_early"] == 0
    assert metrics["steps"] == CONFIG.steps
    assert metrics["facet0_leaf_perplexity"] == trained.codes.facets[0].leaves.perplexity


def test_the_manifest_tells_what_was_learned_from(trained):
    log, manifest = made_up_log(), trained.artifact.manifest
    assert (manifest.window.from_ms, manifest.window.to_ms) == (int(log.time[0]), int(log.time[-1]) + 1)
    assert (manifest.window.items, manifest.window.engagements) == (ITEMS, len(log.user))
    assert manifest.labels == CONFIG.labels
    assert manifest.version.startswith("1970")


def test_training_again_gives_the_same_bytes(trained):
    assert train(made_up_log(), CONFIG).artifact.manifest == trained.artifact.manifest


def test_two_threads_are_deterministic_too():
    config = CONFIG.model_copy(update={"threads": 2, "steps": 30, "pairs": 512})
    one, two = (train(made_up_log(), config).artifact.manifest for _ in range(2))
    assert one == two


def test_another_seed_gives_another_model(trained):
    other = train(made_up_log(), CONFIG.model_copy(update={"seed": 1, "steps": 5}))
    assert other.artifact.manifest.model_hash != trained.artifact.manifest.model_hash


def test_a_trained_model_survives_saving(trained, tmp_path):
    model = FrozenModel(trained.artifact)
    model.save(tmp_path / "m")
    contents = made_up_log().contents
    again = FrozenModel.load(tmp_path / "m").encode(contents)
    assert again.vectors.tobytes() == model.encode(contents).vectors.tobytes()


def test_events_from_until_on_change_nothing():
    log = made_up_log()
    until = int(np.quantile(log.time, 0.5))
    late = log.time >= until
    other = TrainingLog(
        **{name: getattr(log, name) for name in log.__slots__}
        | {
            "item": np.where(late, 0, log.item).astype(np.int32),
            "value": np.where(late, 1, log.value).astype(np.float32),
        }
    )
    config = CONFIG.model_copy(update={"steps": 10})
    one, two = (train(part, config, until_ms=until).artifact.manifest for part in (log, other))
    assert one == two
    assert one.window.to_ms <= until


def test_every_step_is_told_of_and_threads_are_put_back():
    before = torch.get_num_threads()
    seen: list[dict[str, float]] = []
    train(made_up_log(), CONFIG.model_copy(update={"steps": 7}), on_step=seen.append)
    assert [parts["step"] for parts in seen] == list(range(1, 8))
    assert {"loss", "mf", "qmf", "anchor", "over_use", "layers"} <= set(seen[0])
    assert torch.get_num_threads() == before


def test_a_spent_time_budget_still_gives_a_whole_model_that_says_so():
    result = train(made_up_log(), CONFIG.model_copy(update={"max_seconds": 1e-9}))
    assert result.steps == 0
    assert result.artifact.manifest.metrics["stopped_early"] == 1
    assert (np.abs(result.artifact.codewords).max(axis=(2, 3)) > 0).all()


def test_group_dropout_trains_too():
    result = train(made_up_log(), CONFIG.model_copy(update={"steps": 10, "group_dropout": 0.5}))
    assert np.isfinite(result.artifact.manifest.metrics["final_loss"])


def test_a_label_that_matches_nothing_is_named():
    labels = (FacetLabel(name="loved", kind="explicit", min_value=9),)
    with pytest.raises(UsageError, match="'loved'"):
        train(made_up_log(), CONFIG.model_copy(update={"labels": labels}))


def test_a_span_without_events_is_refused():
    with pytest.raises(UsageError, match="no items with engagements"):
        train(made_up_log(), CONFIG, until_ms=1)


def test_a_diverging_loss_is_reported_with_what_to_do():
    with pytest.raises(UsageError, match="lower learning_rate"):
        train(made_up_log(), CONFIG.model_copy(update={"learning_rate": 1e38}))


def test_a_schedule_that_never_reaches_the_last_layer_is_refused():
    with pytest.raises(ValueError, match="no steps"):
        TrainingConfig(start_share=0.95, layer_share=0.1)
    with pytest.raises(ValueError, match="exceeds"):
        TrainingConfig(codewords=4096, layers=3)
