"""Tables of what is left of the memory: the right networks beside one another, on ensembles made up so that the answer is known."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unlearning.league import agreement, league, league_table, lineages, memory_of, plot_league, yardsticks
from unlearning.study import Answers, Results

SIZES = dict(retain=300, forget=400, test=300)


def made_up(shares, K=8, originals='each', seed=0, remembered=0.4):
    """Each method keeps a share of what the originals remember of the forget images; the rest is as in retrained networks."""
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
    facts = dict(titles=titles, beside={'reference': 'Retrain, once more', **{f'control-{m}': m for m in shares}}, originals=originals, data='made up', K=K, collapsed=[])
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


@pytest.mark.parametrize('lost', [('half',), ('control-half',), ('half', 'control-half')])
def test_a_row_whose_networks_were_lost_stays_and_says_so(lost):
    results = made_up(dict(half=0.5, nothing=0.))
    left = replace(results, answers={m: a for m, a in results.answers.items() if m not in lost}, networks=results.networks[~results.networks.method.isin(lost)])
    table = league_table(league(left, True), left)
    assert table.loc['Half', 'memory left, % ↓'] == '–' and table.loc['Half', 'lineages'] == 0 and table.loc['Nothing', 'lineages'] == 8
    assert 'Half (10 %)' not in {t.get_text() for t in plot_league(league(left, True), left).axes[0].texts}


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
    assert (table['memory left, % ↓'] == 'nothing was remembered').all() and (table['mark, %'] == '–').all()
    assert not plot_league(found, results).axes[0].texts


def test_table_and_picture():
    results = made_up(dict(half=0.5, nothing=0.))
    found = league(results, True)
    table = league_table(found, results)
    assert list(table.index) == ['Nothing', 'Half', 'Retrain, once more', 'No Unlearning']  # the least memory first
    ax, = plot_league(found, results).axes
    assert {t.get_text() for t in ax.texts} == {'Nothing (10 %)', 'Half (10 %)', 'No Unlearning'}


def test_yardsticks_agree_where_they_measure_one_thing():
    results = made_up(dict(half=0.5, nothing=0., most=0.9), remembered=0.9)
    measured = yardsticks(results)
    assert measured['U-LiRA']['reference'] < measured['U-LiRA']['half'] < measured['U-LiRA']['original']
    assert measured['ToW']['nothing'] > measured['ToW']['half'] > measured['ToW']['original']
    assert np.isnan(measured['MIA gap']['reference']) and measured['MIA gap']['original'] > measured['MIA gap']['half']
    order = agreement(league(results, True), measured)
    assert order.loc['|memory left|', 'MIA gap'] == order.loc['|memory left|', 'ToW'] == order.loc['U-LiRA', 'ToW'] == 1
