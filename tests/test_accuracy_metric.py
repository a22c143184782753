"""Accuracy against scikit-learn's, and the check of logits and labels that all metrics share."""
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from unlearning.metrics.accuracy import accuracy, check_logits
from unlearning.metrics.forget_quality import statistic
from unlearning.metrics.membership_inference import mia_features, svc_mia
from unlearning.metrics.separation import separation, separations


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


# Tensors as networks give them, and no labels

FORMS = {'that require grad': lambda z: z.requires_grad_(), 'bfloat16': lambda z: z.bfloat16(), 'bfloat16 that require grad': lambda z: z.bfloat16().requires_grad_(),
         'half': lambda z: z.half().requires_grad_(), 'a list of rows': lambda z: list(z.requires_grad_()), 'a parameter': torch.nn.Parameter, 'inference': lambda z: z}


@pytest.mark.parametrize('form', FORMS)
def test_tensors_of_any_precision_are_detached(form):
    rng = np.random.default_rng(0)
    plain, labels = np.round(8 * rng.normal(size=(60, 4))) / 4, rng.integers(4, size=60)  # exact in bfloat16
    with torch.inference_mode(form == 'inference'): given = FORMS[form](torch.tensor(plain, dtype=torch.float32))
    z, y = check_logits(given, list(torch.from_numpy(labels)))
    assert (z == plain).all() and (y == labels).all() and z.dtype == np.float64
    assert accuracy(given, torch.from_numpy(labels)) == accuracy(plain, labels)
    assert (statistic(given, labels) == statistic(plain, labels)).all()
    parts = lambda x: (x[:20], labels[:20], x[20:40], labels[20:40], x[40:], labels[40:])
    assert svc_mia(*parts(given)) == svc_mia(*parts(plain))
    assert separation(given[0], given[1]) == separation(plain[0], plain[1])


def test_without_labels_the_attacks_that_need_none_are_left():
    rng = np.random.default_rng(1)
    retain, test, forget = [(4 * rng.normal(size=(n, 5)), rng.integers(5, size=n)) for n in (60, 50, 40)]
    full = svc_mia(*retain, *test, *forget)
    blind = svc_mia(retain[0], None, test[0], None, torch.tensor(forget[0]).bfloat16().double().requires_grad_(), None)
    assert set(blind) == {'entropy', 'prob'} and set(full) > set(blind)
    for some in ((True, True, False), (False, True, True), (False, False, False)):  # whose labels are known
        parts = [v for known, (z, y) in zip(some, (retain, test, forget)) for v in (z, y if known else None)]
        assert svc_mia(*parts) == {name: full[name] for name in ('entropy', 'prob')}
    assert [(mia_features(forget[0])[name] == mia_features(*forget)[name]).all() for name in blind] == [True, True]


@pytest.mark.parametrize('call', [accuracy, statistic, check_logits])
def test_what_needs_labels_says_what_does_not(call):
    with pytest.raises(ValueError, match='labels are None: pass one a row .*svc_mia.*entropy and prob need none'): call(np.eye(3), None)


@pytest.mark.parametrize('logits', [np.full((2, 3), np.nan), np.zeros(3), torch.full((2, 2), float('inf'))])
def test_without_labels_logits_are_checked_as_ever(logits):
    with pytest.raises(ValueError, match='logits'): mia_features(logits)


def test_parts_without_which_nothing_is_told_apart_are_named():
    with pytest.raises(ValueError, match='no retain, test: expected values of retain, forget and test'): separations(dict(forget=[1.]))


def test_of_equal_logits_the_lower_class_is_the_answer():
    assert [accuracy(np.zeros((1, 4)), [y]) for y in range(4)] == [100, 0, 0, 0]
