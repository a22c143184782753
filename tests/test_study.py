"""Whole studies, tiny: what is skipped, what is repeated, what a kill leaves behind, what a lost seed does to the tables."""
import json, os, shutil, signal, subprocess, sys, textwrap, zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
from safetensors.numpy import load_file

import unlearning
from unlearning import study as study_module
from unlearning.load import load_split
from unlearning.ensemble import Store, Task, Unfit, describe, environment
from unlearning.images import ImageFile, in_memory, make_split, save_split
from unlearning.methods.finetune import finetune
from unlearning.methods.random_labels import RandomLabels, random_labels
from unlearning.metrics.accuracy import accuracy
from unlearning.metrics.forget_quality import forget_quality, statistic
from unlearning.metrics.membership_inference import PAPER_ATTACKS, mia_gaps, svc_mia
from unlearning.report import (ATTACKS, CLAIMS, PAPER_NAMES, _half, chance_table, claims_hold, forget_table, mia_table, paper_claims, paper_summary, recompute_paper,
                               plot_accuracy, plot_cost, plot_forget_quality, plot_losses, plot_mia_gaps, plot_tradeoff, plot_witness, protocol,
                               resampled_gaps, save_report, summary, witness)
from unlearning.parameters import check_parameters
from unlearning.models import create_model
from unlearning.study import (Answers, Results, Study, forget_qualities, half, listing, logits_in, measured_rows, measurements, network_tasks, pack, recipe_settings, run_study,
                              split_in, training_seed, unpack, weights_in)
from unlearning.training import Training, cross_entropy, fit, logits
from unlearning.files import read_arrays, write_arrays
from unlearning.unlearn import Edit, Erase, ForgetLoss, Recipe, Repair

REPAIR = Training(epochs=1, batch_size=32, lr=0.05, augment=())
RECIPES = dict(finetune=finetune(repair=REPAIR), random_labels=random_labels(erase=dict(batch_size=20, lr=0.01), repair=REPAIR))


def tiny(folder, **changes):
    split = load_split('digits', forget=90, subset=200)
    settings = dict(recipes=RECIPES, training=Training(epochs=2, batch_size=32, lr=0.1, augment=()), seeds=2, permutations=3, jobs=1) | changes
    return Study(split, folder=folder, **settings)


def run(study): return run_study(study, progress=False)
def files(folder): return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in Path(folder).iterdir()}
def kinds(names): return sorted(f'{method}-{int(seed)}' for method, seed, _ in (name.rsplit('-', 2) for name in names))
def networks(folder): return sorted(p for p in Path(folder).glob('*.safetensors') if not p.name.startswith(('measure-', 'split-')))


def logits_of(folder):
    return {p.name: load_file(p) for p in networks(folder)}


def assert_same_logits(a, b):
    assert a.keys() == b.keys() and len(a) == 7  # the original; two networks for Retrain and for each recipe
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]: np.testing.assert_array_equal(a[name][key], b[name][key], err_msg=f'{key} of {name}')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    study = tiny(tmp_path_factory.mktemp('finished'))
    return study, run(study)


@pytest.fixture
def copied(finished, tmp_path):
    """A folder with the finished study in it, for a test to change."""
    shutil.copytree(finished[0].folder, tmp_path/'study')
    return tmp_path/'study'


# Finished work

def test_second_run_computes_nothing(copied, finished):
    before = files(copied)
    again = run(tiny(copied))
    assert files(copied) == before
    assert again.networks.equals(finished[1].networks) and again.quality.equals(finished[1].quality)


def measured(*names): return [f'measure-{name}' for name in names]
def both(*methods): return [f'{m}-{k}' for m in methods for k in (0, 1)]

EACH = both('finetune', 'random_labels', 'retrain')
CHANGES = {
    'permutations': (dict(permutations=4), []),
    'jobs': (dict(jobs=2), []),
    'name of the source': (dict(recipes=RECIPES | dict(finetune=finetune(repair=REPAIR, source='another source'))), []),
    'one recipe': (dict(recipes=RECIPES | dict(finetune=finetune(repair=replace(REPAIR, lr=0.06)))), [*both('finetune'), *measured(*both('finetune'))]),
    'a new recipe': (dict(recipes=RECIPES | dict(longer=finetune(repair=replace(REPAIR, epochs=2)))), [*both('longer'), *measured(*both('longer'))]),
    'a recipe less': (dict(recipes=dict(finetune=RECIPES['finetune'])), []),
    'one more seed': (dict(seeds=3), [f'{p}{m}-2' for m in ('finetune', 'random_labels', 'retrain') for p in ('', 'measure-')]),
    'samples': (dict(samples=50), measured('original-0', *EACH)),
    'training': (dict(training=Training(epochs=1, batch_size=32, lr=0.1, augment=())), ['original-0', *EACH, *measured('original-0', *EACH)]),
}


@pytest.mark.parametrize('change', CHANGES)
def test_change_repeats_only_what_it_touches(copied, change):
    settings, repeated = CHANGES[change]
    before = files(copied)
    run(tiny(copied, **settings))
    after = files(copied)
    assert kinds(after.keys() - before.keys()) == sorted(repeated)
    assert {name: after.get(name) for name in before} == before


def test_a_study_waits_for_its_own_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, 'synchronize', waited.append)
    assert study_module.timed(lambda: 3, 'cuda:1')[0] == 3 and waited == ['cuda:1']


@pytest.mark.parametrize('native, type_', [(True, 'bfloat16'), (False, 'float32')])
def test_precision_is_decided_where_the_study_begins(tmp_path, monkeypatch, native, type_):
    """Of the training and of every repair that leaves it open: by name in the keys and under the tables."""
    monkeypatch.setattr('unlearning.training.native_bfloat16', lambda: native)
    own = RECIPES['finetune'].change_training(precision='float32')
    study = tiny(tmp_path, recipes=RECIPES | dict(own=own), seeds=2)
    repairs = {name: [p.training.precision for p in r.phases if isinstance(p, Repair)] for name, r in study.recipes.items()}
    assert study.training.precision == type_ and repairs == dict(finetune=[type_], random_labels=[type_], own=['float32'])
    tasks = network_tasks(study)
    assert all(t.settings['training']['precision'] == type_ for t in tasks['retrain'])
    named = tiny(tmp_path, recipes=RECIPES, training=replace(study.training, precision=type_))
    assert [t.key for t in network_tasks(named)['retrain']] == [t.key for t in tasks['retrain']]
    on_gpus = tiny(tmp_path, device='cuda', scheduler='tcp://somewhere:8786')
    assert on_gpus.training.precision == 'float16'
    said = protocol(run(study))
    assert f'augmentation none, {type_})' in said and ('Repairs in bfloat16 and float32.' in said) == native


def test_repairs_on_otherwise_smoothed_labels_are_named(finished):
    """They move the confidence on every image, and so F."""
    results = finished[1]
    softer = replace(results, facts=results.facts | dict(training=results.facts['training'] | dict(label_smoothing=0.3)))
    assert 'Labels smoothed otherwise in repairs: Finetune, Random Labels.' in protocol(softer)
    assert 'smoothed otherwise' not in protocol(results)


def test_another_split_repeats_all(copied):
    before = files(copied)
    run(replace(tiny(copied), split=load_split('digits', forget=90, subset=200, seed=1)))
    assert len(files(copied)) == 2 * len(before)


def test_another_version_repeats_all(copied, monkeypatch):
    before = len(networks(copied))
    monkeypatch.setattr(unlearning, '__version__', '99')
    run(tiny(copied))
    assert len(networks(copied)) == 2 * before


def test_records_tell_how_they_came_about(finished):
    for path in networks(finished[0].folder):
        with safetensors.safe_open(path, 'np') as f: record = json.loads(f.metadata()['record'])
        assert record['environment'] == environment() and record['facts']['seconds'] > 0 and path.name.startswith(record['method'])
        assert record['settings']


def test_environments_are_those_of_the_records(copied):
    """Not that of the process which reads them; where two differ, both are named."""
    path = networks(copied)[0]
    arrays, header = read_arrays(path)
    write_arrays(path, arrays, header | dict(environment=header['environment'] | dict(torch='1.0', cores=64)))
    want = environment() | dict(torch=f'1.0 and {environment()["torch"]}', cores=' and '.join(sorted(['64', str(environment()['cores'])])))
    assert run(tiny(copied)).facts['environment'] == want


# Interruption

INTERRUPTED = '''
    import os, sys, time
    sys.path[:0] = {path!r}
    import test_study
    from unlearning import files

    save, saved = files.save, []
    def half(arrays, metadata):
        if len(saved) < {after}:
            saved.append(1)
            return save(arrays, metadata)
        def wait(file):
            print('ready', flush=True)
            time.sleep(600)
        files.os.fsync = wait
        return save(arrays, metadata)[:1000]  # half a record
    files.save = half
    test_study.run(test_study.tiny({folder!r}))
'''


@pytest.mark.parametrize('after', [2, 5, 9], ids=['while training', 'while unlearning', 'while measuring'])
def test_killed_study_goes_on_to_the_same_logits(tmp_path, finished, after):
    """SIGKILL in the middle of writing a record."""
    path = [str(Path(unlearning.__file__).parent.parent), str(Path(__file__).parent)]
    code = textwrap.dedent(INTERRUPTED.format(path=path, folder=str(tmp_path/'study'), after=after))
    child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, start_new_session=True, text=True)
    try: assert child.stdout.readline() == 'ready\n'
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    left = files(tmp_path/'study')
    assert sum(name.endswith('.part') for name in left) == sum(name.endswith('.claim') for name in left) == 1
    assert sum(name.endswith('.safetensors') for name in left) == after + 1  # and the split

    results = run(tiny(tmp_path/'study'))

    assert_same_logits(logits_of(tmp_path/'study'), logits_of(finished[0].folder))
    assert results.quality.equals(finished[1].quality)
    now = files(tmp_path/'study')
    assert all(now[name] == facts for name, facts in left.items() if name.endswith('.safetensors'))  # nothing was repeated
    assert all(name.endswith('.safetensors') for name in now)  # nothing was left lying about


def test_part_file_is_not_a_record(copied, finished):
    task = network_tasks(tiny(copied))['finetune'][1]
    path = Store(copied).path(task)
    path.rename(f'{path}.123.part')
    assert task not in Store(copied)
    run(tiny(copied))
    assert load_file(path).keys()
    assert_same_logits(logits_of(copied), logits_of(finished[0].folder))


@pytest.mark.parametrize('of', ['network', 'measurement', 'original', 'split'])
def test_truncated_file_is_named_set_aside_and_made_anew(copied, finished, of):
    tasks = network_tasks(tiny(copied))
    path = {'network': Store(copied).path(tasks['finetune'][0]), 'original': Store(copied).path(tasks['original'][0]),
            'measurement': next(Path(copied).glob('measure-finetune-000-*')), 'split': next(Path(copied).glob('split-*'))}[of]
    path.write_bytes(path.read_bytes()[:-8])
    before = files(copied)
    with pytest.warns(UserWarning, match=f'{path.name} is .*set aside as {path.name}.damaged') as said: results = run(tiny(copied))
    now = files(copied)
    assert len(said) == 1, [str(w) for w in said]
    assert now.keys() - before.keys() == {f'{path.name}.damaged'}
    assert {name for name in before if now[name] != before[name]} == {path.name}  # nothing else was repeated
    assert_same_logits(logits_of(copied), logits_of(finished[0].folder))
    assert results.quality.equals(finished[1].quality)


def test_processes_do_not_change_the_logits(tmp_path, finished):
    run(tiny(tmp_path, jobs=2))
    assert_same_logits(logits_of(tmp_path), logits_of(finished[0].folder))


# Lost seeds

def figures(results):
    import matplotlib.pyplot as plt
    for plot in (plot_losses, plot_accuracy, plot_mia_gaps, plot_forget_quality, plot_tradeoff, plot_cost): plot(results)
    plt.close('all')


@pytest.mark.parametrize('phase', ['erase', 'repair'])
def test_diverging_method_is_reported_and_the_tables_stand(copied, phase):
    wild = dict(erase=random_labels(erase=dict(passes=2, batch_size=5, lr=1e30), repair=REPAIR), repair=finetune(repair=replace(REPAIR, lr=1e30)))[phase]
    results = run(tiny(copied, recipes=RECIPES | dict(wild=wild)))
    assert set(results.failures) == {('wild', 0), ('wild', 1)} and all('lower' in why for why in results.failures.values())
    assert 'wild' not in set(results.networks.method) | set(results.quality.method) and len(results.networks) == 7
    text = save_report(results, copied).read_text()
    assert 'Lost seeds: wild seed 0: the loss is' in text or 'Lost seeds: wild seed 0: a loss is' in text
    assert results.facts['titles']['finetune'] in text
    figures(results)


@dataclass(frozen=True)
class LosesOneSeed(RandomLabels):
    seed: int = 1
    def __call__(self, run, forget, retain):
        return super().__call__(run, forget, retain) * (float('nan') if run.seed == self.seed else 1)


@pytest.mark.parametrize('seeds', [2, 3])
def test_one_lost_seed_leaves_the_others(copied, seeds):
    fragile = RECIPES['random_labels'].change(Erase, forget=LosesOneSeed())
    results = run(tiny(copied, recipes=dict(fragile=fragile), seeds=seeds))
    assert list(results.failures) == [('fragile', 1)]
    table = summary(results)
    assert table.seeds['fragile'] == seeds - 1 and np.isfinite(table.mean_gap['fragile'])
    assert np.isfinite(table.F_paper['fragile']) == (seeds == 3)  # one network is no distribution
    title = results.facts['titles']['fragile']
    assert title in mia_table(results).index and title in forget_table(results).index and f'{title} seed 1' in protocol(results)
    figures(results)


def test_network_that_diverges_in_its_last_step_is_a_lost_seed(copied):
    """No later loss reveals it, only the logits."""
    results = run(tiny(copied, recipes=RECIPES | dict(wild=finetune(repair=replace(REPAIR, epochs=0.01, lr=1e38, schedule='constant')))))
    assert set(results.failures) == {('wild', 0), ('wild', 1)} and len(results.networks) == 7


def test_failing_code_is_not_a_lost_seed(copied):
    with pytest.raises(RuntimeError, match='broken, seed 0: NotImplementedError.*does not say what a forget batch is taught'):
        run(tiny(copied, recipes=dict(broken=RECIPES['random_labels'].change(Erase, forget=ForgetLoss()))))


# Names

@pytest.mark.parametrize('name', ['a/b', '../up'])
def test_row_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match='cannot name a row'): run(tiny(tmp_path, recipes={name: RECIPES['finetune']}))
    assert list(tmp_path.glob('*.safetensors')) == []


@pytest.mark.parametrize('name', ['soft+surgery', 'trial#3', 'two words', 'größer', 'measure-x'])
def test_row_name_may_be_any_file_name(copied, name):
    results = run(tiny(copied, recipes={name: RECIPES['finetune']}))
    assert list(summary(results).index) == ['retrain', name, 'original']


@pytest.mark.parametrize('name', ['original', 'retrain', 'reference', 'control-finetune', 'control-'])
def test_row_names_of_the_study_are_taken(tmp_path, name):
    with pytest.raises(ValueError, match=f'may not be named {name!r}'): tiny(tmp_path, recipes={name: RECIPES['finetune']})


# Results

def test_frames_have_their_columns(finished):
    _, results = finished
    assert list(results.networks.columns) == ['method', 'seed', 'RA', 'TA', 'UA', 'correctness', 'confidence', 'entropy', 'm_entropy', 'prob', 'seconds', 'passes']
    assert sorted(zip(results.networks.method, results.networks.seed)) == sorted([('original', 0), *((m, k) for m in ('retrain', *RECIPES) for k in (0, 1))])
    assert list(results.quality.columns) == ['method', 'protocol', 'F', 'ceiling', 'ceiling_sd', 'total']
    assert sorted(zip(results.quality.method, results.quality.protocol)) == sorted((m, p) for m in RECIPES for p in ('paper', 'challenge'))
    scores = results.networks.drop(columns=['method', 'seconds', 'seed', 'passes'])
    assert ((scores >= 0) & (scores <= 100)).all(axis=None) and (results.networks.seconds > 0).all()
    assert results.failures == {} and results.facts['K'] == 2 and results.facts['forget'] == len(finished[0].split.forget)


@pytest.fixture(scope='module')
def stored(finished):
    """The logits in the folder, by method: a list over seeds."""
    study, _ = finished
    return {m: [load_file(Store(study.folder).path(t)) for t in row] for m, row in network_tasks(study).items()}


@pytest.mark.parametrize('protocol', ['paper', 'challenge'])
@pytest.mark.parametrize('method', RECIPES)
def test_forget_quality_follows_from_the_stored_logits(finished, stored, method, protocol):
    study, results = finished
    labels = study.split.forget.labels.numpy()
    values = {m: np.stack([statistic(arrays['forget'], labels) for arrays in stored[m]]) for m in (method, 'retrain')}
    want = forget_quality(values[method], values['retrain'], protocol, study.permutations)
    row = results.quality.set_index(['method', 'protocol']).loc[method, protocol]
    assert (row.F, row.ceiling, row.ceiling_sd) == (want.F, want.ceiling, want.ceiling_sd)


def test_total_score_weighs_utility(finished):
    """With more networks than the tiny study has: two can always be told from two, and F is 0."""
    study, results = finished
    rng = np.random.default_rng(0)
    values = {m: rng.normal(size=(8, 30)) for m in ('retrain', *RECIPES)}
    mean = results.networks.groupby('method').mean(numeric_only=True)
    for row in study_module.forget_qualities(study, results.networks, values).itertuples():
        want = forget_quality(values[row.method], values['retrain'], row.protocol, study.permutations)
        ratios = [mean.loc[row.method, part] / mean.loc['retrain', part] for part in ('RA', 'TA')]
        assert row.F == want.F > 0 and row.total == pytest.approx(row.F * ratios[0] * ratios[1]) and ratios[0] != ratios[1]


def test_retrained_networks_that_are_never_right_on_test_leave_the_other_figures():
    rng = np.random.default_rng(0)
    never = pd.DataFrame([dict(method=m, seed=k, RA=99., TA=0.) for m in ('retrain', 'finetune') for k in range(2)])
    quality = forget_qualities(SimpleNamespace(permutations=0), never, {m: rng.normal(size=(2, 5)) for m in ('retrain', 'finetune')})
    assert quality.F.notna().all() and quality.total.isna().all()


def test_scores_follow_from_the_stored_logits(finished, stored):
    study, results = finished
    pairs = {part: (stored['retrain'][1][part], getattr(study.split, part).labels.numpy()) for part in ('retain', 'test', 'forget')}
    want = svc_mia(*pairs['retain'], *pairs['test'], *pairs['forget']) | {name: accuracy(*pairs[part]) for part, name in study_module.PARTS.items()}
    row = results.networks.query('method == "retrain" and seed == 1').iloc[0]
    assert {k: row[k] for k in want} == pytest.approx(want)


def test_gaps_are_those_of_the_means(finished):
    _, results = finished
    mean, table = results.networks.groupby('method').mean(numeric_only=True), summary(results)
    for method in mean.index:
        gaps = {a: abs(mean.loc[method, a] - mean.loc['retrain', a]) for a in ATTACKS}
        assert {a: table.loc[method, f'{a}_gap'] for a in ATTACKS} == pytest.approx(gaps)
        four = [gaps[a] for a in ('correctness', 'confidence', 'entropy', 'prob')]  # the paper's
        assert (table.mean_gap[method], table.largest_gap[method]) == pytest.approx((np.mean(four), max(four)))
        assert table.time[method] == pytest.approx(100 * mean.seconds[method] / mean.seconds['retrain'])


def test_retrained_networks_are_of_their_own(finished, stored):
    """Other weights than the original's from the start, and for every seed."""
    first, second = (a['test'] for a in stored['retrain'])
    assert not np.allclose(first, second) and not np.allclose(first, stored['original'][0]['test'])


def test_methods_start_from_the_stored_original(copied, stored):
    """A recipe that changes nothing gives its logits back, bit by bit."""
    class Still(Edit):
        def edit(self, run): return 1
    run(tiny(copied, recipes=dict(still=Recipe(name='still', phases=(Still(),)))))
    for path in copied.glob('still-*'):
        for part, values in load_file(path).items(): np.testing.assert_array_equal(values, stored['original'][0][part])


# Parameters of a notebook

@pytest.mark.parametrize('value, kind', [(1.5, int), ('3', int), (True, int), (1, str), (1, bool), ((1,), list), (None, float), (True, float)])
def test_parameter_of_another_type_is_refused(value, kind):
    with pytest.raises(ValueError, match=f'parameter x is .* it has to be of type {kind.__name__}'): check_parameters(dict(__annotations__=dict(x=kind), x=value), [])


def test_whole_number_may_stand_for_a_float():
    assert check_parameters(dict(__annotations__=dict(x=float), x=1), []) == dict(x=1)


# What the report says beyond the tables

def test_separation_is_counted_pair_by_pair(finished):
    """In every retrained network and the original: how often an image of one part is more confident than one of the other."""
    study, results = finished
    assert [tuple(r) for r in results.separation[['method', 'seed']].to_numpy()] == [('retrain', 0), ('retrain', 1), ('original', 0)]
    for row in results.separation.to_dict('records'):
        arrays = load_file(next(Path(study.folder).glob(f"{row['method']}-{row['seed']:03d}-*")))
        value = {part: statistic(arrays[part], getattr(study.split, part).labels.numpy()) for part in ('retain', 'forget', 'test')}
        for one, other in (('forget', 'test'), ('retain', 'forget'), ('retain', 'test')):
            wins = np.sign(value[one][:, None] - value[other][None]).mean()
            assert row[f'{one} above {other}'] == pytest.approx(50 + 50 * wins, abs=1e-3)
    told = witness(results)
    assert list(told.index) == ['Retrain', 'No Unlearning'] and told['forget above test'].str.contains(' ± ').tolist() == [True, False]


def of_the_papers_rows(K, gap=None, shift=None):
    "A study of the paper's nine rows: each's mean MIA gap [points], give or take a half, and how far its answers lie from Retrain's."
    rng, rows = np.random.default_rng(0), list(PAPER_NAMES.values())
    gap, shift = dict.fromkeys(rows, 5.) | (gap or {}), dict.fromkeys(rows, 0.2) | (shift or {})
    def network(m, k):
        scores = 50 + gap[m] * (m != 'retrain') + rng.normal(0, 0.5)
        return dict(method=m, seed=k, RA=rng.normal(90, 1), TA=80., UA=80., passes=1., seconds=1.) | dict.fromkeys(ATTACKS, scores)
    networks = pd.DataFrame([network(m, k) for m in rows for k in range(K)])
    sure = {m: rng.normal(shift[m] * (m != 'retrain'), 0.1, (K, 200)) for m in rows}
    answers = {m: Answers(np.arange(K), dict(forget=v), {}) for m, v in sure.items()}
    quality = forget_qualities(SimpleNamespace(permutations=2), networks, sure)
    facts = dict(titles={m: m for m in rows}, data='made up', K=K, originals='each')
    return Results(networks, quality, None, {}, facts, {}, networks[:0], answers)


def test_claims_of_the_paper_that_hold_in_a_study_and_those_that_depend_on_the_draw():
    results = of_the_papers_rows(8, dict(gradient_surgery=1., activation_pruning=20.), dict(gradient_surgery=0.1, activation_pruning=0.))
    found = paper_claims(results, 'cifar10')
    assert found.loc['Gradient Surgery has the smallest mean MIA gap'].tolist() == ['yes', 'yes', '100']
    assert found.loc['Gradient Surgery has the best F of the three'].tolist() == ['no', 'no', '0']
    assert found.loc["Activation Pruning's F is among the existing ones'"].tolist() == ['no', 'no', '0']
    found = paper_claims(results, 'celeba')
    assert found.loc['Activation Pruning has the best F'].tolist() == ['yes', 'yes', '100']
    assert found.loc["Gradient Surgery's F is above the existing ones'"].tolist() == ['no', 'yes', '100']
    mixed = replace(results, networks=results.networks.sample(frac=1, random_state=0))
    assert found.equals(paper_claims(mixed, 'celeba'))  # the same seed, the same halves, however the networks are listed
    alike = paper_claims(of_the_papers_rows(8), 'celeba', draws=400)
    assert 0 < int(alike.loc['Activation Pruning has the largest mean MIA gap', 'halves [%]']) < 100  # one of seven that are alike


def test_a_half_is_measured_as_a_study_of_its_networks():
    results, last = of_the_papers_rows(8, dict(scrub=9.)), SimpleNamespace(permutation=lambda n: np.arange(n)[::-1])
    groups = dict(list(results.networks.groupby('method')))
    half = _half(results, groups, last)
    kept = results.networks[results.networks.seed >= 4].groupby('method')[['RA', *PAPER_ATTACKS]].mean()
    assert half.RA.to_dict() == pytest.approx(kept.RA.to_dict()) and half.mean_gap['retrain'] == 0
    assert half.mean_gap['scrub'] == pytest.approx(abs(kept.loc['scrub', 'prob'] - kept.loc['retrain', 'prob']))
    ours, theirs = (results.answers[m].confidence['forget'][4:] for m in ('scrub', 'retrain'))
    assert half.F_paper['scrub'] == forget_quality(ours, theirs, permutations=0).F != forget_quality(ours[::-1] + 1, theirs, permutations=0).F
    rng = np.random.default_rng(0)
    spread = np.std([_half(results, groups, rng).RA['scrub'] for _ in range(300)])
    assert spread == pytest.approx(groups['scrub'].RA.std() / 8 ** 0.5, rel=0.15)


@pytest.mark.parametrize('ask', [paper_summary, recompute_paper, lambda dataset: paper_claims(of_the_papers_rows(2), dataset)])
def test_a_data_set_that_the_paper_has_not_is_named_with_those_it_has(ask):
    for name in ('CIFAR10', 'svhn', None):
        with pytest.raises(ValueError, match=f"dataset is {name!r}: expected cifar10 or celeba"): ask(name)


def test_a_claim_that_compares_what_is_not_there_has_no_answer_and_what_is_equal_is_not_above():
    table, best = paper_summary('celeba'), 'Activation Pruning has the best F'
    assert claims_hold(table, 'celeba')[best] is True
    assert claims_hold(table.drop('scrub'), 'celeba')[best] is None
    assert claims_hold(table.assign(F_paper=float('nan')), 'celeba')[best] is None
    assert claims_hold(table.assign(F_paper=0.1), 'celeba')[best] is False
    left = of_the_papers_rows(4)
    left = replace(left, networks=left.networks.query('method != "gradient_surgery"'))
    found = paper_claims(left, 'celeba')
    there = [m for m, claim in CLAIMS['celeba'].items() if 'gradient_surgery' not in (claim.row, *claim.others)]
    assert set(found.index[found.here != '–']) == set(found.index[found['halves [%]'] != '–']) == set(there) and len(there) == 2


def test_two_networks_have_no_halves_and_a_hybrid_that_lost_some_takes_none_away():
    assert set(paper_claims(of_the_papers_rows(2), 'celeba')['halves [%]']) == {'–'}
    results = of_the_papers_rows(4)
    hybrid = results.networks.query('method == "scrub" and seed < 2').assign(method='soft+surgery')
    more = replace(results, networks=pd.concat([results.networks, hybrid]))
    assert paper_claims(more, 'celeba').equals(paper_claims(results, 'celeba')) and '–' not in set(paper_claims(more, 'celeba')['halves [%]'])


def test_resampled_gaps_are_gaps_of_redrawn_rows(finished):
    """With two seeds a row there are few draws that can come out, and all of them do."""
    _, results = finished
    rng = np.random.default_rng(0)
    results = replace(results, networks=results.networks.assign(**{a: rng.uniform(0, 100, len(results.networks)) for a in ATTACKS}))
    scores = {m: f[list(ATTACKS)] for m, f in results.networks.groupby('method')}
    ways = lambda m: [scores[m].iloc[list(k)].mean().to_dict() for k in ((0, 0), (0, 1), (1, 1))]
    gaps = resampled_gaps(results, draws=300)
    for method in ('finetune', 'retrain'):
        possible = {round(mia_gaps(a, b)['mean'], 4) for a in ways(method) for b in ways('retrain')}
        assert set(gaps[method].round(4)) == possible and len(possible) > 2
    table, name = chance_table(results), results.facts['titles']
    perfect, far = table.loc['A perfect unlearner'], 'perfection is as far [% of draws]'
    assert perfect['mean gap'] == pytest.approx(resampled_gaps(results).retrain.mean(), abs=0.05) and 0 < perfect[far] < 100
    nearer = f"nearer than {name['finetune']} [% of draws]"  # the study's first method
    assert table.loc[name['finetune'], nearer] == 0 and 'Retrain' not in table.index
    placed = results.networks.assign(**{a: results.networks.method.map(dict(retrain=50., finetune=40., random_labels=45., original=30.)) for a in ATTACKS})
    found = chance_table(replace(results, networks=placed))[nearer]
    assert found[[name['random_labels'], 'No Unlearning']].tolist() == [100, 0]
    none = replace(results, networks=results.networks.query('method != "finetune"'))  # a study need not have it
    assert not any(name['finetune'] in str(c) for c in [*chance_table(none), *chance_table(none).index])
    assert f"nearer than {name['random_labels']} [% of draws]" in chance_table(none, than='random_labels')


def scattered(rng, K, left, sd=3.):
    """A study whose networks are all alike but for chance: K retrained, one original, and a method that has some left."""
    rows = dict(retrain=K, finetune=left, original=1)
    networks = pd.DataFrame([dict(method=m, seed=k, RA=90., TA=80., UA=80., passes=1., seconds=1.) | {a: rng.normal(50, sd) for a in ATTACKS}
                             for m, n in rows.items() for k in range(n)])
    facts = dict(titles={m: m for m in rows}, data='made up', K=K, originals='one')
    quality = pd.DataFrame(columns=['method', 'protocol', 'F', 'ceiling', 'ceiling_sd', 'total'])
    return Results(networks, quality, None, {}, facts, {}, networks[:0], {})


@pytest.mark.parametrize('left', [8, 2])
def test_a_row_that_lost_networks_is_measured_by_a_perfect_unlearner_that_lost_as_many(left):
    """Of perfect unlearners some 5 to 15 % are called not perfect (bootstraps of few are narrow), however many networks are left."""
    rng, far = np.random.default_rng(0), 'perfection is as far [% of draws]'
    shares = np.array([chance_table(scattered(rng, 8, left), draws=100)[far]['finetune'] for _ in range(40)])
    assert np.mean(shares <= 5) < 0.25


def test_a_perfect_unlearner_of_fewer_networks_strays_farther():
    results = scattered(np.random.default_rng(0), 8, 8)
    strays = [resampled_gaps(results, networks=n).retrain.mean() for n in (8, 4, 2, 1)]
    assert strays == sorted(strays) and strays[-1] > 1.5 * strays[0]
    assert resampled_gaps(results, networks=8).equals(resampled_gaps(scattered(np.random.default_rng(0), 8, 8), networks=8))


def test_a_method_left_with_one_network_has_no_plus_minus():
    results = scattered(np.random.default_rng(0), 8, 1)
    table, s = mia_table(results)['mean gap ↓'], summary(results)
    assert '±' not in table['finetune'] and '±' in table['original'] and np.isnan(s.mean_gap_se['finetune'])
    plot_cost(results), plot_mia_gaps(results)


def test_the_error_of_a_mean_gap_is_how_far_it_strays_over_studies():
    """Where the gap is large, so that no attack's sign is in doubt: that of the mean of four attacks over two rows."""
    rng, K = np.random.default_rng(0), 16
    def study():
        results = scattered(rng, K, K)
        away = results.networks.method.eq('finetune').to_numpy()[:, None] * 30.
        return replace(results, networks=results.networks.assign(**(results.networks[list(ATTACKS)] + away)))
    rows = [summary(study()).loc['finetune'] for _ in range(40)]
    true = 3 * (2 / K / 4) ** 0.5
    assert np.mean([row.mean_gap_se for row in rows]) == pytest.approx(true, rel=0.1)
    assert np.std([row.mean_gap for row in rows]) == pytest.approx(true, rel=0.3)


@pytest.mark.parametrize('wrong, says', [(dict(samples=1000), 'samples is 1000, with 180 retain and 899 test images: ask for 1 to 180'), (dict(samples=0), 'samples is 0'),
                                         (dict(device='gpu'), "device is 'gpu': use 'cpu' or 'cuda'"), (dict(device='cuda'), "device is 'cuda', and torch finds no GPU here")])
def test_a_study_that_could_not_end_is_refused_before_it_begins(tmp_path, monkeypatch, wrong, says):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=says): run(tiny(tmp_path, **wrong))
    assert not list(tmp_path.iterdir())


K_NETWORKS, ONE = 'digits, K = 2', 'digits, one network of each'
SAYS = {K_NETWORKS: [plot_accuracy, plot_cost, plot_forget_quality, plot_mia_gaps, plot_tradeoff], ONE: [plot_losses, plot_witness]}


@pytest.mark.parametrize('plot, says', [(plot, says) for says, plots in SAYS.items() for plot in plots])
def test_figure_says_what_it_was_made_from(finished, plot, says):
    assert any(says in text.get_text() for text in plot(finished[1]).texts)


# Several originals, controls, a reference

class Still(Edit):
    """A recipe that changes nothing, so that it tells where it started."""
    def edit(self, run): return 1


STILL = dict(still=Recipe(name='still', phases=(Still(),)))
ALL = dict(originals='each', control=True, reference=True)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    study = tiny(tmp_path_factory.mktemp('full'), recipes=RECIPES | STILL, **ALL)
    return study, run(study)


@pytest.fixture
def copied_full(full, tmp_path):
    shutil.copytree(full[0].folder, tmp_path/'study')
    return replace(full[0], folder=tmp_path/'study')


def records(study): return {m: [Store(study.folder).load(t)[0] for t in row] for m, row in network_tasks(study).items()}


def test_seeds_and_keys_are_those_of_earlier_studies(finished, full):
    """A folder of days is found again, with one original or as the first of several."""
    study, split = finished[0], finished[0].split
    settings = dict(split=split.fingerprint, network='small', training=describe(study.training), device='cpu')
    original = Task('original', 0, settings)
    want = dict(original=[original.key], retrain=[Task('retrain', k, settings).key for k in (0, 1)])
    want |= {m: [Task(m, k, dict(original=original.key, recipe=recipe_settings(study.recipes[m]))).key for k in (0, 1)] for m in RECIPES}
    assert {m: [t.key for t in row] for m, row in network_tasks(study).items()} == want
    every = {m: [t.key for t in row] for m, row in network_tasks(full[0]).items()}
    assert all(every[m][0] == keys[0] for m, keys in want.items()) and every['retrain'] == want['retrain']
    for seed, images, of in ((0, split.train, ('original', 0)), (2, split.retain, ('retrain', 1))):
        model = create_model('small', 10, 1, 8, seed)
        fit(model, images, study.training, seed, cross_entropy(study.training, images, ()))
        np.testing.assert_array_equal(records(study)[of[0]][of[1]]['test'], half(logits(model, split.test)))


def test_no_two_networks_are_trained_with_one_seed():
    rows = [(m, k) for m in ('original', 'retrain', 'reference') for k in range(10_000)]
    assert len({training_seed(Task(m, k, {})) for m, k in rows}) == len(rows)


@pytest.mark.parametrize('originals', ['one', 'each'])
def test_where_methods_and_controls_start(full, tmp_path, originals):
    """Seed k from original k and retrained network k; or all from the first."""
    study = full[0] if originals == 'each' else tiny(tmp_path, recipes=STILL, originals='one', control=True)
    if originals == 'one': run(study)
    found = records(study)
    assert len(found['original']) == (2 if originals == 'each' else 1) and ('reference' in found) == (originals == 'each')
    for row, start in (('still', 'original'), ('control-still', 'retrain')):
        for k in (0, 1):
            came = found[start][k if originals == 'each' else 0]
            for part in study_module.PARTS: np.testing.assert_array_equal(found[row][k][part], came[part])
            task = network_tasks(study)[row][k]
            assert task.settings[start] == network_tasks(study)[start][k if originals == 'each' else 0].key


def test_control_is_the_same_recipe_and_seed(full):
    study, _ = full
    for k in (0, 1):
        task, control = (network_tasks(study)[m][k] for m in ('random_labels', 'control-random_labels'))
        assert task.settings['recipe'] == control.settings['recipe'] and task.seed == control.seed == k
    found = records(study)
    assert not np.array_equal(found['control-random_labels'][0]['forget'], found['retrain'][0]['forget'])
    assert not np.array_equal(found['control-random_labels'][0]['forget'], found['random_labels'][0]['forget'])


def test_an_original_of_another_network_than_what_is_retrained_is_refused(tmp_path):
    """As `replace` makes it of a study that has settled on a network."""
    split = load_split('digits', forget=30, subset=100)
    study, other = Study(split, {}, tmp_path), create_model('resnet18', 10, 1, 8)
    with pytest.raises(ValueError, match='leave network= out'): replace(study, original=other)
    assert replace(study, original=other, network=None).plan.network is not None
    assert replace(study, original=create_model('small', 10, 1, 8)).network == 'small'


def test_references_are_networks_of_their_own(full):
    found = records(full[0])
    rows = [a['test'] for m in ('original', 'retrain', 'reference') for a in found[m]]
    assert all(not np.allclose(a, b) for i, a in enumerate(rows) for b in rows[:i])
    assert {m for m, row in found.items() if all(map(weights_in, row))} == {'original', 'retrain'}
    assert not any(map(weights_in, found['reference']))


def test_more_originals_repeat_nothing(copied):
    before = files(copied)
    run(tiny(copied, originals='each', control=True, reference=True))
    now = files(copied)
    new = ['original-1', 'finetune-1', 'random_labels-1', *both('control-finetune', 'control-random_labels', 'reference')]
    assert kinds(now.keys() - before.keys()) == sorted([*new, *measured(*new)]) and before.items() <= now.items()
    run(tiny(copied, originals='each', seeds=3))
    new = [f'{m}-2' for m in ('original', 'retrain', *RECIPES)]
    assert kinds(files(copied).keys() - now.keys()) == sorted([*new, *measured(*new)])


@pytest.mark.parametrize('wrong, says', [
    (dict(originals='all'), "originals is 'all': pass 'one'.* or 'each'"), (dict(originals=2), 'originals is 2, a int: pass text'),
    (dict(originals='each', original=torch.nn.Flatten()), "original= is a single one: leave original= out.*or pass originals='one'"),
    (dict(control=1), 'control is 1, a int: pass True or False'), (dict(seeds=10_001), 'seeds is 10001: ask for at most 10,000')])
def test_what_cannot_be_asked_for(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says): tiny(tmp_path, **dict(dict(network='small'), **wrong))


def test_controls_and_reference_are_no_methods(full):
    study, results = full
    methods = {'retrain', 'original', *study.recipes}
    assert set(results.networks.method) == set(results.facts['titles']) == set(results.losses) == methods
    assert set(results.quality.method) == methods - {'retrain'}
    controls = {f'control-{m}' for m in study.recipes}
    assert set(results.beside.method) == set(results.facts['beside']) == {'reference', *controls}
    assert list(results.beside.columns) == list(results.networks.columns) and len(results.beside) == 2 * 4
    for beside, said in ({'control-finetune': 'Finetune on Retrain'}, True), ({'reference': 'Reference'}, False):
        assert (' Controls: the same on' in protocol(replace(results, facts=results.facts | dict(beside=beside)))) == said
    assert set(results.answers) == methods | {'reference', *controls}
    assert {'finetune', 'original'} <= set(summary(results).index) <= methods
    plain = run(tiny(study.folder, recipes=study.recipes, originals='each'))
    assert plain.networks.equals(results.networks) and plain.quality.equals(results.quality) and plain.beside.empty


def test_answers_are_those_of_the_records_in_the_order_of_seeds(full):
    study, results = full
    for method, row in records(study).items():
        answers = results.answers[method]
        assert answers.seeds.tolist() == [0, 1]
        for part in ('forget', 'test'):
            labels = getattr(study.split, part).labels.numpy()
            np.testing.assert_array_equal(answers.confidence[part], [statistic(a[part], labels) for a in row])
            np.testing.assert_array_equal(answers.correct[part], [a[part].argmax(1) == labels for a in row])
            frame = results.beside if method in set(results.beside.method) else results.networks
            shown = frame.query('method == @method')[study_module.PARTS[part]]
            assert shown.tolist() == pytest.approx((100 * answers.correct[part].mean(1)).tolist())


def test_passes(full):
    study, results = full
    n, m = len(study.split.retain), len(study.split.forget)
    passes = {k: set(v.passes) for k, v in [*results.networks.groupby('method'), *results.beside.groupby('method')]}
    assert passes['retrain'] == passes['reference'] == {100} and passes['original'] == {100 * (n + m) / n}
    assert passes['finetune'] == passes['control-finetune'] == {50}                  # one epoch of two
    assert passes['still'] == {100 * m / (2 * n)}                     # a look at the forget images
    given = tiny(study.folder, network='small', original=create_model('small', 10, 1, 8, 1))
    assert np.isnan(study_module.passes_of(given)['original'])


# Lost lineages

def losing(monkeypatch, *lost):
    trained = study_module.Maker.trained
    def sometimes(self, split, task):
        if (task.method, task.seed) in lost: raise FloatingPointError(f'{task.method} {task.seed} is nan')
        return trained(self, split, task)
    monkeypatch.setattr(study_module.Maker, 'trained', sometimes)


def test_lost_network_takes_its_own_lineage_only(tmp_path, monkeypatch):
    losing(monkeypatch, ('original', 1), ('retrain', 2))
    results = run(tiny(tmp_path, recipes=STILL, seeds=3, originals='each', control=True))
    assert set(results.failures) == {('original', 1), ('still', 1), ('retrain', 2), ('control-still', 2)}
    assert 'original 1, from which it starts, is not there: original 1 is nan' in results.failures['still', 1]
    assert {m: a.seeds.tolist() for m, a in results.answers.items()} == dict(
        original=[0, 2], still=[0, 2], retrain=[0, 1]) | {'control-still': [0, 1]}
    assert results.quality.method.tolist() == ['original'] * 2 + ['still'] * 2 and 'still' in summary(results).index


@pytest.mark.parametrize('originals, row, says', [('each', 'original', 'fewer than two original networks could be trained: original 0 is nan'),
                                                  ('each', 'retrain', 'fewer than two retrained networks could be trained: retrain 0 is nan'),
                                                  ('one', 'original', 'the original network could not be trained: original 0 is nan')])
def test_fewer_than_two_are_not_enough_nor_is_a_lost_only_original(tmp_path, monkeypatch, originals, row, says):
    losing(monkeypatch, (row, 0))
    with pytest.raises(FloatingPointError, match=says): run(tiny(tmp_path, recipes=STILL, originals=originals, control=True))
    assert not any(p.name.startswith('still') for p in networks(tmp_path))  # it is known before


def test_error_in_one_original_leaves_the_other_lineages(tmp_path, monkeypatch):
    trained = study_module.Maker.trained
    def broken(self, split, task):
        if (task.method, task.seed) == ('original', 2): raise MemoryError('no room')
        return trained(self, split, task)
    monkeypatch.setattr(study_module.Maker, 'trained', broken)
    with pytest.raises(RuntimeError, match=r'1 of the tasks failed[^(]*\n  original, seed 2: MemoryError: no room'):
        run(tiny(tmp_path, recipes=STILL, seeds=3, originals='each'))
    assert kinds(p.name for p in networks(tmp_path) if p.name.startswith('still')) == ['still-0', 'still-1']


# What is kept of a network

def as_earlier(folder):
    """Records as they were written before: float32, and retrained networks without weights."""
    for path in networks(folder):
        arrays, header = read_arrays(path)
        logits = {k: arrays[k].astype(np.float32) * np.float32(1 + 1e-6) for k in study_module.PARTS}  # what rounding took
        write_arrays(path, logits | (arrays if header['method'] == 'original' else {}) | logits, header)


def test_records_of_earlier_code_are_read(copied, finished):
    as_earlier(copied)
    before = files(copied)
    results = run(tiny(copied))
    assert files(copied) == before
    assert results.networks.equals(finished[1].networks) and results.quality.equals(finished[1].quality)
    for method, answers in finished[1].answers.items():
        for part in ('forget', 'test'): np.testing.assert_array_equal(results.answers[method].confidence[part], answers.confidence[part])


def test_control_does_not_start_from_a_record_without_weights(copied, finished):
    """It is made anew, with a word, and so is what was measured of it. Without a control it is used."""
    as_earlier(copied)
    before = files(copied)
    with pytest.warns(UserWarning, match='retrain-000-.* has no weights, from which the control would start: it is set aside') as said:
        results = run(tiny(copied, control=True))
    now = files(copied)
    assert len(said) == 1 and len(results.beside) == 4
    assert {n.rsplit('-', 1)[0] for n in before if now[n] != before[n]} == {'retrain-000', 'measure-retrain-000'}
    assert results.networks.drop(columns='seconds').equals(finished[1].networks.drop(columns='seconds'))


def test_logits_are_half_precision_with_the_same_likeliest_class():
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(20_000, 10)) * 10.0 ** rng.integers(-6, 6, (20_000, 1))).astype(np.float32)
    z[:100, 1] = np.nextafter(z[:100, 0], np.float32(np.inf))  # as near as can be
    kept = half(z)
    assert kept.dtype == np.float16 and np.isfinite(kept).all() and kept.min() == -65504
    assert (kept.argmax(1) == z.argmax(1)).all() and ((kept == 0) == (z == z.max(1, keepdims=True))).all()
    np.testing.assert_array_equal(half(kept), kept)
    near = z - z.max(1, keepdims=True)
    np.testing.assert_allclose(kept, near.clip(-65504), rtol=2**-10, atol=1e-7)


def test_of_many_retain_images_a_sample_is_measured(tmp_path, monkeypatch):
    """The same of every network; what stands in an earlier record beyond it is not used."""
    monkeypatch.setattr(study_module, 'SAMPLE', 100)
    study = tiny(tmp_path)
    results, n = run(study), len(study.split.retain)
    rows = measured_rows(n)
    assert len(rows) == 100 < n and (np.diff(rows) > 0).all() and (measured_rows(n) == rows).all() and rows[-1] > 100
    assert results.facts['retain_measured'] == 100 and results.losses['finetune']['retain'].shape == (100,)
    for path in networks(tmp_path):
        arrays, header = read_arrays(path)
        assert {part: (arrays[part].dtype, len(arrays[part])) for part in study_module.PARTS} == dict(
            retain=(np.float16, 100), forget=(np.float16, len(study.split.forget)), test=(np.float16, 899))
        shown = results.networks.query(f"method == '{header['method']}' and seed == {header['seed']}").RA.item()
        assert shown == accuracy(arrays['retain'], study.split.retain.labels.numpy()[rows])
    earlier = arrays | dict(retain=np.random.default_rng(0).normal(size=(n, 10)).astype(np.float32))
    np.testing.assert_array_equal(logits_in(earlier, study.split)['retain'], half(earlier['retain'][rows]))
    with pytest.raises(ValueError, match='samples is 150, with 100 retain'): replace(study, samples=150)


def test_the_sample_is_the_same_everywhere():
    assert measured_rows(45_000)[[0, 1, -1]].tolist() == [3, 6, 44998] and measured_rows(10_000).tolist() == list(range(10_000))


def test_measurements_of_earlier_logits_are_not_mixed_with_others(finished):
    of = next(iter(measurements(finished[0], network_tasks(finished[0]))))
    earlier = Task(f'measure-{of.method}', of.seed, dict(of=of.key, samples=None))
    assert measurements(finished[0], network_tasks(finished[0]))[of].key != earlier.key


def test_a_measurement_of_another_network_of_the_same_name_is_found_out(copied):
    """Its accuracies would stand beside the answers of this one."""
    study = tiny(copied)
    tasks, store = network_tasks(study), Store(copied)
    of = measurements(study, tasks)[tasks['retrain'][1]]
    _, scores = store.load(of)
    store.save(of, {}, {k: v for k, v in scores.items() if k != 'environment'} | dict(UA=scores['UA'] - 5))
    before = files(copied)
    with pytest.raises(ValueError, match=f'1 measurements, {of.filename} for one, are of other networks of the same names'): run(study)
    assert run(study).networks.UA.notna().all() and {n for n, f in files(copied).items() if before.get(n) != f} == {of.filename}


# From machine to machine

def test_packed_study_computes_nothing_where_it_is_unpacked(full, tmp_path):
    study, results = full
    (file,) = pack(study.folder, tmp_path/'study.zip')
    unpack(file, tmp_path/'there')
    before = files(tmp_path/'there')
    same = lambda p: p.read_bytes() == (Path(study.folder)/p.name).read_bytes()
    assert len(before) == len(list(Path(study.folder).glob('*.safetensors'))) - 1 and all(map(same, (tmp_path/'there').iterdir()))
    again = run(replace(study, folder=tmp_path/'there'))
    assert before.items() <= files(tmp_path/'there').items() and len(files(tmp_path/'there')) == len(before) + 1  # the split
    assert again.networks.equals(results.networks) and again.beside.equals(results.beside)


def test_only_records_are_packed_and_the_split_where_asked_for(copied, tmp_path):
    for name in ('finetune-000-0123456789abcdef.claim', 'retrain-000-0123456789abcdef.checkpoint', 'x.safetensors.damaged', 'notes.txt'): (copied/name).touch()
    names = lambda **kw: set(zipfile.ZipFile(pack(copied, tmp_path/'a.zip', **kw)[0]).namelist())
    assert names(split=True) == {p.name for p in copied.glob('*.safetensors')}
    assert names(split=True) - names() == {next(copied.glob('split-*')).name}
    unpack(pack(copied, tmp_path/'a.zip', split=True)[0], tmp_path/'there')
    before = files(tmp_path/'there')
    run(tiny(tmp_path/'there'))
    assert files(tmp_path/'there') == before
    (tmp_path/'none').mkdir()
    with pytest.raises(ValueError, match='holds no records'): pack(tmp_path/'none', tmp_path/'b.zip')


def test_pixels_in_a_file_of_their_own_do_not_travel_in_silence(copied, tmp_path):
    """The split would be called damaged where it is unpacked, and on a worker, at each task."""
    np.save(tmp_path/'pixels.npy', load_split('digits').train.source.numpy())
    source = in_memory(ImageFile(tmp_path/'pixels.npy'), load_split('digits').train.labels)
    split = make_split(source, source, np.arange(9), val=20)
    path = save_split(split, copied/f'split-{split.fingerprint}.safetensors')
    with pytest.raises(ValueError, match=f'the pixels of {path.name} lie in .*pixels.npy, which does not travel: pack without split'): pack(copied, tmp_path/'a.zip', split=True)
    assert pack(copied, tmp_path/'a.zip') and split_in(str(path), 'cpu').fingerprint == split.fingerprint
    (tmp_path/'pixels.npy').unlink()
    os.utime(path)  # another process has not read it
    with pytest.raises(Unfit, match='does not see .*pixels.npy, which holds pixels of the study: load the data set with cache='): split_in(str(path), 'cpu')


def test_what_was_lost_is_packed(tmp_path):
    """It would be trained again, to the same end."""
    store, task = Store(tmp_path/'a'), Task('row', 1, {})
    store.lose(task, 'the loss is nan')
    for _ in 'ab': unpack(pack(tmp_path/'a', tmp_path/'a.zip')[0], tmp_path/'b')
    assert Store(tmp_path/'b').why_lost(task) == 'the loss is nan' and len(files(tmp_path/'b')) == 1


def test_packed_in_several_files(copied, tmp_path):
    most = 2_000_000
    paths = pack(copied, tmp_path/'a.zip', most=most)
    assert [p.name for p in paths] == ['a.zip', *(f'a-{i}.zip' for i in range(2, len(paths) + 1))] and len(paths) > 1
    assert all(p.stat().st_size <= most for p in paths) and sum(p.stat().st_size for p in paths) > most
    for path in reversed(paths): unpack(path, tmp_path/'there')
    assert {p.name for p in (tmp_path/'there').iterdir()} == {p.name for p in copied.glob('*.safetensors') if not p.name.startswith('split')}
    with pytest.raises(ValueError, match='alone takes .* bytes: ask for at least so many'): pack(copied, tmp_path/'b.zip', most=100_000)


def test_unpacking_keeps_what_is_whole_and_replaces_what_is_not(copied, tmp_path):
    (file,) = pack(copied, tmp_path/'a.zip')
    gone, bad, *_ = sorted(copied.glob('finetune-*'))
    data = bad.read_bytes()
    gone.unlink()
    bad.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = files(copied)
    unpack(file, copied)
    now = files(copied)
    assert {n for n in now if now[n] != before.get(n)} == {gone.name, bad.name} and bad.read_bytes() == data


def small_pack(tmp_path):
    store = Store(tmp_path/'small')
    for k in range(3): store.save(Task('row', k, {}), {'a': np.arange(4)}, {})
    return pack(tmp_path/'small', tmp_path/'small.zip')[0], {p.name: p.read_bytes() for p in (tmp_path/'small').iterdir()}


def test_flipped_bit_is_noticed(tmp_path):
    """Wherever it is: nothing is unpacked but what was packed, and a record that is missing is named."""
    file, want = small_pack(tmp_path)
    data, missed = file.read_bytes(), 0
    for at in range(0, len(data), 5):
        (bad := tmp_path/'bad.zip').write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1:])
        there, raised = tmp_path/f'there{at}', False
        try: unpack(bad, there)
        except ValueError: raised = True
        found = {p.name: p.read_bytes() for p in there.iterdir()} if there.exists() else {}
        assert found.items() <= want.items() and (raised or found == want), at
        missed += not raised
    assert missed < len(data) / 5 / 3  # dates and the like, which nobody reads


def test_damaged_record_is_named_and_the_others_arrive(tmp_path):
    file, want = small_pack(tmp_path)
    data, first = bytearray(file.read_bytes()), sorted(want)[0]
    data[data.index(want[first]) + len(want[first]) - 1] ^= 4
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f'small.zip is damaged in 1 of 3 records.*{first}'): unpack(file, tmp_path/'there')
    assert {p.name: p.read_bytes() for p in (tmp_path/'there').iterdir()} == {n: d for n, d in want.items() if n != first}


def test_record_that_was_damaged_before_it_was_zipped_is_noticed(tmp_path):
    """zip's own checksum knows nothing of that."""
    file, want = small_pack(tmp_path)
    first = sorted(want)[0]
    with zipfile.ZipFile(file, 'w') as z:
        z.writestr(first, want[first][:-1] + bytes([want[first][-1] ^ 1]))
        z.comment = listing(z)
    with pytest.raises(ValueError, match='its checksum belongs to other content'): unpack(file, tmp_path/'there')
    assert not list((tmp_path/'there').iterdir())
    (path := tmp_path/'small'/first).write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f'{first} is left out'): (file,) = pack(tmp_path/'small', file)
    assert sorted(zipfile.ZipFile(file).namelist()) == sorted(want)[1:]


@pytest.mark.parametrize('name', ['../row-000-0123456789abcdef.safetensors', '/away/row-000-0123456789abcdef.safetensors', 'a/row-000-0123456789abcdef.safetensors',
                                  'row-000-0123456789abcdef.claim', '..', 'row.safetensors'])
def test_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    file, want = small_pack(tmp_path)
    with zipfile.ZipFile(file, 'a') as z:
        z.writestr(name, list(want.values())[0])
        z.comment = listing(z)
    with pytest.raises(ValueError, match='which is no record.s name: nothing was unpacked'): unpack(file, tmp_path/'in'/'there')
    assert not (tmp_path/'in').exists() or not list((tmp_path/'in').rglob('*.*'))


def test_what_is_no_zip_file_is_refused(tmp_path):
    (tmp_path/'a.zip').write_text('no zip file')
    with pytest.raises(ValueError, match='a.zip is damaged, or no file of `pack`'): unpack(tmp_path/'a.zip', tmp_path/'there')


def test_what_a_gpu_has_computed_is_read_without_one(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    on_gpu, store = tiny(tmp_path, device='cuda'), Store(tmp_path)
    with pytest.raises(ValueError, match='torch finds no GPU here'): run(on_gpu)
    for m, row in network_tasks(finished[0]).items():
        for t, there in zip(row, network_tasks(on_gpu)[m]): store.save(there, *Store(finished[0].folder).load(t))
    assert run(on_gpu).networks.equals(finished[1].networks)
