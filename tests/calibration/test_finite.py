"""Results that aren't finite are rejected, with where and what to do."""

import pytest
import torch

from linearpatch.calibration.finite import finite
from linearpatch.errors import NumericsError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_found(value):
    values = torch.zeros(3, 4, dtype=torch.float64)
    values[1, 2] = value
    with pytest.raises(NumericsError, match=r"sums is not finite at entry \[1, 2\] \(1 of 12\).*model.dtype=bfloat16"):
        finite(values, "sums", "entry")


@pytest.mark.parametrize("values", [torch.zeros(0), torch.tensor(1.0), torch.full((2, 2), 1e308, dtype=torch.float64)])
def test_finite_values_are_returned(values):
    assert finite(values, "sums", "entry") is values
