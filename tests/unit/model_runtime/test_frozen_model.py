"""The frozen model as its users meet it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model_runtime import artifact as artifacts
from model_runtime.codebook import Codebook
from model_runtime.encoder import (
    Encoder,
    EncoderShape,
    FrozenEncoder,
    find_ids,
    freeze,
    initial_weights,
    thaw,
    weight_grid,
)
from model_runtime.features import extract, hash_ids
from model_runtime.fixed_point import off_grid
from model_runtime.runtime import FrozenModel
from schemas.artifact import FeatureSpec
from schemas.errors import ArtifactError, RecordError
from schemas.events import ItemContent, ItemCreated

SPEC = FeatureSpec(buckets=1 << 10)
TITLES = ["Toy Story (1995)", "Jumanji (1995)", "Heat (1995)", "Été", "東京物語", "x", "...", "Toy Story 2 (1999)"]
CONTENTS = [ItemContent(title=title, categories=["Comedy"][: i % 2]) for i, title in enumerate(TITLES)]


def small(**changes: object) -> FrozenModel:
    return FrozenModel.untrained(**{"codewords": 8, "dim": 16, "token_dim": 16, "features": SPEC, **changes})


def test_encoding_has_the_promised_shapes_and_unit_vectors():
    encoded = small().encode(CONTENTS)
    assert (encoded.vectors.shape, encoded.vectors.dtype) == ((8, 3, 16), np.float16)
    assert (encoded.codes.shape, encoded.codes.dtype) == ((8, 3, 2), np.int32)
    assert (encoded.raw.shape, encoded.raw.dtype) == ((8, 3), np.uint32)
    assert np.array_equal(encoded.raw, encoded.codes[..., 0] * 8 + encoded.codes[..., 1])
    lengths = np.linalg.norm(encoded.vectors.astype(np.float64), axis=-1)
    assert np.allclose(lengths, 1, atol=2e-3)


def test_stored_vectors_reproduce_stored_codes():
    model = small()
    encoded = model.encode(CONTENTS)
    assert np.array_equal(model.assign(encoded.vectors.copy()).codes, encoded.codes)
    assert np.array_equal(Codebook(model.codewords, torch.device("cpu")).assign(encoded.vectors), encoded.codes)


def test_an_empty_batch_is_fine():
    encoded = small().encode([])
    assert encoded.vectors.shape == (0, 3, 16)
    assert encoded.raw.shape == (0, 3)


def test_the_same_arguments_give_the_same_model():
    assert small().manifest == small().manifest
    assert small().manifest.model_hash != small(seed=1).manifest.model_hash


def test_similar_items_are_nearer_than_others():
    vectors = small(dim=64, token_dim=64, features=FeatureSpec()).encode(CONTENTS).vectors.astype(np.float32)
    likeness = vectors[0, 0] @ vectors[:, 0].T
    assert likeness[1:].argmax() == 6  # the sequel


def test_untrained_codes_are_spread():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(500)]
    contents = [ItemContent(title=" ".join(rng.choice(words, 4)), tags=[str(i)]) for i in range(1000)]
    raw = small(codewords=16).encode(contents).raw
    for facet in range(3):
        counts = np.bincount(raw[:, facet], minlength=256)
        assert np.count_nonzero(counts) > 100
        assert counts.max() < 100


def test_a_saved_model_loads_and_encodes_to_the_same_bits(tmp_path):
    model = small()
    model.save(tmp_path / "model")
    loaded = FrozenModel.load(tmp_path / "model")
    assert loaded.manifest == model.manifest
    assert np.array_equal(loaded.codewords, model.codewords)
    before, after = model.encode(CONTENTS), loaded.encode(CONTENTS)
    assert before.vectors.tobytes() == after.vectors.tobytes()
    assert np.array_equal(before.codes, after.codes)


def test_dense_vectors_take_part_when_the_model_has_room_for_them():
    model = small(features=FeatureSpec(buckets=1 << 10, dense_dim=4))
    plain = ItemContent(title="x")
    items = [plain, plain.model_copy(update={"embedding": [1.0, 0, 0, 0]}), ItemContent(embedding=[0.0, 1, 0, 0])]
    vectors = model.encode(items).vectors
    assert not np.array_equal(vectors[0], vectors[1])
    assert np.isfinite(vectors).all()
    with pytest.raises(RecordError, match="2 dimensions"):
        model.check(ItemContent(embedding=[1.0, 2.0]))
    model.check(items[1])


def test_an_embedding_for_a_model_without_room_is_refused():
    with pytest.raises(RecordError, match="takes no embeddings") as caught:
        small().check(ItemContent(title="x", embedding=[1.0]))
    assert caught.value.reason == "wrong_dimension"


@pytest.mark.parametrize("hidden", [(), (8,), (8, 12)])
def test_the_frozen_encoder_computes_what_the_trained_one_does(hidden):
    shape = EncoderShape(FeatureSpec(buckets=1 << 10, dense_dim=3), 2, 16, 16, hidden)
    weights = initial_weights(shape, np.random.default_rng(0))
    trained = Encoder(shape, weights)
    contents = [*CONTENTS, ItemContent(title="dense", embedding=[1.0, -2.0, 0.5])]
    batch = extract(contents, shape.features)
    frozen = FrozenEncoder(shape, freeze(weights)[0], torch.device("cpu"))
    with torch.no_grad():
        expected = trained(batch).numpy()
    assert np.abs(frozen.encode(batch).astype(np.float32) - expected).max() < 4e-3


def with_ids(*known: str) -> tuple[EncoderShape, dict[str, np.ndarray], np.ndarray]:
    """An encoder in which some items have rows of their own, and their keys."""
    shape = EncoderShape(SPEC, 2, 16, 16, (8,), ids=len(known))
    weights = initial_weights(shape, np.random.default_rng(0))
    weights["ids"] = np.random.default_rng(1).standard_normal(weights["ids"].shape, np.float32)
    keys = hash_ids(known)
    return shape, weights | {"ids": weights["ids"][np.argsort(keys)]}, np.sort(keys)


def test_known_ids_add_what_training_learned_and_unknown_ones_nothing():
    shape, weights, keys = with_ids("a", "b")
    frozen = FrozenEncoder(shape, freeze(weights)[0], torch.device("cpu"), keys)
    features = extract([ItemContent(title="x")] * 4, SPEC)
    of_a, of_b, of_new, of_none = frozen.encode(replace(features, ids=hash_ids(["a", "b", "new", None])))
    assert np.abs(of_a - of_b).max() > 0.1
    assert np.abs(of_a - of_none).max() > 0.1
    assert of_new.tobytes() == of_none.tobytes()
    with torch.no_grad():
        rows = find_ids(keys, hash_ids(["a", "b", "new"]))
        expected = Encoder(shape, weights)(extract([ItemContent(title="x")] * 3, SPEC), rows).numpy()
    assert np.abs(np.stack([of_a, of_b, of_new]).astype(np.float32) - expected).max() < 4e-3


def test_item_events_bring_their_id_along_and_contents_do_not():
    event = ItemCreated(type="item.created", item_id="a", occurred_at=1, title="x")
    shape, weights, keys = with_ids("a")
    untrained = FrozenModel.untrained(facets=2, codewords=8, dim=16, token_dim=16, hidden=(8,), features=SPEC)
    model = FrozenModel(
        artifacts.assemble(
            name="m",
            version="1",
            shape=shape,
            encoder=freeze(weights)[0],
            codewords=untrained.codewords,
            labels=untrained.manifest.labels,
            window=untrained.manifest.window,
            metrics={},
            id_keys=keys,
        )
    )
    content = ItemContent(title="x")
    of_event, named = model.encode([event]).vectors, model.encode([content], ["a"]).vectors
    assert of_event.tobytes() == named.tobytes()
    assert model.encode([event], [None]).vectors.tobytes() == model.encode([content]).vectors.tobytes()
    assert model.encode([content]).vectors.tobytes() != named.tobytes()


def test_hashed_ids_depend_on_the_id_alone():
    ids = ["a", "A", "é", "a\0b", "x" * 256, None, ""]
    hashed = hash_ids(ids)
    assert len(set(hashed.tolist())) == 6
    assert hashed[5] == hashed[6] == 0
    assert hash_ids(ids[::-1]).tolist() == hashed.tolist()[::-1]
    assert hash_ids([]).shape == (0,)


def test_thawing_gives_back_what_was_frozen():
    _, weights, _ = with_ids("a")
    weights["table"] = weights["table"] * 1_000
    thawed = thaw(*freeze(weights))
    largest = max(np.abs(values).max() for values in weights.values())
    for name, values in weights.items():
        assert np.abs(thawed[name] - values).max() <= largest * 2.0**-12


def test_frozen_weights_are_on_their_grids_whatever_the_trained_ones_were():
    shape = EncoderShape(FeatureSpec(buckets=1 << 8, dense_dim=2), 1, 8, 8, (4,))
    rng = np.random.default_rng(0)
    wild = {name: rng.normal(0, 50, size).astype(np.float32) for name, size in shape.weights().items()}
    for name, values in freeze(wild)[0].items():
        assert off_grid(values, *weight_grid(name)) is None


def test_widths_beyond_exact_sums_are_refused():
    with pytest.raises(ValueError, match="width 2048"):
        EncoderShape(SPEC, 1, 8, 8, (2048,))


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_an_unusable_device_is_named(device):
    with pytest.raises(ArtifactError, match=device):
        small(device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_cuda_device_is_named():
    with pytest.raises(ArtifactError, match="no CUDA device"):
        small(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_bits_of_the_cpu():
    here, there = small().encode(CONTENTS), small(device="cuda").encode(CONTENTS)
    assert here.vectors.tobytes() == there.vectors.tobytes()
    assert np.array_equal(here.codes, there.codes)
