import pytest
import torch

from linearpatch.errors import ModelError
from linearpatch.linalg.hadamard import hadamard_matrix, hadamard_transform

SIZES = (1, 2, 4, 12, 20, 28, 36, 576, 640, 768, 896, 960, 1152, 1536, 2048, 2304, 2560, 3072, 3584)
LARGE_SIZES = (3840, 4096, 5120, 5376, 8192)


@pytest.mark.parametrize("size", [pytest.param(n, marks=[pytest.mark.slow] if n > 2048 else []) for n in SIZES])
def test_entries_are_signs_and_rows_orthogonal(size):
    signs = hadamard_matrix(size) * size**0.5
    assert torch.allclose(signs.abs(), torch.ones_like(signs))
    assert torch.equal((signs.round() @ signs.round().T), size * torch.eye(size, dtype=signs.dtype))


@pytest.mark.parametrize("size", SIZES)
def test_transform_is_the_product_with_the_matrix(size):
    values = torch.randn(3, 2, size, dtype=torch.float64)
    assert torch.allclose(hadamard_transform(values), values @ hadamard_matrix(size), atol=1e-10)


@pytest.mark.parametrize("size", LARGE_SIZES)
def test_large_sizes_keep_norms_and_some_products(size):
    values = torch.randn(4, size, dtype=torch.float64)
    rotated = hadamard_transform(values)
    assert torch.allclose(rotated @ rotated.T, values @ values.T, atol=1e-8)


def test_transform_keeps_dtype_and_shape():
    values = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    assert hadamard_transform(values).shape == values.shape
    assert hadamard_transform(values).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [3, 7, 92])
def test_a_size_without_construction_is_rejected(size):
    with pytest.raises(ModelError, match=f"size {size}"):
        hadamard_matrix(size)
