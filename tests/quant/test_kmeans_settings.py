"""What k-means refuses, by name."""

import numpy as np
import pytest

from quant.kmeans1d import kmeans1d
from quant.methods.kmeans import KMeans


def test_settings_are_checked():
    for bad in ({"bits": 9}, {"bits": 0}, {"rows": -1}, {"group": 64}, {"scale": "int3"}, {"importance": "w"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            KMeans(**bad)
    with pytest.raises(ValueError, match="k must"):
        kmeans1d(np.ones((1, 3)), 0)
    with pytest.raises(ValueError, match="non-empty"):
        kmeans1d(np.ones((0, 3)), 2)
    with pytest.raises(ValueError, match="shape"):
        kmeans1d(np.ones((1, 3)), 2, np.ones((1, 2)))
    with pytest.raises(ValueError, match="search"):
        kmeans1d(np.ones((1, 3)), 2, search="exact")
