"""Labels that people gave: CIFAR-10N's files, what of them is forgotten, and what a study measures where true labels are known."""
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlearning.datasets import builtin
from unlearning.datasets.source import Source, data_root
from unlearning.images import in_memory
from unlearning.load import load_split, wrong_labels
from unlearning.methods.finetune import finetune
from unlearning.report import as_text, forget_table, save_report, summary, wrong_table
from unlearning.study import Study, measurements, network_tasks, run_study
from unlearning.training import Training

N = 200
rng = np.random.default_rng(0)
TRUTH = np.arange(N) % 10
GIVEN = {name: np.where(rng.random(N) < share, (TRUTH + 1) % 10, TRUTH) for name, share in dict(aggre=0.1, random1=0.2, worse=0.4).items()}
wrong_ones = lambda name: np.flatnonzero(GIVEN[name] != TRUTH).tolist()
refused = lambda says: pytest.raises(ValueError, match=re.escape(says))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with the labels of a CIFAR-10 of 200 images."""
    pixels = rng.integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)
    train = in_memory(pixels, TRUTH)
    small = Source('cifar10', train, in_memory(pixels[:50], TRUTH[:50], train), tuple('abcdefghij'), forget='challenge')
    whole = builtin.human_labels
    monkeypatch.setattr(builtin, 'cifar10', lambda root, mean=None, std=None: small)
    monkeypatch.setattr(builtin, 'human_labels', lambda root, labels: whole(root, labels, N))
    (tmp_path/'cifar-10n').mkdir()
    return tmp_path


@pytest.fixture
def arrays(root):
    for name, labels in GIVEN.items(): np.save(root/'cifar-10n'/f'{name}_label.npy', labels.astype(np.uint8))
    return root


def publish(root, content=None, old=False):
    """The published file; `old`: as a NumPy before 2 wrote it."""
    names = dict(aggre='aggre_label', random1='random_label1', worse='worse_label')
    path = root/'cifar-10n'/'CIFAR-10_human.pt'
    torch.save(content or {'clean_label': TRUTH} | {names[k]: v for k, v in GIVEN.items()}, path)
    if not old: return
    with zipfile.ZipFile(path) as f: parts = {name: f.read(name) for name in f.namelist()}
    with zipfile.ZipFile(path, 'w') as f:
        for name, data in parts.items(): f.writestr(name, data.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))


# The loader

@pytest.mark.parametrize('labels', GIVEN)
def test_forget_is_what_the_true_labels_contradict(arrays, labels):
    split = load_split('cifar10n', arrays, labels=labels)
    assert split.forget.indices.tolist() == wrong_ones(labels) and split.name == f'cifar10n ({labels})'
    assert split.train.labels.tolist() == GIVEN[labels].tolist() and split.train.truth.tolist() == TRUTH.tolist()
    assert (split.forget.labels != split.forget.truth).all() and torch.equal(split.retain.labels, split.retain.truth)
    assert split.test.labels.tolist() == TRUTH[:50].tolist() and split.test.truth is None


def test_labels_are_random1_if_nobody_says(arrays):
    assert load_split('cifar10n', arrays).fingerprint == load_split('cifar10n', arrays, labels='random1').fingerprint


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('labels', GIVEN)
def test_the_published_file_gives_the_same(root, labels, old):
    publish(root, old=old)
    split = load_split('cifar10n', root, labels=labels)
    assert split.train.labels.tolist() == GIVEN[labels].tolist() and split.train.labels.dtype == torch.int64


def test_code_in_the_published_file_is_not_run(root, capsys):
    class Payload:
        def __reduce__(self): return print, ('somebody else',)
    publish(root, {'random_label1': Payload()})
    with refused('is not the published file'): load_split('cifar10n', root)
    assert capsys.readouterr().out == ''


def test_a_truncated_published_file_is_named(root):
    publish(root)
    path = root/'cifar-10n'/'CIFAR-10_human.pt'
    path.write_bytes(path.read_bytes()[:-100])
    with refused(f'{path} is not the published file'): load_split('cifar10n', root)


def test_missing_labels_say_where_they_are(root):
    with refused('github.com/UCSC-REAL/cifar-10-100n (CC BY-NC 4.0)'): load_split('cifar10n', root)


@pytest.mark.parametrize('content', [np.zeros(N - 1, np.uint8), np.zeros(N), np.full(N, 10), np.full(N, -1)])
def test_other_labels_are_refused(root, content):
    np.save(root/'cifar-10n'/'random1_label.npy', content)
    with refused('random1_label.npy holds'): load_split('cifar10n', root)


def test_published_file_of_other_data_is_refused(root):
    publish(root, {'clean_label': TRUTH, 'noisy_label': TRUTH})  # CIFAR-100N's
    with refused('CIFAR-10_human.pt holds'): load_split('cifar10n', root)


def test_pickled_arrays_are_refused(root):
    np.save(root/'cifar-10n'/'random1_label.npy', np.array([dict()] * N), allow_pickle=True)
    with refused('allow_pickle=False'): load_split('cifar10n', root)


def test_unknown_labels_are_named(arrays):
    with refused("labels is 'worst': CIFAR-10N has aggre, random1, worse"): load_split('cifar10n', arrays, labels='worst')


# An audit finds a part

def test_unknown_wrong_labels_stay_in_retain(arrays):
    split, all_wrong = load_split('cifar10n', arrays, labels='worse', known=0.3), set(wrong_ones('worse'))
    found = set(split.forget.indices.tolist())
    assert found < all_wrong and len(found) == round(0.3 * len(all_wrong))
    left = split.retain.indices[split.retain.labels != split.retain.truth].tolist()
    assert set(left) == all_wrong - found and '30 % of the wrong ones known' in split.name


def test_known_part_is_drawn_by_seed_and_grows(arrays):
    found = lambda **kw: set(load_split('cifar10n', arrays, labels='worse', **kw).forget.indices.tolist())
    assert found(known=0.3) == found(known=0.3) != found(known=0.3, known_seed=1)
    assert found(known=0.3) < found(known=0.6) < found(known=1.)


@pytest.mark.parametrize('known', [0, -0.5, 1.5, 1e-4, float('nan')])
def test_bad_shares_are_refused(arrays, known):
    with refused('wrong labels: ask for a share of them'): load_split('cifar10n', arrays, known=known)


def test_forget_may_name_other_images(arrays):
    split = load_split('cifar10n', arrays, forget=[3, 8])
    assert split.forget.indices.tolist() == [3, 8] and split.forget.truth.tolist() == [3, 8]


def test_smaller_split_keeps_truth_and_shares(arrays):
    split = load_split('cifar10n', arrays, labels='worse', subset=100)
    assert len(split.train) == 100 and len(split.forget) == round(100 * len(wrong_ones('worse')) / N)
    assert split.train.truth.tolist() == TRUTH[split.train.indices].tolist()


@pytest.mark.parametrize('labels, percent', dict(aggre=9.01, random1=17.23, worse=40.21).items())
def test_real_labels(labels, percent):
    if not (data_root()/'cifar-10n').is_dir(): pytest.skip(f'no cifar-10n in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    split = load_split('cifar10n', labels=labels)
    assert round(len(split.forget) / 500, 2) == percent and len(split.train) == 50_000
    assert (split.forget.labels != split.forget.truth).all() and torch.equal(split.retain.labels, split.retain.truth)


# What a study measures

@pytest.fixture(scope='module')
def studied(tmp_path_factory):
    def study(split): return Study(split, dict(finetune=finetune(repair=Training(epochs=1, batch_size=32, lr=0.05, augment=()))),
                                   tmp_path_factory.mktemp('study'), training=Training(epochs=15, batch_size=32, lr=0.1, label_smoothing=0, augment=()),
                                   seeds=2, samples=20, permutations=2, jobs=1)
    clean = load_split('digits', forget=30, subset=300)
    return {name: (s := study(split), run_study(s, progress=False)) for name, split in dict(wrong=wrong_labels(clean), clean=clean).items()}


def test_accuracy_against_both_labels(studied):
    study, results = studied['wrong']
    mean = results.networks.groupby('method')[['UA', 'UA_true', 'TA']].mean()
    assert mean.UA['original'] > 60 and mean.UA_true['original'] < 40     # it has learned the wrong labels by heart
    assert mean.UA['retrain'] < 20 and mean.UA_true['retrain'] > 70       # it has never seen them
    assert ((results.networks.UA + results.networks.UA_true) <= 100 + 1e-9).all()  # nobody is right by both


def test_tables_show_true_labels_where_a_split_knows_them(studied, tmp_path):
    _, results = studied['wrong']
    assert 'UA, true ↑' in forget_table(results) and {'UA_true', 'UA_true_sd'} <= set(summary(results))
    text = save_report(results, tmp_path).read_text()
    assert text.startswith('Wrong labels') and 'UA_true' in (tmp_path/'summary.csv').read_text()
    table = wrong_table(results)
    assert list(table.index) == ['Retrain', 'Finetune', 'No Unlearning'] and table.loc['No Unlearning', 'time [% of Retrain]'] == '–'


def test_a_method_that_lost_all_its_seeds_stands_before_no_unlearning(studied):
    _, results = studied['wrong']
    lost = replace(results, facts=results.facts | dict(titles=results.facts['titles'] | dict(wild='Wild')))
    assert list(wrong_table(lost).index) == ['Retrain', 'Finetune', 'Wild', 'No Unlearning'] and wrong_table(lost).loc['Wild', 'seeds'] == 0


def test_a_report_is_whole_and_makes_its_folder(studied, tmp_path, monkeypatch):
    _, results = studied['wrong']
    assert save_report(results, tmp_path/'new'/'folder').read_bytes().decode() == (text := as_text(results))
    monkeypatch.setattr('unlearning.report.as_text', lambda results: '\ud800')  # no encoding has it
    with pytest.raises(UnicodeEncodeError): save_report(results, tmp_path/'new'/'folder')
    assert (tmp_path/'new'/'folder'/'tables.txt').read_text(encoding='utf-8') == text and len(list((tmp_path/'new'/'folder').iterdir())) == 4


def test_other_tables_are_what_they_were(studied, tmp_path):
    study, results = studied['clean']
    assert 'UA_true' not in results.networks and 'UA, true ↑' not in forget_table(results) and 'UA_true' not in summary(results)
    assert save_report(results, tmp_path).read_text().startswith('Membership inference')
    assert all('truth' not in m.settings for m in measurements(study, network_tasks(study)).values())  # records of old keep their keys


def test_wrong_labels_at_chosen_places():
    split = load_split('digits', forget=90)
    made = wrong_labels(split, at=[3, 5, 8], seed=1)
    assert made.forget.indices.tolist() == split.train.indices[[3, 5, 8]].tolist() and (made.forget.labels != made.forget.truth).all()
    assert torch.equal(made.retain.labels, made.retain.truth) and len(made.train) == 898
    with pytest.raises(ValueError): wrong_labels(split, at=[898])


@pytest.mark.parametrize('damage', [lambda path: path.write_bytes(path.read_bytes()[:6]), lambda path: path.write_bytes(b''), lambda path: np.save(path, TRUTH.astype(object))])
def test_a_damaged_array_of_labels_is_named(arrays, damage):
    damage(path := arrays/'cifar-10n'/'worse_label.npy')
    with refused(f'{path} is not a whole array of numbers ('): builtin.human_labels(arrays, 'worse')
