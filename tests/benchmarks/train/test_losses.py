"""Loss curves: their distance and what is said of one that does not fall; a NaN is never well."""

import math

from epilogue.benchmarks.train.losses import gaps, stuck


def test_the_distance_is_infinite_where_a_loss_is_not_finite():
    assert gaps([1.0, 2.0, math.nan, math.inf], [1.5, 2.0, 1.0, math.inf]) == [0.5, 0.0, math.inf, math.inf]


def test_a_loss_that_does_not_fall():
    assert stuck("stock", [2.0, 3.0, 1.5]) == []
    assert stuck("stock", [2.0, 1.5, 2.5]) == ["stock: the loss went from 2.0000 to 2.5000"]
    assert len(stuck("stock", [2.0, 2.0]) + stuck("stock", [2.0, math.nan])) == 2
