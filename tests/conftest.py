import numpy as np
import pytest
import torch

from epilogue import catalogue

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def device():
    """Where the torch side is tested: kernels where there is a GPU, plain torch operations otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def own_activations():
    """Activations that a test adds to the catalogue are gone after it."""
    books = (catalogue.ACTIVATIONS, catalogue.BY_KEY, catalogue.VARIANTS)
    before = [dict(book) for book in books]
    yield
    for book, contents in zip(books, before, strict=True):
        book.clear()
        book.update(contents)
