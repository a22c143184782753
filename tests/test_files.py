"""Files that decide results: whole or not there, damage named, nothing executed; and checkpoints."""
import os, pickle, random, signal, subprocess, sys, textwrap, threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import unlearning
from unlearning import files
from unlearning.files import Checkpoint, read_arrays, set_aside, write_arrays, write_whole

ARRAYS = dict(half=np.arange(6, dtype=np.float16).reshape(2, 3), turned=np.arange(6).reshape(2, 3).T,
              scalar=np.array(7), empty=np.zeros((0, 3)), flags=np.array([True, False]),
              bytes=np.arange(256, dtype=np.uint8), odd=np.array([np.nan, np.inf, -0.]))
FACTS = dict(seconds=0.1, nothing=None, nested=[1, dict(name='ä')])


def same(a, b):
    """The same arrays, to the bit."""
    facts = lambda arrays: {k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()}
    return facts(a) == facts(b)


# Whole, or not there

@pytest.fixture
def old(tmp_path):
    """A file that is to be replaced."""
    (tmp_path/'file').write_text('old')
    return tmp_path/'file'


def alone(path): return [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt, SystemExit])
def test_writer_that_breaks_off_leaves_what_was_there(old, error):
    with pytest.raises(error), write_whole(old) as part:
        part.write_text('ne')
        raise error('broken off')
    assert old.read_text() == 'old' and alone(old)


def test_new_content_is_seen_at_the_end_only(old):
    with write_whole(old) as part:
        part.write_text('new')
        assert old.read_text() == 'old'
        assert part.parent == old.parent  # from another file system it could not be renamed in one step
    assert old.read_text() == 'new' and alone(old)


def test_content_is_on_the_disk_before_it_has_its_name(old, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    def synced(f): done.append(('fsync', os.fstat(f).st_ino)); fsync(f)
    monkeypatch.setattr(files.os, 'fsync', synced)
    def renamed(a, b): done.append(('replace', os.stat(a).st_ino)); replace(a, b)
    monkeypatch.setattr(files.os, 'replace', renamed)
    with write_whole(old) as part: part.write_text('new')
    assert done == [('fsync', old.stat().st_ino), ('replace', old.stat().st_ino)]


def test_disk_that_is_full_at_the_last_moment(old, monkeypatch):
    def full(descriptor): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): write_arrays(old, ARRAYS, FACTS)
    assert old.read_text() == 'old' and alone(old)


def test_block_that_writes_nothing_takes_nothing_away(old):
    with pytest.raises(FileNotFoundError), write_whole(old): pass
    assert old.read_text() == 'old' and alone(old)


def test_killed_writer_leaves_what_was_there(old):
    code = f'''
        import os, signal, sys
        sys.path[:0] = [{str(Path(unlearning.__file__).parent.parent)!r}]
        from unlearning.files import write_whole
        with write_whole({str(old)!r}) as part:
            part.write_text('ne')
            os.kill(os.getpid(), signal.SIGKILL)
    '''
    assert subprocess.run([sys.executable, '-c', textwrap.dedent(code)]).returncode == -signal.SIGKILL
    part, = set(old.parent.iterdir()) - {old}
    assert old.read_text() == 'old' and part.name.startswith('file.') and part.suffix == '.part'


def test_writers_at_once_do_not_mix(old):
    """Each writes slowly; whoever reads meanwhile finds one of them whole."""
    def write(letter):
        for _ in range(20):
            with write_whole(old) as part, open(part, 'w') as f:
                for _ in range(50): f.write(letter); f.flush()
    writers = [threading.Thread(target=write, args=letter) for letter in 'abcd']
    for w in writers: w.start()
    seen = set()
    while any(w.is_alive() for w in writers): seen.add(old.read_text())
    assert seen <= {'old', *(50 * letter for letter in 'abcd')} and old.read_text() != 'old' and alone(old)


# Arrays and facts

def test_arrays_and_facts_come_back(tmp_path):
    write_arrays(tmp_path/'file', ARRAYS, FACTS)
    arrays, facts = read_arrays(tmp_path/'file')
    assert same(arrays, ARRAYS) and facts == FACTS
    assert same(load_file(tmp_path/'file'), ARRAYS)  # it is ordinary safetensors


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError): write_arrays(tmp_path/'file', ARRAYS, dict(rng=np.random.default_rng(0)))
    assert list(tmp_path.iterdir()) == []


def damage(data, rng):
    """A file's bytes after something has happened to them."""
    data = bytearray(data)
    at = rng.randrange(len(data))
    kind = rng.choice(['flip', 'flip', 'flip in the header', 'cut', 'hole', 'tail'])
    if kind == 'flip': data[at] ^= 1 << rng.randrange(8)
    if kind == 'flip in the header': data[at % min(len(data), 800)] ^= 1 << rng.randrange(8)
    if kind == 'cut': del data[at:]
    if kind == 'hole': data[at:at + 100] = bytes(len(data[at:at + 100]))
    if kind == 'tail': data += rng.randbytes(1 + at % 50)
    return bytes(data)


def test_random_damage_is_noticed_and_named(tmp_path):
    """Or else (a space of the header that became a tab) it is none: what is read is what was written."""
    path, rng, noticed = tmp_path/'file', random.Random(0), 0
    write_arrays(path, ARRAYS, FACTS)
    data = path.read_bytes()
    for _ in range(400):
        path.write_bytes(damaged := damage(data, rng))
        try: arrays, facts = read_arrays(path)
        except ValueError as e:
            noticed += 1
            assert f'{path} is damaged' in str(e)
        else: assert damaged == data or same(arrays, ARRAYS) and facts == FACTS
    assert noticed > 360


class Trap:
    """Unpickled, it writes a file."""
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (open, (self.marker, 'w'))


@pytest.mark.parametrize('content', ['pickle', 'empty', 'text', 'no record', 'a bare array'])
def test_foreign_file_is_named_and_not_executed(tmp_path, content):
    path = tmp_path/'file'
    if content == 'pickle': path.write_bytes(pickle.dumps(Trap(tmp_path/'marker')))
    if content == 'empty': path.write_bytes(b'')
    if content == 'text': path.write_text('{"a": 1}' * 100)
    if content == 'no record': save_file(dict(a=np.ones(3)), path, {'checksum': '0'})
    if content == 'a bare array': save_file(dict(a=np.ones(3)), path)
    with pytest.raises(ValueError, match=f'{path} is damaged'): read_arrays(path)
    assert not (tmp_path/'marker').exists()


def test_damaged_name_of_the_checksum_does_not_pass_for_an_old_record(tmp_path):
    path = tmp_path/'file'
    write_arrays(path, ARRAYS, FACTS)
    path.write_bytes(path.read_bytes().replace(b'"checksum"', b'"checksun"'))
    with pytest.raises(ValueError, match=f"{path} is damaged .*it has a field 'checksun'"): read_arrays(path)


def test_record_without_a_checksum_is_read(tmp_path):
    """As version 0.0.1 first wrote them."""
    save_file(dict(a=np.ones(3)), tmp_path/'file', {'record': '{"step": 3}'})
    assert read_arrays(tmp_path/'file')[1] == dict(step=3)


@pytest.mark.parametrize('what', ['folder', 'link to a folder', 'link to nothing'])
def test_what_is_no_file_is_named(tmp_path, what):
    path = tmp_path/'file'
    if what == 'folder': path.mkdir()
    if what == 'link to a folder': path.symlink_to(tmp_path)
    if what == 'link to nothing': path.symlink_to(tmp_path/'gone')
    with pytest.raises(ValueError, match=f'{path} is not a file'): read_arrays(path)


def test_missing_file_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match='gone'): read_arrays(tmp_path/'gone')


def test_file_that_may_not_be_read_is_not_called_damaged(old, monkeypatch):
    def refuse(path, mode): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(files, 'open', refuse, raising=False)
    with pytest.raises(PermissionError, match=f'may not be read: make it readable.*{old}'): read_arrays(old)


@pytest.mark.parametrize('error', [OSError(5, 'Input/output error'), MemoryError()])
def test_trouble_while_reading_says_nothing_about_the_content(tmp_path, monkeypatch, error):
    def fail(*args): raise error
    write_arrays(tmp_path/'file', ARRAYS, FACTS)
    monkeypatch.setattr(files.safetensors, 'safe_open', fail)
    with pytest.raises(type(error)): read_arrays(tmp_path/'file')


def test_what_is_set_aside_is_kept(old):
    says = 'too old: it is set aside as file.damaged, and computed again'
    with pytest.warns(UserWarning, match=says): set_aside(old, 'too old')
    assert not old.exists() and old.with_name('file.damaged').read_text() == 'old'
    with pytest.warns(UserWarning, match=says): set_aside(old, 'too old')  # another process was faster
    assert old.with_name('file.damaged').read_text() == 'old'


# Checkpoints

OWNER = dict(settings=[0.1, 'sgd'], seed=3)


@pytest.fixture
def checkpoint(tmp_path):
    """One in which `OWNER` has left a state."""
    c = Checkpoint(tmp_path/'checkpoint')
    c.save(OWNER, ARRAYS, FACTS)
    return c


def set_aside_as(path): return not path.exists() and path.with_name(f'{path.name}.damaged').exists()


@pytest.mark.filterwarnings('error')
def test_its_owner_goes_on(checkpoint):
    arrays, facts = Checkpoint(checkpoint.path).load(OWNER)
    assert same(arrays, ARRAYS) and facts == FACTS


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('owner', [('a', (1, 2)), {'a': (1,), 'b': None}, 'name'])
def test_owner_is_compared_as_json(tmp_path, owner):
    c = Checkpoint(tmp_path/'checkpoint')
    c.save(owner, {}, {})
    assert c.load(owner) == ({}, {})


@pytest.mark.filterwarnings('error')
def test_nothing_was_left(tmp_path):
    assert Checkpoint(tmp_path/'checkpoint').load(OWNER) is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('other', [OWNER | dict(seed=4), OWNER | dict(settings=[0.1]), {}, None])
def test_somebody_elses_is_set_aside(checkpoint, other):
    says = f'{checkpoint.path} is the checkpoint of another computation: it is set aside'
    with pytest.warns(UserWarning, match=says): assert checkpoint.load(other) is None
    assert set_aside_as(checkpoint.path) and checkpoint.load(OWNER) is None


@pytest.mark.parametrize('facts', [[1], 'text', None, dict(step=3)])
def test_file_that_names_no_owner_is_set_aside(checkpoint, facts):
    write_arrays(checkpoint.path, ARRAYS, facts)
    with pytest.warns(UserWarning, match='another computation'): assert checkpoint.load(OWNER) is None
    assert set_aside_as(checkpoint.path)


def test_damaged_one_is_set_aside(checkpoint):
    data = bytearray(checkpoint.path.read_bytes())
    data[-5] ^= 4
    checkpoint.path.write_bytes(data)
    says = 'checkpoint is damaged .* set aside as checkpoint.damaged'
    with pytest.warns(UserWarning, match=says): assert checkpoint.load(OWNER) is None
    assert set_aside_as(checkpoint.path)


def test_one_that_may_not_be_read_stays(checkpoint, monkeypatch):
    def refuse(path, mode): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(files, 'open', refuse, raising=False)
    with pytest.raises(PermissionError): checkpoint.load(OWNER)
    assert checkpoint.path.exists()


def test_whole_one_can_be_refused(checkpoint):
    with pytest.warns(UserWarning, match='no such step: it is set aside'): checkpoint.refuse('no such step')
    assert set_aside_as(checkpoint.path)


def test_removal_needs_no_file(checkpoint):
    for _ in range(2): checkpoint.remove()
    assert list(checkpoint.path.parent.iterdir()) == []


def test_failed_save_leaves_the_state_before(checkpoint, monkeypatch):
    def full(descriptor): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError): checkpoint.save(OWNER, {}, dict(step=4))
    assert checkpoint.load(OWNER)[1] == FACTS


@pytest.mark.parametrize('since', ['made', 'loaded', 'saved'])
def test_by_default_it_is_due_after_a_minute(checkpoint, monkeypatch, since):
    now = [1000.]
    monkeypatch.setattr(files.time, 'monotonic', lambda: now[0])
    c = Checkpoint(checkpoint.path)
    now[0] += 0 if since == 'made' else 61
    if since == 'loaded': c.load(OWNER)
    if since == 'saved': c.save(OWNER, {}, {})
    now[0] += 59.9
    assert not c.due
    now[0] += 0.1
    assert c.due


def test_it_is_always_due_at_no_seconds(tmp_path):
    c = Checkpoint(tmp_path/'checkpoint', seconds=0)
    assert c.due and c.load(OWNER) is None and c.due
