"""What the engine survives: kills, damage, company, full disks, dying workers, and files made to do harm."""
import ctypes, errno, json, os, pickle, random, resource, shutil, signal, subprocess, sys, textwrap, time, warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import unlearning
from unlearning import study as study_module
from unlearning.unlearn import Erase, ForgetLoss
from test_study import RECIPES, assert_same_logits, files, logits_of, networks, run, tiny
from test_training import network
from unlearning.load import Share, load_split
from unlearning.images import read_split
from unlearning.ensemble import Store, Task, _compute, claim, describe, run_tasks, running, tidy
from unlearning.datasets.faces import render_faces
from unlearning.study import network_tasks, split_in, verified_split, write_split
from unlearning.files import Checkpoint, read_arrays, write_arrays
from unlearning.training import Training, fit

PATH = [str(Path(unlearning.__file__).parent.parent), str(Path(__file__).parent)]


# Processes to kill

NURSERY = '''
    import json, os, sys
    sys.path[:0] = {path!r}
    import test_engine
    from test_engine import *
    print('ready', flush=True)
    for line in sys.stdin:
        children = []
        for code in json.loads(line):
            if pid := os.fork(): children.append(pid); continue
            os.setsid()
            status = 1
            try: exec(code); status = 0
            finally: sys.stderr.flush(); os._exit(status)
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)
'''


class Nursery:
    """A process that has imported everything, and forks children which are at work at once, each the head of a process group."""
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, '-c', textwrap.dedent(NURSERY.format(path=PATH))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer('ready\n')

    def answer(self, wanted=None):
        line = self.process.stdout.readline()
        assert wanted in (None, line)
        return line

    def start(self, *codes):
        print(json.dumps(codes), file=self.process.stdin, flush=True)
        self.children = json.loads(self.answer())

    def kill(self):
        for pid in self.children: os.killpg(pid, signal.SIGKILL)

    def statuses(self): return json.loads(self.answer())

    def run(self, *codes):
        self.start(*codes)
        return self.statuses()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope='module')
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


def study(folder, **changes): return tiny(folder, seeds=3, training=Training(epochs=6, batch_size=32, lr=0.1, augment=('crop',)), **changes)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, nursery):
    """A study that nobody interrupted, and how long it took."""
    folder, start = tmp_path_factory.mktemp('whole'), time.monotonic()
    assert nursery.run(f'run(study({str(folder)!r}))') == [0]
    return folder, time.monotonic() - start


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path/'study')
    return tmp_path/'study'


def assert_like(folder, whole):
    """The same logits and scores, bit by bit, and nothing left lying about."""
    assert {p.name for p in folder.iterdir() if p.suffix != '.damaged'} == {p.name for p in whole.iterdir()}
    for path in whole.glob('*.safetensors'):
        want, got = load_file(path), load_file(folder/path.name)
        assert want.keys() == got.keys()
        for key in want: np.testing.assert_array_equal(got[key], want[key], err_msg=f'{key} of {path.name}')
    scores = lambda p: {k: v for k, v in read_arrays(p)[1]['facts'].items() if k != 'seconds'}
    for path in whole.glob('measure-*'): assert scores(folder/path.name) == scores(path)


def wait(until, seconds, every=0.05):
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end: time.sleep(every)
    return until()


# Kills

def at_work(folder):
    """Names and lines of all claims: of who is at work, or died at it."""
    lines = set()
    for path in folder.glob('*.claim'):
        with suppress(FileNotFoundError): lines |= {(path.stem, line) for line in path.read_text().splitlines()}
    return lines


class Often(study_module.Maker):
    """Leaves a checkpoint after every epoch, in whatever process it makes a network."""
    def __call__(self, task):
        Checkpoint.__init__.__defaults__ = (0.,)
        return super().__call__(task)


def test_ten_kills_change_nothing(tmp_path, nursery, whole):
    """SIGKILL for the whole process tree at ten random moments or more, one process or two workers: of each, some inside a network that has a checkpoint."""
    rng, folder, kills, checkpoints = random.Random(0), tmp_path/'0', 0, set()
    for attempt in range(60):
        if kills >= 10 and checkpoints == {1, 2}: break
        folder.mkdir(exist_ok=True)
        before = {name: facts for name, facts in files(folder).items() if name.endswith('.safetensors')}
        jobs, claims = (min({1, 2} - checkpoints) if kills >= 10 else 2 if kills in (3, 7) else 1), at_work(folder)
        began = lambda: at_work(folder) - claims
        inside = lambda: any((folder/f'{name}.checkpoint').exists() for name, _ in began())
        nursery.start(f'study_module.Maker = Often; run(study({str(folder)!r}, jobs={jobs}))')
        gone = lambda: not os.path.exists(f'/proc/{nursery.children[0]}')
        if jobs == 2: wait(lambda: began() or gone(), 120)  # its workers take seconds to start
        if kills < 10: time.sleep(rng.uniform(0, 0.3 * whole[1]))
        else: wait(lambda: inside() or gone(), 120, every=0.002)  # chance has not met one yet
        try: nursery.kill()
        except ProcessLookupError: pass
        killed = nursery.statuses() == [-signal.SIGKILL]
        kills += killed
        if killed and inside(): checkpoints.add(jobs)
        assert before.items() <= files(folder).items()  # what was finished is as it was
        for path in folder.glob('*.safetensors'):
            if not path.name.startswith('split'): read_arrays(path)  # what has its name is whole
        assert len(began()) <= jobs
        if not killed:
            assert_like(folder, whole[0])
            folder = tmp_path/str(attempt + 1)
    assert kills >= 10 and checkpoints == {1, 2}
    results = run(study(folder))
    assert_like(folder, whole[0])
    assert results.quality.equals(run(study(whole[0])).quality)


def test_kill_while_a_record_is_written(tmp_path, nursery):
    """Under its own name there is nothing yet; what there is of it is tidied away by the next run."""
    code = f'os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL); run_tasks([Task("row", 0, {{}})], make, Store({str(tmp_path)!r}), jobs=1)'
    assert nursery.run(code) == [-signal.SIGKILL]
    assert not list(tmp_path.glob('*.safetensors')) and list(tmp_path.glob('*.part'))
    run_tasks([Task('row', 0, {})], make, Store(tmp_path), jobs=1)
    assert [p.name for p in tmp_path.iterdir()] == [Task('row', 0, {}).filename]


# A training that is resumed in the middle

def trained(images, path, stop=None, **changes):
    """The weights of a network with batch norm and dropout, and the steps that it took; `stop` is the step at which the process dies."""
    model, steps = network(), []
    def count():
        steps.append(1)
        if len(steps) == stop: os.kill(os.getpid(), signal.SIGKILL)
    settings = Training(**dict(epochs=5, batch_size=50, lr=0.05, augment=('crop', 'erase')) | changes)
    history = fit(model, images, settings, 7, after_step=count, checkpoint=path and Checkpoint(path, seconds=0))
    return model.state_dict(), len(steps), history


@pytest.mark.parametrize('schedule', ['onecycle', 'cosine', 'halving', 'constant'])
@pytest.mark.parametrize('optimizer, precision', [('sgd', 'float32'), ('adamw', 'float32'), ('sgd', 'bfloat16')])
def test_killed_training_goes_on_to_the_same_weights(tmp_path, nursery, optimizer, precision, schedule):
    """Killed in its third and, resumed, in its fifth epoch of four steps."""
    images, changes = load_split('digits', subset=200).train, dict(optimizer=optimizer, schedule=schedule, precision=precision)
    path = tmp_path/'checkpoint'
    for stop in (11, 9):
        code = f'torch.set_num_threads(1); trained(load_split("digits", subset=200).train, {str(path)!r}, {stop}, **{changes!r})'
        assert nursery.run(code) == [-signal.SIGKILL] and path.exists()
    weights, steps, history = trained(images, path, **changes)
    want, all_steps, whole_history = trained(images, None, **changes)
    assert (steps, all_steps) == (4, 20)
    for name in want: assert torch.equal(weights[name], want[name]), name
    assert [(h['epoch'], h['loss'], h['accuracy']) for h in history] == [(h['epoch'], h['loss'], h['accuracy']) for h in whole_history]


def test_by_default_a_checkpoint_is_left_every_minute(tmp_path, monkeypatch):
    """Here an epoch takes 25 seconds."""
    left, now, path = [], [0.], tmp_path/'checkpoint'
    monkeypatch.setattr('unlearning.files.time', SimpleNamespace(monotonic=lambda: now[0]))
    class Watched(Checkpoint):
        @property
        def due(self):
            now[0] += 25
            return super().due
        def save(self, owner, arrays, facts):
            super().save(owner, arrays, facts)
            left.append(facts['history'][-1]['epoch'])
    fit(network(), load_split('digits', subset=200).train, Training(epochs=8, batch_size=50, lr=0.05), checkpoint=Watched(path))
    assert left == [3, 6] and path.exists()


def test_a_short_training_writes_no_checkpoint(tmp_path):
    fit(network(), load_split('digits', subset=200).train, Training(epochs=3, batch_size=50, lr=0.05), checkpoint=Checkpoint(tmp_path/'checkpoint'))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('other', [dict(lr=0.06), dict(epochs=6), dict(optimizer='adamw')])
def test_checkpoint_of_another_training_is_set_aside(tmp_path, other):
    images, path = load_split('digits', subset=200).train, tmp_path/'checkpoint'
    trained(images, path, **other)
    with pytest.warns(UserWarning, match='checkpoint is the checkpoint of another computation: it is set aside'): weights, steps, _ = trained(images, path)
    assert steps == 20 and all(torch.equal(v, weights[k]) for k, v in trained(images, None)[0].items())


def times(batch, rng, by): return by * batch
def half(batch, rng, by=0.5): return by * batch
def less(batch, rng, by=0.4): return by * batch
less.__qualname__ = 'half'
def answers(z, batch, teacher): return (z - teacher(batch.x)).square().mean()
def taught(seed): return dict(loss=partial(answers, teacher=network(seed).eval()))
NOTHING = dict(augment=(lambda batch, rng: batch,))
@pytest.mark.parametrize('mine, other', [
    (NOTHING, dict(augment=(lambda batch, rng: 1 - batch,))), (dict(augment=(partial(times, by=0.5),)), dict(augment=(partial(times, by=0.4),))),
    (dict(augment=(half,)), dict(augment=(less,))), (taught(0), taught(1)),
    [dict(augment=(partial(times, by=torch.tensor(by)),)) for by in (0.1, 0.10001)],  # four digits are shown of each number
    (NOTHING, NOTHING | dict(loss=lambda z, batch: z.square().mean())), (dict(before_step=lambda: None), dict(before_step=lambda: print(end='')))])
def test_checkpoint_of_another_function_is_set_aside(tmp_path, mine, other):
    """Lambdas have one name."""
    def fitted(augment=(), **functions):
        return fit(network(), images, Training(epochs=3, batch_size=50, lr=0.05, augment=augment), checkpoint=Checkpoint(path, seconds=0), **functions)
    images, path = load_split('digits', subset=200).train, tmp_path/'checkpoint'
    fitted(**mine)
    with pytest.warns(UserWarning, match='another computation'): fitted(**other)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fitted(**other)


def test_functions_that_differ_in_the_order_of_a_set_are_one(tmp_path):
    """In which a set lies differs between processes."""
    def upright(batch, rng): return batch if 8 in {0, 8} else -batch
    def ordered(order):
        consts = tuple(frozenset(order) if isinstance(c, frozenset) else c for c in upright.__code__.co_consts)
        return FunctionType(upright.__code__.replace(co_consts=consts), {}, 'upright')
    one, other = ordered([0, 8]), ordered([8, 0])
    assert repr(one.__code__.co_consts) != repr(other.__code__.co_consts)
    images, path = load_split('digits', subset=200).train, tmp_path/'checkpoint'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for f in (one, other): fit(network(), images, Training(epochs=3, batch_size=50, lr=0.05, augment=(f,)), checkpoint=Checkpoint(path, seconds=0))


@pytest.mark.parametrize('other', [lambda x: dict(source=255 - x.source), lambda x: dict(mean=x.mean + 0.1), lambda x: dict(labels=x.labels.roll(1))])
def test_checkpoint_of_other_images_is_set_aside(tmp_path, other):
    images, path = load_split('digits', subset=200).train, tmp_path/'checkpoint'
    trained(images, path, epochs=2)
    with pytest.warns(UserWarning, match='another computation'): assert trained(replace(images, **other(images)), path, epochs=2)[1] == 8


def test_study_resumes_inside_a_network_and_removes_the_checkpoint(tmp_path, whole, nursery, monkeypatch):
    """The retrained network of seed 1 is killed after its fourth epoch of six."""
    code = f'''
        Checkpoint.__init__.__defaults__ = (0.,)
        save = Checkpoint.save
        def killing(self, owner, arrays, facts):
            save(self, owner, arrays, facts)
            if 'retrain-001' in self.path.name and len(facts['history']) == 4: os.kill(os.getpid(), signal.SIGKILL)
        Checkpoint.save = killing
        run(study({str(tmp_path/'study')!r}))
    '''
    assert nursery.run(textwrap.dedent(code)) == [-signal.SIGKILL]
    assert [p.name[:11] for p in (tmp_path/'study').glob('*.checkpoint')] == ['retrain-001']
    epochs, save = {}, Checkpoint.save
    def counting(self, owner, arrays, facts):
        epochs.setdefault(self.path.name[:11], []).append(facts['history'][-1]['epoch'])
        save(self, owner, arrays, facts)
    monkeypatch.setattr(Checkpoint, 'save', counting)
    monkeypatch.setattr(Checkpoint, 'due', True)
    run(study(tmp_path/'study'))
    assert epochs == {'retrain-001': [5], 'retrain-002': [1, 2, 3, 4, 5]}  # none is left after the last epoch
    assert_like(tmp_path/'study', whole[0])


def test_checkpoint_goes_only_when_its_record_is_there(tmp_path, monkeypatch):
    """A disk that is full at the end of a training does not take the training."""
    task, store = Task('row', 0, {}), Store(tmp_path)
    store.checkpoint(task).path.write_bytes(b'x')
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('unlearning.ensemble.write_arrays', full)
    with pytest.raises(OSError, match='cannot be written to'): run_tasks([task], make, store, jobs=1)
    assert store.checkpoint(task).path.exists()
    monkeypatch.undo()
    store.save(task, *make(task))
    store.checkpoint(task).path.write_bytes(b'x')  # as if the process had died just before it could remove it
    run_tasks([task], refuse, store, jobs=1)
    assert [p.suffix for p in tmp_path.iterdir()] == ['.safetensors']


def test_what_another_run_has_lost_meanwhile_is_not_tried_again(tmp_path):
    store, task = Store(tmp_path), Task('row', 0, {})
    store.lose(task, 'the loss is nan')
    assert _compute(None, task, store, 'run') == (task, 'lost', ('the loss is nan', ''))


def test_lost_seed_leaves_no_checkpoint(tmp_path):
    task, store = Task('row', 0, {}), Store(tmp_path)
    store.checkpoint(task).path.write_bytes(b'x')
    def make(task): raise FloatingPointError('the loss is nan')
    assert run_tasks([task], make, store, jobs=1) == {task: 'the loss is nan'}
    assert [p.name for p in tmp_path.iterdir()] == [f'{task.name}.lost']


def test_what_diverged_is_not_tried_again_unless_somebody_wants_it(tmp_path):
    tasks, store, tried = [Task('row', seed, {}) for seed in range(2)], Store(tmp_path), []
    def make(task):
        tried.append(task.seed)
        if task.seed and len(tried) < 3: raise FloatingPointError('the loss is nan: größer')
        return {'x': np.zeros(1)}, {}
    for _ in range(2): assert run_tasks(tasks, make, store, jobs=1) == {tasks[1]: 'the loss is nan: größer'}
    assert tried == [0, 1]
    (tmp_path / f'{tasks[1].name}.lost').unlink()
    assert run_tasks(tasks, make, store, jobs=1) == {} and tried == [0, 1, 1]


# Damage

def damage(data, rng):
    """A file's bytes after something has happened to them."""
    data = bytearray(data)
    at = rng.randrange(len(data))
    kind = rng.choice(['flip', 'flip', 'flip in the header', 'cut', 'hole', 'tail'])
    if kind == 'flip': data[at] ^= 1 << rng.randrange(8)
    if kind == 'flip in the header': data[at % min(len(data), 1500)] ^= 1 << rng.randrange(8)
    if kind == 'cut': del data[at:]
    if kind == 'hole': data[at:at + 100] = bytes(len(data[at:at + 100]))
    if kind == 'tail': data += rng.randbytes(1 + at % 50)
    return bytes(data)


def same(a, b): return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k], equal_nan=True) for k in a)


@pytest.mark.parametrize('kind', ['original-000', 'finetune-001', 'measure-finetune-001', 'checkpoint'])
def test_random_damage_is_noticed_and_named(copied, tmp_path, kind):
    """Or else (a space of the header that became a tab) it is none: what is read is what was written."""
    rng = random.Random(kind)
    if kind == 'checkpoint': trained(load_split('digits', subset=200).train, path := tmp_path/'a.checkpoint')
    else: path = next(copied.glob(f'{kind}-*'))
    data, (arrays, facts) = path.read_bytes(), read_arrays(path)
    noticed = 0
    for _ in range(150):
        path.write_bytes(damaged := damage(data, rng))
        try: got = read_arrays(path)
        except ValueError as e:
            noticed += 1
            assert f'{path} is damaged' in str(e)
        else: assert damaged == data or same(got[0], arrays) and got[1] == facts
    assert noticed > 135


def test_damaged_name_of_the_checksum_does_not_pass_for_an_old_record(copied):
    path = next(copied.glob('finetune-001-*'))
    path.write_bytes(path.read_bytes().replace(b'"checksum"', b'"checksun"'))
    with pytest.raises(ValueError, match=f"{path} is damaged .*it has a field 'checksun'"): read_arrays(path)


def test_random_damage_to_the_split_is_noticed_and_named(copied):
    path, rng = next(copied.glob('split-*')), random.Random(1)
    data, noticed, fingerprint = path.read_bytes(), 0, read_split(next(copied.glob('split-*'))).fingerprint
    for _ in range(150):
        (new := path.with_suffix('.new')).write_bytes(damage(data, rng))  # not in place: the last one may still be mapped
        os.replace(new, path)
        try: split = verified_split(path, read_split)
        except ValueError as e:
            noticed += 1
            assert str(path) in str(e)
        else: assert split.fingerprint == fingerprint
    assert noticed > 130


def test_worker_looks_at_the_split_itself(copied):
    """It may be damaged between its writing and a worker's reading of it."""
    path = next(copied.glob('split-*'))
    split_in(str(path), 'cpu')
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    (new := path.with_suffix('.new')).write_bytes(data)
    os.replace(new, path)
    with pytest.raises(ValueError, match=f'{path} is damaged'): split_in(str(path), 'cpu')


def test_split_whose_images_have_changed_ends_the_study(tmp_path):
    """Writing it again is no remedy, so the error names the file that is at fault."""
    split = load_split('celeba', root=render_faces(tmp_path/'faces', 60, 12), image_size=16, forget=Share(0.2))
    name, pixels = split.fingerprint, split.train.source.path
    with open(pixels, 'r+b') as f:
        f.seek(-1, os.SEEK_END); byte = f.read(1)
        f.seek(-1, os.SEEK_END); f.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match=f'split-{name}.* though it has just been written.*delete {pixels}, and load'):
        write_split(split, Store(tmp_path/'study'))
    assert not list((tmp_path/'study').glob('*.claim'))


@pytest.mark.parametrize('what', ['folder', 'link to a folder', 'settings without end'])
def test_what_is_no_record_is_named(tmp_path, what):
    task, store = Task('row', 0, {}), Store(tmp_path)
    path = store.path(task)
    if what == 'folder': path.mkdir()
    if what == 'link to a folder': path.symlink_to(Path(__file__).parent)
    if what == 'settings without end':
        deep = {}
        for _ in range(700): deep = dict(a=deep)
        write_arrays(path, {}, dict(method='row', seed=0, settings=deep, facts={}))
    with pytest.warns(UserWarning, match=f'{path} is not a .*set aside'), pytest.raises(ValueError, match=f'{path} was damaged'): store.load(task)
    assert run_tasks([task], make, store, jobs=1) == {} and task in store


def test_every_file_damaged_at_once(copied, whole):
    """Each is named and set aside, and the study comes out the same."""
    rng, names = random.Random(2), sorted(p.name for p in copied.iterdir())
    for name in names:
        data = bytearray((copied/name).read_bytes())
        data[rng.randrange(len(data) // 2, len(data)) if name.startswith(('split', 'ori')) else -1 - rng.randrange(200)] ^= 1 << rng.randrange(8)
        (copied/name).write_bytes(data)
    with pytest.warns(UserWarning) as said: run(study(copied))
    messages = [str(w.message) for w in said if w.category is UserWarning]
    for name in names: assert sum(f'{name} is' in m and f'{name}.damaged' in m for m in messages) == 1
    assert {p.name for p in copied.glob('*.damaged')} == {f'{name}.damaged' for name in names}
    assert_like(copied, whole[0])


def test_damaged_checkpoint_is_set_aside_and_the_training_starts_anew(tmp_path):
    images, path = load_split('digits', subset=200).train, tmp_path/'a.checkpoint'
    trained(images, path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.warns(UserWarning, match='a.checkpoint is damaged .* set aside as a.checkpoint.damaged'): weights, steps, _ = trained(images, path)
    assert steps == 20 and all(torch.equal(v, weights[k]) for k, v in trained(images, None)[0].items())


@pytest.mark.parametrize('wrong', ['no facts', 'a tensor less', 'another shape of the state', 'nothing left', 'more epochs than there are'])
def test_whole_checkpoint_with_the_wrong_content_is_set_aside(tmp_path, wrong):
    """As another version might have written it; and what it had restored by then is undone."""
    images, path = load_split('digits', subset=200).train, tmp_path/'a.checkpoint'
    trained(images, path)
    arrays, facts = read_arrays(path)
    if wrong == 'no facts': facts = [1]
    if wrong == 'a tensor less': del arrays['rng/torch']
    if wrong == 'another shape of the state': facts = {k: v for k, v in facts.items() if k != 'schedule'}
    if wrong == 'nothing left': facts['history'] += facts['history'][:1]
    if wrong == 'more epochs than there are': facts['history'] *= 20
    write_arrays(path, arrays, facts)
    with pytest.warns(UserWarning, match=f'{path} is .* set aside as a.checkpoint.damaged'): weights, steps, _ = trained(images, path)
    assert steps == 20 and all(torch.equal(v, weights[k]) for k, v in trained(images, None)[0].items())


def test_record_without_checksum_is_read(copied):
    """As version 0.0.1 first wrote them."""
    path = next(copied.glob('finetune-001-*'))
    arrays, header = read_arrays(path)
    save_file(arrays, path, {'record': json.dumps(header)})
    before = files(copied)
    run(study(copied))
    assert files(copied) == before


def test_damage_that_comes_while_the_study_runs_is_named(copied):
    """After the records were looked at, and before they are read for the tables."""
    tasks = network_tasks(study(copied))
    path = Store(copied).path(tasks['finetune'][0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=path.name), pytest.raises(ValueError, match=f'{path.name} was damaged and is set aside: run again'): Store(copied).load(tasks['finetune'][0])


# Company

def logging(folder):
    """Let every task that is computed leave a line."""
    from unlearning.study import Maker, Measurer
    for cls in (Maker, Measurer):
        def call(self, task, make=cls.__call__):
            with open(f'{folder}.log', 'a') as f: f.write(f'{task.name}\n')
            return make(self, task)
        cls.__call__ = call


def test_two_studies_share_the_work(tmp_path, nursery, whole):
    code = f'logging({str(tmp_path/"study")!r}); r = run(study({str(tmp_path/"study")!r})); r.networks.to_csv({str(tmp_path)!r} + f"/{{os.getpid()}}.csv")'
    assert nursery.run(code, code) == [0, 0]
    lines = (tmp_path/'study.log').read_text().split()
    assert sorted(lines) == sorted(p.stem for p in whole[0].glob('*.safetensors') if not p.name.startswith('split'))  # each once
    first, second = (p.read_text() for p in tmp_path.glob('*.csv'))
    assert first == second
    assert_like(tmp_path/'study', whole[0])


HOLDER = '''
import fcntl, os, sys
claim, record, whole = sys.argv[1:]
f = open(claim, 'a')
fcntl.flock(f, fcntl.LOCK_EX)
print('held', flush=True)
sys.stdin.readline()
if whole: os.replace(whole, record); os.unlink(claim)
else: os.kill(os.getpid(), 9)
'''


def make(task): return {'x': np.arange(task.seed + 3.)}, {}
def refuse(task): raise AssertionError('nothing should be computed')


@pytest.mark.parametrize('ends', ['finishes', 'is killed'])
def test_what_another_process_holds_is_waited_for(tmp_path, ends):
    """Others first; then its record is read, or, if it died, its task is taken over."""
    store, other, tasks = Store(tmp_path/'a'), Store(tmp_path/'b'), [Task('row', k, {}) for k in range(3)]
    run_tasks(tasks[:1], make, other, jobs=1)
    order = []
    def made(task):
        order.append(task.seed)
        if task.seed == 2: print(file=holder.stdin, flush=True)  # now the holder ends
        return refuse(task) if task.seed == 0 and ends == 'finishes' else make(task)
    args = [str(store.folder/f'{tasks[0].name}.claim'), str(store.path(tasks[0])), str(other.path(tasks[0])) if ends == 'finishes' else '']
    with subprocess.Popen([sys.executable, '-c', HOLDER, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'held\n' and running(store) == ['row-000']
        (store.folder/f'{tasks[0].filename}.1.part').write_bytes(b'being written')
        tidy(store)
        assert len(list(store.folder.iterdir())) == 2  # what is held is not touched
        run_tasks(tasks, made, store, jobs=1)
    assert order == ([1, 2] if ends == 'finishes' else [1, 2, 0])
    for task in tasks: assert len(store.load(task)[0]['x']) == task.seed + 3
    if ends == 'is killed': assert {p.suffix for p in store.folder.iterdir()} == {'.safetensors'}


def test_claim_on_a_file_that_has_just_been_removed_is_none(tmp_path, monkeypatch):
    """Its holder finished between our opening of the file and our lock on it; a third one may hold a new file of that name."""
    from unlearning import ensemble
    flock = ensemble.fcntl.flock
    def late(file, how):
        os.unlink(file.name)
        flock(file, how)
    monkeypatch.setattr(ensemble.fcntl, 'flock', late)
    with claim(Store(tmp_path), 'row-000') as deaths: assert deaths is None
    monkeypatch.undo()
    with claim(Store(tmp_path), 'row-000') as deaths: assert deaths == 0


def test_record_that_a_worker_wrote_elsewhere_is_missed(tmp_path):
    """On a folder that only looks the same on two machines."""
    from unlearning.ensemble import _arrived
    with pytest.raises(OSError, match=f'row-000-.*is not in {tmp_path}.* of this machine: .* all machines share'): _arrived(Store(tmp_path), Task('row', 0, {}), seconds=1)


def test_a_death_after_progress_does_not_count(tmp_path):
    """A training of days may be stopped by its cluster's time limit many times; a task that never gets anywhere is another matter."""
    store, seen = Store(tmp_path), []
    for progress in (False, True, True, True, False, False):
        with claim(store, 'row-000', 'run') as deaths:
            seen.append(deaths)
            if progress: os.utime(tmp_path/'row-000.checkpoint', ns=(len(seen), len(seen))) if len(seen) > 2 else (tmp_path/'row-000.checkpoint').touch()
            marks = (tmp_path/'row-000.claim').read_text()
        (tmp_path/'row-000.claim').write_text(marks)  # as if the holder had died
    assert seen == [0, 1, 0, 0, 0, 1]


def test_what_killed_processes_left_is_tidied_away(tmp_path):
    """For tasks of other settings too; but not what nobody has claimed, which may be in the making by other means."""
    for name in ('old-000-0123.claim', 'old-000-0123.safetensors.99.part', 'old-000-0123.checkpoint.98.part', 'old-000-0123.checkpoint', 'free.safetensors.1.part'):
        (tmp_path/name).write_bytes(b'x')
    run_tasks([Task('row', 0, {})], make, Store(tmp_path), jobs=1)
    assert sorted(p.name[:20] for p in tmp_path.iterdir() if p.name[:3] != 'row') == ['free.safetensors.1.p', 'old-000-0123.checkpo']


def test_without_locks_a_study_still_runs(tmp_path, monkeypatch):
    """A network disk without them, or another system than Unix."""
    from unlearning import ensemble
    for fcntl in (None, type('Fcntl', (), dict(LOCK_EX=2, LOCK_NB=4, flock=staticmethod(lambda *args: (_ for _ in ()).throw(OSError(38, 'no locks')))))):
        monkeypatch.setattr(ensemble, 'fcntl', fcntl)
        store = Store(tmp_path/str(fcntl))
        assert run_tasks(tasks := [Task('row', k, {}) for k in range(2)], make, store, jobs=1) == {} and all(t in store for t in tasks)


# Trouble with the folder

def assert_says(path, folder):
    text = path.read_text()
    assert text.startswith('OSError') and f'{folder} cannot be written to' in text and 'free space there or make it writable' in text and 'what is finished is kept' in text


FILL = '''
try: run(study({folder!r}, jobs={jobs}))
except OSError as e: Path({says!r}).write_text(f'OSError {{e}}')
'''


@pytest.mark.parametrize('jobs, allowed, missing', [(1, 20_000, 'finetune-001'), (2, 20_000, 'finetune'), (1, 500, 'measure'), (1, 20_000, 'split'), (1, 20_000, '')])
def test_disk_full(copied, tmp_path, nursery, whole, jobs, allowed, missing):
    """A limit to the size of files; the kernel refuses the rest, as it does on a full disk."""
    for path in copied.glob(f'{missing}*'): path.unlink()
    before = files(copied)
    code = f'resource.setrlimit(resource.RLIMIT_FSIZE, ({allowed}, {allowed}))' + FILL.format(folder=str(copied), jobs=jobs, says=str(tmp_path/'says'))
    assert nursery.run(code) == [0]
    assert_says(tmp_path/'says', copied)
    assert {name: facts for name, facts in files(copied).items() if not name.endswith('.claim')} == before  # a second worker was stopped at its task
    run(study(copied))
    assert_like(copied, whole[0])


def test_disk_full_at_a_checkpoint(copied, tmp_path, nursery, whole):
    for path in copied.glob('retrain-001-*'): path.unlink()
    room = max(path.stat().st_size for path in copied.glob('retrain-*'))  # which a network's state, with its optimizer's, exceeds
    code = f'study_module.Maker = Often; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))' + FILL.format(folder=str(copied), jobs=1, says=str(tmp_path/'says'))
    assert nursery.run(code) == [0]
    assert_says(tmp_path/'says', copied)
    assert not [p.name for p in copied.iterdir() if not p.name.endswith('.safetensors')]
    run(study(copied))
    assert_like(copied, whole[0])


def test_small_disk(tmp_path, nursery, whole):
    """A real one, where the machine lets us mount it."""
    (disk := tmp_path/'disk').mkdir()
    size = sum(p.stat().st_size for p in whole[0].iterdir()) - 200_000
    if os.getuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', disk], capture_output=True).returncode: pytest.skip('mounting takes root')
    try:
        assert nursery.run(FILL.format(folder=str(disk/'study'), jobs=1, says=str(tmp_path/'says'))) == [0]
        assert_says(tmp_path/'says', disk/'study')
        finished = files(disk/'study')
        assert any(name.startswith('original') for name in finished) and all(name.endswith('.safetensors') for name in finished)
        subprocess.run(['mount', '-o', 'remount,size=20m', disk], check=True)
        run(study(disk/'study'))
        assert finished.items() <= files(disk/'study').items()
        assert_like(disk/'study', whole[0])
    finally: subprocess.run(['umount', '-l', disk], check=True)


@pytest.mark.parametrize('code', ['ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS'])
def test_a_folder_that_takes_nothing_ends_the_run(tmp_path, monkeypatch, code):
    """At the first network, instead of training all of them for nothing."""
    begun = []
    def begin(task):
        begun.append(task)
        return make(task)
    def refused(*args): raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    monkeypatch.setattr('unlearning.ensemble.write_arrays', refused)
    with pytest.raises(OSError, match=f'{tmp_path} cannot be written to'): run_tasks([Task('row', k, {}) for k in range(3)], begin, Store(tmp_path), jobs=1)
    assert len(begun) == 1


def without_privileges():
    """Root may write anywhere, whatever a folder's mode. This gives up all that sets root apart (capabilities), in this process."""
    if not os.getuid(): assert ctypes.CDLL(None).capset((ctypes.c_uint32*2)(0x20080522, 0), (ctypes.c_uint32*6)()) == 0


@pytest.mark.parametrize('missing', ['finetune-001-*', 'split-*', 'damaged', ''])
def test_read_only_folder(nursery, copied, tmp_path, missing):
    """What is finished can still be read."""
    if missing == 'damaged': (path := next(copied.glob('finetune-001-*'))).write_bytes(path.read_bytes()[:-1])
    elif missing: next(copied.glob(missing)).unlink()
    (copied/'finetune-002-0123.claim').touch()  # of a process that was killed
    copied.chmod(0o555)
    says = tmp_path/'says'
    code = f'''
        without_privileges()
        try: Path({str(says)!r}).write_text(str(len(run(study({str(copied)!r})).networks)))
        except OSError as e: Path({str(says)!r}).write_text(f'OSError {{e}}')
    '''
    try: assert nursery.run(textwrap.dedent(code)) == [0]
    finally: copied.chmod(0o755)
    if missing: assert_says(says, copied)
    else: assert says.read_text() == '10'


def test_record_that_may_not_be_read(nursery, copied, tmp_path):
    """As another user's. It is not missing, nor damaged: the run ends, and names it."""
    path, says = next(copied.glob('finetune-001-*')), tmp_path/'says'
    path.chmod(0)
    code = f'''
        without_privileges()
        try: run(study({str(copied)!r}))
        except PermissionError as e: Path({str(says)!r}).write_text(str(e))
    '''
    assert nursery.run(textwrap.dedent(code)) == [0]
    assert 'may not be read: make it readable' in says.read_text() and str(path) in says.read_text()
    assert path.exists() and not list(copied.glob('*.damaged'))


# Trouble with a worker

def fateful(task):
    with open(task.settings['log'], 'a') as f: f.write(f'{task.seed}\n')
    begun = lambda seed: Path(task.settings['log']).read_text().split().count(str(seed))
    if task.settings['fate'] == 'killed':
        if task.seed == 1:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        if task.seed == 0:  # an innocent who is there at the first two deaths, and slow enough to be there at the third
            while begun(1) < min(begun(0), 2): time.sleep(0.05)
            time.sleep(2)
    if task.seed == 1 and task.settings['fate'] == 'memory': np.ones(1 << 50)
    if task.seed == 1 and task.settings['fate'] == 'code': return undefined
    time.sleep(0.2)
    return make(task)


@pytest.mark.parametrize('fate, says, jobs', [('killed', 'its process died 3 times', 2), ('memory', 'MemoryError: Unable to allocate', 2),
                                              ('memory', 'MemoryError: Unable to allocate', 1), ('code', "NameError: name 'undefined'", 2)])
def test_trouble_in_one_worker_is_named_and_the_rest_goes_on(tmp_path, fate, says, jobs):
    tasks = [Task('row', k, dict(fate=fate, log=str(tmp_path/'log'))) for k in range(6)]
    store = Store(tmp_path/'store')
    with pytest.raises(RuntimeError, match=f'1 of the tasks failed.*another run computes only what is missing.\n  row, seed 1: .*{says}') as e: run_tasks(tasks, fateful, store, jobs=jobs)
    assert ('Traceback' in str(e.value)) == (says[:3] != 'its')
    assert [t in store for t in tasks] == [True, False, True, True, True, True]
    assert all(path.suffix == '.safetensors' for path in store.folder.iterdir())
    before, log = files(store.folder), (tmp_path/'log').read_text().split()
    assert log.count('1') == (3 if says[:3] == 'its' else 1) and max(map(log.count, '02345')) <= 3
    run_tasks(tasks, make, store, jobs=1)  # the trouble is over
    assert tasks[1] in store and before.items() <= files(store.folder).items()


def test_trouble_in_one_row_leaves_the_other_rows(tmp_path):
    """Both seeds of it are named, and everything else is trained and measured."""
    broken = RECIPES['random_labels'].change(Erase, forget=ForgetLoss())
    with pytest.raises(RuntimeError, match=r'(?s)2 of the tasks failed.*broken, seed 0: NotImplementedError.*broken, seed 1: NotImplementedError.*Traceback'):
        run(tiny(tmp_path, recipes=dict(broken=broken) | RECIPES))
    before = files(tmp_path)
    assert len(networks(tmp_path)) == 7 and len(list(tmp_path.glob('measure-*'))) == 7
    run(tiny(tmp_path))
    assert files(tmp_path) == before


def test_trouble_in_one_retrained_network_leaves_unlearning_and_measuring(tmp_path, monkeypatch):
    from unlearning.study import Maker
    trained = Maker.trained
    def short_of_memory(self, split, task):
        if (task.method, task.seed) == ('retrain', 1): np.ones(1 << 50)
        return trained(self, split, task)
    monkeypatch.setattr(Maker, 'trained', short_of_memory)
    with pytest.raises(RuntimeError, match='1 of the tasks failed.*\n  retrain, seed 1: .*MemoryError'): run(tiny(tmp_path))
    assert len(networks(tmp_path)) == len(list(tmp_path.glob('measure-*'))) == 6
    before = files(tmp_path)
    monkeypatch.undo()
    run(tiny(tmp_path))
    assert len(networks(tmp_path)) == len(list(tmp_path.glob('measure-*'))) == 7 and before.items() <= files(tmp_path).items()


def test_trouble_with_the_original_ends_the_study(tmp_path, monkeypatch):
    """Once the retrained networks, which do not need it, are there."""
    from unlearning.study import Maker
    trained = Maker.trained
    monkeypatch.setattr(Maker, 'trained', lambda self, split, task: np.ones(1 << 50) if task.method == 'original' else trained(self, split, task))
    with pytest.raises(RuntimeError, match='1 of the tasks failed.*\n  original, seed 0: .*MemoryError'): run(tiny(tmp_path))
    assert len(networks(tmp_path)) == 2


def progressing(task):
    """Leaves a checkpoint, and at the first two times takes its process with it."""
    checkpoint = Store(task.settings['store']).checkpoint(task).path
    times = len(checkpoint.read_bytes()) if checkpoint.exists() else 0
    checkpoint.write_bytes(b'x' * (times + 1))
    if times < 2: os.kill(os.getpid(), signal.SIGKILL)
    return make(task)


def test_worker_that_dies_right_after_a_checkpoint_does_not_end_the_run(tmp_path):
    tasks = [Task('row', k, dict(store=str(tmp_path))) for k in range(2)]
    assert run_tasks(tasks, progressing, Store(tmp_path), jobs=2) == {} and all(t in Store(tmp_path) for t in tasks)


def test_a_task_has_one_thread_wherever_it_runs(tmp_path):
    """Two threads add up in another order, and would give another network."""
    threads, seen = torch.get_num_threads(), []
    def note(task):
        seen.append(torch.get_num_threads())
        return make(task)
    torch.set_num_threads(2)
    try:
        run_tasks([Task('row', 0, {})], note, Store(tmp_path), jobs=1)
        assert seen == [1] and torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)


def test_threads_of_one_process_take_turns(tmp_path):
    """A Dask worker that joined late may have several, and torch has one random state a process."""
    from concurrent.futures import ThreadPoolExecutor
    at_work, most = [], []
    def slow(task):
        at_work.append(task); most.append(len(at_work)); time.sleep(0.05); at_work.remove(task)
        return make(task)
    with ThreadPoolExecutor(4) as pool: became = list(pool.map(lambda k: _compute(slow, Task('row', k, {}), Store(tmp_path), 'run')[1], range(4)))
    assert became == ['done'] * 4 and max(most) == 1


def busy(task):
    """As long as a large network's training, mostly inside torch."""
    Path(task.settings['folder'], f'{os.getpid()}').touch()
    a, end = torch.rand(500, 500), time.monotonic() + 60
    while time.monotonic() < end: a = a @ a / 500
    return {}, {}


def alive(pid):
    """Not gone, and not merely waiting for somebody to take notice."""
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except FileNotFoundError: return False


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')
def test_workers_of_a_killed_study_end_with_it(tmp_path, nursery):
    """Only the study's own process is killed: nobody tells its workers."""
    (pids := tmp_path/'pids').mkdir()
    nursery.start(f"run_tasks([Task('row', k, dict(folder={str(pids)!r})) for k in range(4)], busy, Store({str(tmp_path/'store')!r}), jobs=2)")
    try:
        assert wait(lambda: len(list(pids.iterdir())) == 2, 60)
        workers = [int(path.name) for path in pids.iterdir()]
        assert all(map(alive, workers)) and not set(workers) & set(nursery.children)
        os.kill(nursery.children[0], signal.SIGKILL)
        assert nursery.statuses() == [-signal.SIGKILL]
        assert wait(lambda: not any(map(alive, workers)), 5)
    finally:
        with suppress(ProcessLookupError): nursery.kill()  # what is left of their group


def test_workers_that_cannot_start_end_the_run(tmp_path):
    """Instead of being started for ever; own code is unpacked in its task, so the tasks are named."""
    tasks = [Task('row', k, {}) for k in (1, 2)]
    with pytest.raises(RuntimeError, match='row, seed [12]: its process died 3 times'): run_tasks(tasks, Deadly(), Store(tmp_path), jobs=2)


class Deadly:
    """Takes its process with it when it is unpickled, before its task has begun."""
    def __reduce__(self): return os._exit, (7,)


# Files made to do harm

class Harm:
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return Path.touch, (Path(self.mark),)


@pytest.fixture
def harmful(tmp_path):
    """Files that, unpickled, leave a mark."""
    mark, files = tmp_path/'mark', {}
    pickle.dump(Harm(mark), open(tmp_path/'pickle', 'wb'))
    torch.save(dict(model=Harm(mark)), tmp_path/'torch')
    np.save(tmp_path/'array.npy', np.array([Harm(mark)], dtype=object), allow_pickle=True)
    np.savez(tmp_path/'archive.npz', forget=np.array([Harm(mark)], dtype=object))
    pickle.load(open(tmp_path/'pickle', 'rb'))
    assert mark.exists()  # they do work
    mark.unlink()
    yield {name: (tmp_path/name).read_bytes() for name in ('pickle', 'torch', 'array.npy', 'archive.npz')}
    assert not mark.exists()


KINDS = ['pickle', 'torch', 'array.npy', 'archive.npz']


@pytest.mark.parametrize('kind', KINDS)
def test_code_in_the_place_of_a_checkpoint_or_record_is_not_executed(copied, whole, harmful, kind):
    names = [p.name for name in ('original', 'finetune-001', 'measure-retrain-002', 'split') for p in copied.glob(f'{name}-*')]
    for name in names: (copied/name).write_bytes(harmful[kind])
    checkpoint = next(copied.glob('original-*')).with_suffix('.checkpoint')
    checkpoint.write_bytes(harmful[kind])
    with pytest.warns(UserWarning) as said: run(study(copied))
    for name in (*names, checkpoint.name): assert any(f'{name} is' in str(w.message) and 'set aside' in str(w.message) for w in said), name
    assert_like(copied, whole[0])


@pytest.mark.parametrize('kind', KINDS)
def test_code_in_the_place_of_a_forget_file_is_not_executed(tmp_path, harmful, kind):
    (tmp_path/'forget.npy').write_bytes(harmful[kind])
    with pytest.raises(ValueError): load_split('digits', forget=tmp_path/'forget.npy')


@pytest.mark.parametrize('name', ['../up', 'a/b', '/etc/passwd', '..', '.hidden', 'a\0b', 'a\nb', ''])
def test_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match='cannot name a row'): Task(name, 0, {})


def test_claims_lead_nowhere_else_and_are_no_patterns(tmp_path):
    store, outside = Store(tmp_path/'store'), tmp_path/'outside'
    outside.write_text('mine')
    for name, target in (('row-000', outside), ('zzz', tmp_path/'new')): (store.folder/f'{name}.claim').symlink_to(target)
    (store.folder/'*.claim').touch()
    (part := store.folder/'row-001.1.part').touch()
    tidy(store)
    assert outside.read_text() == 'mine' and not (tmp_path/'new').exists() and part.exists()


@pytest.mark.parametrize('change', ['method', 'seed', 'settings', 'names'])
def test_record_of_another_task_is_not_used(copied, whole, change):
    """A true record under a false name, or a header that leads elsewhere."""
    tasks = network_tasks(study(copied))
    path, store = Store(copied).path(tasks['finetune'][1]), Store(copied)
    false = dict(method=tasks['random_labels'][1], seed=tasks['finetune'][2], settings=tasks['random_labels'][1]).get(change)
    if false: shutil.copy(store.path(false), path)
    else:
        arrays, header = read_arrays(path)
        write_arrays(path, arrays, header | dict(method='../../finetune'))
    with pytest.warns(UserWarning, match=f"{path.name} is another task's record.* set aside"): run(study(copied))
    assert_like(copied, whole[0])


def test_a_task_among_whose_settings_is_nan_is_known_when_it_comes_back():
    task = Task('a', 0, describe(dict(limit=float('nan'))))
    assert pickle.loads(pickle.dumps(task)) == task
