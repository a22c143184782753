"""Tables of what is left of the memory: the right networks beside one another, on ensembles made up so that the answer is known."""
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from unlearning.league import (COMPARED, LEFT, agreement, beside_one, forgot, idle, in_words, league, league_table, lineages, memory_of, misled, plot_images,
                               plot_league, unbeaten, yardstick_table, yardsticks)
from unlearning.metrics.forget_quality import Interval
from unlearning.study import Answers, Results

SIZES = dict(retain=300, forget=400, test=300)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def made_up(shares, K=8, originals='each', seed=0, remembered=0.4):
    """Each method keeps a share of what the originals remember of the forget images (or one for each image); the rest is as in retrained networks."""
    rng = np.random.default_rng(seed)
    hard = {part: rng.normal(1, 1, n) for part, n in SIZES.items()}
    def row(known, K=K, seeds=None):
        confidence = {part: hard[part] + rng.normal(0, 1, (K, n)) for part, n in SIZES.items()}
        confidence['retain'] += 3
        confidence['forget'] += np.where(rng.random((K, SIZES['forget'])) < known, 6, 0)
        return Answers(np.arange(K) if seeds is None else seeds, confidence, {part: c > 0 for part, c in confidence.items()})
    answers = {'retrain': row(0), 'reference': row(0), 'original': row(remembered, 1 if originals == 'one' else K)}
    for name, share in shares.items(): answers |= {name: row(share * remembered), f'control-{name}': row(0)}
    frame = pd.DataFrame([dict(method=m, seed=s, RA=100 * a.correct['retain'][k].mean(), TA=100 * a.correct['test'][k].mean(), UA=100 * a.correct['forget'][k].mean(),
                               **{c: 100 * (1 - a.correct['forget'][k].mean()) for c in ('correctness', 'confidence', 'entropy', 'prob', 'm_entropy')},
                               passes=100. if m in ('retrain', 'reference') else 10., seconds=10. if m in ('retrain', 'reference') else 1.)
                          for m, a in answers.items() for k, s in enumerate(a.seeds)])
    beside = frame.method.str.startswith('control-') | (frame.method == 'reference')
    quality = pd.DataFrame([dict(method=m, protocol=p, F=0.2, ceiling=0.4, ceiling_sd=0.1, total=0.1) for m in shares for p in ('paper', 'challenge')])
    titles = {'retrain': 'Retrain', **{m: m.capitalize() for m in shares}, 'original': 'No Unlearning'}
    facts = dict(titles=titles, beside={'reference': 'Retrain, once more', **{f'control-{m}': m for m in shares}}, originals=originals, data='made up', K=K, permutations=3, collapsed=[])
    return Results(frame[~beside].reset_index(drop=True), quality, pd.DataFrame(), {}, facts, {}, frame[beside].reset_index(drop=True), answers)


def test_the_share_that_is_left_is_found():
    found = league(made_up(dict(half=0.5, all=1., nothing=0.)), exchangeable=True)
    for name, share in dict(half=50, all=100, nothing=0).items(): assert found.memory[name].low < share < found.memory[name].high
    assert found.memory['original'] == pytest.approx((100, 100, 100)) and found.memory['reference'].low < 0 < found.memory['reference'].high
    assert found.memory['nothing'].high < found.memory['half'].low and found.passes['half'] == 10 and found.time['half'] == 10
    for m in found.index: assert found.memory[m].value + found.mark[m].value + found.drift[m].value == pytest.approx(found.distance[m].value)
    assert all(np.isnan(v.value) for v in league(made_up(dict(half=0.5)), exchangeable=False)['mark'])


def test_lineages_go_by_seed_and_a_lost_one_is_left_out():
    results = made_up(dict(half=0.5), K=5)
    a = results.answers['half']
    kept = Answers(a.seeds[[0, 2, 4]], *({part: v[[0, 2, 4]] for part, v in which.items()} for which in (a.confidence, a.correct)))
    got = lineages(replace(results, answers=results.answers | dict(half=kept)), 'half')
    for key, row in dict(O='original', R='retrain', C='control-half').items():
        assert np.array_equal(got[key], results.answers[row].correct['forget'][[0, 2, 4]])
    assert np.array_equal(got['U'], a.correct['forget'][[0, 2, 4]])


def test_one_original_and_one_retrained_network_are_said_to_be_one():
    results = made_up(dict(half=0.5), originals='one')
    got = lineages(results, 'half')
    assert {k: len(v) for k, v in got.items()} == dict(U=8, C=8, O=1, R=1)
    assert memory_of(results, 'half', True).given == 'one original and one retrained network'
    assert memory_of(results, 'original', True).memory.value == pytest.approx(100)
    assert len(lineages(results, 'reference')['R']) == 8


def test_without_a_control_nothing_is_said():
    results = made_up(dict(half=0.5))
    bare = {m: a for m, a in results.answers.items() if not m.startswith('control-')}
    with pytest.raises(ValueError, match='half has no control: run the study with control=True'): lineages(replace(results, answers=bare), 'half')
    found = league(replace(results, answers=bare), True)
    assert list(found.index) == ['half', 'reference', 'original'] and found.lineages['half'] == 0 and np.isnan(found.memory['half'].value)


@pytest.mark.parametrize('lost, says', [(('half',), 'all networks lost'), (('control-half',), 'all controls lost'), (('half', 'control-half'), 'all networks lost')])
def test_a_row_whose_networks_were_lost_stays_and_says_so(lost, says):
    results = made_up(dict(half=0.5, nothing=0.))
    left = replace(results, answers={m: a for m, a in results.answers.items() if m not in lost}, networks=results.networks[~results.networks.method.isin(lost)])
    table = league_table(league(left, True), left)
    assert table.loc['Half', LEFT] == says and table.loc['Half', 'lineages'] == 0 and table.loc['Nothing', 'lineages'] == 8
    assert 'Half' not in {t.get_text() for t in plot_league(league(left, True), left).axes[0].texts}


def test_single_survivors_of_other_seeds_are_no_lineage():
    results = made_up(dict(half=0.5), K=5)
    def only(row, k):
        a = results.answers[row]
        return Answers(a.seeds[[k]], *({part: v[[k]] for part, v in which.items()} for which in (a.confidence, a.correct)))
    left = replace(results, answers=results.answers | {'half': only('half', 0), 'control-half': only('control-half', 1)})
    assert {k: len(v) for k, v in lineages(left, 'half').items()} == dict(U=0, C=0, O=0, R=0) and league(left, True).lineages['half'] == 0


def test_where_nothing_was_remembered_the_table_says_so():
    results = made_up(dict(half=0.5), remembered=0.)
    found = league(results, True)
    table = league_table(found, results)
    assert (table[LEFT] == 'nothing was remembered').all() and (table['mark, %'] == '–').all()
    assert not plot_league(found, results).axes[0].texts


def test_table_and_picture():
    results = made_up(dict(half=0.5, nothing=0.))
    found = league(results, True)
    table = league_table(found, results)
    assert list(table.index) == ['Nothing', 'Half', 'Retrain, once more', 'No Unlearning']  # the memory nearest to 0 first
    ax, = plot_league(found, results).axes
    assert {t.get_text() for t in ax.texts} == {'Nothing', 'Half', 'No Unlearning', 'Retrain'}


def test_overdone_ranks_by_its_size_and_doing_nothing_is_free():
    results = made_up(dict(half=0.5, nothing=0.))
    found = league(results, True)
    found.at['half', 'memory'] = Interval(-90., -95., -85.)
    assert list(league_table(found, results).index)[:2] == ['Nothing', 'Half']
    assert found.passes['original'] == found.time['original'] == 0 and found.passes['reference'] == 100


def test_a_method_that_does_not_fit_has_a_row():
    results = made_up(dict(half=0.5, nothing=0.))
    table = league_table(league(results, True), results, ['Dear', 'Dearer'])
    assert list(table.index) == ['Nothing', 'Half', 'Dear', 'Dearer', 'Retrain, once more', 'No Unlearning']
    assert (table.loc[['Dear', 'Dearer'], LEFT] == 'does not fit').all() and table.loc['Dear', 'lineages'] == 0 and table.loc['Dear', 'time, %'] == '–'


def test_too_few_lineages_are_said():
    results = made_up(dict(half=0.5), K=3)
    assert set(league_table(league(results, True), results)[LEFT]) == {'3 whole lineages, of 4 needed: ask for more seeds'}


def test_a_retrained_network_that_is_lost_is_no_end_of_the_table():
    """Of four, three are left: nothing can be said of memory, and it is said of each row."""
    results = made_up(dict(half=0.5), K=4)
    kept = results.answers['retrain']
    fewer = Answers(kept.seeds[1:], *({part: v[1:] for part, v in values.items()} for values in (kept.confidence, kept.correct)))
    less = replace(results, answers=results.answers | dict(retrain=fewer))
    found = league(less, True)
    assert set(league_table(found, less)[LEFT]) == {'3 whole lineages, of 4 needed: ask for more seeds'} and np.isfinite(found.TA['half'].value)
    assert memory_of(less, 'reference', True).word.startswith('3 whole lineages') and str(memory_of(less, 'reference', True).memory) == '–'


def test_of_two_retrained_networks_other_yardsticks_are_left():
    results = made_up(dict(half=0.5), K=3)
    kept = results.answers['retrain']
    fewer = Answers(kept.seeds[1:], *({part: v[1:] for part, v in values.items()} for values in (kept.confidence, kept.correct)))
    measured = yardsticks(replace(results, answers=results.answers | dict(retrain=fewer)))
    assert measured.loc['half', [c for c in measured if 'U-LiRA' in c]].isna().all() and measured['MIA gap, points ↓'].notna().all()


def test_a_dozen_images_to_forget_have_a_table():
    """Of a tenth, one image, there is no interval."""
    results = made_up(dict(half=0.5), remembered=0.9)
    cut = lambda values: values | dict(forget=values['forget'][:, :12])
    few = replace(results, answers={m: Answers(a.seeds, cut(a.confidence), cut(a.correct)) for m, a in results.answers.items()})
    found = league(few, True)
    assert np.isfinite(found.memory['half'].value) and all(np.isnan(v.value) for v in found.tenth)


def test_from_one_original_a_method_that_changes_nothing_is_seen():
    results = made_up(dict(half=0.5), originals='one')
    def same(row):
        a = results.answers[row]
        return Answers(np.arange(8), *({part: np.repeat(v[:1], 8, axis=0) for part, v in values.items()} for values in (a.confidence, a.correct)))
    answers = results.answers | {'half': same('original'), 'control-half': same('retrain'), 'retrain': same('retrain')}
    assert idle(league(replace(results, answers=answers), True)) == ['half']


def test_signs_that_cancel_are_seen():
    """Half of the images keep all of it; the others are pressed down as far."""
    results = made_up(dict(cancelled=0., gone=0.), K=16)
    a, half = results.answers['cancelled'], np.arange(SIZES['forget']) % 2
    a.confidence['forget'] += np.where(half, 2., -2.)
    a.correct['forget'][:] = a.confidence['forget'] > 0
    found = league(results, True)
    assert found.memory_auc['cancelled'].low < 10 and found['size']['cancelled'].low > 60 and found['size']['original'] == pytest.approx((100,) * 3)
    for row in ('gone', 'reference'): assert abs(found['size'][row].value) < 30 and found['size'][row].low < 10
    spared = found.assign(TA=[Interval(0., -1., 1.)] * len(found))
    assert 'cancels in the mean' in in_words(spared.drop('gone'), results) and 'cancels' not in in_words(spared.drop('cancelled'), results)
    curves = {line.get_label(): line.get_xdata() for line in plot_images(found, results).axes[0].lines}
    assert set(curves) == {'No Unlearning', 'Cancelled', 'Gone', 'Retrain, once more'}
    spread = {name: np.ptp(np.quantile(x[np.isfinite(x)], (0.1, 0.9))) for name, x in curves.items()}
    assert spread['Cancelled'] > 2 * spread['Retrain, once more'] > spread['Gone']


@pytest.mark.parametrize('K, originals', [(7, 'each'), (8, 'one')])
def test_size_needs_eight_lineages(K, originals):
    assert all(np.isnan(s.value) for s in league(made_up(dict(half=0.5), K=K, originals=originals), True)['size'])


def values(**rows):
    """A league of memory and test accuracy."""
    around = lambda v, h: Interval(v, v - h, v + h)
    return pd.DataFrame({m: dict(memory=around(a, h), TA=around(b, 0.3)) for m, (a, b, h) in rows.items()}).T


def test_who_is_beaten():
    assert unbeaten(values(far=(60, -1, 5), near=(5, -2, 5), over=(-5, -3, 5), worse=(60, -2, 5), over_and_out=(-90, -0.5, 5), original=(100, 1, 0), reference=(0, 0, 3))) == ['far', 'near', 'over_and_out']


@pytest.mark.parametrize('seed', range(3))
def test_names_of_a_crowd_do_not_overlap_and_wrecks_stay_at_the_edge(seed):
    rng = np.random.default_rng(seed)
    rows = {f'method {i}': (rng.gamma(2, 12), -rng.gamma(2, 0.8), 5) for i in range(22)}
    rows |= {m: (rng.gamma(2, 6), -1.5, 5) for m in ('soft_relabeling', 'gradient_surgery', 'activation_pruning')}
    rows |= dict(wrecked=(22, -41, 30), beyond=(310, -1, 90), overdone=(-160, -2, 40), original=(100, 0.8, 0))
    results = made_up({})
    results.facts['titles'].update({m: m for m in rows if m != 'original'})
    fig = plot_league(values(**rows), results)
    fig.canvas.draw()
    ax, = fig.axes
    boxes = {t.get_text(): Text.get_window_extent(t) for t in ax.texts}
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    assert {'Retrain', 'No Unlearning', 'soft_relabeling', 'gradient_surgery', 'activation_pruning'} < set(boxes) and len(boxes) < 20
    assert {'wrecked: 22 %, −41.0 points', 'beyond: 310 %, −1.0 points', 'overdone: −160 %, −2.0 points'} < set(boxes)
    assert ax.get_xlim()[0] > -60 and ax.get_xlim()[1] < 160 and ax.get_ylim()[0] > -10  # the others keep their room
    assert all(ax.bbox.contains(*corner) for box in boxes.values() for corner in box.corners())


def test_whose_changes_cancel_has_changed_something():
    assert idle(values(idle=(100, 1, 0), evened=(100, 1, 8), original=(100, 1, 0))) == ['idle']


def test_who_changed_nothing_beats_nobody_and_counts_nowhere():
    found = values(idle=(100, 1, 0), half=(50, -1, 5), original=(100, 1, 0))
    assert idle(found) == ['idle'] and unbeaten(found) == ['half']
    results = made_up(dict(half=0.5))
    assert 'changed nothing' in league_table(found.assign(**{c: [found.memory['half']] * 3 for c in ('memory_auc', 'tenth', 'mark', 'drift', 'RA')}, size=50., given='', word='', passes=5., time=5., lineages=8), results).iloc[:, 0]['idle']


def test_what_is_kept_of_the_most_remembered_images_is_seen():
    most = np.arange(SIZES['forget']) < SIZES['forget'] // 10
    found = league(made_up(dict(kept=1. * most, gone=1. * ~most), K=24, remembered=np.where(most, 1., 0.3)), True)
    assert found.tenth['kept'].value > found.memory['kept'].value + 10
    assert found.tenth['gone'].value < found.memory['gone'].value - 10


def test_yardsticks_agree_where_they_measure_one_thing():
    results = made_up(dict(half=0.5, nothing=0., most=0.9), remembered=0.9)
    measured = yardsticks(results)
    for column in ('U-LiRA, % right ↓', 'MIA gap, points ↓'):
        assert measured[column]['reference'] < measured[column]['half'] < measured[column]['original']
    assert measured['ToW ↑']['nothing'].low > measured['ToW ↑']['half'].value > measured['ToW ↑']['original'].high
    assert measured['F ↑']['nothing'].low > measured['F ↑']['original'].high
    found = league(results, True)
    order = agreement(found, measured)
    assert order.loc['|memory left| ↓', 'MIA gap, points ↓'] == order.loc['|memory left| ↓', 'ToW ↑'] == order.loc['U-LiRA, % right ↓', 'ToW ↑'] == 1
    table = misled(found, measured, results)
    assert set(table.index) == set(measured) - {'KLOM retain ↓', 'KLOM test ↓'} and (table.loc[['U-LiRA, % right ↓', 'MIA gap, points ↓', 'F ↑', 'KLOM forget ↓', 'ToW ↑']].iloc[:, 0] == 0).all()


def test_ranks_by_fewer_rows_say_so():
    found = values(**{m: (10 * i, -1, 5) for i, m in enumerate('abcd')}, original=(100, 1, 0)).assign(lineages=8)
    found['size'] = found.memory
    measured = pd.DataFrame({'ToW ↑': [5., 4, 3, 2, 1], 'F / ceiling, % ↑': [3., 2, np.nan, np.nan, 1]}, index=found.index)
    assert agreement(found, measured).columns.name == '5 rows, at least 3 of each yardstick'
    assert agreement(found, measured.fillna(0.)).columns.name == '5 rows'


def test_every_yardstick_has_a_value_for_the_reference_and_says_which_way_is_good():
    results = made_up(dict(half=0.5))
    measured = yardsticks(results)
    assert list(measured.index) == ['reference', 'half', 'original'] and all(c[-1] in '↑↓' for c in measured)
    table = yardstick_table(measured, results)
    assert not table.eq('–').any(axis=None) and list(table.index) == ['Retrain, once more', 'Half', 'No Unlearning']
    F = measured['F ↑']['reference']
    assert F.low < F.value < F.high and table['F ↑']['Retrain, once more'] == f'{F.value:.2f} [{F.low:.2f}, {F.high:.2f}]'
    assert 80 < measured['F / ceiling, % ↑']['reference'] < 120 > 100 > measured['F / ceiling, % ↑']['original']


def test_vulnerable_images_are_apart():
    """What is remembered, only every tenth image shows."""
    results = made_up(dict(nothing=0.), K=16, remembered=0.)
    results.answers['original'].confidence['forget'][:, ::10] += 6
    vulnerable, others = (yardsticks(results)[f'U-LiRA, {which} ↓'] for which in ('vulnerable tenth', 'the others'))
    assert vulnerable['original'] > 95 and abs(others['original'] - 50) < 4
    assert abs(vulnerable['nothing'] - 50) < 6 and abs(vulnerable['reference'] - 50) < 6


def test_vulnerable_images_are_chosen_on_other_networks_than_those_measured():
    """Where nothing was remembered, luck alone makes an image look vulnerable, and luck does not last."""
    vulnerable = yardsticks(made_up(dict(nothing=0.), K=16, remembered=0.))['U-LiRA, vulnerable tenth ↓']
    assert all(abs(vulnerable[row] - 50) < 5 for row in ('reference', 'nothing', 'original')), vulnerable


def test_few_lineages_or_one_original_have_no_vulnerable_images():
    for results in (made_up(dict(half=0.5), K=5), made_up(dict(half=0.5), originals='one')):
        measured = yardsticks(results)
        assert measured['U-LiRA, vulnerable tenth ↓'].isna().all() and measured['U-LiRA, % right ↓'].notna().all()


@pytest.mark.parametrize('noise', [0., 1e-4])
def test_networks_that_are_all_alike_have_no_distribution_to_compare(noise):
    """A retrained network, eight times: an attack would call it unlearned every time."""
    results = made_up(dict(half=0.5))
    copies = {part: v[:1] + noise * np.random.default_rng(0).random(v.shape) for part, v in results.answers['retrain'].confidence.items()}
    alike = replace(results, answers=results.answers | dict(half=replace(results.answers['half'], confidence=copies)))
    measured = yardsticks(alike)
    none = [c for c in measured if c.startswith(('U-LiRA', 'found', 'KLOM'))]
    assert len(none) == 7 and measured.loc['half', none].isna().all() and measured.drop('half')[none].notna().all(axis=None)
    assert yardstick_table(measured, alike).loc['Half', ['F ↑', *none]].eq('–').all() and measured['ToW ↑']['half'].value > 0


def test_a_yardstick_that_ranks_no_unlearning_above_what_forgot_is_named():
    results = made_up(dict(gone=0., wide=0., overdone=0., kept=0.))
    found = values(gone=(10, -2.5, 20), wide=(10, -1, 60), overdone=(-90, -1, 10), kept=(80, -1, 10), original=(100, 0, 0), reference=(0, 0, 5)).assign(lineages=8)
    rows = ['reference', 'gone', 'wide', 'overdone', 'kept', 'original']
    measured = pd.DataFrame({'small ↓': [0, 9, 9, 9, 9, 5.], 'large ↑': [9, 9, 1, 1, 1, 5.], 'F ↑': [Interval(v, v, v) for v in (1, 2, 9, 9, 9, 3)]}, rows)
    assert forgot(found) == ['gone']
    assert forgot(found.assign(lineages=[7, 8, 8, 8, 8, 8])) == []  # it has lost a network
    table = misled(found, measured, results)
    assert table.iloc[:, 0].to_dict() == {'small ↓': 1, 'large ↑': 0, 'F ↑': 1} and table.columns[0].endswith('of 1 that forgot')
    assert table.iloc[:, 1].to_dict() == {'small ↓': 'Gone (-2.5)', 'large ↑': '', 'F ↑': 'Gone (-2.5)'}
    with pytest.raises(ValueError, match='No Unlearning is one network'): misled(found, measured.drop('original'), results)


def test_one_original_beside_many():
    many, one = made_up(dict(half=0.5, nothing=0.)), made_up(dict(half=0.5), originals='one', seed=1)
    (found, measured), (found_one, measured_one) = pairs = [(league(r, True), yardsticks(r)) for r in (many, one)]
    table = beside_one(*pairs, many)
    assert list(table) == [('Half', '8 originals'), ('Half', 'one')] and list(table.index) == [LEFT, 'mark, %', *COMPARED]
    assert table.loc['ToW ↑'].tolist() == ['{:.2f} [{:.2f}, {:.2f}]'.format(*m['ToW ↑']['half']) for m in (measured, measured_one)]
    assert [cell.split()[0] for cell in table.loc[LEFT]] == [f"{f.memory['half'].value:.0f}" for f in (found, found_one)]


WORDS = {'memory left': 'memory left', 'by AUC': 'auc', 'by AUC, blind to sign': 'blind to sign', 'of the tenth remembered most': 'the tenth remembered most',
         'mark': 'mark', 'drift': 'drift', 'RA': 'ra, ta, ua', 'TA': 'ra, ta, ua', 'passes': 'image pass', 'lineages': 'lineage', 'MIA gap, points': 'mia gap',
         'F': 'f, forget quality', 'F / ceiling': 'ceiling', 'U-LiRA, % right': 'u-lira', 'U-LiRA, vulnerable tenth': 'vulnerable', 'found at 1 % FPR': 'found at 1 % fpr',
         'KLOM forget': 'klom', 'ToW': 'tow'}  # a column, and the word that explains it
PLAIN_WORDS = ('time', 'U-LiRA, the others', 'KLOM retain', 'KLOM test', 'ToW-MIA')


def test_every_column_is_in_the_glossary():
    glossary = (Path(__file__).resolve().parent.parent/'nbs'/'glossary.ipynb').read_text(encoding='utf-8').lower()
    results = made_up(dict(half=0.5), K=8)
    columns = [*league_table(league(results, True), results), *yardsticks(results)]
    for column in columns:
        name = re.sub(r'(, %)?( [↑↓])?( − Retrain)?$', '', column)
        assert name in PLAIN_WORDS or f'**{WORDS[name]}' in glossary, column


def test_one_image_to_forget_is_said():
    results = made_up(dict(half=0.5))
    cut = lambda values: values | dict(forget=values['forget'][:, :1])
    one = replace(results, answers={m: Answers(a.seeds, cut(a.confidence), cut(a.correct)) for m, a in results.answers.items()})
    found = league(one, True)
    assert set(league_table(found, one)[LEFT]) == {'one forget image, of 2 needed'} and 'could memory left be estimated' in in_words(found, one)


def test_names_of_points_stay_within_the_frame():
    from unlearning.report import named_points
    fig, ax = plt.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    named_points(ax, np.full(6, 1.), np.array([5, 5, 9.1, 9.2, 9.3, 9.4]), list('abcdef'))
    fig.canvas.draw()
    boxes = [Text.get_window_extent(t) for t in ax.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2)) and all(ax.bbox.y0 <= b.y0 and b.y1 <= ax.bbox.y1 for b in boxes)
