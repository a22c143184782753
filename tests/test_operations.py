"""What the page on operations promises: Slurm's script, workers with a GPU each, own modules on workers, devices that are not there."""
import importlib, json, os, re, signal, socket, subprocess, sys, textwrap
from contextlib import contextmanager
from pathlib import Path

import nbformat, numpy as np, pytest, torch
from distributed import Client

from test_cluster import wait_for
from test_study import RECIPES, files, logits_of, run, tiny
from unlearning.datasets.yours import from_dataset
from unlearning.ensemble import Store, Task, Unfit, packed, run_tasks, unpacked
from unlearning.load import load_split
from unlearning.study import Study
from unlearning.training import Training

ROOT = Path(__file__).resolve().parent.parent


# Devices

@pytest.mark.parametrize('device, says', [('cuda:5', "device is 'cuda:5', and torch finds 2 GPUs here: use 'cpu', or a scheduler"),
                                          ('cuda:two', "device is 'cuda:two': use 'cpu' or 'cuda'"), ('cpu:0', "device is 'cpu:0': use")])
def test_device_that_is_not_there_is_refused_by_name_before_the_work(tmp_path, monkeypatch, device, says):
    """On a machine that has two GPUs."""
    monkeypatch.setattr('unlearning.study.gpus', lambda: 2)
    with pytest.raises(ValueError, match=says): run(tiny(tmp_path/'study', device=device))
    assert not list(tmp_path.glob('study/*'))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_study_on_a_gpu(tmp_path):
    results = run(tiny(tmp_path, device='cuda', jobs=2))
    assert results.failures == {} and results.facts['environment']['gpu'] == torch.cuda.get_device_name()
    before = files(tmp_path)
    run(tiny(tmp_path, device='cuda', jobs=1))
    assert files(tmp_path) == before


# Workers

@contextmanager
def dask(folder, workers):
    """Address of a scheduler whose workers, one for each dict of variables, see this library and nothing beside it."""
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    file, processes = folder/'scheduler.json', []
    def start(kind, *options, **more):
        with open(folder/f'{kind}.log', 'a') as log:
            command = [sys.executable, '-m', 'dask', kind, '--scheduler-file', file, '--no-dashboard', '--host', '127.0.0.1', *options]
            processes.append(subprocess.Popen(command, cwd=folder, env=env | more, stdout=log, stderr=log, start_new_session=True))
    try:
        start('scheduler', '--port', '0')
        wait_for(lambda: file.exists() and file.stat().st_size)
        for more in workers: start('worker', '--nthreads', '1', '--local-directory', folder, **more)
        address = json.loads(file.read_text())['address']
        with Client(address, set_as_default=False) as client: client.wait_for_workers(len(workers), timeout=60)
        yield address
    finally:
        for process in processes: os.killpg(process.pid, signal.SIGKILL)
        for process in processes: process.wait()


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    with dask(tmp_path_factory.mktemp('cluster'), [dict(CUDA_VISIBLE_DEVICES=str(gpu)) for gpu in (0, 1)]) as address: yield address


def visible(task):
    """Which GPU its worker sees; a while, so that both have one."""
    import time
    time.sleep(1)
    return {'x': np.zeros(1)}, {'gpu': os.environ['CUDA_VISIBLE_DEVICES']}


def test_each_worker_keeps_its_own_gpu(tmp_path, cluster):
    tasks, store = [Task('row', k, {}) for k in range(4)], Store(tmp_path)
    run_tasks(tasks, visible, store, scheduler=cluster)
    assert {store.load(t)[1]['gpu'] for t in tasks} == {'0', '1'}


def emulated(gpus):
    """For a worker: from now on it has so many GPUs. (A function of a function's is sent by content.)"""
    def emulate():
        import unlearning.study
        unlearning.study.gpus = lambda: gpus
    return emulate


@pytest.mark.parametrize('there, device, says', [(0, 'cuda', "should compute on 'cuda', and torch finds no GPU there"),
                                                 (1, 'cuda:1', "should compute on 'cuda:1', and torch finds 1 GPU there")])
def test_worker_without_the_gpu_is_named_and_ends_the_run(tmp_path, cluster, there, device, says):
    """Not as task after task that fails, nor as a split that is damaged."""
    with Client(cluster, set_as_default=False) as client:
        client.run(emulated(there))
        with pytest.raises(Unfit, match=f'the worker on {re.escape(socket.gethostname())} {says}.*CUDA_VISIBLE_DEVICES'):
            run(tiny(tmp_path, device=device, scheduler=cluster))
        client.run(emulated(0))
    assert not list(tmp_path.glob('[ro]*.safetensors'))


# Own modules

@pytest.fixture
def module(tmp_path):
    """Writes a module into a folder that no worker sees, and imports it; anew, where it was imported before."""
    folder = tmp_path/'project'
    folder.mkdir()
    made = set()
    def write(name, code):
        (folder/f'{name}.py').write_text(textwrap.dedent(code))
        importlib.invalidate_caches()
        for old in made: sys.modules.pop(old, None)
        made.add(name)
        return importlib.import_module(name)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # edits within a second would be overlooked
    yield write
    sys.dont_write_bytecode = before
    sys.path.remove(str(folder))
    for name in made: sys.modules.pop(name, None)


PROJECT = '''
    import torch
    from dataclasses import dataclass
    from torch import nn
    from torch.utils.data import Dataset
    from unlearning.unlearn import ForgetLoss
    import own_parts

    class Bars(Dataset):
        """Sixty images of a bar at one of three places."""
        def __init__(self, n): self.n = n
        def __len__(self): return self.n
        def __getitem__(self, i):
            x = torch.full((1, 8, 8), i / self.n)
            x[0, i % 3] = 1.
            return x, i % 3

    def build(num_classes): return nn.Sequential(nn.Flatten(), own_parts.Wide(64, 16), nn.ReLU(), nn.Linear(16, num_classes))

    @dataclass(frozen=True)
    class TowardsUniform(ForgetLoss):
        weight: float = 1.
        def __call__(self, run, forget, retain): return -self.weight * run.student(forget.x).log_softmax(1).mean()
'''
PARTS = '''
    from torch import nn
    class Wide(nn.Linear):
        def forward(self, x): return super().forward(x) * 2
'''


@pytest.fixture
def project(module):
    module('own_parts', PARTS)
    return module('own_project', PROJECT)


def own_study(project, folder, **more):
    from unlearning.unlearn import Erase, Recipe, Repair
    quick = Training(epochs=1, batch_size=16, lr=0.05, augment=())
    split = load_split(from_dataset(project.Bars(60), project.Bars(30)), forget=9)
    recipe = Recipe(name='uniform', phases=(Erase(forget=project.TowardsUniform(), batch_size=9, lr=0.01), Repair(training=quick)))
    return Study(split, dict(uniform=recipe), folder, network=project.build, training=quick, seeds=2, permutations=3, **more)


def finds(name):
    def look():
        from importlib.util import find_spec
        return find_spec(name) is not None
    return look


def test_data_set_builder_layer_and_loss_of_own_modules_reach_workers_that_have_none_of_them(tmp_path, cluster, project):
    with Client(cluster, set_as_default=False) as client: assert not any(client.run(finds('own_project')).values())
    assert run(own_study(project, tmp_path/'there', scheduler=cluster)).failures == {}
    run(own_study(project, tmp_path/'here', jobs=1))
    here, there = logits_of(tmp_path/'here'), logits_of(tmp_path/'there')
    assert here.keys() == there.keys() and len(here) == 5
    for name in here:
        for part in here[name]: np.testing.assert_array_equal(here[name][part], there[name][part])


@pytest.mark.parametrize('where', ['processes', 'cluster'])
def test_workers_run_the_code_of_the_key_after_an_edit(tmp_path, where, module, request):
    """They may have imported the module before it."""
    there = dict(jobs=2) if where == 'processes' else dict(scheduler=request.getfixturevalue('cluster'))
    store, found = Store(tmp_path/'store'), []
    for value in (1, 2):
        own = module('own_values', f'import numpy as np\nVALUE = {value}\ndef make(task): return {{"x": np.full(1, VALUE)}}, {{}}')
        tasks = [Task('row', k, dict(value=value)) for k in range(4)]
        run_tasks(tasks, own.make, store, **there)
        found.append({store.load(t)[0]['x'].item() for t in tasks})
    assert found == [{1}, {2}]


MISSING = {'cannot be pickled': 'import threading\nlock = threading.Lock()\ndef make(task):\n    with lock: return {}, {}',
           'large': 'table = bytes(2 << 20)\ndef make(task): return {}, {"n": len(table)}',
           'imported inside': 'def make(task):\n    import own_missing\n    return {}, {}'}


@pytest.mark.parametrize('why', MISSING)
def test_missing_module_is_named_with_the_remedy_and_ends_the_run(tmp_path, cluster, module, why):
    own, store = module('own_missing', MISSING[why]), Store(tmp_path/'store')
    says = rf"the worker on {re.escape(socket.gethostname())} cannot load .*\(ModuleNotFoundError: No module named 'own_missing'\).*PYTHONPATH"
    with pytest.raises(Unfit, match=says): run_tasks([Task('row', k, {}) for k in range(4)], own.make, store, scheduler=cluster)
    assert files(store.folder) == {}
    run_tasks([Task('row', 0, {})], own.make, store, jobs=1)  # where the module is


def test_older_version_of_a_module_that_goes_by_name_is_named(module):
    sent = packed(module('own_older', MISSING['cannot be pickled']).make)
    module('own_older', 'def other(task): pass')
    with pytest.raises(Unfit, match="AttributeError: .*'own_older'.*'make'|AttributeError.*make.*own_older"): unpacked(sent)


def test_own_code_is_sent_without_what_is_beside_it_and_nothing_stays_registered(module):
    from cloudpickle.cloudpickle import list_registry_pickle_by_value
    own = module('own_beside', 'table = bytes(9 << 20)\ndef make(task): return {}, {}')
    assert len(packed(own.make)) < 2000 and list_registry_pickle_by_value() == set()


# Slurm

def cell(starts):
    """The page's code cell that has this in it."""
    page = nbformat.read(ROOT/'nbs'/'operations.ipynb', as_version=4)
    [source] = [c.source for c in page.cells if c.cell_type == 'code' and starts in c.source]
    return source


@pytest.fixture(scope='module')
def slurm():
    """What the page's two cells on Slurm leave behind."""
    names = {}
    for starts in ('settings = dict(', 'gpu = settings'): exec(cell(starts), names)
    return names


def test_job_script_of_the_page(slurm):
    lines = slurm['script'].splitlines()
    assert lines[0].startswith('#!') and {'#SBATCH -p batch', '#SBATCH -A lab', '#SBATCH -n 1', '#SBATCH --cpus-per-task=16', '#SBATCH --mem=45G', '#SBATCH -t 12:00:00'} <= {*lines}
    command = next(line for line in lines if 'dask_worker' in line)
    for option in (r'--nthreads 1 ', r'--nworkers 16 ', r'--memory-limit 2.79GiB ', r'--nanny ', r'--local-directory /tmp'): assert re.search(option, command + ' ')
    assert re.match(r'python -m distributed\S* tcp://[\d.]+:\d+ ', command)
    prologue = lines[lines.index('#SBATCH -t 12:00:00') + 1:lines.index(command)]
    assert prologue[0].endswith('/bin/activate') and prologue[1:] == ['export UNLEARNING_DATA=/shared/data', 'export PYTHONPATH=/shared/project', 'export OMP_NUM_THREADS=1']


def test_job_script_for_gpus(slurm):
    lines = slurm['on_gpu']
    assert {'#SBATCH --gres=gpu:1', '#SBATCH --cpus-per-task=4', '#SBATCH -p gpu', 'export UNLEARNING_DATA=/shared/data'} <= {*lines}
    command = next(line for line in lines if 'dask_worker' in line)
    assert '--nthreads 1 ' in command and '--nworkers' not in command


SBATCH = '''#!/bin/sh
cp "$1" "$SPOOL/job.sh"
grep '#SBATCH' "$1" > "$SPOOL/asked"
setsid sh "$SPOOL/job.sh" > "$SPOOL/log" 2>&1 &
echo "Submitted batch job $!"
'''
SCANCEL = '#!/bin/sh\nkill -- -"$1" 2> /dev/null\ntrue\n'


def environment_of(task):
    return {'x': np.zeros(1)}, {name: os.environ[name] for name in ('UNLEARNING_DATA', 'OMP_NUM_THREADS')}


def test_study_through_workers_that_a_job_script_starts(tmp_path, monkeypatch, slurm):
    """The page's settings with an `sbatch` that only starts the script: its prologue, its workers, and the study that they compute."""
    from dask_jobqueue import SLURMCluster
    for name, script in dict(sbatch=SBATCH, scancel=SCANCEL).items():
        (tmp_path/name).write_text(script)
        (tmp_path/name).chmod(0o755)
    monkeypatch.setenv('PATH', os.pathsep.join([str(tmp_path), os.environ['PATH']]))
    monkeypatch.setenv('SPOOL', str(tmp_path))
    monkeypatch.delenv('UNLEARNING_DATA', raising=False)
    prologue = [f'export PYTHONPATH={ROOT}', 'export UNLEARNING_DATA=/shared/data', 'export OMP_NUM_THREADS=1']
    here = dict(python=sys.executable, job_script_prologue=prologue, cores=2, processes=2, memory='6GB', local_directory=str(tmp_path/'local'),
                scheduler_options=dict(host='127.0.0.1', dashboard_address=None))
    with SLURMCluster(**slurm['settings'] | here) as cluster:
        cluster.scale(jobs=1)
        tasks, store = [Task('row', k, {}) for k in range(2)], Store(tmp_path/'store')
        run_tasks(tasks, environment_of, store, scheduler=cluster.scheduler_address)
        for t in tasks: assert dict(UNLEARNING_DATA='/shared/data', OMP_NUM_THREADS='1').items() <= store.load(t)[1].items()
        results = run(tiny(tmp_path/'there', recipes=dict(finetune=RECIPES['finetune']), scheduler=cluster.scheduler_address))
    assert results.failures == {} and '#SBATCH --cpus-per-task=2' in (tmp_path/'asked').read_text()
    run(tiny(tmp_path/'here', recipes=dict(finetune=RECIPES['finetune'])))
    here, there = logits_of(tmp_path/'here'), logits_of(tmp_path/'there')
    assert here.keys() == there.keys()
    for name in here:
        for part in here[name]: np.testing.assert_array_equal(here[name][part], there[name][part])


def test_extra_for_clusters_brings_what_the_page_imports():
    from configparser import ConfigParser
    parser = ConfigParser()
    parser.read(ROOT/'settings.ini')
    wanted = parser['DEFAULT']['cluster_requirements'].split()
    assert any(w.startswith('dask-jobqueue') for w in wanted) and any(w.startswith('distributed') for w in wanted)


@pytest.mark.parametrize('program, given, spins', [('import unlearning, torch', {}, False), ('import unlearning, torch', {'OMP_WAIT_POLICY': 'active'}, True),
                                                   ('import torch, unlearning', {}, True), ('import torch, unlearning', {'OMP_WAIT_POLICY': 'passive'}, False)])
def test_threads_that_wait_sleep_unless_their_user_says_otherwise_or_torch_came_first(program, given, spins):
    """OpenMP itself says how long its threads spin, as torch is loaded."""
    env = {k: v for k, v in os.environ.items() if k != 'OMP_WAIT_POLICY'} | given
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True,
                          env=env | dict(OMP_DISPLAY_ENV='verbose', PYTHONPATH=str(ROOT)))
    said = re.findall(r"SPINCOUNT = '(\d+)'", done.stderr)
    assert said and all((int(n) > 0) == spins for n in said), done.stderr
