"""Exact k-means."""

from __future__ import annotations

import numpy as np

from model_runtime import fixed_point as fx
from model_runtime.kmeans import kmeans, nearest, residual_codebook


def blobs(rng: np.random.Generator) -> np.ndarray:
    centres = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    points = centres[rng.integers(0, 4, 400)] + rng.normal(0, 0.02, (400, 2))
    return fx.snap(points, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)


def test_every_blob_gets_a_centroid():
    rng = np.random.default_rng(3)
    points = blobs(rng)
    centroids = kmeans(points, 8, 10, rng)
    assert nearest(points, centroids)[1].max() < 0.05
    assert fx.off_grid(centroids, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT) is None


def test_the_order_of_points_within_a_cluster_does_not_matter_to_its_mean():
    points = blobs(np.random.default_rng(0))
    again = points[np.random.default_rng(1).permutation(len(points))]
    start = np.random.default_rng(2)
    one = kmeans(points, 1, 3, start)
    assert np.array_equal(one, kmeans(again, 1, 3, start))


def test_fewer_points_than_centroids_and_identical_points_are_fine():
    rng = np.random.default_rng(0)
    assert kmeans(np.ones((3, 4), np.float32), 5, 4, rng).shape == (5, 4)
    assert np.isfinite(kmeans(np.ones((300, 4), np.float32), 5, 4, rng)).all()


def test_an_empty_centroid_moves_to_a_point_that_is_far_from_its_own():
    points = np.repeat(np.array([[0, 0], [1, 1], [0, 1]], np.float32), [500, 1, 1], axis=0)
    centroids = kmeans(points, 3, 6, np.random.default_rng(0))
    assert nearest(points, centroids)[1].max() == 0


def test_the_second_layer_shortens_what_the_first_left_over():
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 0.3, (500, 2, 8)).astype(np.float32)
    book = residual_codebook(vectors, 2, 16, 5, rng)
    left = fx.snap(vectors[:, 0], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    labels, first = nearest(left, book[0, 0])
    _, second = nearest(left - book[0, 0][labels], book[0, 1])
    assert second.mean() < first.mean()
