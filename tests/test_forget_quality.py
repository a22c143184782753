"""Forget quality against a slow reference that tries every attack by hand, one image and one threshold at a time."""
from math import ceil, exp, inf, log, pi, sqrt

import numpy as np
import pytest
import torch

from unlearning.metrics.forget_quality import (PROTOCOLS, Protocol, epsilon_table, epsilons, forget_quality, image_scores, statistic,
                                               total_score)

FAMILIES = [('single',), ('interval',), ('gaussian',), ('single', 'interval'), ('single', 'gaussian'), ('single', 'interval', 'gaussian')]


# --- the reference -------------------------------------------------------------------------------------------------------------

def eps_of(called_u, called_r, delta):
    "Eq. (2) from the lists of calls ('unlearned' is True) on the unlearned and on the retrained values."
    fnr, fpr = called_u.count(False) / len(called_u), called_r.count(True) / len(called_r)
    if fpr == 0 and fnr == 0: return inf
    if fpr == 0 or fnr == 0: return 0.
    terms = [log(1 - delta - a) - log(b) for a, b in ((fpr, fnr), (fnr, fpr)) if 1 - delta - a > 0]
    return max([0., *terms])


def thresholds(u, r):
    v = sorted({*u, *r})
    return [(a + b) / 2 for a, b in zip(v, v[1:])]


def reference(u, r, delta, families):
    "ε of one image: u and r are lists of floats."
    cuts, best = thresholds(u, r), 0.
    rules = []
    if 'single' in families:
        rules += [lambda x, t=t: x < t for t in cuts]
    if 'interval' in families:
        rules += [lambda x, s=s, t=t: s < x < t for i, s in enumerate(cuts) for t in cuts[i + 1:]]
    for rule in rules:
        for direction in (True, False):
            best = max(best, eps_of([rule(x) == direction for x in u], [rule(x) == direction for x in r], delta))
    if 'gaussian' in families:
        def fit(v):
            mean = sum(v) / len(v)
            return mean, max(sqrt(sum((x - mean)**2 for x in v) / len(v)), 1e-9 * ((max(u + r) - min(u + r)) or 1))
        def density(x, mean, sd): return -((x - mean) / sd)**2 / 2 - log(sd * sqrt(2 * pi))
        fu, fr = fit(u), fit(r)
        rule = lambda x: density(x, *fu) > density(x, *fr)
        best = max(best, eps_of([rule(x) for x in u], [rule(x) for x in r], delta))
    return best


def ensembles(k_u, k_r, rng):
    "(K, n) values of many kinds: continuous, tied, constant, separated, far out."
    normal = lambda *a: np.concatenate([rng.normal(*a, size=(k_u, 2)), rng.normal(size=(k_r, 2))])
    columns = [normal(0, 1), normal(1, 1), normal(-2, 1), normal(0, 0.2), normal(0, 5), normal(20, 1),
               rng.integers(3, size=(k_u + k_r, 3)).astype(float), rng.integers(8, size=(k_u + k_r, 3)) / 4,
               np.ones((k_u + k_r, 1)), np.repeat([[0.], [1.]], [k_u, k_r], axis=0),      # constant; constants that differ
               np.concatenate([np.zeros((k_u, 1)), rng.integers(2, size=(k_r, 1))]),       # one side constant
               rng.choice([-1e6, 0., 1e-6, 1e6], size=(k_u + k_r, 2))]
    values = np.concatenate(columns, axis=1)
    return values[:k_u], values[k_u:]


SIZES = [(2, 2), (2, 3), (3, 3), (4, 4), (5, 8), (8, 8), (11, 4), (16, 16), (32, 32), (64, 64)]


@pytest.mark.parametrize('families', FAMILIES, ids='+'.join)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_epsilons_against_the_reference(sizes, families):
    rng = np.random.default_rng(sum(sizes))
    u, r = ensembles(*sizes, rng)
    if sizes[0] > 32 and 'interval' in families: u, r = u[:, ::4], r[:, ::4]  # the reference takes 30,000 attacks an image
    for delta in (0., 1e-5, 0.01, 0.3):
        if sizes[0] > 16 and delta not in (1e-5, 0.3): continue
        got = epsilons(u, r, delta, families)
        want = [reference(a.tolist(), b.tolist(), delta, families) for a, b in zip(u.T, r.T)]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_every_attack_in_the_table():
    for k_u, k_r, delta in ((2, 2, 0.01), (5, 3, 0.), (7, 7, 0.2), (128, 128, 0.01)):
        table = epsilon_table(k_u, k_r, delta)
        want = [[eps_of([True] * i + [False] * (k_u - i), [True] * j + [False] * (k_r - j), delta) for j in range(k_r + 1)] for i in range(k_u + 1)]
        np.testing.assert_allclose(table, want, rtol=1e-9, atol=1e-9)


def test_epsilon_does_not_depend_on_order_scale_or_side():
    rng = np.random.default_rng(0)
    u, r = rng.normal(0.5, 2, size=(12, 40)), rng.normal(size=(9, 40))
    for families in FAMILIES:
        eps = epsilons(u, r, 0.01, families)
        np.testing.assert_allclose(epsilons(u[::-1], r[rng.permutation(9)], 0.01, families), eps, atol=1e-12)
        np.testing.assert_allclose(epsilons(3 * u - 1, 3 * r - 1, 0.01, families), eps, atol=1e-12)
        np.testing.assert_allclose(epsilons(-u, -r, 0.01, families), eps, atol=1e-12)
        np.testing.assert_allclose(epsilons(r, u, 0.01, families), eps, atol=1e-12)
    np.testing.assert_array_equal(epsilons(np.exp(u), np.exp(r), 0.01, ('single', 'interval')), epsilons(u, r, 0.01, ('single', 'interval')))


def test_input_is_left_alone():
    u, r = np.random.default_rng(0).normal(size=(2, 6, 10))
    before = u.copy(), r.copy()
    forget_quality(u, r, 'challenge', permutations=2)
    assert (u == before[0]).all() and (r == before[1]).all()


# --- refusals ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(value):
    good, bad = np.zeros((3, 4)), np.zeros((3, 4))
    bad[1, 2] = value
    with pytest.raises(ValueError, match=f'1 of 12 values of unlearned are not finite; the first is {value} at network 1, image 2'):
        epsilons(bad, good, 0.01)
    with pytest.raises(ValueError, match='1 of 12 values of retrained are not finite'):
        forget_quality(good, bad)


@pytest.mark.parametrize('call, message', [
    (lambda: epsilons(np.zeros((1, 4)), np.zeros((3, 4)), 0.01), r'unlearned has shape \(1, 4\)'),
    (lambda: epsilons(np.zeros((3, 4)), np.zeros(4), 0.01), r'retrained has shape \(4,\)'),
    (lambda: epsilons(np.zeros((3, 4)), np.zeros((3, 5)), 0.01), 'unlearned has 4 images and retrained 5'),
    (lambda: epsilons(np.zeros((3, 0)), np.zeros((3, 0)), 0.01), r'unlearned has shape \(3, 0\)'),
    (lambda: epsilons(np.zeros((3, 4)), np.zeros((3, 4)), 1), 'delta is 1'),
    (lambda: epsilons(np.zeros((3, 4)), np.zeros((3, 4)), 0.01, ('double',)), r"attacks are \('double',\)"),
    (lambda: epsilons(np.zeros((3, 4)), np.zeros((3, 4)), 0.01, ()), 'expected at least one'),
    (lambda: forget_quality(np.zeros((3, 4)), np.zeros((3, 4)), 'neurips'), "protocol is 'neurips': expected one of paper, challenge"),
    (lambda: total_score(0.5, 80, 0, 80, 80), 'RA 0'),
    (lambda: statistic([[np.inf, 0.]], [0]), 'not finite'),
])
def test_refuses_what_cannot_be_meant(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the statistic -------------------------------------------------------------------------------------------------------------

def test_statistic_by_its_definition_and_at_the_edges():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(50, 7)), rng.integers(7, size=50)
    for row, label, got in zip(z, y, statistic(z, y)):
        p = exp(row[label]) / sum(map(exp, row))
        assert got == pytest.approx(log(p) - log(1 - p), abs=1e-12)
    assert statistic([[700., 0., 0.]] * 2, [0, 1]) == pytest.approx([700 - log(2), -700])
    assert statistic(torch.tensor([[2., 0.]], dtype=torch.float16), torch.tensor([1])).tolist() == [-2.]


# --- scores, protocols and the ceiling -----------------------------------------------------------------------------------------

def test_protocols_score_by_their_buckets():
    paper, challenge = PROTOCOLS['paper'], PROTOCOLS['challenge']
    assert (paper.attacks, paper.delta) == (('single',), 0.01) and (challenge.attacks, challenge.delta) == (('single', 'interval'), 1e-5)
    for n in range(1, 14):
        for eps in (0.5 * (n - 1), 0.5 * n - 1e-9):
            assert image_scores([eps], paper.buckets(8))[0] == 2 / 2**n
    assert image_scores([6.5, 9., inf], paper.buckets(64)).tolist() == [0, 0, 0]
    for K in range(3, 200):
        edge = ceil(log(K - 1))
        assert log(K - 1) < edge  # every finite ε that K networks can prove has a bucket
        assert image_scores([edge - 1e-9, edge, inf], challenge.buckets(K)).tolist() == [0.5**(2 * edge - 1), 0, 0]
    assert image_scores([0, inf], challenge.buckets(2)).tolist() == [1, 0]


@pytest.mark.parametrize('protocol', ['paper', 'challenge'])
@pytest.mark.parametrize('K', [2, 5, 16])
def test_F_against_the_reference(protocol, K):
    u, r = ensembles(K, K, np.random.default_rng(K))
    p = dict(paper=(0.01, ('single',), 6.5), challenge=(1e-5, ('single', 'interval'), ceil(log(K - 1))))[protocol]
    eps = [reference(a.tolist(), b.tolist(), *p[:2]) for a, b in zip(u.T, r.T)]
    scores = [0.5**int(e / 0.5) if e == 0 or e < p[2] else 0. for e in eps]
    got = forget_quality(u, r, protocol, permutations=2)
    assert got.F == pytest.approx(np.mean(scores)) and got.scores.tolist() == scores
    np.testing.assert_allclose(got.epsilons, eps, atol=1e-12)


def test_attacks_and_protocol_of_ones_own():
    u, r = np.random.default_rng(0).normal(size=(2, 8, 30))
    both = forget_quality(u, r, 'paper', permutations=0, attacks=('single', 'gaussian'))
    np.testing.assert_array_equal(both.epsilons, epsilons(u, r, 0.01, ('single', 'gaussian')))
    own = forget_quality(u, r, Protocol(('interval',), 0.1, lambda K: 3), permutations=1)
    np.testing.assert_array_equal(own.epsilons, epsilons(u, r, 0.1, ('interval',)))
    assert own.scores.min() >= 0 and set(own.scores) <= {1, 0.5, 0.25, 0}


def test_ceiling_deals_whole_networks_by_seed():
    rng = np.random.default_rng(0)
    u, r = rng.normal(3, 1, size=(6, 40)), rng.normal(size=(9, 40))
    got, pool, deal = forget_quality(u, r, permutations=5, seed=3), np.concatenate([u, r]), np.random.default_rng(3)
    null = []
    for _ in range(5):
        p = deal.permutation(15)
        null.append(forget_quality(pool[p[:6]], pool[p[6:]], permutations=0).F)
    assert (got.ceiling, got.ceiling_sd) == pytest.approx((np.mean(null), np.std(null)), abs=1e-12)
    assert got.ceiling == forget_quality(u, r, permutations=5, seed=3).ceiling
    assert got.ceiling != forget_quality(u, r, permutations=5, seed=4).ceiling
    assert np.isnan(forget_quality(u, r, permutations=0).ceiling)


@pytest.mark.parametrize('protocol, K, low, high', [('paper', 8, .2, .35), ('paper', 32, .2, .35), ('challenge', 16, .08, .15), ('challenge', 32, .07, .13)])
def test_a_perfect_unlearner_meets_its_ceiling_and_not_1(protocol, K, low, high):
    rng = np.random.default_rng(K)
    q = forget_quality(*rng.normal(size=(2, K, 1000)), protocol, permutations=5)
    assert low < q.F < high and q.F == pytest.approx(q.ceiling, abs=0.03)
    off = forget_quality(rng.normal(2, 1, (K, 1000)), rng.normal(size=(K, 1000)), protocol, permutations=50)
    assert off.F < 0.6 * off.ceiling and off.ceiling == pytest.approx(q.ceiling, abs=0.03)


def test_under_and_over_forgetting_are_punished_alike():
    u, r = np.random.default_rng(0).normal(size=(2, 16, 2000))
    up, down, none = (forget_quality(u + s, r, permutations=0).F for s in (2, -2, 0))
    assert up == pytest.approx(down, abs=0.02) and max(up, down) < none / 2


def test_total_score():
    assert total_score(0.3, 90, 90, 70, 70) == pytest.approx(0.3)
    assert total_score(0.637, 84.06, 85.84, 81.49, 82.5) == pytest.approx(0.637 * 84.06 / 85.84 * 81.49 / 82.5)


def test_networks_that_are_the_same_have_no_distribution():
    from unlearning.metrics.forget_quality import all_alike
    one = np.random.default_rng(0).normal(size=(1, 50))
    assert all_alike(np.repeat(one, 8, axis=0)) and all_alike(np.repeat(one, 8, axis=0) + 1e-6 * np.arange(8)[:, None])
    assert not all_alike(one) and not all_alike(np.random.default_rng(1).normal(size=(8, 50)))


@pytest.mark.parametrize('bad, named', [(np.nan, 'nan'), (-1, '-1')])
def test_an_epsilon_that_cannot_be_has_no_score(bad, named):
    with pytest.raises(ValueError, match=f'{named} is an ε: expected 0 … ∞'): image_scores([0.2, bad, np.inf], 13)


def test_fewer_than_no_permutations_are_refused():
    with pytest.raises(ValueError, match='permutations is -3: expected 0 or more'): forget_quality(*np.random.default_rng(0).normal(size=(2, 4, 5)), permutations=-3)
