"""The features against textbook formulas in many digits, and the quick attack against plain scikit-learn machines."""
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC

from unlearning.metrics import membership_inference as mi
from unlearning.metrics.membership_inference import mia_features, mia_gaps, svc_mia

ATTACKS = ('correctness', 'confidence', 'entropy', 'm_entropy', 'prob')


def network_like(n, margin, rng, classes=10, spread=3., scale=1.5):
    "Logits and labels of n images; the label's logit stands out by `margin` on average."
    y = rng.integers(classes, size=n)
    z = rng.normal(scale=1.2, size=(n, classes))
    z[np.arange(n), y] += rng.normal(margin, spread, size=n)
    return (scale * z).astype(np.float32), y


def in_many_digits(logits, label):
    "The five features of one image by their definitions, with 400 digits."
    getcontext().prec = 400
    e = [Decimal(float(z)).exp() for z in logits]
    p = [x / sum(e) for x in e]
    y = p[label]
    entropy = -sum(x * x.ln() for x in p)
    m_entropy = -(1 - y) * y.ln() - sum(x * (1 - x).ln() for i, x in enumerate(p) if i != label)
    return dict(correctness=float(max(p) == y), confidence=float(y), entropy=float(entropy), m_entropy=float(m_entropy), prob=[float(x) for x in p])


@pytest.mark.parametrize('scale', [0.1, 1, 10, 100])
def test_features_by_definition(scale):
    rng = np.random.default_rng(int(10 * scale))
    z, y = scale * rng.normal(size=(12, 4)), rng.integers(4, size=12)
    got = mia_features(z, y)
    assert tuple(got) == ATTACKS and got['prob'].shape == (12, 4)
    for i in range(12):
        for name, want in in_many_digits(z[i], y[i]).items():
            assert got[name].dtype == np.float64
            np.testing.assert_allclose(got[name][i], want, rtol=1e-9, atol=1e-12, err_msg=f'{name} of {z[i]}, label {y[i]}')


def test_features_are_finite_at_the_edges():
    z = np.array([[0, 0, 0], [3e4, 0, 0], [-3e4, 0, 0], [3e4, 3e4, 0], [1e30, -1e30, 0]], dtype=np.float32)
    for label in range(3):
        assert all(np.isfinite(x).all() for x in mia_features(z, np.full(5, label)).values())


def plainly(retain, test, forget):
    "Five plain machines, as the definition says."
    r, t, f = mia_features(*retain), mia_features(*test), mia_features(*forget)
    scores = {}
    for name in ATTACKS:
        x = np.concatenate([r[name], t[name]]).reshape(len(r[name]) + len(t[name]), -1)
        machine = SVC(C=3, gamma='auto').fit(x, ['member'] * len(r[name]) + ['non-member'] * len(t[name]))
        scores[name] = 100 * np.mean(machine.predict(f[name].reshape(len(f[name]), -1)) == 'non-member')
    return scores


@pytest.mark.parametrize('seed', range(4))
def test_few_images_get_the_plain_machine(seed):
    rng = np.random.default_rng(seed)
    parts = [network_like(n, margin, rng) for n, margin in ((150, 6), (150, 3), (200, 5))]
    assert svc_mia(*parts[0], *parts[1], *parts[2]) == pytest.approx(plainly(*parts), abs=1e-9)


# margins of retain, test and forget images, and how confident the network is: from mildly to wildly overfitted, forget seen and unseen
SETTINGS = [(6, 3, 6, 1.5), (6, 3, 3, 1.5), (5, 3.5, 4, 1.), (8, 4, 6, 2.), (9, 4, 7, 3.), (6, 4, 5, 1.5), (9, 4, 7, 12.), (4, 3.2, 3.6, 1.2)]


@pytest.mark.parametrize('seed, setting', list(enumerate(SETTINGS)))
def test_short_cut_stays_with_the_plain_machine(seed, setting):
    rng, scale = np.random.default_rng(seed), setting[-1]
    parts = [network_like(n, margin, rng, scale=scale) for n, margin in zip((2000, 2000, 5000), setting)]
    got, want = svc_mia(*parts[0], *parts[1], *parts[2]), plainly(*parts)
    for name in ATTACKS:
        assert got[name] == pytest.approx(want[name], abs=0.1 + 1e-9), name


@pytest.mark.parametrize('span', [30, 400])
def test_where_the_kernel_reaches_too_few_the_machine_is_the_plain_one(span):
    """As of modified entropy: twice the margin of a network without weight decay."""
    rng = np.random.default_rng(0)
    member, other, asked = (scale * rng.exponential(size=(1500, 1)) for scale in (span / 4, span, span))
    want = SVC(C=3, gamma='auto').fit(np.concatenate([member, other]), np.repeat([-1, 1], 1500)).predict(asked) > 0
    assert (mi.nonmembers(member, other, asked) == want).mean() > 0.999


def fits_of(monkeypatch):
    "A list that will hold the rows of every machine that is fitted."
    rows = []
    class Counted(SVC):
        def fit(self, X, *args, **kw):
            rows.append(len(X))
            return super().fit(X, *args, **kw)
    monkeypatch.setattr(mi, 'SVC', Counted)
    return rows


def test_machines_see_a_small_part_of_the_rows(monkeypatch):
    rng, rows = np.random.default_rng(0), fits_of(monkeypatch)
    svc_mia(*network_like(6000, 6, rng), *network_like(6000, 3, rng), *network_like(100, 5, rng))
    assert rows and max(rows) <= 12000 / 10
    assert len(rows) <= 5 * mi.ROUNDS


def test_no_fit_more_than_the_cells_need(monkeypatch):
    rows, asked = fits_of(monkeypatch), np.array([[0.], [1.]])
    mi.nonmembers(np.repeat([[1.], [0.]], [1900, 100], axis=0), np.repeat([[1.], [0.]], [1000, 1000], axis=0), asked)
    assert rows == [4]  # two values in each class: no cell can straddle anything


def test_only_as_many_landmarks_as_the_kernel_needs():
    rng = np.random.default_rng(0)
    one, ten, spread = rng.random((1000, 1)), rng.dirichlet(np.ones(10), 1000), rng.normal(size=(1000, 10))
    landmarks = [len(mi._features(x).components_) for x in (np.zeros((50, 2)), one, ten)]
    assert landmarks[0] == 1 and landmarks[1] < 10 < landmarks[2] <= mi.LANDMARKS
    assert mi._features(spread) is None  # they would be too few
    for x in (one, ten):
        phi = mi._features(x).transform(x)
        np.testing.assert_allclose(phi @ phi.T, rbf_kernel(x, gamma=1 / x.shape[1]), atol=1e-4)


@pytest.mark.parametrize('seed', range(3))
def test_cells_are_parted_at_the_kink_and_nowhere_else(seed):
    rng = np.random.default_rng(seed)
    cell, inside = np.unique(rng.integers(30, size=60), return_inverse=True)[1], rng.random(60) < 0.5
    part = mi._parted(cell, inside)
    assert set(part) == set(range(len(set(zip(cell, inside)))))  # none empty
    same = lambda *xs: np.all([x[:, None] == x for x in xs], axis=0)
    assert (same(part) == same(cell, inside)).all()


def test_short_cut_handles_two_values_and_constants():
    member, other = np.ones((3000, 1)), np.repeat([[1.], [0.]], [2000, 1000], axis=0)
    asked = np.array([[0.], [1.], [1.]])
    assert mi.nonmembers(member, other, asked).tolist() == [True, False, False]
    assert not mi.nonmembers(member, member, asked).any()  # nothing to tell them apart by


def test_cells_part_the_rows_and_repeat_themselves():
    x = np.random.default_rng(0).normal(size=(500, 3)).round(1)
    cell = mi._cells(x, 40)
    assert sorted(set(cell)) == list(range(40)) and (cell == mi._cells(x, 40)).all()
    mean, count = mi._averages(x, cell)
    for k in range(40):
        np.testing.assert_allclose(mean[k], x[cell == k].mean(0), atol=1e-12)
        assert count[k] == (cell == k).sum()
    assert len(set(mi._cells(np.repeat(x[:3], 50, axis=0), 40))) == 3


@pytest.mark.parametrize('value', np.random.default_rng(0).random(20))
def test_a_network_that_says_always_the_same_has_one_cell(value):
    """The mean of equal numbers may be rounded to above or below them all."""
    assert all(set(mi._cells(np.full((n, 1), value), 40)) == {0} for n in (1001, 2440, 3000))


def test_shadow_images_are_balanced_and_drawn_by_seed():
    rng = np.random.default_rng(0)
    retain, test, forget = network_like(400, 6, rng), network_like(120, 3, rng), network_like(150, 5, rng)
    call = lambda **kw: svc_mia(*retain, *test, *forget, **kw)
    assert call() == call(samples=120) == call(seed=0)
    assert call(seed=1) != call() or call(seed=2) != call()
    pick = np.sort(np.random.default_rng(0).choice(400, 120, replace=False))
    assert call() == pytest.approx(plainly((retain[0][pick], retain[1][pick]), test, forget), abs=1e-9)


@pytest.mark.parametrize('samples', [0, 51, -1, 2.5, True])
def test_refuses_more_samples_than_there_are_and_parts_of_one(samples):
    rng = np.random.default_rng(0)
    a, b, c = network_like(60, 6, rng), network_like(50, 3, rng), network_like(10, 5, rng)
    with pytest.raises(ValueError, match=f'samples is {samples}, with 60 retain and 50 test images: expected 1 … 50'):
        svc_mia(*a, *b, *c, samples=samples)


def test_takes_torch_and_refuses_a_diverged_network():
    rng = np.random.default_rng(0)
    parts = [x for n in (50, 40, 30) for x in network_like(n, 4, rng)]
    assert svc_mia(*map(torch.as_tensor, parts)) == svc_mia(*parts)
    parts[4][7, 2] = np.nan
    with pytest.raises(ValueError, match='nan at row 7, class 2'):
        svc_mia(*parts)


def test_refuses_parts_of_different_networks():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r'have \[10, 10, 8\] classes'):
        svc_mia(*network_like(9, 4, rng), *network_like(9, 4, rng), *network_like(9, 4, rng, classes=8))


def test_gaps_mean_and_largest_are_over_the_four_attacks_of_the_paper():
    zero = dict.fromkeys(ATTACKS, 50.)
    gaps = mia_gaps(dict(correctness=51., confidence=48., entropy=50., m_entropy=90., prob=55.), zero)
    assert gaps == dict(correctness=1, confidence=2, entropy=0, m_entropy=40, prob=5, mean=2, largest=5)
    with pytest.raises(ValueError, match='no score for prob'):
        mia_gaps({k: v for k, v in zero.items() if k != 'prob'}, zero)
