"""Each experiment notebook, run by papermill as its reader would, at its smallest."""
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat, pandas as pd, papermill, pytest, yaml
from papermill.exceptions import PapermillExecutionError
from papermill.parameterize import parameterize_notebook

from test_league import made_up
from unlearning.datasets.source import data_root
from unlearning.datasets.faces import render_faces
from unlearning.league import league, league_table, plot_league
from unlearning.manifest import differences
from unlearning.auto import RANGES
from unlearning.load import load_split
from unlearning.methods.budget import WITHIN, tuned
from unlearning.methods.recipes import RECIPES
from unlearning.search import Searched, searched_recipes
from unlearning.training import PAPER_TRAINING, Training

EXPERIMENTS = Path(__file__).resolve().parent.parent/'nbs'/'experiments'
RIVALS = ['Reinit (MSG)', 'Contrast', 'SalUn', 'NegGrad+', 'SSD']
METHODS = [getattr(recipe, 'title', '') or name for name, recipe in RECIPES['digits'].items()]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a notebook from an empty folder; returns what it printed and showed, as text."""
    monkeypatch.setenv('PYDEVD_DISABLE_FILE_VALIDATION', '1')
    monkeypatch.delenv('MPLBACKEND', raising=False)  # the kernel's own shows figures in the notebook
    monkeypatch.chdir(tmp_path)
    def execute(name, **parameters):
        notebook = papermill.execute_notebook(str(EXPERIMENTS/f'{name}.ipynb'), str(tmp_path/f'{name}.ipynb'), parameters, kernel_name='python3',
                                              progress_bar=False, log_output=False)
        outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]
        texts = [o.get('text', '') or o.get('data', {}).get('text/html', o.get('data', {}).get('text/plain', '')) for o in outputs]
        pictures = sum('image/png' in o.get('data', {}) for o in outputs)
        return '\n'.join(texts), pictures
    return execute


def assert_study(shown, pictures, folder, methods=METHODS, seeds=2):
    text = (folder/'tables.txt').read_text()
    for row in (*methods, 'Retrain', 'No Unlearning'): assert row in text and row in shown
    assert f'K = {seeds} ' in text and 'Lost seeds' not in text and pictures >= 5
    assert {p.name for p in folder.iterdir() if not p.name.endswith('.safetensors')} == {'tables.txt', 'networks.csv', 'quality.csv', 'summary.csv'}


def assert_several_originals_without_control(shown, folder):
    text = (folder/'tables.txt').read_text()
    assert 'an original of its own for each' in text and 'Controls' not in text and 'nothing can be said about memory' in shown


def test_quickstart(run, tmp_path, monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'agg')  # a server's; the notebook shows its figures all the same
    shown, pictures = run('quickstart', seeds=2, epochs=2.0, subset=300, permutations=3, jobs=1, out=str(tmp_path/'out'))
    assert_study(shown, pictures, tmp_path/'out')


@pytest.mark.parametrize('backend', ['agg', None])
def test_figures_are_in_the_notebook(tmp_path, monkeypatch, backend):
    """Servers set MPLBACKEND=agg, with which a kernel draws for nobody."""
    monkeypatch.setenv('MPLBACKEND', backend) if backend else monkeypatch.delenv('MPLBACKEND', raising=False)
    cells = ['from unlearning.parameters import check_parameters\nbefore = set(globals())', 'size: int = 1', 'check_parameters(globals(), before)\nimport matplotlib.pyplot as plt', 'plt.plot([size, 2]);']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=dict(language_info=dict(name='python')))
    notebook.cells[1].metadata['tags'] = ['parameters']
    nbformat.write(notebook, tmp_path/'in.ipynb')
    done = papermill.execute_notebook(str(tmp_path/'in.ipynb'), str(tmp_path/'out.ipynb'), dict(size=2), kernel_name='python3', progress_bar=False)
    assert ['image/png' in o.get('data', {}) for o in done.cells[-1].outputs] == [True]


def assert_wrong_labels(shown, pictures, folder, seeds=2):
    """The first table says which method forgot, and every method stands in it."""
    text = (folder/'tables.txt').read_text()
    first = text[:text.index('Membership inference')]
    for row in (*METHODS, *RIVALS, 'Corrected Labels', 'Retrain', 'No Unlearning'): assert row in first and row in shown
    assert all(column in shown for column in ('forget, given ↓', 'forget, true ↑', 'test ↑', 'UA, true ↑')) and pictures == 2
    assert f'K = {seeds} ' in text and 'Lost seeds' not in text


@pytest.mark.slow
def test_noisy_labels_as_they_stand(run, tmp_path):
    shown, pictures = run('noisy_labels', jobs=1, out=str(tmp_path/'out'))
    assert_wrong_labels(shown, pictures, tmp_path/'out')
    assert 'digits (10 % wrong labels): 898 training images, 90 of them to forget' in shown and (tmp_path/'noisy_labels.ipynb').stat().st_size < 1e6


@pytest.mark.slow
def test_noisy_labels_of_people_partly_known(run, tmp_path):
    if not (data_root()/'cifar-10n').is_dir(): pytest.skip(f'no cifar-10n in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    shown, pictures = run('noisy_labels', dataset='cifar10n', known=0.3, subset=500, settings='cifar10_fifth', epochs=2.0, batch_size=128, jobs=1, out=str(tmp_path/'out'))
    assert_wrong_labels(shown, pictures, tmp_path/'out')
    assert 'cifar10n (random1, 30 % of the wrong ones known): 500 training images, 26 of them to forget' in shown


@pytest.mark.slow
def test_cifar10_as_it_stands(run, tmp_path):
    if not (data_root()/'cifar-10-batches-py').is_dir(): pytest.skip(f'no cifar-10-batches-py in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    shown, pictures = run('cifar10', out=str(tmp_path/'out'))
    assert_study(shown, pictures, tmp_path/'out')
    assert_several_originals_without_control(shown, tmp_path/'out')
    assert re.search(r'\bours\b', shown)
    assert 'cifar10: 500 training images, 50 of them to forget, 10,000 test images' in shown
    assert (tmp_path/'cifar10.ipynb').stat().st_size < 1e6


@pytest.mark.slow
def test_cifar10_of_two_methods(run, tmp_path):
    """Every table and figure does without the others."""
    if not (data_root()/'cifar-10-batches-py').is_dir(): pytest.skip(f'no cifar-10-batches-py in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    shown, _ = run('cifar10', methods=['finetune', 'scrub'], out=str(tmp_path/'out'))
    assert pd.read_csv(tmp_path/'out'/'summary.csv', index_col=0).index.tolist() == ['retrain', 'finetune', 'scrub', 'original'] and 'SCRUB' in shown


@pytest.mark.slow
def test_cifar10_with_searched_settings(run, tmp_path):
    if not (data_root()/'cifar-10-batches-py').is_dir(): pytest.skip(f'no cifar-10-batches-py in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    shown, _ = run('cifar10', methods=['finetune', 'noise'], search=2, share=0.1, epochs=40.0, augment=[], permutations=5, out=str(tmp_path/'out'))
    assert 'trace left, %' in shown and sorted(p.name.split('-')[1] for p in (tmp_path/'out').glob('search-*.json')) == ['finetune', 'noise']
    assert pd.read_csv(tmp_path/'out'/'summary.csv', index_col=0).index.tolist() == ['retrain', 'finetune', 'noise', 'original']


def assert_stands_beside_no_paper(shown): assert not re.search(r'\bours\b', shown)


@pytest.mark.slow
def test_celeba_on_rendered_faces(run, tmp_path):
    """As it stands. What is made from rendered faces says so: every table, every figure (they are signed by what the tables' corner says), every file."""
    shown, pictures = run('celeba', out=str(tmp_path/'out'))
    assert_study(shown, pictures, tmp_path/'out')
    assert_several_originals_without_control(shown, tmp_path/'out')
    assert 'rendered faces: 8' in shown and shown.count('rendered faces, K = 2') >= 3 and 'Real CelebA was not at hand' in shown
    assert_stands_beside_no_paper(shown)
    for file in ('networks.csv', 'quality.csv', 'summary.csv'): assert all('rendered faces' in row for row in (tmp_path/'out'/file).read_text().splitlines()[1:])
    assert (tmp_path/'celeba.ipynb').stat().st_size < 1e6


@pytest.mark.slow
def test_rendered_faces_in_the_place_of_celeba_are_not_taken_for_it(run, tmp_path, monkeypatch):
    render_faces(tmp_path/'data', 1000, 50, progress=False)
    monkeypatch.setenv('UNLEARNING_DATA', str(tmp_path/'data'))
    shown, _ = run('celeba', dataset='celeba', epochs=1.0, out=str(tmp_path/'out'))
    assert 'These are results for rendered faces' in shown and 'celeba: ' not in (tmp_path/'out'/'tables.txt').read_text()
    assert_stands_beside_no_paper(shown)


@pytest.mark.slow
def test_celeba_on_writers(run, tmp_path):
    if not (data_root()/'QMNIST').is_dir(): pytest.skip(f'no QMNIST in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    shown, pictures = run('celeba', dataset='writers', subset=3000, share=0.05, epochs=1.0, out=str(tmp_path/'out'))
    assert_study(shown, pictures, tmp_path/'out')
    assert 'writers: 3,0' in shown and 'rendered' not in (tmp_path/'out'/'tables.txt').read_text()


@pytest.mark.slow
def test_architectures_as_they_stand(run, tmp_path):
    shown, pictures = run('architectures', out=str(tmp_path/'out'))
    assert 'memorization' in shown and 'mean MIA gap' in shown and 'nothing can be said about memory' in shown and pictures == 0
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'small', 'vit', 'tables.txt'}


def test_architectures_with_a_control_say_what_is_left_of_the_memory(run, tmp_path):
    shown, pictures = run('architectures', networks=['small'], methods=['finetune'], epochs=10.0, seeds=4, control=True, reference=True, jobs=1, out=str(tmp_path/'out'))
    assert 'memory left, %' in shown and '4 originals, 4 of Retrain' in shown and 'nothing can be said about memory' not in shown and pictures == 1
    assert 'Controls: the same on retrained networks.' in (tmp_path/'out'/'tables.txt').read_text()
    table = pd.read_csv(tmp_path/'out'/'small'/'league.csv', index_col=0)
    assert set(table.index) == {'Finetune', 'Retrain, once more', 'No Unlearning'} and (table.lineages == 4).all()


# The cells of one purpose, alone: what they need of the others is made up

def notebook_cell(name, contains, given):
    """The source of the one cell that contains a text, and the names in which it is to run: the parameters."""
    cells = [c for c in nbformat.read(EXPERIMENTS/f'{name}.ipynb', as_version=4).cells if c.cell_type == 'code']
    parameters, (wanted,) = {}, [c.source for c in cells if contains in c.source and not c.source.startswith('parameters')]
    exec(next(c.source for c in cells if 'parameters' in c.metadata.get('tags', [])), parameters)
    return wanted, parameters | given


@pytest.mark.parametrize('name', ['cifar10', 'celeba', 'architectures', 'league', 'noisy_labels'])
def test_a_study_is_asked_for_what_the_parameters_say(name, tmp_path):
    asked = []
    def study(*args, **kw): asked.append(kw); return SimpleNamespace(folder=tmp_path)
    stubs = dict(Study=study, run_study=id, save_report=lambda *a: None, project_root=lambda: tmp_path, split=SimpleNamespace(forget=()), whom=tuple, training=None,
                 recipes={}, chosen=[], rows={}, unfit={}, choice={}, TRAINING=dict.fromkeys(['small', 'vit']), summary=id,
                 all_within=lambda *a: ({}, {}), Budget=lambda *a: None, numbers={}, methods=[], exchangeable=True, circumstances=lambda *a, **kw: None, league=lambda *a: None, yardsticks=id,
                 league_table=lambda *a: pd.DataFrame(), RECIPES={'digits': {}}, baseline=None, rivals=[])
    choice = dict(seeds=3, samples=50, permutations=7, jobs=2, device='cuda', scheduler='tcp://x:1')
    if name != 'noisy_labels': choice |= dict(originals='one', control=True, reference=True)
    source, names = notebook_cell(name, 'Study(', stubs | choice)
    exec(source, names)
    assert asked and all(choice.items() <= kw.items() for kw in asked)


@pytest.mark.parametrize('given, says', [
    (dict(methods=['finetune', 'salun']), "there is no recipe 'salun': use finetune, "), (dict(methods=['scrub']), 'leaves finetune out'),
    (dict(methods=['finetune', 'surgery+pruning'], search=2), "there is no recipe 'surgery\\+pruning': use soft_unseen, ")])
def test_methods_that_a_study_cannot_have_are_refused_before_it(given, says):
    source, names = notebook_cell('cifar10', 'known = (', dict(RANGES=RANGES, RECIPES=RECIPES, PAPER_TRAINING=PAPER_TRAINING, Training=Training, replace=replace) | given)
    with pytest.raises(ValueError, match=says): exec(source, names)


@pytest.mark.parametrize('given, says', [
    (dict(networks=['small', 'resnet20']), "unknown network 'resnet20': use small, resnet18, "),
    (dict(methods=['finetune', 'undo']), "unknown method 'undo': use .*finetune, "),
    (dict(methods=['finetune', 'salun'], search=4), "unknown method 'salun': use soft_unseen, "),
    (dict(search=4, settings='cifar10-10000-0.05'), 'search and settings are both given')])
def test_networks_and_methods_that_no_comparison_of_architectures_has_are_refused_before_it(given, says):
    source, names = notebook_cell('architectures', 'TRAINING = {', dict(Training=Training, replace=replace, RANGES=RANGES, WITHIN=WITHIN, tuned=tuned) | given)
    with pytest.raises(ValueError, match=says): exec(source, names)


def test_what_a_search_found_is_used_by_architectures():
    searched = {('small', 'finetune'): Searched(dict(lr=0.25), 40., -1., 'it lost too much')}
    training = Training(epochs=12, batch_size=32, lr=0.1, augment=())
    ask = dict(numbers={}, methods=['finetune'], searched=searched, search=3, share=0.3, trained=dict(small=SimpleNamespace(TA=dict(original=50.))),
               searched_recipes=searched_recipes, study=lambda n, recipes: SimpleNamespace(split=load_split('digits', forget=20, subset=200), training=training))
    source, names = notebook_cell('architectures', 'def recipes_of(n):', ask)
    exec(source.split('\n\nresults')[0], names)
    recipe = names['recipes_of']('small')['finetune']
    assert recipe.phases[0].training.lr == 0.1 * 0.25 and recipe.title == 'Finetune*'


def test_a_method_too_dear_for_a_network_is_refused_before_it():
    def run_study(*args): raise AssertionError('it was trained')
    ask = dict(all_within=lambda budget, told: ({}, {'finetune': 'a pass takes 8 %'}), Budget=lambda *a: None, Study=lambda *a, **kw: None, run_study=run_study, split=None,
               project_root=Path, summary=id, numbers={}, networks=['vit'], methods=['finetune'], TRAINING={'vit': None})
    source, names = notebook_cell('architectures', 'def study(network', ask)
    with pytest.raises(ValueError, match='network vit: a pass takes 8 %'): exec(source, names)


@pytest.mark.parametrize('name, given, exchangeable', [
    ('cifar10', dict(), True), ('cifar10', dict(forget='5000'), True), ('cifar10', dict(forget='mine.npy'), False), ('celeba', dict(), False),
    ('architectures', dict(), True)])
def test_only_a_forget_set_drawn_at_random_has_a_mark(name, given, exchangeable, tmp_path):
    results, tables, figures = made_up(dict(half=0.5)), [], len(plt.get_fignums())
    (tmp_path/'small').mkdir()
    stubs = dict(results={'small': results} if name == 'architectures' else results, study=SimpleNamespace(folder=tmp_path), display=tables.append,
                 league=league, league_table=league_table, plot_league=plot_league, project_root=lambda: tmp_path, out='.')
    source, names = notebook_cell(name, 'league(', stubs | dict(control=True) | given)
    exec(source, names)
    table, = tables
    assert (table['mark, %'] != '–').all() if exchangeable else (table['mark, %'] == '–').all()
    assert len(list(tmp_path.rglob('league.csv'))) == 1
    if name == 'architectures': return  # whose figure is of all networks
    assert len(plt.get_fignums()) == figures + 1 and plt.gcf().get_suptitle().startswith('made up, K = 8')  # it says what it was made from
    plt.close()


@pytest.mark.slow
def test_tuning(run, tmp_path):
    run('tuning', trials=1, epochs=10.0, out=str(tmp_path/'out'))
    rows = (tmp_path/'out'/'tuning.csv').read_text().splitlines()
    assert [row.split(',')[:2] for row in rows[1:]] == 2 * [['finetune#0', 'finetune'], ['gradient_surgery#0', 'gradient_surgery']]  # two rounds


def test_league(run, tmp_path):
    """A method that does not fit has its row, and its reason is printed; the first also from one original."""
    shown, pictures = run('league', methods=['finetune', 'bad_teacher'], one_original=['finetune'], subset=300, epochs=10.0, share=0.03, out=str(tmp_path/'out'))
    assert 'memory left, %' in shown and 'not tuned' in shown and pictures == 2
    table = pd.read_csv(tmp_path/'out'/'league.csv', index_col=0)
    assert list(table.index) == ['Finetune', 'Bad teacher', 'Retrain, once more', 'No Unlearning']
    assert table.iloc[1, 0] == 'does not fit' and shown.count('bad_teacher cannot be done for a share of') == 1
    assert '4 originals' in shown and 'ranked below, of' in shown


def test_what_each_idea_moves(run, tmp_path):
    shown, pictures = run('as_unseen', variants=['soft_unseen', 'unseen+level'], subset=300, epochs=10.0, out=str(tmp_path/'out'))
    table = pd.read_csv(tmp_path/'out'/'as_unseen.csv', index_col=0)
    assert {'as tuned', 'no spread', 'No Unlearning'} == set(table.index) and pictures == 1 and 'K = 4 from as many originals' in shown


@pytest.mark.slow
def test_request_as_it_stands(run, tmp_path):
    shown, pictures = run('request', trials=1, request_id='mine', out=str(tmp_path/'out'))
    assert pictures == 1 and 'soft_unseen, trial 1 of 1' in shown and 'SHA256SUMS' in shown
    assert re.search(r'90 images must go: 0/\d{4}.png … 9/\d{4}.png', shown)
    answer = tmp_path/'out'/'mine'
    assert json.loads((answer/'report.json').read_text())['request']['images'] == 90 and (answer/'report.html').exists()
    assert differences(answer) == dict(missing=[], changed=[], extra=[])
    again = yaml.safe_load((tmp_path/'out'/'mine.yaml').read_text())
    assert again['trials'] == 1 and again['request_id'] == '' and again['lr'] == 0.05
    assert (tmp_path/'out'/'mine.yaml').stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_verdicts_as_they_stand(run, tmp_path):
    run('verdicts', requests=1, trials=1, out=str(tmp_path))
    shown, _ = run('verdicts', requests=1, trials=1, alone=2, out=str(tmp_path))  # what is answered is not asked again
    assert len(list(tmp_path.rglob('request-*.json'))) == 1 and len(list(tmp_path.rglob('alone-*.json'))) == 2
    table = pd.read_csv(next(tmp_path.rglob('verdicts.csv')), index_col=[0, 1])
    assert table.groupby('network').sum().sum(axis=1).to_dict() == {'No Unlearning': 1, 'unlearned': 1, 'retrained': 3}
    assert '1 of 1 handed over' in shown or 'not handed over:' in shown


@pytest.mark.slow
def test_repair_labels_as_it_stands(run, tmp_path):
    shown, pictures = run('repair_labels', out=str(tmp_path / 'out'))
    assert pictures == 2 and 'random_labels, trial 1 of 1' in shown and 'test accuracy rose' in shown


@pytest.mark.slow
def test_benchmark_as_it_stands(run):
    shown, _ = run('benchmark')
    assert 'times faster' in shown and 'prob' in shown


# papermill itself accepts an unknown parameter with a warning

def test_unknown_parameter_stops_papermill(run, tmp_path):
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'sedes': this notebook has .*seeds") as e: run('quickstart', sedes=3)
    assert e.value.ename == 'ValueError' and [p.name for p in tmp_path.iterdir()] == ['quickstart.ipynb']  # before anything was computed


@pytest.mark.parametrize('name', sorted(p.stem for p in EXPERIMENTS.glob('*.ipynb')))
@pytest.mark.parametrize('given, says', [(dict(sedes=3), "unknown parameter 'sedes'"), (dict(seed='3'), "seed is '3', a str: it has to be of type int")])
def test_every_experiment_refuses_bad_parameters(name, given, says, monkeypatch):
    """With the cell that papermill would insert, but without a kernel."""
    def compute(*args, **kw): raise AssertionError('something was computed')
    monkeypatch.setattr('unlearning.study.run_study', compute)
    monkeypatch.setattr('unlearning.metrics.membership_inference.svc_mia', compute)
    if name == 'cost' and 'seed' in given: given, says = dict(images='3'), "images is '3', a str"  # it draws nothing
    notebook, namespace = parameterize_notebook(papermill.iorw.load_notebook_node(str(EXPERIMENTS/f'{name}.ipynb')), given), {}
    with pytest.raises(ValueError, match=says):
        for cell in notebook.cells:
            if cell.cell_type == 'code': exec(cell.source, namespace)


@pytest.mark.parametrize('given, says', [(dict(train='photos'), 'checkpoint is empty: name it, or leave all of checkpoint, train, test, forget empty'),
                                         (dict(device='cuda:99'), "device is 'cuda:99', and .* here: use 'cpu'")])
def test_a_request_of_which_something_is_missing(given, says, tmp_path):
    given = given | dict(out=str(tmp_path/'out'))
    notebook, namespace = parameterize_notebook(papermill.iorw.load_notebook_node(str(EXPERIMENTS/'request.ipynb')), given), {}
    with pytest.raises(ValueError, match=says):
        for cell in notebook.cells:
            if cell.cell_type == 'code': exec(cell.source, namespace)


def test_cost_of_a_large_study(run, tmp_path):
    """Ten methods at a tenth of the seeds and classes; a record: float16 of 100 classes on 10,000 retain, 50,000 test and 128,117 forget images."""
    shown, _ = run('cost', seeds=50, classes=100, measured=200, out=str(tmp_path/'out'))
    costs = pd.read_csv(tmp_path/'out'/'cost.csv', index_col=0)
    assert costs.networks.to_dict() == {'original': 50, 'retrain': 50, 'unlearn': 500, 'control': 500, 'all': 1100}
    assert 'GPU hours' in shown and f'{2 * 100 * 188_117 / 1e6:.2f}' in shown and f'{2 * 50 * 4 * 25_557_032 / 1e12:.2f}' in shown


def test_cost_of_a_cheap_study(run, tmp_path):
    run('cost', seeds=50, classes=100, measured=200, originals='one', control=False, reference=True, out=str(tmp_path/'out'))
    networks = pd.read_csv(tmp_path/'out'/'cost.csv', index_col=0).networks
    assert networks.to_dict() == {'original': 1, 'retrain': 50, 'unlearn': 500, 'reference': 50, 'all': 601}
