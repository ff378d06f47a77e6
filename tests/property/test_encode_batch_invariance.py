"""The same content has the same bits whatever else is in its batch, wherever it stands, with any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_runtime.runtime import FrozenModel
from schemas.artifact import FeatureSpec
from schemas.events import ItemContent

SPEC = FeatureSpec(buckets=1 << 12, dense_dim=5)
MODELS = {
    "usual": {"codewords": 32},
    "odd sizes": {"facets": 2, "layers": 3, "codewords": 11, "dim": 33, "token_dim": 17, "hidden": (41, 23)},
    "linear": {"facets": 1, "codewords": 16, "hidden": ()},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return FrozenModel.untrained(**MODELS[request.param], features=SPEC)


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def varied(count: int, seed: int) -> list[ItemContent]:
    """Items with anything from one tag to long texts."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdeéß東🔥 "), rng.integers(1, 8))) for _ in range(300)]
    contents = []
    for i in range(count):
        some = rng.choice(words, rng.integers(1, 6)).tolist()
        contents.append(
            ItemContent(
                title=" ".join(some) if i % 3 else None,
                text=" ".join(rng.choice(words, 200)) if i % 29 == 0 else None,
                categories=some[:2],
                tags=[str(i)],
                attributes={"a": some[0]} if i % 5 == 0 else {},
                embedding=(rng.standard_normal(5) * 10.0 ** rng.integers(-9, 9)).tolist() if i % 4 == 0 else None,
            )
        )
    return contents


def same(part, whole, rows):
    return (
        part.vectors.tobytes() == whole.vectors[rows].tobytes()
        and np.array_equal(part.codes, whole.codes[rows])
        and np.array_equal(part.raw, whole.raw[rows])
    )


def test_thousands_of_items_keep_their_bits_under_random_cuts_and_positions(model):
    contents = varied(3_000, 0)
    torch.set_num_threads(2)
    whole = model.encode(contents)
    rng = np.random.default_rng(1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        order = rng.permutation(len(contents))
        while len(order):
            size = int(rng.choice([1, 2, 7, 64, 511, 513, 1024]))
            rows, order = order[:size], order[size:]
            assert same(model.encode([contents[row] for row in rows]), whole, rows)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(min_size=1, max_size=30), min_size=2, max_size=12),
    cut=st.integers(0, 12),
    threads=st.sampled_from([1, 2]),
)
def test_any_text_keeps_its_bits_under_any_cut(model, texts, cut, threads):
    contents = [ItemContent(title=text) for text in texts]
    whole = model.encode(contents)
    torch.set_num_threads(threads)
    for rows in (np.arange(len(texts))[:cut], np.arange(len(texts))[cut:], np.arange(len(texts))[::-1]):
        assert same(model.encode([contents[row] for row in rows]), whole, rows)


@given(st.lists(st.text(min_size=1, max_size=9), min_size=2, max_size=6, unique=True), st.randoms())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_tags_and_attributes_does_not_matter(model, labels, random):
    shuffled = random.sample(labels, len(labels))
    one = ItemContent(tags=labels, attributes=dict.fromkeys(labels, "v"))
    other = ItemContent(tags=shuffled, attributes=dict.fromkeys(shuffled, "v"))
    assert same(model.encode([one]), model.encode([other]), np.array([0]))
