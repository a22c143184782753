"""A study over Dask: a scheduler and three worker processes on this machine, one of them killed."""
import json, os, re, signal, socket, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle, dask, papermill, pytest
from distributed import Client

from test_engine import assert_like, make, study
from test_experiments import EXPERIMENTS
from test_study import run, tiny
from unlearning.ensemble import Store, Task, Unfit, run_tasks
from unlearning.methods.finetune import finetune
from unlearning.study import maker, network_tasks
from unlearning.training import Training

WORKERS = 3


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """Address of a scheduler with three workers, each under a nanny that replaces it when it dies."""
    folder = tmp_path_factory.mktemp('cluster')
    address, here = folder/'scheduler.json', str(Path(__file__).parent)
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([here, *sys.path]))
    def start(kind, *options):
        with open(folder/f'{kind}.log', 'a') as log:
            return subprocess.Popen([sys.executable, '-m', 'dask', kind, '--scheduler-file', address, '--no-dashboard', *options], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    processes = [start('scheduler', '--host', '127.0.0.1', '--port', '0')]
    try:
        wait_for(lambda: address.exists() and address.stat().st_size)
        processes += [start('worker', '--host', '127.0.0.1', '--nthreads', '1', '--local-directory', folder) for _ in range(WORKERS)]
        yield json.loads(address.read_text())['address']
    finally:
        for process in processes: os.killpg(process.pid, signal.SIGKILL)
        for process in processes: process.wait()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The study on one process of this machine."""
    folder = tmp_path_factory.mktemp('whole')
    return folder, run(study(folder))


def data_reads():
    """How often this worker has read a split, and how often it has used one."""
    from unlearning.images import shared_split
    from unlearning.study import _checked
    return len(_checked), shared_split.cache_info()


def victim(folder):
    """The process that is training a method's network right now, stopped in the middle."""
    for path in folder.glob('[!m]*.claim'):
        if len(list(folder.glob('retrain*.safetensors'))) < 2: return None
        try: pid = int(path.read_text().split()[-1])
        except (FileNotFoundError, IndexError): continue
        if pid == os.getpid(): continue  # tidying up
        os.kill(pid, signal.SIGSTOP)
        if path.exists(): return pid
        os.kill(pid, signal.SIGCONT)


def test_study_through_three_workers_one_of_them_killed(tmp_path, cluster, whole):
    with Client(cluster, set_as_default=False) as client: client.wait_for_workers(WORKERS, timeout=60)
    with ThreadPoolExecutor() as pool:
        future = pool.submit(run, study(tmp_path/'study', scheduler=cluster))
        pid = wait_for(lambda: victim(tmp_path/'study'))
        os.kill(pid, signal.SIGKILL)
        results = future.result(timeout=100)
    assert_like(tmp_path/'study', whole[0])
    assert results.quality.equals(whole[1].quality) and results.failures == {}
    assert results.networks.drop(columns='seconds').equals(whole[1].networks.drop(columns='seconds'))

    # A worker has read the data once, however many tasks it had.
    with Client(cluster, set_as_default=False) as client: reads = client.run(data_reads)
    used = [cache for files, cache in reads.values() if cache.hits]
    assert len(used) >= 2 and all(cache.misses == 1 for cache in used) and all(files <= 1 for files, _ in reads.values())
    assert sum(cache.hits for cache in used) >= 10

    # What travels is a task and its name.
    tasks, store = network_tasks(study(tmp_path/'study')), Store(tmp_path/'study')
    split = next(store.folder.glob('split-*'))
    sent = maker(study(tmp_path), str(split), store, tasks['original'][0])
    assert len(cloudpickle.dumps((sent, tasks['finetune'][0], store))) < 5000 < split.stat().st_size / 10


def test_what_travels_does_not_grow_with_the_seeds(tmp_path, monkeypatch):
    sizes = {}
    def note(tasks, make, *args):
        sizes.setdefault(K, []).append(len(cloudpickle.dumps(make)))
        return {}
    monkeypatch.setattr('unlearning.study.run_tasks', note)
    monkeypatch.setattr('unlearning.study.collect', lambda *args: None)
    for K in (3, 300): run(tiny(tmp_path, seeds=K))
    assert len(sizes[3]) == 3 and sizes[3] == sizes[300]


def test_experiment_notebook_over_the_cluster(tmp_path, cluster, monkeypatch):
    """One parameter is all that it takes."""
    monkeypatch.chdir(tmp_path)
    parameters = dict(seeds=2, epochs=2.0, subset=300, permutations=3, out=str(tmp_path/'out'), scheduler=cluster)
    papermill.execute_notebook(str(EXPERIMENTS/'quickstart.ipynb'), str(tmp_path/'quickstart.ipynb'), parameters, kernel_name='python3', progress_bar=False)
    assert 'Lost seeds' not in (tmp_path/'out'/'tables.txt').read_text() and (tmp_path/'out'/'summary.csv').exists()
    with Client(cluster, set_as_default=False) as client: used = [cache.hits for _, cache in client.run(data_reads).values()]
    assert sum(used) >= len(list((tmp_path/'out').glob('*-00?-*.safetensors')))  # every network and measurement was the workers'


def noting(task):
    """A file counts how often each task was begun."""
    with open(task.settings['log'], 'a') as f: f.write(f'{task.seed}\n')
    time.sleep(0.1)
    return make(task)


def test_two_runs_on_one_folder_share_the_cluster(tmp_path, cluster):
    tasks, store = [Task('row', k, dict(log=str(tmp_path/'log'))) for k in range(12)], Store(tmp_path/'store')
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(run_tasks, tasks, noting, store, scheduler=cluster) for _ in range(2)]
        assert [future.result(timeout=100) for future in both] == [{}, {}]
    assert sorted(map(int, (tmp_path/'log').read_text().split())) == list(range(12))
    assert {path.name for path in store.folder.iterdir()} == {task.filename for task in tasks}


def deadly(task):
    """Seed 1 takes its worker with it. (A task's own file counts how often each was begun.)"""
    with open(task.settings['log'], 'a') as f: f.write(f'{task.seed}\n')
    if task.seed == 1: os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return make(task)


@pytest.mark.parametrize('allowed', [3, 0], ids=['Dask tries again', 'Dask gives up at once'])
def test_task_that_kills_its_workers_is_named_and_the_rest_goes_on(tmp_path, cluster, allowed):
    """joblib's own backend would wait for ever for a task that Dask has given up."""
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, 'allowed_failures', allowed))
    tasks, store = [Task('row', k, dict(log=str(tmp_path/'log'))) for k in range(8)], Store(tmp_path/'store')
    with ThreadPoolExecutor() as pool:
        future = pool.submit(run_tasks, tasks, deadly, store, scheduler=cluster)
        with pytest.raises(RuntimeError, match='1 of the tasks failed.*\n  row, seed 1: its process died 3 times'): future.result(timeout=100)
    assert [t.seed for t in tasks if t in store] == [0, 2, 3, 4, 5, 6, 7]
    assert (tmp_path/'log').read_text().split().count('1') == 3 and all(path.suffix == '.safetensors' for path in store.folder.iterdir())


def emulate():
    """From now on this worker's CPU says that it has no instructions for bfloat16."""
    import torch
    torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False


def test_worker_that_would_emulate_bfloat16_is_refused_by_name(tmp_path, cluster, monkeypatch):
    """Its networks would be others, and late."""
    for module in ('training', 'study'): monkeypatch.setattr(f'unlearning.{module}.native_bfloat16', lambda: True)  # where the study begins
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(WORKERS, timeout=60)
        client.run(emulate)
        try:
            with pytest.raises(Unfit, match=rf'{re.escape(socket.gethostname())} has a CPU without instructions for bfloat16.*precision="float32"'): run(study(tmp_path/'study', scheduler=cluster))
            assert not list((tmp_path/'study').glob('[ro]*.safetensors'))
            fine = Training(epochs=1, batch_size=32, lr=0.1, augment=(), precision='float32')
            recipes = {'finetune': finetune(repair=fine)}
            assert run(tiny(tmp_path/'study', training=fine, recipes=recipes, scheduler=cluster)).failures == {}
        finally: client.restart(wait_for_workers=False)


def test_no_scheduler(tmp_path):
    with dask.config.set({'distributed.comm.timeouts.connect': '1s'}), pytest.raises(ValueError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:1' .*start one with `dask scheduler`"):
        run_tasks([Task('row', 0, {})], make, Store(tmp_path), scheduler='tcp://127.0.0.1:1')


def test_workers_with_several_threads_are_refused(tmp_path, monkeypatch):
    client = type('Client', (), dict(__init__=lambda self, *args, **kw: None, __enter__=lambda self: self, __exit__=lambda *args: None, wait_for_workers=lambda *args, **kw: None, ncores=lambda self: dict(a=1, b=4)))
    monkeypatch.setattr('distributed.Client', client)
    with pytest.raises(ValueError, match='a worker has several threads.*--nthreads 1'): run_tasks([Task('row', 0, {})], make, Store(tmp_path), scheduler='tcp://somewhere:8786')


def test_dask_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    with pytest.raises(ValueError, match=r"scheduler='tcp://somewhere:8786' needs Dask: pip install 'distributed>="):
        run_tasks([Task('row', 0, {})], make, Store(tmp_path), scheduler='tcp://somewhere:8786')
