"""Settings searched on a study's own networks: carried with its records, found by networks of one's own, and after losses."""
import subprocess, sys, textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import unlearning
from unlearning import search
from unlearning.auto import NoTrial, log
from unlearning.ensemble import Store
from unlearning.images import in_memory, make_split
from unlearning.load import wrong_labels
from unlearning.methods.budget import priced
from unlearning.methods.finetune import finetune
from unlearning.search import search_for, searched, searched_recipes
from unlearning.study import Study, network_tasks, pack, run_study, unpack
from unlearning.training import Training
from unlearning.unlearn import Recipe, Repair

TRAINING = Training(epochs=16, batch_size=64, lr=0.1, label_smoothing=0., augment=(), precision='float32')


def noisy_digits():
    """Of which a small network remembers much."""
    rng, (pixels, labels) = np.random.default_rng(0), load_digits(return_X_y=True)
    noisy = (255 * (pixels.reshape(-1, 1, 8, 8) / 16 + rng.normal(0, 0.4, (len(pixels), 1, 8, 8))).clip(0, 1)).astype(np.uint8)
    order = rng.permutation(len(pixels))
    train, test = (in_memory(noisy[at], labels[at]) for at in (order[:500], order[500:1100]))
    return make_split(train, test, np.arange(60))


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    made = Study(noisy_digits(), {}, tmp_path_factory.mktemp('study'), training=TRAINING, seeds=2, originals='each', permutations=0, jobs=1)
    run_study(made, progress=False)
    return made


def test_what_was_found_travels_with_the_records(study, tmp_path):
    found = search_for(study, 'finetune', 0.2, trials=1)
    file, = pack(study.folder, tmp_path/'study.zip')
    unpack(file, tmp_path/'there')
    there = [*(tmp_path/'there').glob('search-finetune-*.json')]
    assert len(there) == 1 and search_for(replace(study, folder=tmp_path/'there'), 'finetune', 0.2, trials=1) == found


def test_where_the_first_original_diverged_the_next_is_searched_on(study, tmp_path):
    file, = pack(study.folder, tmp_path/'study.zip')
    unpack(file, tmp_path/'there')
    less, store = replace(study, folder=tmp_path/'there'), Store(tmp_path/'there')
    first = network_tasks(less)['original'][0]
    before = len([*(tmp_path/'there').glob('search-*.json')])
    store.path(first).unlink()
    store.lose(first, 'the loss is nan')
    assert search_for(less, 'finetune', 0.2, trials=1).numbers and len([*(tmp_path/'there').glob('search-*.json')]) == before + 1


def test_a_method_without_a_whole_trial_keeps_its_own_numbers_and_a_star(study, monkeypatch):
    def auto(*args, **kw): raise NoTrial('none of 1 trials came to an end: diverged')
    monkeypatch.setattr(search, 'auto', auto)
    found = search_for(study, 'noise', 0.2, trials=1)
    assert found.numbers == {} and found.word.startswith('none of 1 trials') and searched_recipes(study, dict(noise=found), 0.2)['noise'].title.endswith('*')


def test_settings_are_not_searched_where_the_gpu_is_not(study):
    away = replace(study, device='cpu')
    object.__setattr__(away, 'device', 'cuda:99')
    with pytest.raises(ValueError, match="device is 'cuda:99', and torch finds .* here, where settings are searched"): searched(away, ['boundary'])
    search_for(study, 'finetune', 0.2, trials=1)
    search.check_searched(away, ['finetune'], 0.2, 1)  # what was found there can be read anywhere


def test_settings_are_not_searched_for_wrong_labels_as_for_a_deletion(study, tmp_path):
    wrong = replace(study, split=wrong_labels(noisy_digits(), 0.1), folder=tmp_path/'none')
    with pytest.raises(ValueError, match=r'for a deletion, and these labels are wrong: search with auto\(…, wrong_labels=True\)'): searched(wrong, ['finetune'])
    assert not (tmp_path/'none').exists()


def test_a_network_typed_into_a_script_is_found_by_its_searches(tmp_path):
    """In another process `__main__` is another file, and the key has to be the same."""
    (tmp_path/'mine.py').write_text(textwrap.dedent('''
        import sys
        sys.path[:0] = {path!r}
        from dataclasses import replace
        from torch import nn
        from test_search import TRAINING, noisy_digits
        from unlearning.search import searched
        from unlearning.study import Study

        def narrow(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

        if __name__ == "__main__":
            study = Study(noisy_digits(), {{}}, "out", network=narrow, training=replace(TRAINING, epochs=30, lr=0.05), seeds=2, permutations=0, jobs=2)
            print(*searched(study, ["finetune"], 0.2, trials=1, progress=False))
    ''').format(path=[str(Path(unlearning.__file__).parent.parent), str(Path(__file__).parent)]))
    done = subprocess.run([sys.executable, 'mine.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == 'finetune', done.stderr


def test_a_method_of_a_script_is_searched_in_other_processes_and_anew_if_its_code_changes(tmp_path):
    (tmp_path/'mine.py').write_text(textwrap.dedent('''
        import sys
        sys.path[:0] = {path!r}
        from dataclasses import replace
        from test_search import TRAINING, noisy_digits
        from unlearning.auto import add_method, log
        from unlearning.methods.finetune import finetune
        from unlearning.search import searched
        from unlearning.study import Study

        def mine(b, lr=1.):
            repair = replace(b.training, lr=RATE * lr * b.training.lr)
            return b.spend(lambda n: replace(finetune(repair=replace(repair, epochs=n)), name="mine"))

        if __name__ == "__main__":
            add_method('mine', mine, lr=log(0.1, 1.))
            study = Study(noisy_digits(), {{}}, "out", training=TRAINING, seeds=2, permutations=0, jobs=2)
            print(searched(study, ["mine"], 0.2, trials=1, progress=False)["mine"].numbers)
    ''').format(path=[str(Path(unlearning.__file__).parent.parent), str(Path(__file__).parent)]))
    script = (tmp_path/'mine.py').read_text()
    for rate in ('1', '0.5'):
        (tmp_path/'mine.py').write_text(script.replace('RATE', rate))
        done = subprocess.run([sys.executable, 'mine.py'], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == "{'lr': 1.0}\n", done.stderr
    assert len([*(tmp_path/'out').glob('search-mine-*.json')]) == 2


def test_a_method_with_numbers_filled_in_is_searched_anew_if_they_change(study, monkeypatch):
    found = []
    monkeypatch.setattr(search, '_found', lambda *args: found.append(args) or search.Searched({}, 1., 0., ''))
    monkeypatch.setitem(search.RANGES, 'mine', dict(lr=log(0.1, 1.)))
    def mine(budget, lr=1., rate=1.): return budget.spend(lambda n: finetune(repair=replace(budget.training, epochs=n, lr=rate * lr)))
    for rate in (1., 0.5, 0.5):
        monkeypatch.setitem(search.WITHIN, 'mine', priced(partial(mine, rate=rate)))
        search_for(study, 'mine')
    assert len(found) == 2


def test_a_method_without_a_title_keeps_its_name_beside_its_star(study, monkeypatch):
    def make(budget): return budget.spend(lambda epochs: Recipe(name='mine', phases=(Repair(training=replace(budget.training, epochs=epochs)),)))
    for name in ('mine', 'other'): monkeypatch.setitem(search.WITHIN, name, make)
    made = searched_recipes(study, {name: search.Searched({}, 1., 0., 'no use') for name in ('mine', 'other')}, 0.5)
    assert [r.title for r in made.values()] == ['mine*', 'other*']
