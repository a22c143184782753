"""U-LiRA, KLOM, ToW and the interval of F against slow references: one network, one image and one bin at a time."""
import hashlib
import warnings
from math import exp, inf, log, pi, sqrt

import numpy as np
import pytest
from scipy.stats import norm, t, ttest_1samp

from unlearning.metrics.forget_quality import PROTOCOLS, Interval, epsilons, forget_quality, image_scores, quality_interval, statistic
from unlearning.metrics.klom import klom, klom_95
from unlearning.metrics.tow import tow, tow_mia
from unlearning.metrics.ulira import ulira, ulira_apart, vulnerable


def mean_of(v): return sum(v) / len(v)


# --- U-LiRA --------------------------------------------------------------------------------------------------------------------

def log_density(x, sample, floor):
    m = mean_of(sample)
    sd = max(sqrt(mean_of([(v - m)**2 for v in sample])), floor)
    return -((x - m) / sd)**2 / 2 - log(sd)


def slow_scores(u, r):
    "Λ of each network for one image: lists."
    floor = 1e-9 * ((max(u + r) - min(u + r)) or 1)
    of_u = [log_density(x, u[:k] + u[k + 1:], floor) - log_density(x, r, floor) for k, x in enumerate(u)]
    return of_u, [log_density(x, u, floor) - log_density(x, r[:k] + r[k + 1:], floor) for k, x in enumerate(r)]


def slow_ulira(u, r):
    both = [slow_scores(a, b) for a, b in zip(u.T.tolist(), r.T.tolist())]
    of_u, of_r = [x for a, _ in both for x in a], [x for _, b in both for x in b]
    rightly = lambda v, sign: mean_of([(sign * x > 0) + (x == 0) / 2 for x in v])
    found = []
    for fpr in (0.01, 0.001):
        allowed = [t for t in [*of_r, max(of_r)] if sum(x > t for x in of_r) <= fpr * len(of_r)]
        found.append(100 * mean_of([x > min(allowed) for x in of_u]) if fpr * len(of_r) >= 1 else np.nan)
    return [50 * (rightly(of_u, 1) + rightly(of_r, -1)), *found]


@pytest.mark.parametrize('sizes', [(3, 3), (4, 9), (16, 16)], ids=str)
def test_ulira_against_the_reference(sizes):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        u, r = rng.normal(0.7, 2, (sizes[0], 90)), rng.normal(size=(sizes[1], 90))
        got = ulira(u, r)
        assert [got.accuracy, got.tpr_1, got.tpr_01] == pytest.approx(slow_ulira(u, r), nan_ok=True, abs=1e-9)
        assert got.by_image.mean() == pytest.approx(got.accuracy) and got.by_image.shape == (90,)


def test_ulira_where_networks_agree_to_the_last_digit():
    u, r = np.full((5, 3), 2.), np.full((6, 3), 2.)
    assert ulira(u, r).accuracy == 50 and ulira(np.repeat(u, 99, 1), np.repeat(r, 99, 1)).tpr_1 == 0  # no tie is above
    r[:, 1], u[0, 2] = 3., 5.  # told apart by two spikes; one of them off
    got = ulira(u, r)
    assert got.by_image[1] == 100 and np.isfinite(got.by_image).all()


def test_ulira_knows_no_scale_and_no_side():
    rng = np.random.default_rng(0)
    u, r = rng.normal(1, 1, (8, 200)), rng.normal(size=(8, 200))
    u[:, 0] = u[0, 0]  # no width
    for f in (lambda x: 3 * x, lambda x: 1e-12 * x, lambda x: -x, lambda x: x[rng.permutation(8)]):
        assert ulira(f(u), f(r)).accuracy == pytest.approx(ulira(u, r).accuracy)
    assert ulira(r, u).accuracy == pytest.approx(ulira(u, r).accuracy)


def test_ulira_of_two_samples_of_one_distribution_and_of_known_ones():
    rng = np.random.default_rng(0)
    same = ulira(*rng.normal(size=(2, 32, 3000)))
    assert same.accuracy == pytest.approx(50, abs=0.7) and same.tpr_1 == pytest.approx(1, abs=0.3)
    apart = ulira(rng.normal(2, 1, (128, 1000)), rng.normal(size=(128, 1000)))
    assert apart.accuracy == pytest.approx(100 * norm.cdf(1), abs=0.7) and apart.tpr_1 == pytest.approx(100 * norm.sf(norm.isf(0.01) - 2), abs=3)


def test_in_sample_would_flatter_the_attack():
    """What leaving out is for: two samples of one distribution, eight networks a side."""
    u, r = np.random.default_rng(0).normal(size=(2, 8, 2000))
    in_sample = [norm.logpdf(x, u.mean(0), u.std(0)) - norm.logpdf(x, r.mean(0), r.std(0)) for x in (u, r)]
    assert 50 * (np.mean(in_sample[0] > 0) + np.mean(in_sample[1] < 0)) > 58 and ulira(u, r).accuracy < 50.5


def test_vulnerable_against_the_reference():
    rng = np.random.default_rng(1)
    o, r = rng.normal(size=(5, 40)) + rng.exponential(1, 40), rng.normal(size=(4, 40))
    def truth(a, b):
        of_o, of_r = slow_scores(a, b)
        return mean_of([1 / (1 + exp(-min(max(x, -700), 700))) for x in of_o]) + mean_of([1 / (1 + exp(min(max(x, -700), 700))) for x in of_r])
    order = sorted(range(40), key=lambda i: -truth(o[:, i].tolist(), r[:, i].tolist()))
    assert set(np.flatnonzero(vulnerable(o, r, 0.2))) == set(order[:8])
    assert vulnerable(o, r, 1).all() and vulnerable(o, r, 1e-9).sum() == 1


def test_vulnerable_images_are_measured_on_networks_that_did_not_choose_them():
    rng = np.random.default_rng(0)
    O, R, U = rng.normal(size=(3, 8, 300))
    chosen = vulnerable(O[::2], R[::2], 0.1)
    found, rest = ulira_apart(O, R, U)
    assert found.accuracy == ulira(U[1::2][:, chosen], R[1::2][:, chosen]).accuracy
    assert rest.accuracy == ulira(U[1::2][:, ~chosen], R[1::2][:, ~chosen]).accuracy
    odd = [x.copy() for x in (O, R)]
    for x in odd: x[1::2] += 100  # the measured half has no say in the choice
    assert len(ulira_apart(*odd, U)[0].by_image) == 30
    assert ulira_apart(*[np.repeat(x[::2], 2, 0) for x in (O, R, O)])[0].accuracy > 60  # the luck that the halves share, were they one


# --- KLOM ----------------------------------------------------------------------------------------------------------------------

def slow_klom(u, r):
    "One image: lists; the bins are NumPy's."
    u, r = ([min(max(x, -100.), 100.) for x in v] for v in (u, r))
    edges = np.linspace(min(u + r), max(u + r), 21) if max(u + r) > min(u + r) else np.linspace(min(u + r), min(u + r) + 1, 21)
    p, q = (np.histogram(v, edges)[0] / len(v) for v in (u, r))
    return sum(a * log(a / max(b, 1e-5)) for a, b in zip(p, q) if a > 0)


@pytest.mark.parametrize('sizes', [(1, 1), (4, 9), (16, 16), (64, 64)], ids=str)
def test_klom_against_the_reference(sizes):
    rng = np.random.default_rng(0)
    normal = [rng.normal(0.5, 2, (sizes[0], 60)), rng.normal(size=(sizes[1], 60))]
    for u, r in (normal, [x * 60 for x in normal], [x.round(1) for x in normal], [x.round() for x in normal], [0 * x for x in normal],
                 [np.full(x.shape, inf) for x in normal]):
        np.testing.assert_allclose(klom(u, r), [slow_klom(a, b) for a, b in zip(u.T.tolist(), r.T.tolist())], atol=1e-12)


def test_klom_by_part_and_at_its_ends():
    rng = np.random.default_rng(0)
    u, r = ({k: rng.normal(size=(8, n)) for k, n in (('forget', 30), ('test', 50))} for _ in range(2))
    got = klom_95(u, r)
    slow = {k: [slow_klom(a, b) for a, b in zip(u[k].T.tolist(), r[k].T.tolist())] for k in u}
    assert got == {k: pytest.approx(np.percentile(slow[k], 95)) for k in u} and all(min(slow[k]) < got[k] < max(slow[k]) for k in u)
    assert klom([[0.]] * 3, [[1.]] * 3) == pytest.approx(log(1e5)) and klom(r['test'], r['test']).max() == 0


def test_klom_of_one_distribution_falls_with_K_and_is_never_0():
    rng = np.random.default_rng(0)
    same = [np.percentile(klom(*rng.normal(size=(2, K, 1000))), 95) for K in (4, 16, 64, 256)]
    assert same == sorted(same, reverse=True) and same[0] > 9 and 0.1 < same[-1] < 0.5


# --- ToW -----------------------------------------------------------------------------------------------------------------------

def test_tow_against_the_reference():
    rng = np.random.default_rng(0)
    U, R = ({k: rng.uniform(0, 100, 7).tolist() for k in ('forget', 'retain', 'test', 'mia')} for _ in range(2))
    for first, got in (('forget', tow(U, R)), ('mia', tow_mia(U, R))):
        products = []
        for k in range(7):
            product = 1.
            for part in (first, 'retain', 'test'): product *= 1 - abs(U[part][k] / 100 - R[part][k] / 100)
            products.append(product)
        ends = ttest_1samp(products, 0).confidence_interval(0.95)
        assert got == pytest.approx((mean_of(products), *ends)) and isinstance(got, Interval)


def test_tow_of_retrain_against_itself_and_its_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    def seeds(K): return {k: rng.normal(m, 1, K) for k, m in dict(forget=70, retain=90, test=70).items()}
    R = seeds(5)
    assert tow(R, R) == (1, 1, 1)
    true = (1 - 0.02 / sqrt(pi))**3  # the mean of |two normals' difference| is 2σ/√π
    held = [low <= true <= high for _, low, high in (tow(seeds(8), seeds(8)) for _ in range(2000))]
    assert 0.92 < mean_of(held) < 0.98


def percent(**change): return dict(forget=[75., 77.], retain=[95., 96.], test=[70., 72.], mia=[60., 50.]) | change


FRACTIONS = {k: np.divide(v, 100) for k, v in percent().items()}


@pytest.mark.parametrize('measure', [tow, tow_mia])
def test_percent_against_fractions_is_refused_of_retrained_networks_and_told_of_others(measure):
    """An unlearned network may be wrecked, and right about less than one percent of many classes."""
    for R in (FRACTIONS, percent(retain=[0.95, 0.96])):
        with pytest.raises(ValueError, match='retain in U is 96, in R 0.96: expected percent, so multiply fractions by 100'): measure(percent(), R)
    for U in (FRACTIONS, percent(retain=[0.95, 0.96])):
        with pytest.warns(UserWarning, match='retain in U is 0.96, in R 96: expected percent; if it is a fraction'): assert measure(U, percent()).value < 0.1


def test_what_may_be_so_few_percent_is_measured():
    """A class forgotten whole, an attack that calls hardly any a non-member, networks that are right about nothing, or as often as chance."""
    for change in (dict(forget=[0., 0.4]), dict(mia=[0.6, 0.5]), dict(test=[0., 0.]), dict(retain=[1., 0.9], test=[1., 1.])):
        for pair in ((percent(), percent(**change)), (percent(**change), percent())): tow(*pair), tow_mia(*pair)


# --- F -------------------------------------------------------------------------------------------------------------------------

def test_forget_quality_is_what_it_was_bit_for_bit():
    rng = np.random.default_rng(11)
    u, r = rng.normal(.5, 1.3, (9, 40)), rng.normal(size=(12, 40))
    u[:, :5], r[:, :5] = u[:, :5].round(), r[:, :5].round()
    was = dict(paper=('0x1.3000000000000p-2', '0x1.4edb6db6db6dbp-2', '0x1.46e679dabe1b4p-6', 'a06e40373ac04499'),
               challenge=('0x1.4666666666666p-3', '0x1.657c57c57c57dp-3', '0x1.c59a8a33b5496p-7', '35951e790ba8a4c8'))
    for protocol, pinned in was.items():
        q = forget_quality(u, r, protocol, permutations=7, seed=2)
        arrays = hashlib.sha256(q.epsilons.tobytes() + q.scores.tobytes()).hexdigest()[:16]
        assert (q.F.hex(), q.ceiling.hex(), q.ceiling_sd.hex(), arrays) == pinned
    assert statistic([[3., 1., 0.], [0., 9., 2.]], [0, 2]).tolist() == [3 - np.logaddexp(1, 0), 2 - np.logaddexp(0, 9)]


@pytest.mark.parametrize('protocol', ['paper', 'challenge'])
def test_the_interval_of_F_against_the_reference(protocol):
    rng, p = np.random.default_rng(0), PROTOCOLS[protocol]
    u, r = rng.normal(0.5, 1, (5, 30)), rng.normal(size=(7, 30))
    def F_of(us, rs): return image_scores(epsilons(us, rs, p.delta, p.attacks), p.buckets(5))
    parts = []
    for x, other, f in ((u, r, lambda a, b: F_of(a, b)), (r, u, lambda a, b: F_of(b, a))):
        without = [f(np.array([row for j, row in enumerate(x) if j != k]), other).mean() for k in range(len(x))]
        parts.append(((len(x) - 1) / len(x) * sum((w - mean_of(without))**2 for w in without), len(x) - 1))
    parts.append((F_of(u, r).var(ddof=1) / 30, 29))
    V = sum(v for v, _ in parts)
    half = sqrt(V) * t.ppf(0.975, V**2 / sum(v**2 / df for v, df in parts))
    F = forget_quality(u, r, protocol, permutations=0).F
    assert quality_interval(u, r, protocol) == pytest.approx((F, max(F - half, 0), min(F + half, 1)))


def test_of_one_image_the_quality_of_others_is_unknown():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert quality_interval(X[:, :1], X[:, 1:2]) == (forget_quality(X[:, :1], X[:, 1:2], permutations=0).F, 0, 1)


@pytest.mark.parametrize('K', [4, 8])
@pytest.mark.parametrize('common, shift, spread', [(0, 0, 1), (1, 0.7, 1), (1, 1, 0.5)])
def test_the_interval_of_F_holds_the_truth(K, common, shift, spread):
    """It errs on the wide side; images alone would hold a fifth to a half."""
    rng, n, times = np.random.default_rng(K), 80, 400
    def draw():
        ease = rng.normal(size=n)
        u = ease + shift * (1 + rng.normal(size=n)) + common * rng.normal(size=(K, 1)) + spread * rng.normal(size=(K, n))
        return u, ease + common * rng.normal(size=(K, 1)) + rng.normal(size=(K, n))
    intervals = [quality_interval(*draw()) for _ in range(times)]
    true = mean_of([i.value for i in intervals])
    assert mean_of([i.low <= true <= i.high for i in intervals]) > 0.92


# --- refusals ------------------------------------------------------------------------------------------------------------------

X, ACC = np.random.default_rng(0).normal(size=(4, 5)), dict(forget=[1., 2.], retain=[1., 2.], test=[1., 2.])


@pytest.mark.parametrize('call, message', [
    (lambda: ulira(X[:2], X), r'unlearned has shape \(2, 5\)'),
    (lambda: ulira(X, X[:, :4]), r'retrained \(4, 4\)'),
    (lambda: ulira(X > 0, X), 'unlearned holds only 0 and 1'),
    (lambda: ulira(X, X * np.nan), '20 of 20 values of retrained are not finite'),
    (lambda: vulnerable(X, X, 1.5), 'share is 1.5'),
    (lambda: ulira_apart(X, X, X), 'O, R and U have 4, 4 and 4 networks'),
    (lambda: ulira_apart(np.zeros((1, 5)), np.zeros((8, 5)), np.zeros((8, 5))), 'O, R and U have 1, 8 and 8'),
    (lambda: ulira_apart(np.repeat(X[:1], 6, 0), np.zeros((6, 5)), np.zeros((6, 5))), 'O is one original for all of U'),
    (lambda: klom(X, X[:, :4]), r'unlearned has shape \(4, 5\) and retrained \(4, 4\)'),
    (lambda: klom(X, X * np.nan), '20 values are NaN'),
    (lambda: klom_95(dict(forget=X), dict(test=X)), 'only one of the two has forget, test'),
    (lambda: tow(ACC, {}), 'no forget, retain, test'),
    (lambda: tow_mia(ACC, ACC), 'no mia: expected mia, retain, test'),
    (lambda: tow({k: v[:1] for k, v in ACC.items()}, ACC), r'U have shapes \[\(1,\)'),
    (lambda: tow({**ACC, 'test': [1.]}, ACC), r'\(2,\), \(2,\), \(1,\)\] and of R'),
    (lambda: tow({**ACC, 'test': [101., 5.]}, ACC), '101 lies outside 0 … 100'),
    (lambda: tow({**ACC, 'test': [np.nan, 5.]}, ACC), 'nan lies outside 0 … 100'),
    (lambda: quality_interval(X[:3], X), '3 unlearned and 4 retrained networks: an interval needs 4'),
])
def test_refuses_what_cannot_be_meant(call, message):
    with pytest.raises(ValueError, match=message): call()
