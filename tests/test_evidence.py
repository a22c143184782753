"""Evidence from one network against slow references: pairs one by one, exact levels, the power that is promised, every verdict and every error."""
from dataclasses import replace
from itertools import combinations, product
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, norm
from sklearn.svm import SVC

from unlearning.metrics import evidence as ev
from unlearning.metrics.evidence import (ENOUGH, FOUND, LEVEL, NONE, UNDECIDABLE, UNLIKE, ClassAUC, class_auc, evidence, null_deviation, ranks,
                                         smallest_share, svc_in_proportion, trace_left, verdict)
from unlearning.metrics.forget_quality import Interval
from unlearning.metrics.membership_inference import mia_features


# --- made-up answers -----------------------------------------------------------------------------------------------------------
# A class has its ease, an image its luck, and training on it adds `gain`.

def answers(rng, n, gain=0., classes=10):
    y = rng.integers(classes, size=n)
    return rng.normal(y / 3 + gain), y


def request(rng, n=200, left=0., odd=0., gain=0.8, m=500, classes=10):
    "Before, after, classes of a request: `odd` sets the forgotten images apart from retained ones, `left` of the gain stays."
    (s, y), (t, z), (r, k) = (answers(rng, size, 0., classes) for size in (n, m, 2000))
    before = dict(forget=s + odd + gain, unseen=t, retain=r + gain)
    return before, before | dict(forget=s + odd + gain * left), dict(forget=y, unseen=z, retain=k)


def slow_ranks(s, y, t, z):
    "Image by image and pair by pair."
    found = []
    for a, c in zip(s, y):
        same = [u for u, d in zip(t, z) if d == c]
        found.append(100 * sum((u < a) + (u == a) / 2 for u in same) / len(same) if same else float('nan'))
    return np.array(found)


def parts_of(s, y, t, z, like=None): return ev._by_class(np.atleast_2d(s), y, np.atleast_2d(t), z, y if like is None else like)


# --- ranks ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('digits', [0, 1, 9])  # of rounding: many ties, some, none
def test_ranks_pair_by_pair(digits):
    rng = np.random.default_rng(digits)
    (s, y), (t, z) = answers(rng, 60), answers(rng, 90)
    z[z == 4] = 5  # no other of class 4
    got = ranks(s.round(digits), y, t.round(digits), z)
    np.testing.assert_allclose(got.rank, slow_ranks(s.round(digits), y, t.round(digits), z))
    assert (np.isnan(got.rank) == (y == 4)).all() and (np.isnan(got.low) == np.isnan(got.high)).all()


def test_the_interval_of_a_rank_is_exact():
    for m in (1, 2, 7, 40):
        s = np.arange(m + 1) - 0.5
        got = ranks(s, np.zeros(m + 1, int), np.arange(m), np.zeros(m, int))
        for k in range(m + 1):
            ci = binomtest(k, m).proportion_ci(0.95, 'exact')
            assert (got.rank[k], got.low[k], got.high[k]) == pytest.approx((100 * k / m, 100 * ci.low, 100 * ci.high))


def test_ties_widen_the_interval_of_a_rank():
    got = ranks([3.], [0], [1., 3., 3., 3., 5.], [0] * 5)
    low, high = binomtest(1, 5).proportion_ci(0.95, 'exact').low, binomtest(4, 5).proportion_ci(0.95, 'exact').high
    assert (got.rank[0], got.low[0], got.high[0]) == pytest.approx((50, 100 * low, 100 * high))


# --- the mean rank, its draws and its null --------------------------------------------------------------------------------------

@pytest.mark.parametrize('digits', [0, 1, 9])
def test_class_auc_pair_by_pair(digits):
    rng = np.random.default_rng(digits)
    (s, y), (t, z) = answers(rng, 70, 0.5), answers(rng, 90)
    y[:3] = 77
    s, t = s.round(digits), t.round(digits)
    got, each = class_auc(s, y, t, z, draws=50), slow_ranks(s, y, t, z)
    assert got.auc.value == pytest.approx(np.nanmean(each)) and got.n == 67 and got.left_out == {77: 3}
    like = np.array([3] * 5 + [8] + [77])
    assert class_auc(s, y, t, z, like, 50).auc.value == pytest.approx((5 * each[y == 3].mean() + each[y == 8].mean()) / 6)


@pytest.mark.parametrize('digits', [0, 9])
def test_the_bootstrap_draws_images(digits):
    """Of one draw: as many copies of each image as it was drawn, pair by pair. Cells of like images change nothing."""
    rng = np.random.default_rng(1)
    (s, y), (t, z) = answers(rng, 30, 0.5, 1), answers(rng, 40, 0., 1)
    s, t = np.stack([s, rng.normal(size=30)]).round(digits), np.stack([t, rng.normal(size=40)]).round(digits)
    (f, a), (u, b) = ev._cells(s, t), ev._cells(t, s)
    assert a.sum() == 30 and b.sum() == 40 and (len(a) < 30 and len(b) < 40 if digits == 0 else True)
    w, v = rng.multinomial(30, a / 30, 5), rng.multinomial(40, b / 40, 5)
    for network in (0, 1):
        whole = 100 * ev._mean_rank(f[network], u[network], a[None] / 30, b[None] / 40)
        assert whole[0] == pytest.approx(slow_ranks(s[network], y, t[network], z).mean())
        got = 100 * ev._mean_rank(f[network], u[network], w / 30, v / 40)
        for d in range(5):
            images, others = np.repeat(f[network], w[d]), np.repeat(u[network], v[d])
            assert got[d] == pytest.approx(slow_ranks(images, 0 * images, others, 0 * others).mean())


def test_the_bootstrap_agrees_with_a_plain_one():
    rng = np.random.default_rng(2)
    (s, y), (t, z) = answers(rng, 40, 0.7, 3), answers(rng, 60, 0., 3)
    plain = []
    for _ in range(2000):
        i = rng.integers(40, size=40)
        j = np.concatenate([rng.choice(np.flatnonzero(z == c), np.sum(z == c)) for c in range(3)])
        plain.append(ranks(s[i], y[i], t[j], z[j]).rank.mean())
    quick = ev._bootstrap(parts_of(s, y, t, z), 4000, rng)[0]
    np.testing.assert_allclose(np.quantile(quick, (0.025, 0.5, 0.975)), np.quantile(plain, (0.025, 0.5, 0.975)), atol=1.5)


@pytest.mark.parametrize('n,m,classes,gain,least', [(5, 300, 3, 0., 91), (12, 300, 10, 0., 92), (12, 300, 10, 1.2, 90), (90, 300, 10, 0.8, 91),
                                                    (90, 60, 3, 0.8, 91)])
def test_the_interval_holds_the_truth(n, m, classes, gain, least):
    rng, times, inside = np.random.default_rng(n), 250, 0
    for _ in range(times):
        (s, y), (t, z) = answers(rng, n, gain, classes), answers(rng, m, 0., classes)
        low, high = class_auc(s, y, t, z, draws=500, seed=int(rng.integers(1 << 30))).auc[1:]
        inside += low <= 100 * norm.cdf(gain / 2**0.5) <= high
    assert 100 * inside / times >= least


def test_the_null_is_that_of_all_divisions():
    """Two classes so small that every division can be written out."""
    s, y, t, z = map(np.array, SMALL['ties'])
    pools, every = [(s[y == c], t[z == c]) for c in (0, 1)], []
    def means(own, others):
        pool = np.r_[own, others]
        for chosen in combinations(range(len(pool)), len(own)):
            rest = np.delete(pool, chosen)
            yield sum(slow_ranks(pool[list(chosen)], np.zeros(len(own)), rest, np.zeros(len(rest)))) / len(y)
    every = [a + b for a in means(*pools[0]) for b in means(*pools[1])]
    drawn = ev._null(parts_of(s, y, t, z), 40_000, np.random.default_rng(0))[:, 0]
    values, counts = np.unique(np.round(every, 6), return_counts=True)
    got = np.array([np.sum(np.abs(drawn - x) < 1e-5) for x in values]) / 40_000
    np.testing.assert_allclose(got, counts / len(every), atol=0.01)


def slow_both(s, y, t, z):
    """Mean rank and spread, image by image: (rank − middle) / size of the class's pool, in percent, with midranks counted."""
    far = []
    for a, c in zip(s, y):
        pool = np.r_[s[y == c], t[z == c]]
        far.append(abs(np.sum(pool < a) + (np.sum(pool == a) + 1) / 2 - (len(pool) + 1) / 2) / len(pool))
    return slow_ranks(s, y, t, z).mean(), 100 * np.mean(far)


def every_division(s, y, t, z):
    """Mean rank and spread of all ways to say which of a class are the forgotten ones, (divisions, 2); the actual one first."""
    classes = np.unique(y)
    pools = {c: np.r_[s[y == c], t[z == c]] for c in classes}
    for chosen in product(*(combinations(range(len(pools[c])), np.sum(y == c)) for c in classes)):
        own = [pools[c][list(i)] for c, i in zip(classes, chosen)]
        rest = [np.delete(pools[c], i) for c, i in zip(classes, chosen)]
        yield slow_both(np.concatenate(own), np.repeat(classes, [*map(len, own)]), np.concatenate(rest), np.repeat(classes, [*map(len, rest)]))


SMALL = {
    'ties': ([5., 1., 3.], [0, 0, 1], [2., 2., 1., 4., 0.], [0, 0, 0, 1, 1]),
    'at the ends': ([0., 9., 0.5, 8.], [0, 0, 1, 1], [1., 2., 3., 4., 1., 2., 3.], [0, 0, 0, 0, 1, 1, 1]),
    'in the middle': ([3.1, 3.2, 3.3], [4] * 3, [1., 2., 2.5, 4., 5., 6.], [4] * 6),
    'one pair in a class': ([5., 1., 7.], [0, 0, 1], [2., 3., 6., 4.], [0, 0, 0, 1]),
}


@pytest.mark.parametrize('case', SMALL)
def test_p_is_that_of_the_larger_of_two_over_all_divisions(case):
    s, y, t, z = map(np.array, SMALL[case])
    every = np.array(list(every_division(s, y, t, z)))
    mean, deviation = ev._moments(parts_of(s, y, t, z))
    np.testing.assert_allclose(mean, every.mean(axis=0))
    np.testing.assert_allclose(deviation, every.std(axis=0))
    apart = np.abs(every - mean) / deviation
    got = class_auc(s, y, t, z, draws=20_000)
    assert got.p == pytest.approx(np.mean(apart.max(axis=1) >= apart[0].max() - 1e-9), abs=0.01)
    assert (got.auc.value, got.spread, got.usual) == pytest.approx((*every[0], mean[1]))
    assert got.by == ('spread' if apart[0, 1] > apart[0, 0] else 'rank')
    assert got.by == {'at the ends': 'spread', 'in the middle': 'spread'}.get(case, got.by)


def test_where_chance_has_no_choice_nothing_stands_out():
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # no division by zero
        for s, y, t, z in (([3.], [0], [9.], [0]), ([9., 2.], [0, 1], [3., 4.], [0, 1]), ([2.] * 7, [0] * 7, [2.] * 30, [0] * 30),
                           ([0.1] * 3, [0] * 3, [0.1] * 4, [0] * 4)):
            got = class_auc(s, y, t, z, draws=99)
            assert (got.p, got.by) == (1, 'rank')
    half = class_auc([1., 5., 1.], [0] * 3, [1., 5., 5.], [0] * 3, draws=99)  # all equally far out: the spread has no variance
    assert half.by == 'rank' and half.spread == half.usual == 25 and half.p > 0.3


def test_one_image_has_no_spread():
    """In the very middle of a thousand it is as likely as any other: no trace."""
    got = class_auc([499.5], [0], np.arange(1000.), [0] * 1000, draws=999)
    assert got.p == 1 and got.by == 'rank' and not got.by_spread
    assert class_auc([1e4], [0], np.arange(1000.), [0] * 1000, draws=999).p < 0.01


@pytest.mark.parametrize('like', [None, [0] * 5 + [1] * 3])
def test_classes_weigh_the_spread_as_they_weigh_the_mean_rank(like):
    rng = np.random.default_rng(0)
    y, z = np.repeat([0, 1], [30, 10]), np.repeat([0, 1], [50, 80])
    s, t = 2 * rng.normal(size=40), rng.normal(size=130)
    each = [slow_both(s[y == c], y[y == c], t[z == c], z[z == c])[1] for c in (0, 1)]
    share = [30 / 40, 10 / 40] if like is None else [5 / 8, 3 / 8]
    parts = parts_of(s, y, t, z, None if like is None else np.array(like))
    assert class_auc(s, y, t, z, like, 99).spread == pytest.approx(np.dot(share, each))
    drawn, (mean, deviation) = ev._null(parts, 20_000, rng), ev._moments(parts)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), deviation, rtol=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03  # as good as independent: what Šidák's value supposes


def test_two_numbers_on_a_card_are_dealt_together():
    cards = np.stack([np.arange(9.), np.arange(9.)**2 - 4], axis=1)
    for k in (0, 3, 7, 9):
        drawn = ev._dealt(cards, k, 2000, np.random.default_rng(k))
        sums = {tuple(cards[list(c)].sum(axis=0)) for c in combinations(range(9), k)}
        assert drawn.shape == (2000, 2) and set(map(tuple, drawn)) <= sums
        np.testing.assert_array_equal(drawn[:, 0], ev._dealt(cards[:, 0], k, 2000, np.random.default_rng(k)))


def half_known(rng, n, by):
    (s, y), (t, z) = answers(rng, n), answers(rng, 500)
    return s + np.resize([by, -by], n), y, t, z


def test_half_known_and_half_overdone_is_found():
    rng, times = np.random.default_rng(3), 60
    got = [class_auc(*half_known(rng, 60, 2.), draws=199, seed=k) for k in range(times)]
    assert sum(x.by_spread for x in got) > 0.95 * times and all(abs(x.auc.value - 50) < 12 and x.spread > x.usual for x in got)


def test_crowded_in_the_middle_is_found_and_said():
    rng = np.random.default_rng(3)
    (s, y), (t, z) = answers(rng, 60), answers(rng, 500)
    got = class_auc(y / 3 + (s - y / 3) / 5, y, t, z)
    assert got.by_spread and got.spread < got.usual - 5 and 'by the spread' in str(got)
    plain = class_auc(s, y, t, z)
    assert plain.p > LEVEL and 'spread' not in str(plain) and 'spread' not in str(class_auc(s + 1, y, t, z))


def test_a_pack_dealt_beyond_half_is_dealt_from_the_other_end():
    cards = np.arange(7.)**2
    for k in range(8):
        drawn = ev._dealt(cards, k, 4000, np.random.default_rng(k))
        sums = {sum(c) for c in combinations(cards, k)}
        assert set(drawn) <= sums and drawn.mean() == pytest.approx(cards.mean() * k, abs=1)


@pytest.mark.parametrize('n,m,classes,digits', [(4, 60, 2, 9), (12, 200, 10, 9), (60, 120, 10, 9), (60, 120, 10, 0)])
def test_the_level_of_the_test(n, m, classes, digits):
    rng, times = np.random.default_rng(n + digits), 1000
    found = 0
    for _ in range(times):
        (s, y), (t, z) = answers(rng, n, 0., classes), answers(rng, m, 0., classes)
        found += ev._test(parts_of(s.round(digits), y, t.round(digits), z), 199, rng)[0] <= LEVEL
    assert found <= binom(times, LEVEL).ppf(0.999)
    if digits: assert found >= binom(times, LEVEL).ppf(0.001)  # with ties it may keep below


def test_order_alone_counts_and_the_seed_decides():
    rng = np.random.default_rng(3)
    (s, y), (t, z) = answers(rng, 50, 0.3), answers(rng, 200)
    one = class_auc(s, y, t, z, draws=300, seed=4)
    assert one == class_auc(np.arctan(s), y, np.arctan(t), z, draws=300, seed=4) == class_auc(torch.tensor(s), torch.tensor(y), t, z, draws=300, seed=4)
    assert one.auc[1:] != class_auc(s, y, t, z, draws=300, seed=5).auc[1:]


@pytest.mark.parametrize('n', [1, 4])
def test_a_few_images_have_no_spread(n):
    got = class_auc([1.] * n, [0] * n, np.arange(100) / 40, np.zeros(100, int), draws=99)
    assert got.auc == (pytest.approx(100 * 40.5 / 100), 0, 100) and got.p > LEVEL and got.n == n
    assert class_auc([1.] * 5, [0] * 5, np.arange(100) / 40, np.zeros(100, int), draws=99).auc.low > 20


def test_thousands_of_images():
    rng = np.random.default_rng(0)
    (s, y), (t, z) = answers(rng, 1000), answers(rng, 5000)
    got = class_auc(s, y, t, z)
    assert got.auc.low < 50 < got.auc.high < got.auc.low + 5


# --- what can be shown ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('y,z', [([0], [0, 0, 0]), ([0, 0, 1], [0, 1, 1, 1]), (np.arange(40) % 7, np.arange(90) % 5)], ids=['1', '2', '5'])
def test_null_deviation_against_permutations(y, z):
    y, z = np.asarray(y), np.asarray(z)
    rng = np.random.default_rng(0)
    drawn = ev._null(parts_of(rng.normal(size=len(y)), y, rng.normal(size=len(z)), z), 40_000, rng)[:, 0]
    assert null_deviation(y, z) == pytest.approx(drawn.std(), rel=0.02)


@pytest.mark.parametrize('n,m', [(12, 300), (40, 300), (150, 150)])
def test_the_smallest_share_is_found_in_four_of_five_cases(n, m):
    gain = 1.5
    memory, rng, times, found = 100 * norm.cdf(gain / 2**0.5) - 50, np.random.default_rng(n), 500, 0
    for _ in range(times):
        (_, y), (t, z) = answers(rng, n), answers(rng, m)
        share = smallest_share(y, z, memory) / 100
        assert share < 1
        s = rng.normal(y / 3 + 2**0.5 * norm.ppf(0.5 + share * memory / 100))  # this share of the memory is left, in AUC
        found += class_auc(s, y, t, z, draws=199, seed=int(rng.integers(1 << 30))).p <= LEVEL
    assert 75 <= 100 * found / times <= 87


def test_smallest_share_by_hand():
    assert smallest_share([0, 0, 1], [0, 0, 1, 5], 10) == pytest.approx(
        100 * (norm.ppf((1 + .95**.5) / 2) + norm.ppf(.8)) * 100 * np.sqrt((2 / 3)**2 * 5 / (12 * 4) + (1 / 3)**2 * 3 / 12) / 10)
    assert smallest_share([0], [0], 0) == smallest_share([0], [0], -3) == np.inf
    assert smallest_share([0, 9], [0], 10) == smallest_share([0], [0], 10)  # what cannot be compared shows nothing


# --- what is left ---------------------------------------------------------------------------------------------------------------

def test_trace_left_is_a_share_of_the_same_images():
    rng = np.random.default_rng(0)
    (s, y), (t, z) = answers(rng, 150, 1.), answers(rng, 400)
    after, t_after = s - 0.5 + rng.normal(size=150) / 9, t + rng.normal(size=400) / 9
    got = trace_left(s, after, y, t, t_after, z, draws=1000)
    a, b = (slow_ranks(*x).mean() - 50 for x in ((after, y, t_after, z), (s, y, t, z)))
    assert got.value == pytest.approx(100 * a / b) and got.low < got.value < got.high
    apart = trace_left(s, np.random.default_rng(1).permutation(after), y, t, t_after, z, draws=1000)
    assert got.high - got.low < apart.high - apart.low  # drawn in pairs
    np.testing.assert_allclose(trace_left(s, s, y, t, t, z, draws=99), 100)


def test_no_share_of_nothing():
    rng = np.random.default_rng(0)
    (s, y), (t, z) = answers(rng, 50), answers(rng, 400)
    assert str(trace_left(s, s, y, t, t, z, draws=200)) == str(trace_left(s - 3, s, y, t, t, z, draws=200)) == '–'
    assert str(trace_left([9.] * 4, [9.] * 4, [0] * 4, t, t, z, draws=200)) == '–'  # no spread


@pytest.mark.parametrize('left', [0., 0.5])
def test_the_interval_of_what_is_left_holds_the_truth(left):
    rng, gain, inside, times = np.random.default_rng(0), 1., 0, 200
    true = 100 * (norm.cdf(left * gain / 2**0.5) - 0.5) / (norm.cdf(gain / 2**0.5) - 0.5)
    for _ in range(times):
        before, after, classes = request(rng, 60, left, 0., gain)
        got = trace_left(before['forget'], after['forget'], classes['forget'], before['unseen'], after['unseen'], classes['unseen'], 400)
        inside += got.low <= true <= got.high
    assert 100 * inside / times > 90


# --- the verdict ----------------------------------------------------------------------------------------------------------------

LIKE = ClassAUC(Interval(51., 45., 57.), 0.7, 90, {}, 'spread', 25.5, 25.)
SURE = ClassAUC(Interval(65., 60., 70.), 0.0005, 90, {}, 'rank', 27., 25.)
WIDE, ALIKE = (replace(LIKE, p=0.0005, spread=d) for d in (40.8, 12.2))
PLAIN = ev.Evidence(LIKE, SURE, LIKE, LIKE, SURE, 30., Interval(7., -20., 30.))


@pytest.mark.parametrize('change,word,said', [
    ({}, NONE, ('90 forgotten images', 'Had 30 %', 'p = 0.7')),
    (dict(smallest=ENOUGH), NONE, ('Had 50 %',)),
    (dict(after=SURE), FOUND, ('more surely', 'p below 0.001')),
    (dict(after=replace(SURE, auc=Interval(35., 30., 40.))), FOUND, ('LESS surely', 'pressed below')),
    (dict(after=WIDE), FOUND, ('some of the 90 forgotten images more surely and others less surely', 'too many are answered very surely', '41 % away',
                               'where 25 % is no difference', 'mean rank among these 51 %')),
    (dict(after=ALIKE), FOUND, ('the 90 forgotten images more alike than', '12 % away', 'which is a trace too')),
    (dict(kind=WIDE), UNDECIDABLE, ('unlike', 'answered them some more surely and others less surely than these')),
    (dict(kind=ALIKE), UNDECIDABLE, ('unlike', 'answered them more alike than these')),
    (dict(after=SURE, smallest=900., memory=LIKE), FOUND, ('more surely',)),  # what was found was found
    (dict(after=replace(LIKE, p=LEVEL)), NONE, ()),
    (dict(smallest=ENOUGH + 1e-9), UNDECIDABLE, ('too few', 'only if 50 %', 'references')),
    (dict(smallest=101.), UNDECIDABLE, ('too few', 'even if all', 'references')),
    (dict(memory=LIKE), UNDECIDABLE, ('nothing was remembered', 'references')),
    (dict(memory=replace(SURE, auc=Interval(35., 30., 40.)), smallest=np.inf), UNDECIDABLE,
     ('nothing was remembered', 'are answered less surely than unseen ones')),
    (dict(kind=replace(SURE, p=UNLIKE / 2), after=SURE), UNDECIDABLE, ('unlike the others of their classes', 'more surely than these', 'comparable', 'references')),
    (dict(kind=replace(SURE, auc=Interval(35., 30., 40.))), UNDECIDABLE, ('unlike', 'less surely than these')),
    (dict(kind=replace(SURE, p=UNLIKE)), NONE, ()),
    (dict(kind=None, after_retain=None), NONE, ()),
    (dict(after=replace(LIKE, left_out={7: 3, 9: 1})), NONE, ('Not judged', '3 of class 7, 1 of class 9')),
    (dict(after=replace(SURE, n=1)), FOUND, ('the one forgotten image',)),
])
def test_each_verdict(change, word, said):
    got = verdict(replace(PLAIN, **change))
    assert got.word == word and str(got).startswith(word + ': ') and got.sentence[0].isupper() and got.sentence.rstrip().endswith('.')
    for text in said: assert text.lower() in got.sentence.lower()
    with pytest.raises(AttributeError): got.word = 'innocent'


def test_the_three_words_from_arrays():
    rng = np.random.default_rng(0)
    words = [verdict(evidence(*request(rng, **case), draws=500)).word for case in
             (dict(left=1.), dict(left=-1.), dict(left=np.resize([2.5, -2.5], 60), n=60), dict(left=0., n=12), dict(left=0., odd=-0.8),
              dict(left=0., gain=0.))]
    assert words == [FOUND, FOUND, FOUND, UNDECIDABLE, UNDECIDABLE, UNDECIDABLE]


@pytest.mark.parametrize('odd', [-0.8, 0.8])
def test_images_named_as_comparable_allow_a_verdict(odd):
    """Of another kind than the test images, and the unseen ones of the same kind: neither a look at the kind nor retained images judge."""
    words = {0.: set(), 1.: set()}
    for left in words:
        before, after, classes = request(np.random.default_rng(2), 200, left, odd)
        assert verdict(evidence(before, after, classes, draws=300)).word == UNDECIDABLE
        before, after = (x | dict(unseen=x['unseen'] + odd) for x in (before, after))
        e = evidence(before, after, classes, draws=300, comparable=True)
        assert e.kind is None and e.memory == e.before and e.smallest == smallest_share(classes['forget'], classes['unseen'], e.before.auc.value - 50)
        words[left] = verdict(e).word
    assert words == {0.: NONE, 1.: FOUND}


@pytest.mark.slow
def test_a_verdict_is_wrong_no_more_often_than_the_level():
    """Whole verdicts on images of which nothing is left; and of which all is left."""
    rng, times, words = np.random.default_rng(1), 80, {0.: [], 1.: []}
    for left in words:
        for k in range(times): words[left].append(verdict(evidence(*request(rng, 100, left), draws=200, seed=k)).word)
    assert words[0.].count(FOUND) <= binom(times, LEVEL).ppf(0.999) and words[0.].count(NONE) > 0.8 * times
    assert words[1.].count(FOUND) > 0.95 * times


def test_evidence_says_what_its_parts_say():
    rng = np.random.default_rng(5)
    before, after, classes = request(rng, 60, 0.4)
    after = {k: v + rng.normal(size=len(v)) / 3 for k, v in after.items()}
    e, y = evidence(before, after, classes, draws=200, seed=3), classes['forget']
    for got, x, other in ((e.after, after, 'unseen'), (e.before, before, 'unseen'), (e.after_retain, after, 'retain'), (e.kind, before, 'retain')):
        assert got == class_auc(x['forget'], y, x[other], classes[other], draws=200, seed=3)
    assert e.memory == class_auc(before['retain'], classes['retain'], before['unseen'], classes['unseen'], like=y, draws=200, seed=3)
    assert e.smallest == smallest_share(y, classes['unseen'], e.memory.auc.value - 50)
    assert e.left == trace_left(before['forget'], after['forget'], y, before['unseen'], after['unseen'], classes['unseen'], 200, 3)


def test_a_class_that_is_forgotten_whole():
    """No image of it is retained: what was remembered is told by its forgotten images, before."""
    before, after, classes = request(np.random.default_rng(5), 60, 1.)
    alone = classes | dict(retain=classes['retain'] + 100)
    e = evidence(before, after, alone, draws=200)
    assert e.kind is None and e.after_retain is None and e.memory.auc.value == pytest.approx(e.before.auc.value)
    some = classes | dict(retain=np.where(classes['retain'] == 3, 4, classes['retain']))
    assert evidence(before, after, some, draws=200).kind.left_out == {3: np.sum(classes['forget'] == 3)}


# --- the attack -----------------------------------------------------------------------------------------------------------------

def logits_of(rng, n, gain, classes=4):
    y = rng.integers(classes, size=n)
    z = rng.normal(size=(n, classes))
    z[np.arange(n), y] += rng.normal(1 + gain, 1, size=n)
    return z, y


def attacked(rng, n=40, left=0., gain=2., m=200, r=300):
    sets = dict(forget=logits_of(rng, n, gain * left), unseen=logits_of(rng, m, 0), retain=logits_of(rng, r, gain))
    return tuple({k: v[i] for k, v in sets.items()} for i in (0, 1))


def test_the_attack_is_that_of_sklearn_on_the_other_halves():
    logits, classes = attacked(np.random.default_rng(0))
    got, of_unseen, of_retain, of_taught = ev._called(logits, classes, 7)
    rng = np.random.default_rng(7)
    (r, r_held), (u, u_held) = (ev._halves(classes[k], rng) for k in ('retain', 'unseen'))
    for held, taught, k in ((r_held, r, 'retain'), (u_held, u, 'unseen')):
        assert sorted([*held, *taught]) == list(range(len(classes[k])))
        for c in range(4): assert abs(np.sum(classes[k][held] == c) - np.sum(classes[k][taught] == c)) <= 1
    members, others = ev.draw_shadow(len(r), len(u), None, 7)
    x = {k: mia_features(logits[k], classes[k])['confidence'][:, None] for k in logits}
    machine = SVC(C=3, gamma='auto').fit(np.r_[x['retain'][r[members]], x['unseen'][u[others]]], np.repeat([-1, 1], len(others)))
    for calls, rows in zip(got['confidence'], (x['forget'], x['unseen'][u_held], x['retain'][r_held])):
        np.testing.assert_array_equal(calls, machine.predict(rows) > 0)
    assert (of_unseen == classes['unseen'][u_held]).all() and (of_retain == classes['retain'][r_held]).all()
    assert sorted(of_taught) == sorted(classes['unseen'][u[others]])


def test_the_ranges_are_those_of_class_matched_draws():
    rng = np.random.default_rng(0)
    y, calls, asked = rng.integers(4, size=200), rng.random(200) < 0.4, np.array([0] * 9 + [2] * 30)
    plain = [np.mean(np.r_[rng.choice(calls[y == 0], 9), rng.choice(calls[y == 2], 30)]) for _ in range(4000)]
    got = ev._range(calls, y, asked, 4000, rng)
    assert got.value == pytest.approx(100 * (9 * calls[y == 0].mean() + 30 * calls[y == 2].mean()) / 39)
    np.testing.assert_allclose(got[1:], 100 * np.quantile(plain, (0.025, 0.975)), atol=2.6)  # one image of 39


@pytest.mark.parametrize('left,near,far', [(0., 'unseen', 'retain'), (1., 'retain', 'unseen')])
def test_forgotten_images_lie_with_their_like(left, near, far):
    shares = [svc_in_proportion(*attacked(np.random.default_rng(seed), 60, left), draws=500).shares['confidence'] for seed in range(25)]
    def inside(kind): return sum(getattr(share, kind).low <= share.forget <= getattr(share, kind).high for share in shares)
    assert inside(near) > 18 and inside(far) < 3  # no test of 5 %: the halves are finite


def test_classes_with_too_few_images_are_named():
    logits, classes = attacked(np.random.default_rng(2))
    y, z = classes['forget'].copy(), classes['unseen'].copy()
    z[np.flatnonzero(z == 3)[2:]] = 2       # two unseen images of class 3: one is held out
    z[z == 1] = 0                           # and none of class 1
    got = svc_in_proportion(logits, classes | dict(unseen=z))
    assert got.few == {'unseen': {3: (1, np.sum(y == 3))}, 'retain': {}} and got.left_out == {1: np.sum(y == 1)}
    called = ev._called(logits, classes | dict(unseen=z), 0)[0]['entropy'][0]
    assert got.shares['entropy'].forget == pytest.approx(100 * called[y != 1].mean())
    whole = svc_in_proportion(logits, classes | dict(retain=np.zeros(300, int), forget=np.maximum(y, 1)))
    assert got.left_out == {1: np.sum(y == 1)} and whole.left_out == {}
    assert np.isnan(whole.shares['entropy'].retain.value) and set(whole.few['retain']) == {1, 2, 3}


@pytest.mark.parametrize('before', [0, 1])  # images of another class, so that the lone one is taught, or held out
def test_a_lone_unseen_image_cannot_teach_and_be_compared(before):
    """One image of class 3: on whichever side it falls, forgotten images of the class are not asked, and counted."""
    logits, classes = attacked(np.random.default_rng(2))
    y, z = classes['forget'], classes['unseen']
    keep = np.r_[np.flatnonzero(z < 3)[before:], np.flatnonzero(z == 3)[:1]]
    fewer = [x | dict(unseen=x['unseen'][keep]) for x in (logits, classes)]
    sides = ev._called(*fewer, 0)
    held = len(keep) % 2 == 0
    assert (3 in sides[1], 3 in sides[3]) == (held, not held)
    got = svc_in_proportion(*fewer)
    assert got.left_out == {3: np.sum(y == 3)}
    for name, share in got.shares.items():
        assert share.forget == pytest.approx(100 * sides[0][name][0][y != 3].mean()) and np.isfinite([share.unseen, share.retain]).all()


def test_the_attack_is_seeded():
    logits, classes = attacked(np.random.default_rng(3))
    one, again, other = (svc_in_proportion(logits, classes, seed=k) for k in (1, 1, 2))
    assert one == again != other


# --- what is refused ------------------------------------------------------------------------------------------------------------

GOOD = dict(s=np.arange(4.), y=np.array([0, 0, 1, 1]), t=np.arange(6.), z=np.array([0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize('bad,message', [
    (dict(s=[], y=[]), r'values has values of shape \(0,\): expected one for each of one or more images'),
    (dict(t=np.zeros((6, 2))), r'others has values of shape \(6, 2\)'),
    (dict(y=[0, 1]), r'values has 4 values and classes of shape \(2,\): expected the class of each image, in the same order'),
    (dict(z=[0.] * 6), 'classes of others are float64: expected integer class numbers'),
    (dict(s=[1., np.nan, np.inf, 2.]), '2 of 4 values of values are not finite: did the training diverge'),
    (dict(z=[5] * 6), 'there is none of class 0, 1; name images of the same classes that are comparable'),
], ids=['none', 'shape', 'step', 'float', 'nan', 'class'])
def test_what_is_refused(bad, message):
    x = GOOD | bad
    with pytest.raises(ValueError, match=message): class_auc(x['s'], x['y'], x['t'], x['z'])
    if 'class' not in message or 'none of' not in message:
        with pytest.raises(ValueError, match=message): ranks(x['s'], x['y'], x['t'], x['z'])


def test_ranks_of_classes_without_others_are_blank():
    assert np.isnan(ranks(GOOD['s'], GOOD['y'], GOOD['t'], GOOD['z'] + 5).rank).all()


@pytest.mark.parametrize('call,message', [
    (lambda b, a, c: evidence(b, {'forget': a['forget']}, c), 'after has no unseen and no retain: expected forget, unseen, retain'),
    (lambda b, a, c: evidence(b, a | dict(retain=a['retain'][1:]), c), r'retain after has 1999 values and classes of shape \(2000,\)'),
    (lambda b, a, c: evidence(b | dict(unseen=b['unseen'] * np.nan), a, c), '500 of 500 values of unseen before are not finite'),
    (lambda b, a, c: evidence(b, a, c | dict(forget=c['forget'] + 50)), 'no image to compare with: there is none of class 5'),
    (lambda b, a, c: evidence(b | dict(forget=[]), a | dict(forget=[]), c | dict(forget=[])), r'forget before has values of shape \(0,\)'),
    (lambda b, a, c: trace_left(b['forget'], a['forget'][:5], c['forget'], b['unseen'], a['unseen'], c['unseen']), 'forget after has 5 values'),
    (lambda b, a, c: smallest_share([], c['unseen'], 9), r'classes has values of shape \(0,\)'),
    (lambda b, a, c: smallest_share([7.], c['unseen'], 9), 'classes of classes are float64'),
    (lambda b, a, c: null_deviation([77], c['unseen']), 'there is none of class 77; name images'),
])
def test_what_evidence_refuses(call, message):
    with pytest.raises(ValueError, match=message): call(*request(np.random.default_rng(0), 30))


@pytest.mark.parametrize('change,message', [
    (lambda z, y: (z | dict(forget=np.pad(z['forget'], ((0, 0), (0, 1)))), y), 'classes: expected the same network'),
    (lambda z, y: (z, y | dict(unseen=y['unseen'][1:])), r'labels have shape \(199,\), but there are 200 rows of logits'),
    (lambda z, y: (z | dict(retain=z['retain'] / 0), y), 'logits are not finite'),
    (lambda z, y: ({k: z[k] for k in ('forget', 'retain')}, y), 'logits has no unseen: expected'),
    (lambda z, y: (z, y | dict(forget=0 * y['forget'], unseen=0 * y['unseen'] + 1)), 'is there an unseen one to teach the attack and another to be compared with: name comparable'),
    (lambda z, y: (z | dict(forget=z['forget'][:0]), y | dict(forget=y['forget'][:0])), r'logits have shape \(0, 4\)'),
])
@pytest.mark.filterwarnings('ignore:divide by zero')
def test_what_the_attack_refuses(change, message):
    with pytest.raises(ValueError, match=message): svc_in_proportion(*change(*attacked(np.random.default_rng(0))))


def test_ten_images_that_stand_for_ninety_make_no_narrow_interval():
    """Of 2,000 retained images ten are of the class of nine tenths of the forgotten ones."""
    rng = np.random.default_rng(0)
    y, like = np.repeat([0, 1], [10, 1990]), np.repeat([0, 1], [90, 10])
    t, z = rng.normal(size=400), np.resize([0, 1], 400)
    auc = class_auc(rng.normal(size=2000), y, t, z, like=like).auc
    alone = class_auc(rng.normal(size=10), np.zeros(10, int), t, z).auc
    assert auc.high - auc.low > 0.7 * (alone.high - alone.low) > 25


@pytest.mark.parametrize('m', [5, 6])
def test_the_interval_holds_the_truth_where_few_are_unseen(m):
    """Forty forgotten images in each of two classes, which share what `m` unseen ones happen to be."""
    rng, times, inside = np.random.default_rng(m), 1000, 0
    y, z = np.repeat([0, 1], 40), np.repeat([0, 1], m)
    for k in range(times):
        low, high = class_auc(rng.normal(size=80), y, rng.normal(size=2 * m), z, draws=400, seed=k).auc[1:]
        inside += low <= 50 <= high
    assert inside >= 0.93 * times  # 91.5 and 92.1 %, were drawing anew all that they vary by


def test_an_interval_ends_where_ranks_end():
    """One of five unseen images lies above all forgotten ones: where it is not drawn, the others count for more."""
    s, t = np.linspace(0, 1, 40), np.array([-4., -3., -2., -1., 9.])
    for sign in (1, -1):
        auc = class_auc(sign * s, np.zeros(40, int), sign * t, np.zeros(5, int)).auc
        assert 0 <= auc.low < auc.value < auc.high <= 100 and round(auc.value) == (80 if sign > 0 else 20)


def test_beside_a_handful_of_unseen_images_no_interval_is_given():
    rng = np.random.default_rng(0)
    y, z = np.repeat([0, 1], 40), np.repeat([0, 1], 4)
    s, t = rng.normal(size=80), rng.normal(size=8)
    assert class_auc(s, y, t, z).auc[1:] == (0, 100) and np.isnan(trace_left(s, s, y, t, t, z)[0])


@pytest.mark.parametrize('share', [15, 25])
def test_where_more_than_a_fifth_has_fewer_than_five_unseen_no_interval_is_given(share):
    rng = np.random.default_rng(0)
    y, z = np.repeat([0, 1], [100 - share, share]), np.repeat([0, 1], [50, 4])
    auc = class_auc(rng.normal(size=100), y, rng.normal(size=54), z, draws=99).auc
    assert (auc[1:] == (0, 100)) == (share > 20)


@pytest.mark.parametrize('draws', [0, -1, 50, 99, 200.5, '2000'])
def test_draws_with_which_no_images_could_be_of_another_kind_are_refused(draws, monkeypatch):
    monkeypatch.setattr(ev, 'class_auc', lambda *args: pytest.fail('there was work'))
    with pytest.raises(ValueError, match=f'draws is {draws}: expected a whole number, 100 at least.*2000 are usual'):
        evidence(*request(np.random.default_rng(0), 30), draws=draws)


def test_with_the_fewest_draws_images_of_another_kind_forbid_a_verdict():
    assert verdict(evidence(*request(np.random.default_rng(0), odd=-0.5), draws=np.int64(100))).word == UNDECIDABLE


def test_what_is_left_has_no_end_that_one_draw_near_zero_makes():
    """Sets whose AUC before is hardly clear: the quantile that decides lies between two draws, of which one is below."""
    def ends(k):
        rng = np.random.default_rng(k)
        s, u = rng.normal(0.45, 1, 20), rng.normal(size=60)
        a, b = s + rng.normal(size=20) * 0.3, u + rng.normal(size=60) * 0.3
        return trace_left(s, a, np.zeros(20, int), u, b, np.zeros(60, int), draws=400, seed=k)
    assert np.nanmax(np.abs([ends(k) for k in (104, 123, *range(20))])) < 1e6


def test_the_attack_is_refused_before_it_is_taught(monkeypatch):
    monkeypatch.setattr(ev, 'nonmembers', lambda *args: pytest.fail('there was work'))
    logits, classes = attacked(np.random.default_rng(0))
    with pytest.raises(ValueError, match='is there an unseen one to teach'):
        svc_in_proportion(logits, classes | dict(forget=0 * classes['forget'], unseen=0 * classes['unseen'] + 1))
