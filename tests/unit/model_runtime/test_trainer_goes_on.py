"""Checkpoints, refreshes and early stopping: a training that is interrupted, and one that never ends."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save as tensors_to_bytes

from model_runtime import artifact as artifacts
from model_runtime.runtime import FrozenModel
from model_runtime.training.data import TrainingLog
from model_runtime.training.state import TrainingState
from model_runtime.training.trainer import Trainer
from schemas.errors import ArtifactError, ConfigError, UsageError
from schemas.events import ItemContent
from schemas.training import OverUseConfig, PriorConfig, RefreshConfig
from tests.unit.model_runtime.test_trainer import CONFIG, ITEMS, made_up_log

SMALL = CONFIG.model_copy(
    update={
        "steps": 20,
        "checkpoint_every": 8,
        "head": 8,
        "cell_engagements": 200,
        "refresh": RefreshConfig(steps=5, span_s=600),
    }
)
HALF = 1_800_000
STOPS = SMALL.model_copy(
    update={
        "steps": 400,
        "validation_share": 0.2,
        "validate_every": 10,
        "patience": 2,
        "start_share": 0.05,
        "layer_share": 0.0,
        "learning_rate": 0.05,
    }
)


class Interrupted(Exception):  # noqa: N818  # it is no error of the code under test
    """The process goes away."""


def interrupt_at(step):
    def on_step(parts):
        if parts["step"] == step:
            raise Interrupted

    return on_step


@pytest.fixture(scope="module")
def fitted():
    trainer = Trainer(SMALL)
    trainer.fit(made_up_log(), until_ms=HALF)
    return trainer


def fresh_copy(trainer, tmp_path):
    trainer.state.save(tmp_path / "copy")
    return Trainer(TrainingState.load(tmp_path / "copy"))


def test_an_interrupted_training_ends_as_if_it_had_not_been(fitted, tmp_path):
    with pytest.raises(Interrupted):
        Trainer(SMALL).fit(made_up_log(), until_ms=HALF, checkpoint=tmp_path / "c", on_step=interrupt_at(19))
    state = TrainingState.load(tmp_path / "c")
    assert (state.step, state.fitted) == (16, False)
    again = Trainer(state)
    again.fit(made_up_log(), until_ms=HALF)
    assert again.artifact().manifest == fitted.artifact().manifest


def save(trainer, path):
    artifacts.save(trainer.artifact(), path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("interrupted_at", [33, 38, 47])
def test_early_stopping_goes_on_as_if_it_had_not_been_interrupted(tmp_path, interrupted_at):
    """The looks before the interruption count: the best one may be among them, and patience half used up."""
    config = STOPS.model_copy(update={"checkpoint_every": 5})
    whole = Trainer(config)
    whole.fit(made_up_log())
    assert whole.state.metrics["stopped_early"] == 1
    assert whole.state.step > interrupted_at
    with pytest.raises(Interrupted):
        Trainer(config).fit(made_up_log(), checkpoint=tmp_path / "c", on_step=interrupt_at(interrupted_at))
    state = TrainingState.load(tmp_path / "c")
    assert state.stopping.parameters
    again = Trainer(state)
    again.fit(made_up_log())
    assert save(again, tmp_path / "again") == save(whole, tmp_path / "whole")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    path = tmp_path_factory.mktemp("halfway") / "c"
    with pytest.raises(Interrupted):
        Trainer(SMALL).fit(made_up_log(), until_ms=HALF, checkpoint=path, on_step=interrupt_at(19))
    return path


def changed(log: TrainingLog, **columns) -> TrainingLog:
    return TrainingLog(**{name: getattr(log, name) for name in log.__slots__} | columns)


def test_a_training_is_taken_up_only_on_the_events_that_it_began_with(halfway):
    log = made_up_log()
    title = ItemContent(title="renamed")
    others = {
        "until_ms 1800000, now 1500000.* engagements": (log, 1_500_000),
        "until_ms 1800000, now None.* to_ms": (log, None),
        "engagements_hash": (changed(log, item=log.item[::-1].copy()), HALF),
        r"\(items_hash [0-9a-f]{12}, now [0-9a-f]{12}\)": (changed(log, contents=(title, *log.contents[1:])), HALF),
    }
    for differs, (other, until) in others.items():
        with pytest.raises(UsageError, match=f"checkpoint .*c is of a training on other events .*{differs}"):
            Trainer(TrainingState.load(halfway)).fit(other, until_ms=until, checkpoint=halfway)


def test_a_log_that_grew_after_the_end_of_the_span_is_the_same(fitted, halfway):
    log = made_up_log()
    for grown in (log, changed(log, item=np.where(log.time < HALF, log.item, 0).astype(np.int32)), log.before(HALF)):
        again = Trainer(TrainingState.load(halfway))
        again.fit(grown, until_ms=HALF)
        assert again.artifact().manifest == fitted.artifact().manifest


def test_a_checkpoint_that_does_not_tell_its_events_is_refused(halfway):
    state = TrainingState.load(halfway)
    state.span = None
    with pytest.raises(UsageError, match="does not tell which events"):
        Trainer(state).fit(made_up_log(), until_ms=HALF)


def without(arrays, name):
    return {other: values for other, values in arrays.items() if other != name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a | {"usage": a["usage"][:, :, :-1].copy()}, r"usage is float32 \(2, 2, 3\).* \(2, 2, 4\)"),
        (lambda a: a | {"weight/encoder.table": a["weight/encoder.table"][:-1].copy()}, "weight/encoder.table"),
        (lambda a: a | {"first/codewords": a["first/codewords"].astype(np.float64)}, "first/codewords is float64"),
        (lambda a: a | {"second/encoder.ids": a["second/encoder.ids"][:3].copy()}, "second/encoder.ids"),
        (lambda a: a | {"id_keys": a["id_keys"].astype(np.int64)}, "id_keys is int64"),
        (lambda a: a | {"id_keys": a["id_keys"][::-1].copy()}, "id_keys does not ascend"),
        (lambda a: a | {"id_seen": a["id_seen"][:-1].copy()}, "id_seen"),
        (lambda a: without(a, "weight/prior.layer0.bias"), "weight/prior.layer0.bias is missing"),
        (lambda a: a | {"weight/other": a["usage"]}, "weight/other belongs to no state"),
        (lambda a: a | {"best/codewords": a["weight/codewords"]}, "best/codewords belongs to no state"),
        (
            lambda a: a | {"weight/codewords": a["weight/codewords"] + np.float32(np.nan)},
            "weight/codewords holds values that are no finite",
        ),
    ],
)
def test_arrays_of_a_foreign_or_damaged_checkpoint_are_refused_by_name(halfway, tmp_path, change, named):
    with safe_open(halfway, "numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (tmp_path / "damaged").write_bytes(tensors_to_bytes(change(arrays), metadata))
    with pytest.raises(ArtifactError, match=f"damaged: array {named}"):
        TrainingState.load(tmp_path / "damaged")


def test_a_state_survives_saving_whole(fitted, tmp_path):
    loaded, state = fresh_copy(fitted, tmp_path).state, fitted.state
    for each in fields(state):
        one, two = getattr(state, each.name), getattr(loaded, each.name)
        if each.name == "rng":
            one, two = one.bit_generator.state, two.bit_generator.state
        np.testing.assert_equal(one, two)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "c").write_bytes(b"nonsense")
    for path in (tmp_path / "c", tmp_path / "missing"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            TrainingState.load(path)
    with pytest.raises(ArtifactError, match="cannot be written"):
        TrainingState.fresh(SMALL).save(tmp_path / "c" / "below")


def with_newcomers(log: TrainingLog) -> TrainingLog:
    """Items 100 to 119 are born in the second half, and clicked from then on."""
    created = np.where(np.arange(ITEMS) < 100, 0, HALF)
    item = np.where((log.time < HALF) & (log.item >= 100), log.item - 100, log.item)
    parts = {name: getattr(log, name) for name in log.__slots__}
    return TrainingLog(**parts | {"created_at": created, "item": item.astype(np.int32)})


def test_a_refresh_learns_new_items_and_moves_the_window(tmp_path):
    log = with_newcomers(made_up_log())
    trainer = Trainer(SMALL)
    first = trainer.fit(log, until_ms=HALF)
    assert first.artifact.manifest.ids == 100
    second = trainer.refresh(log, HALF + 600_000)
    manifest = second.artifact.manifest
    assert second.steps == 5
    assert manifest.ids == ITEMS
    assert manifest.version > first.artifact.manifest.version
    assert (manifest.window.to_ms, manifest.window.items) == (HALF + 600_000, ITEMS)
    assert manifest.window.engagements == np.count_nonzero(log.time < HALF + 600_000)
    assert manifest.model_hash != first.artifact.manifest.model_hash
    model = FrozenModel(second.artifact)
    newcomer = log.contents[110]
    assert model.encode([newcomer], ["110"]).vectors.tobytes() != model.encode([newcomer]).vectors.tobytes()
    model.save(tmp_path / "m")
    assert FrozenModel.load(tmp_path / "m").encode([newcomer], ["110"]).vectors.tobytes() == (
        model.encode([newcomer], ["110"]).vectors.tobytes()
    )


def test_a_refresh_sees_nothing_of_what_comes_after(fitted, tmp_path):
    log, until = made_up_log(), HALF + 600_000
    late = log.time >= until
    parts = {name: getattr(log, name) for name in log.__slots__}
    other = TrainingLog(**parts | {"item": np.where(late, 0, log.item).astype(np.int32)})
    one, two = (fresh_copy(fitted, tmp_path).refresh(each, until).artifact.manifest for each in (log, other))
    assert one == two


def test_a_longer_gap_is_made_up_for_with_more_steps(fitted, tmp_path):
    trainer = fresh_copy(fitted, tmp_path)
    assert trainer.refresh(made_up_log(), HALF + 1_800_000).steps == 15
    assert fresh_copy(fitted, tmp_path).refresh(made_up_log(), HALF + 1_800_000, steps=2).steps == 2


def test_a_refresh_that_looks_back_learns_again_of_what_was_before(fitted, tmp_path):
    """Nobody likes anything any more: only those who look back find pairs for that facet."""
    log = made_up_log()
    disliked = changed(log, value=np.where(log.time >= HALF, 1, log.value).astype(np.float32))
    grown = []
    for back in (0, 1_200):
        refresh = RefreshConfig(steps=5, span_s=600, look_back_s=back)
        state = fresh_copy(fitted, tmp_path).state.with_settings({"refresh": refresh.model_dump()})
        before = state.second["codewords"].copy()
        assert Trainer(state).refresh(disliked, HALF + 600_000).steps == 5
        grown.append((state.second["codewords"] > before).any(axis=(1, 2, 3)).tolist())
    assert grown == [[True, False], [True, True]]


def test_a_quiet_span_makes_no_steps(fitted, tmp_path):
    trainer = fresh_copy(fitted, tmp_path)
    log = made_up_log().before(HALF)
    result = trainer.refresh(log, 10 * HALF)
    assert result.steps == 0
    assert result.artifact.manifest.model_hash == fitted.artifact().manifest.model_hash
    assert result.artifact.manifest.window.to_ms == 10 * HALF


def test_an_artifact_alone_can_be_gone_on_from(fitted, tmp_path):
    artifacts.save(fitted.artifact(), tmp_path / "m")
    state = TrainingState.of_artifact(artifacts.load(tmp_path / "m"), {"refresh": {"steps": 3}})
    trainer = Trainer(state)
    before, after = fitted.model(), trainer.model()
    contents = made_up_log().contents
    ids = [str(row) for row in range(ITEMS)]
    moved = np.abs(
        after.encode(contents, ids).vectors.astype(np.float32) - before.encode(contents, ids).vectors.astype(np.float32)
    )
    assert moved.max() < 1e-2
    assert trainer.refresh(made_up_log(), HALF + 600_000).steps == 3


def test_settings_of_another_shape_are_refused_by_name(fitted):
    with pytest.raises(ArtifactError, match=r"codewords of .* \(2, 2, 4, 8\), the settings imply \(2, 2, 8, 8\)"):
        TrainingState.of_artifact(fitted.artifact(), {"codewords": 8})
    with pytest.raises(ArtifactError, match=r"encoder\.layer0\.weight"):
        fitted.state.with_settings({"hidden": [32]})
    assert fitted.state.with_settings({"temperature": 0.5}).config.temperature == 0.5


def test_settings_that_are_not_given_stay_section_by_section(fitted):
    given = {"refresh": {"steps": 2}, "prior": {"learning_rate": 0.02}, "features": {"max_text_chars": 99}}
    goes_on = fitted.state.with_settings(given).config
    assert (goes_on.refresh.steps, goes_on.refresh.span_s) == (2, SMALL.refresh.span_s)
    assert goes_on.prior == SMALL.prior.model_copy(update={"learning_rate": 0.02})
    narrow = SMALL.model_copy(update={"prior": PriorConfig(hidden=(4,), half_lives_s=(60, 600))})
    artifact = Trainer(narrow).fit(made_up_log(), until_ms=HALF).artifact
    found = TrainingState.of_artifact(artifact, given).config
    assert found.prior == narrow.prior.model_copy(update={"learning_rate": 0.02})
    assert found.features == narrow.features.model_copy(update={"max_text_chars": 99})
    with pytest.raises(ConfigError, match=r"^steps .*20.* section"):
        fitted.state.with_settings({"steps": {"refresh": 3}})


def test_there_is_nothing_to_refresh_or_export_before_a_fit():
    with pytest.raises(UsageError, match="fit one first"):
        Trainer(SMALL).refresh(made_up_log(), HALF)
    with pytest.raises(UsageError, match="fit one first"):
        Trainer(SMALL).artifact()


def test_only_the_latest_engaged_items_keep_a_vector_of_their_own():
    trainer = Trainer(SMALL.model_copy(update={"max_ids": 30}))
    log = made_up_log()
    assert trainer.fit(log, until_ms=HALF).artifact.manifest.ids == 30
    latest = np.zeros(ITEMS, np.int64)
    np.maximum.at(latest, log.item[log.time < HALF], log.time[log.time < HALF])
    assert trainer.state.id_seen.min() == np.sort(latest)[-30]
    assert Trainer(SMALL.model_copy(update={"max_ids": 0})).fit(log).artifact.manifest.ids == 0


def test_cold_items_work_as_ids_are_dropped_in_training():
    """A new item of a genre is close to that genre although all others have vectors of their own."""
    model = FrozenModel(Trainer(CONFIG).fit(made_up_log()).artifact)
    known = model.encode(made_up_log().contents, [str(row) for row in range(ITEMS)]).vectors[:, 0].astype(np.float32)
    new = model.encode([ItemContent(title="never seen snow")], ["new"]).vectors[0, 0].astype(np.float32)
    assert (known[::2] @ new).mean() > (known[1::2] @ new).mean() + 0.3


def test_early_stopping_keeps_the_best_and_then_learns_what_was_held_back():
    steps: list[float] = []
    trainer = Trainer(STOPS)
    result = trainer.fit(made_up_log(), on_step=lambda parts: steps.append(parts["step"]))
    assert result.steps < 400
    assert result.artifact.manifest.metrics["stopped_early"] == 1
    assert len(steps) == result.steps + max(5, round(0.2 * result.steps))
    assert result.artifact.manifest.window.to_ms == made_up_log().time[-1] + 1


@pytest.mark.parametrize("kind", ["none", "disturbance", "biased", "moving_average"])
def test_each_means_against_over_use_trains(kind):
    config = SMALL.model_copy(update={"over_use": OverUseConfig(kind=kind), "start_share": 0.1})
    result = Trainer(config).fit(made_up_log())
    assert (np.abs(result.artifact.codewords).max(axis=(2, 3)) > 0).all()
    assert np.isfinite(result.artifact.manifest.metrics["final_loss"])


def test_a_prior_is_learned_that_prefers_what_is_clicked():
    log = made_up_log()
    skewed = TrainingLog(
        **{name: getattr(log, name) for name in log.__slots__}
        | {"item": np.where(np.arange(len(log.item)) % 3, log.item, log.item % 6).astype(np.int32)}
    )
    prior = Trainer(CONFIG).fit(skewed).artifact
    found = FrozenModel(prior).prior
    assert found is not None
    assert found.half_lives_s == CONFIG.prior.half_lives_s
    counts = np.array([[200.0] * 4, [10.0] * 4, [0.0] * 4])
    scores = found.score(counts, np.full(3, 1_800.0))
    assert scores[0] > scores[1] > scores[2]


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ArtifactError, match="'tpu'"):
        Trainer(SMALL, device="tpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_cuda():
    result = Trainer(SMALL, device="cuda").fit(made_up_log())
    assert np.isfinite(result.artifact.manifest.metrics["final_loss"])


def test_a_model_may_go_without_a_prior():
    config = SMALL.model_copy(update={"prior": PriorConfig(export=False)})
    artifact = Trainer(config).fit(made_up_log()).artifact
    assert artifact.manifest.prior is None
    assert artifact.manifest.prior_hash is None
    assert FrozenModel(artifact).prior is None
