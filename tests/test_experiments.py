"""Each experiment notebook, run by papermill as its reader would, at its smallest."""
from pathlib import Path

import papermill, pytest
from papermill.exceptions import PapermillExecutionError
from papermill.parameterize import parameterize_notebook

from unlearning.data import data_root
from unlearning.report import NAMES

EXPERIMENTS = Path(__file__).resolve().parent.parent/'nbs'/'experiments'
METHODS = [name for name in NAMES.values() if name not in ('Retrain', 'No Unlearning')]


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


def test_quickstart(run, tmp_path):
    shown, pictures = run('quickstart', seeds=2, epochs=2.0, subset=300, permutations=3, jobs=1, out=str(tmp_path/'out'))
    assert_study(shown, pictures, tmp_path/'out')


def test_cifar10_as_it_stands(run, tmp_path):
    if not (data_root()/'cifar-10-batches-py').is_dir(): pytest.skip(f'no cifar-10-batches-py in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    shown, pictures = run('cifar10', out=str(tmp_path/'out'))
    assert_study(shown, pictures, tmp_path/'out')
    assert 'cifar10: 500 training images, 50 of them to forget, 10,000 test images' in shown
    assert (tmp_path/'cifar10.ipynb').stat().st_size < 1e6


def test_tuning(run, tmp_path):
    run('tuning', trials=1, epochs=2.0, subset=300, jobs=1, out=str(tmp_path/'out'))
    rows = (tmp_path/'out'/'tuning.csv').read_text().splitlines()
    assert len(rows) == 1 + 2 + 7  # a header, original and Retrain, a trial of each method


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
    notebook, namespace = parameterize_notebook(papermill.iorw.load_notebook_node(str(EXPERIMENTS/f'{name}.ipynb')), given), {}
    with pytest.raises(ValueError, match=says):
        for cell in notebook.cells:
            if cell.cell_type == 'code': exec(cell.source, namespace)
