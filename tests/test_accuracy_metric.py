"""Accuracy against scikit-learn's, and the check of logits and labels that all metrics share."""
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from unlearning.metrics.accuracy import accuracy, check_logits


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64'])
def test_agrees_with_scikit_learn(dtype):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n, classes = rng.integers(1, 200), rng.integers(2, 12)
        logits, labels = rng.normal(size=(n, classes)).astype(dtype), rng.integers(classes, size=n)
        assert accuracy(logits, labels) == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)), abs=1e-12)


def test_takes_torch_tensors_and_lists():
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75
    assert accuracy([[1, 0], [0, 1]], [0, 0]) == 50


def test_check_returns_float64_and_int64_without_touching_the_input():
    logits, labels = np.eye(3, dtype=np.float16), np.arange(3, dtype=np.uint8)
    z, y = check_logits(logits, labels)
    assert z.dtype == np.float64 and y.dtype == np.int64
    z[:] = 7
    assert (logits == np.eye(3)).all()


@pytest.mark.parametrize('logits, labels, message', [
    ([[1., np.nan], [np.inf, -np.inf]], [0, 0], '3 of 4 logits are not finite, in 2 of 2 rows; the first is nan at row 0, class 1'),
    ([[1., 2.]], [2], '1 labels lie outside 0 … 1; the first is 2 at row 0'),
    ([[1., 2.], [1., 2.]], [0, -1], 'the first is -1 at row 1'),
    ([[1., 2.]], [0.], 'labels are float64'),
    ([[1., 2.]], [True], 'labels are bool'),
    ([[1., 2.]], [0, 1], r'labels have shape \(2,\), but there are 1 rows'),
    ([1., 2.], [0, 1], r'logits have shape \(2,\)'),
    ([[1.], [2.]], [0, 0], r'logits have shape \(2, 1\)'),
    (np.zeros((0, 3)), np.zeros(0, int), r'logits have shape \(0, 3\)'),
])
def test_refuses_what_cannot_be_meant(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy(logits, labels)
