"""Clustering: Lloyd never beats the optimum, and the gradient of a centroid is the sum over its weights."""

import dataclasses

import numpy as np
import pytest
import torch

from quant.core import METHODS
from quant.methods.cluster import Cluster, levels_grad, lloyd
from quant.methods.kmeans import KMeans

W = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))


def error(method, w) -> float:
    return float((method.quantize(w).decode() - w).square().mean())


@pytest.mark.parametrize("init", ["linear", "density"])
def test_lloyd_ends_above_the_optimum(init):
    few, many = error(Cluster(16, init, True, 1), W), error(Cluster(16, init, True, 300), W)
    best = error(Cluster(16, tune=True), W)
    assert best * 1.0005 < many < few


def test_lloyd_leaves_an_empty_centroid_where_it_is():
    assert lloyd(np.array([0.0, 0.0, 10.0]), np.array([0.0, 4.0, 10.0]), 5).tolist() == [0, 4, 10]


@pytest.mark.parametrize(("clusters", "bits"), [(2, 1), (3, 2), (16, 4), (17, 5), (32, 5), (64, 6), (256, 8)])
def test_codes_take_the_bits_of_the_cluster_count(clusters, bits):
    stored = Cluster(clusters).quantize(W)
    assert stored.parts() == {"codes": W.numel() * bits // 8, "levels": 2 * clusters}
    assert len(stored.decode().unique()) == clusters


@pytest.mark.parametrize("method", [Cluster(16, tune=True), KMeans(3, 5), KMeans(4, 0, 32, "float32")])
def test_gradient_of_the_levels_is_autograd_s(method):
    stored = method.quantize(W)
    levels = stored.levels.float().requires_grad_()
    upstream = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
    (dataclasses.replace(stored, levels=levels).decode() * upstream).sum().backward()
    torch.testing.assert_close(
        levels_grad(stored, upstream), levels.grad, rtol=1e-4, atol=1e-4
    )  # order of float32 sums


def test_only_tuned_centroids_train_and_they_are_float32():
    assert METHODS["cluster-16-tuned"].trainable == ("levels",)
    assert METHODS["cluster-16-tuned"].quantize(W).levels.dtype == torch.float32
    assert METHODS["cluster-16"].trainable == ()


def test_settings_are_checked():
    for bad in ({"clusters": 1}, {"clusters": 257}, {"init": "random"}, {"iterations": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Cluster(**bad)
