"""What was removed can be proved by its owner and read by nobody else; what is handed over is there whole, or not at all."""
import errno, hashlib, json, multiprocessing, os, random, re, resource, shutil, signal, stat, subprocess, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import Functional, images, pruned
from PIL import Image
from torch import nn

from unlearning import manifest as module
from unlearning.datasets.source import decode
from unlearning.images import in_memory, make_split
from unlearning.load import load_source, load_split
from unlearning.manifest import (differences, find, hand_over, key_id, make_key, make_manifest, predecessor, read_key, read_sums,
                                 weights_fingerprint)
from unlearning.models import create_model
from unlearning.weights import load_weights, save_weights

KEY, OTHER = bytes(range(32)), bytes(32)
FORGET = ['cat/00.png', 'cat/twin.png', 'dog/02.png']


def in_process(task, *args):
    """A process that is forked off to be limited or killed."""
    process = multiprocessing.get_context('fork').Process(target=task, args=args)
    process.start()
    return process


def exit_code(task, *args):
    process = in_process(task, *args)
    process.join(60)
    return process.exitcode


# The key

@pytest.fixture
def keyfile(tmp_path):
    make_key(tmp_path/'owner.key', tmp_path/'out')
    return tmp_path/'owner.key'


def test_key_is_secret_random_and_read_back(keyfile, tmp_path):
    old = os.umask(0)
    try: other = make_key(tmp_path/'other.key', tmp_path/'out')
    finally: os.umask(old)
    assert len(other) == 32 and other != read_key(keyfile, tmp_path/'out')
    assert stat.S_IMODE((tmp_path/'other.key').stat().st_mode) == 0o600
    assert (tmp_path/'other.key').read_text() == f'{other.hex()}\n' and read_key(tmp_path/'other.key', tmp_path/'out') == other


def test_key_is_never_overwritten(keyfile, tmp_path):
    before = keyfile.read_bytes()
    with pytest.raises(FileExistsError, match=f'read_key.*{keyfile}'): make_key(keyfile, tmp_path/'out')
    (link := tmp_path/'link.key').symlink_to(tmp_path/'elsewhere')
    with pytest.raises(FileExistsError): make_key(link, tmp_path/'out')
    assert keyfile.read_bytes() == before and not (tmp_path/'elsewhere').exists()


@pytest.mark.parametrize('text', ['', 'ab' * 31, 'ab' * 33, 'g' + 'a' * 63, 'AB' * 32, 'a' * 5000, b'\xff' * 64])
def test_file_that_is_no_key(keyfile, tmp_path, text):
    """What it holds may be secret all the same, and is not said."""
    keyfile.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(str(keyfile))) as e: read_key(keyfile, tmp_path/'out')
    assert not text or str(text)[:10] not in str(e.value)


def test_half_a_key_does_not_stay(tmp_path, monkeypatch):
    def full(descriptor): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(module.os, 'fsync', full)
        with pytest.raises(OSError, match='No space left'): make_key(tmp_path/'owner.key', tmp_path/'out')
    assert not list(tmp_path.iterdir()) and make_key(tmp_path/'owner.key', tmp_path/'out')


def test_a_key_outlasts_a_power_failure(tmp_path, monkeypatch):
    done, fsync = [], os.fsync
    monkeypatch.setattr(module.os, 'fsync', lambda f: (done.append(os.fstat(f).st_ino), fsync(f)))
    make_key(tmp_path/'owner.key', tmp_path/'out')
    assert done == [(tmp_path/'owner.key').stat().st_ino, tmp_path.stat().st_ino]


def test_who_is_killed_while_making_a_key_is_told_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, 'fsync', lambda f: (os.ftruncate(f, 0), os.kill(os.getpid(), signal.SIGKILL)))
    assert exit_code(make_key, tmp_path/'owner.key', tmp_path/'out') == -signal.SIGKILL
    with pytest.raises(ValueError, match='move it away and make another'): read_key(tmp_path/'owner.key', tmp_path/'out')


@pytest.mark.parametrize('mode, whom', [(0o640, 'its group'), (0o604, 'everybody'), (0o600, None), (0o400, None)])
def test_key_that_others_may_read(keyfile, tmp_path, mode, whom):
    keyfile.chmod(mode)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        read_key(keyfile, tmp_path/'out')
    assert [whom in str(w.message) and 'chmod 600' in str(w.message) for w in said] == ([True] if whom else [])


def test_key_inside_what_is_handed_over(tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'door').symlink_to(tmp_path/'out')
    for path in (tmp_path/'out'/'key', tmp_path/'out'/'a'/'key', tmp_path/'door'/'key', tmp_path/'x'/'..'/'out'/'key'):
        for use in (make_key, read_key):
            with pytest.raises(ValueError, match='handed over.*keep it elsewhere'): use(path, tmp_path/'out')
    assert not list((tmp_path/'out').iterdir())
    make_key(tmp_path/'out.key', tmp_path/'out')  # beside, though its name begins so


# The manifest

@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """Random images; cat/00 lies three times more in it, in other files."""
    root, rng = tmp_path_factory.mktemp('animals'), np.random.default_rng(0)
    for part, n in (('train', 5), ('test', 4)):
        for name in ('cat', 'dog'):
            (root/part/name).mkdir(parents=True)
            for i in range(n): Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(root/part/name/f'{i:02}.png')
    first = Image.open(root/'train/cat/00.png')
    first.save(root/'train/cat/twin.png', compress_level=0)
    first.save(root/'train/dog/again.bmp')
    first.save(root/'test/dog/seen.png')
    return root


@pytest.fixture(scope='module')
def source(tree): return load_source('folder', tree)


@pytest.fixture(scope='module')
def made(source): return make_manifest(load_split(source, forget=FORGET), KEY, '2031-07', source.paths)


def parts(made, key=KEY, **what): return sorted(item['part'] for item in find(made, key, **what))


def hashes(made): return {item[k] for item in made['items'] for k in ('content', 'name')}


def test_owner_finds_what_was_removed_and_its_copies(made, tree):
    everywhere = ['forget', 'forget', 'retain', 'test']
    for file in ('train/cat/00.png', 'train/cat/twin.png', 'train/dog/again.bmp', 'test/dog/seen.png'):
        image = decode(tree/file)
        assert parts(made, image=image) == everywhere
        assert parts(made, image=torch.from_numpy(image.copy())) == parts(made, image=image / np.float32(255)) == everywhere
    assert parts(made, image=decode(tree/'train/dog/02.png')) == ['forget']
    assert len(made['items']) == 5


def test_owner_finds_names(made):
    for name in (*FORGET, './cat/00.png', 'train/cat/00.png', 'cat\\00.png'): assert parts(made, name=name) == ['forget'], name
    assert parts(made, name='dog/again.bmp') == ['retain']
    for name in ('cat/01.png', 'cat/0', 'Cat/00.png', 0, 5): assert parts(made, name=name) == [], name


def test_what_was_not_removed_is_not_found(made, tree):
    for file in tree.rglob('0[1-4].png'):
        if file != tree/'train/dog/02.png': assert parts(made, image=decode(file)) == []
    other = decode(tree/'train/cat/00.png').copy()
    other[0, 0, 0] ^= 1
    assert parts(made, image=other) == []


def test_name_found_in_either_unicode(tmp_path, tree):
    shutil.copytree(tree, tmp_path/'t')
    (tmp_path/'t/train/cat/00.png').rename(tmp_path/'t/train/cat/Ame\u0301lie.png')
    source = load_source('folder', tmp_path/'t')
    made = make_manifest(load_split(source, forget=['cat/Ame\u0301lie.png']), KEY, '1', source.paths)
    assert parts(made, name='cat/Am\u00e9lie.png') == parts(made, name='cat/Ame\u0301lie.png') == ['forget']


def test_names_may_be_paths(made, source):
    paths = [Path(name) for name in source.paths]
    assert make_manifest(load_split(source, forget=FORGET), KEY, '2031-07', paths) == made
    assert parts(made, name=Path(FORGET[2])) == parts(made, name=FORGET[2]) == ['forget']


def test_nothing_is_in_the_clear(made, source, tree):
    text = json.dumps(made)
    assert json.loads(text) == made
    for word in ('cat', 'dog', 'png', 'bmp', 'twin', str(tree), KEY.hex()): assert word not in text
    fields = {field for item in made['items'] for field in item}
    assert fields == {'part', 'content', 'name'} and all(re.fullmatch('[0-9a-f]{64}', h) for h in hashes(made))


def test_without_the_key_nothing_is_found(made, source, tree):
    image = decode(tree/'train/cat/00.png')
    with pytest.raises(ValueError, match=f'{key_id(KEY)}.*{key_id(OTHER)}'): find(made, OTHER, image=image)
    forged = made | dict(key=key_id(OTHER))
    assert parts(forged, OTHER, image=image) == parts(forged, OTHER, name=FORGET[0]) == []
    guesses = [decode(file).tobytes() for file in tree.rglob('*.*')] + [file.read_bytes() for file in tree.rglob('*.*')]
    guesses += [name.encode() for name in source.paths] + [str(i).encode() for i in range(1000)]
    plain = {hashlib.new(kind, guess).hexdigest() for kind in ('sha256', 'blake2s') for guess in guesses}
    assert not plain & hashes(made)


def test_order_says_nothing_and_requests_cannot_be_joined(made, source):
    again = lambda forget, request='2031-07': make_manifest(load_split(source, forget=forget), KEY, request, source.paths)
    assert again(FORGET[::-1]) == made
    names = [item['content'] + item['name'] for item in made['items']]
    assert names == sorted(names)
    assert not hashes(again(FORGET, '2031-08')) & hashes(made)


def test_fingerprint_of_the_data_is_the_owners(made, source):
    """In the clear it would tell whoever has the images which of them are in forget: by trying."""
    tried = [load_split(source, forget=[i, j, k]) for i in range(12) for j in range(i) for k in range(j)]
    assert len({s.fingerprint for s in tried}) == len(tried) == 220
    assert not {s.fingerprint for s in tried} & {made['data']} and all(s.fingerprint not in json.dumps(made) for s in tried)
    again = [make_manifest(s, KEY, '2031-07', source.paths)['data'] for s in tried]
    assert again.count(made['data']) == 1
    assert make_manifest(load_split(source, forget=FORGET), OTHER, '2031-07', source.paths)['data'] != made['data']


def test_images_without_paths_go_by_their_position():
    """In train, whatever was taken out of it; in val and test by their own."""
    x = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[30] = x[7]
    train, test = in_memory(x, np.arange(40) % 2), in_memory(x[[7, 1, 7]], [0, 1, 0])
    made = make_manifest(make_split(train, test, [7, 12], val=5, subset=30), KEY, '1')
    forgotten = [i for i in range(40) if parts(made, name=i) == ['forget']]
    assert set(forgotten) <= {7, 12} and forgotten
    whole = make_manifest(make_split(train, test, [7, 12]), KEY, '1')
    assert [i for i in range(40) if parts(whole, name=i)] == [7, 12, 30]
    assert [i for i in range(3) if parts(whole, name=i, part='test')] == [0, 2]
    assert parts(whole, image=x[7]) == ['forget', 'retain', 'test', 'test']


def test_floats_that_are_no_bytes():
    x = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    train = in_memory(x, np.arange(20) % 2)
    made = make_manifest(make_split(train, train[[1]], [3, 1]), KEY, '1')
    assert parts(made, image=x[1]) == ['forget', 'test'] and parts(made, image=x[1].numpy().copy()) == ['forget', 'test']
    assert parts(made, image=x[2]) == []


def test_image_of_another_shape_is_refused(made):
    """It would not be found, which proves nothing."""
    for shape in ((3, 5, 6), (1, 6, 5), (6, 5, 3), (6, 5)):
        with pytest.raises(ValueError, match='decode it as the data set was'): find(made, KEY, image=np.zeros(shape, np.uint8))
    for what in ({}, dict(name='cat/00.png', image=np.zeros((3, 6, 5), np.uint8))):
        with pytest.raises(ValueError, match='image=, or name='): find(made, KEY, **what)


@pytest.mark.parametrize('change', [{}, dict(key=None), dict(request=None), dict(items=None), dict(items=[1]), dict(items=[{}]),
                                    dict(items=[dict(part='forget', content=[1], name='a')]), dict(items=[dict(content='a', name='a')]), dict(shape=3), None])
def test_a_malformed_manifest_is_none(made, change):
    found = None if change is None else made | change if change else {}
    with pytest.raises(ValueError, match='no manifest'): find(found, KEY, name='cat/00.png')


def test_big_sets():
    x = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[-100:] = x[:100]
    train = in_memory(x, np.arange(50_000) % 10, mean=0.5, std=0.25)
    split = make_split(train, train[10_000:12_000], range(5000))
    made = make_manifest(split, KEY, '1')
    assert len(made['items']) == 5100 and parts(made, image=x[3]) == ['forget', 'retain']


# Fingerprints

def wrapped():
    yield lambda net: net
    yield lambda net: torch.compile(net, backend='eager')
    yield lambda net: nn.DataParallel(torch.compile(net, backend='eager'))
    yield lambda net: net.to(memory_format=torch.channels_last)
    yield lambda net: net.eval().requires_grad_(False)
    def inside(net):
        net.conv1 = torch.compile(net.conv1, backend='eager')
        return net
    yield inside


def seeded():
    torch.manual_seed(0)
    return Functional()


@pytest.mark.parametrize('wrap', list(wrapped()))
def test_fingerprint_is_that_of_the_weights(wrap, tmp_path):
    assert weights_fingerprint(wrap(seeded())) == weights_fingerprint(seeded())
    save_weights(wrap(seeded()), tmp_path/'w')
    assert weights_fingerprint(load_weights(Functional(), tmp_path/'w')) == weights_fingerprint(seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_fingerprint_is_the_same_on_a_gpu():
    assert weights_fingerprint(seeded().cuda()) == weights_fingerprint(seeded())


def test_fingerprint_tells_weights_apart():
    def changed(name, value):
        net = seeded()
        net.load_state_dict(net.state_dict() | {name: value(net.state_dict()[name])})
        return net
    renamed = nn.Sequential(nn.Linear(4, 4)), nn.Sequential()
    renamed[1].add_module('1', renamed[0][0])
    reshaped = nn.ParameterList([torch.zeros(2, 3)]), nn.ParameterList([torch.zeros(3, 2)]), nn.ParameterList([torch.zeros(6)])
    typed = [nn.ParameterList([torch.zeros(2, dtype=t)]) for t in (torch.float32, torch.float16, torch.bfloat16, torch.float64)]
    nets = [seeded(), seeded().bfloat16(), seeded().double(), changed('fc.bias', lambda t: t.nextafter(t + 1)),
            changed('bn1.num_batches_tracked', lambda t: t + 1), *renamed, *reshaped, *typed]
    assert len({weights_fingerprint(net) for net in nets}) == len(nets)


def test_fingerprint_counts_masks():
    net = pruned(seeded(), images())
    plain = weights_fingerprint(net)
    mask = next(m for m in net.modules() if getattr(m, 'mask', None) is not None)
    mask.mask = ~mask.mask
    assert weights_fingerprint(net) != plain


# Handing over

REPORT = dict(request=dict(id='2031-07'), weights=dict(before='0' * 64, after='1' * 64))


def text(words): return lambda path: path.write_text(words)


WRITERS = {'report.json': text(json.dumps(REPORT)), 'report.html': text('<p>'), 'figures/trace b.png': text('a'), 'Z.txt': text('z'), 'ä.txt': text('')}
WHOLE = dict(missing=[], changed=[], extra=[])


def litter(folder): return [p.name for p in folder.parent.iterdir() if p.name.startswith(f'{folder.name}.')]


def test_sha256sum_agrees(tmp_path):
    out = hand_over(tmp_path/'deep'/'out', WRITERS)
    names = [line.split('  ', 1)[1] for line in (out/'SHA256SUMS').read_text().splitlines()]
    assert names == sorted(WRITERS) and differences(out) == WHOLE and not litter(out)
    if shutil.which('sha256sum') is None: pytest.skip('there is no sha256sum on this machine')
    check = lambda: subprocess.run(['sha256sum', '-c', '--strict', 'SHA256SUMS'], cwd=out, capture_output=True).returncode
    assert check() == 0
    (out/'Z.txt').write_text('x')
    assert check() == 1


def put_file(path): path.write_text('here')
def put_empty(path): path.mkdir()
def put_folder(path): path.mkdir(); (path/'a').touch()
def put_link(path): path.symlink_to('nowhere')


@pytest.mark.parametrize('put', [put_file, put_empty, put_folder, put_link])
@pytest.mark.parametrize('when', ['before', 'meanwhile'])
def test_what_is_there_is_never_replaced(tmp_path, put, when):
    if (put, when) == (put_empty, 'meanwhile') and sys.platform != 'linux': pytest.skip('an empty folder holds nothing to be lost')
    out = tmp_path/'out'
    writers = WRITERS | {'last': lambda path: (put(out), path.touch())} if when == 'meanwhile' else WRITERS
    if when == 'before': put(out)
    with pytest.raises(FileExistsError, match='never replaced: name another folder, or move that one away.*out'): hand_over(out, writers)
    assert os.path.lexists(out) and not (out/'SHA256SUMS').exists() and not litter(out)


@pytest.mark.parametrize('number, there, renamed', [(errno.EINVAL, True, True), (errno.ENOSYS, True, True), (errno.EXDEV, True, False), (0, False, True)])
def test_a_system_that_cannot_refuse_an_empty_folder_renames_as_ever(tmp_path, monkeypatch, number, there, renamed):
    monkeypatch.setattr(module.sys, 'platform', 'linux')
    monkeypatch.setattr(module.ctypes, 'CDLL', lambda *args, **how: SimpleNamespace(**{'renameat2': lambda *args: -1} if there else {}))
    monkeypatch.setattr(module.ctypes, 'get_errno', lambda: number)
    (tmp_path/'part').mkdir()
    if not renamed:
        with pytest.raises(OSError, match=os.strerror(number)): module._rename_new(tmp_path/'part', tmp_path/'out')
    else: module._rename_new(tmp_path/'part', tmp_path/'out')
    assert (tmp_path/'out').exists() == renamed != (tmp_path/'part').exists()


def test_exception_leaves_nothing(tmp_path):
    def interrupted(path): path.write_text('half'); raise KeyboardInterrupt
    def failed(path): path.write_text('half'); raise ZeroDivisionError('accuracy')
    for write, error in ((interrupted, KeyboardInterrupt), (failed, ZeroDivisionError)):
        with pytest.raises(error): hand_over(tmp_path/'out', WRITERS | {'last': write})
        assert not list(tmp_path.iterdir())


def links_out(path): path.symlink_to('/etc/hostname')
def two_files(path): path.touch(); path.with_name('other').touch()
def folder_of_links(path): path.touch(); path.with_name('door').symlink_to('/')


@pytest.mark.parametrize('write, names', [(lambda path: None, 'last'), (lambda path: path.mkdir(), 'last'), (links_out, 'last'), (two_files, 'other'), (folder_of_links, 'door')])
def test_only_what_was_asked_for_is_handed_over(tmp_path, write, names):
    with pytest.raises(ValueError, match=f"'{names}' is (not )?there"): hand_over(tmp_path/'out', WRITERS | {'last': write})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['', '.', '..', '../a', '/a', 'a/../../b', 'a//b', 'a\\b', 'a\nb', 'C:a', 'SHA256SUMS', 'SHA256SUMS.sig', '\udcff', 3])
def test_names_stay_in_the_folder(tmp_path, name):
    with pytest.raises(ValueError): hand_over(tmp_path/'out', {name: text('a')})
    assert not list(tmp_path.iterdir())


def slowly(out):
    """About a tenth of a second, of which no moment is safer than another."""
    def write(path):
        with open(path, 'w') as f:
            for _ in range(10): f.write('a' * 5000); f.flush(); time.sleep(0.001)
    hand_over(out, {f'{i}/file': write for i in range(8)})


def test_kills_leave_a_whole_folder_or_none(tmp_path):
    """SIGKILL at ten random moments or more, of which some come before the end."""
    rng, out, kills, begun = random.Random(0), tmp_path/'out', 0, 0
    for _ in range(100):
        if kills == 10: break
        process = in_process(slowly, out)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.join()
        killed, left = process.exitcode == -signal.SIGKILL, litter(out)
        kills += killed
        begun += bool(left)
        assert len(left) <= killed  # the one before was cleared
        if out.exists():
            assert differences(out) == WHOLE and len(read_sums(out)) == 8 and not left
            shutil.rmtree(out)
    assert begun and kills == 10
    slowly(out)
    assert differences(out) == WHOLE and not litter(out)


@pytest.mark.parametrize('step', ['_write_into', '_flush', '_rename'])
def test_kill_between_write_and_rename(tmp_path, monkeypatch, step):
    out, original = tmp_path/'out', getattr(module, step)
    def killed(*args):
        if step == '_write_into': original(*args)
        os.kill(os.getpid(), signal.SIGKILL)
    with monkeypatch.context() as patched:
        patched.setattr(module, step, killed)
        assert exit_code(hand_over, out, WRITERS) == -signal.SIGKILL
    assert not out.exists() and len(litter(out)) == 1
    hand_over(out, WRITERS)
    assert differences(out) == WHOLE and not litter(out)


def test_litter_of_the_living_and_of_others_stays(tmp_path):
    """A process that is at work on the same folder, a file of its owner, another folder's litter."""
    out, ready = tmp_path/'out', tmp_path/'ready'
    def waits(path): path.touch(); ready.touch(); time.sleep(60)
    process = in_process(hand_over, out, {'a': waits})
    while process.is_alive() and not ready.exists(): time.sleep(0.01)
    others = [tmp_path/'out.d', tmp_path/'out.old.part', tmp_path/f'other.{"0" * 32}.part']
    for path in others: path.mkdir()
    (alive,) = set(litter(out)) - {p.name for p in others}
    hand_over(out, WRITERS)
    assert (tmp_path/alive/'a').exists() and all(path.exists() for path in others)
    process.kill()
    process.join()


def test_everything_is_flushed_before_the_name(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, module._rename_new
    def synced(f): done.append(os.fstat(f).st_ino); fsync(f)
    def renamed(a, b):
        wanted = {p.stat().st_ino for p in (a, *a.rglob('*'))}
        assert wanted == set(done)
        rename(a, b)
        done.clear()
    monkeypatch.setattr(module.os, 'fsync', synced)
    monkeypatch.setattr(module, '_rename_new', renamed)
    hand_over(tmp_path/'out', WRITERS)
    assert done == [tmp_path.stat().st_ino]  # or the new name itself could be lost


# Trouble with the disk

def net_of(path): return save_weights(create_model('small', 10, 1, 8), path)
def file_of(path): path.write_bytes(bytes(500_000))
def torch_of(path):
    with open(path, 'wb') as f: torch.save(dict(a=torch.zeros(200_000)), f)


def says(out, write, limit, result):
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try: hand_over(out, {'first': text('a'), 'weights': write})
    except Exception as e: result.put((isinstance(e, OSError), str(e)))


def told(task, *args):
    result = multiprocessing.get_context('fork').SimpleQueue()
    assert exit_code(task, *args, result) == 0
    return result.get()


def assert_clear(answer, out):
    is_os_error, words = answer
    assert is_os_error and f'make room there, make {out.parent} writable, or name another; nothing of it is left' in words and str(out) in words


@pytest.mark.parametrize('write', [net_of, file_of, torch_of])
def test_disk_full(tmp_path, write):
    """A limit to the size of files; the kernel refuses the rest, as it does on a full disk."""
    out = tmp_path/'out'
    assert_clear(told(says, out, write, 100_000), out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('write', [net_of, file_of, torch_of])
def test_small_disk(tmp_path, write):
    """A real one, where the machine lets us mount it."""
    (disk := tmp_path/'disk').mkdir()
    if os.getuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=100k', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('mounting takes root')
    try:
        assert_clear(told(says, disk/'out', write, None), disk/'out')
        assert not list(disk.iterdir())
        subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        assert_clear(told(says, disk/'out', write, None), disk/'out')
    finally: subprocess.run(['umount', '-l', disk], check=True)


@pytest.mark.parametrize('code', ['ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS'])
def test_disk_that_is_full_at_the_last_moment(tmp_path, monkeypatch, code):
    def full(descriptor): raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    monkeypatch.setattr(module.os, 'fsync', full)
    with pytest.raises(OSError, match='make room there'): hand_over(tmp_path/'out', WRITERS)
    assert not list(tmp_path.iterdir())


def test_read_only_folder(tmp_path):
    from test_engine import without_privileges
    def unprivileged(out, result): without_privileges(); says(out, text('a'), None, result)
    (tmp_path/'closed').mkdir(mode=0o555)
    assert_clear(told(unprivileged, tmp_path/'closed'/'out'), tmp_path/'closed'/'out')


def test_error_of_a_writer_is_its_own(tmp_path):
    """A file that it may not read, say, is not the folder's fault."""
    def forbidden(path): raise PermissionError(errno.EACCES, 'Permission denied', '/somewhere/else')
    with pytest.raises(PermissionError) as e: hand_over(tmp_path/'out', WRITERS | {'last': forbidden})
    assert e.value.filename == '/somewhere/else' and not list(tmp_path.iterdir())


# Reading back

@pytest.fixture
def out(tmp_path): return hand_over(tmp_path/'out', WRITERS)


def test_differences_are_named(out):
    (out/'Z.txt').unlink()
    (out/'report.html').write_text('<b>')
    (out/'figures'/'new').touch()
    assert differences(out) == dict(missing=['Z.txt'], changed=['report.html'], extra=['figures/new'])


def test_signature_is_not_extra(out):
    (out/'SHA256SUMS.sig').touch(); (out/'SHA256SUMS.asc').touch()
    assert differences(out) == WHOLE


def test_links_are_not_followed(out, tmp_path):
    """Not even to what has the right content."""
    shutil.move(out/'Z.txt', tmp_path/'Z.txt')
    (out/'Z.txt').symlink_to(tmp_path/'Z.txt')
    shutil.move(out/'figures', tmp_path/'figures')
    (out/'figures').symlink_to(tmp_path/'figures')
    os.mkfifo(out/'pipe')  # who reads it waits for ever
    assert differences(out) == dict(missing=['figures/trace b.png'], changed=['Z.txt'], extra=['figures', 'pipe'])


H = '0' * 64


@pytest.mark.parametrize('bad', [f'{H}  ../owner.key\n', f'{H}  /etc/passwd\n', f'{H}  a/../../b\n', f'{H}  figures/../../b\n', f'\\{H}  a\\nb\n', f'{H}  SHA256SUMS\n',
                                 f'{H}  Z.txt\n', 'no hash\n', f'{H[1:]}  a\n', f'{H} a\n', f'{H}  \n', '\n', f'{H}  cut', b'\xff\xfe\n', ' ' * 2**24 + '\n'])
def test_malformed_sums(out, bad):
    with open(out/'SHA256SUMS', 'ab') as f: f.write(bad if isinstance(bad, bytes) else bad.encode())
    for read in (differences, predecessor):
        with pytest.raises(ValueError, match=re.escape(str(out/'SHA256SUMS'))): read(out)


def test_sums_that_are_missing_or_a_link(out):
    shutil.move(out/'SHA256SUMS', out.parent/'sums')
    with pytest.raises(FileNotFoundError, match='SHA256SUMS'): differences(out)
    (out/'SHA256SUMS').symlink_to(out.parent/'sums')
    with pytest.raises(ValueError, match='not a plain file'): differences(out)


# A predecessor

def handed(tmp_path, report):
    data = report if isinstance(report, bytes) else json.dumps(report).encode()
    return hand_over(tmp_path/'earlier', {'report.json': lambda path: path.write_bytes(data), 'weights': text('w')})


def test_next_request_cites_its_predecessor(tmp_path):
    before, after = seeded(), nn.DataParallel(seeded().double())
    folder = handed(tmp_path, REPORT | dict(weights=dict(after=weights_fingerprint(after))))
    (folder/'weights').unlink()  # in production
    earlier = predecessor(folder)
    assert earlier.request == '2031-07' and earlier.produced(after) and not earlier.produced(before)
    assert earlier.sums == hashlib.sha256((folder/'SHA256SUMS').read_bytes()).hexdigest()
    json.dumps(earlier._asdict())


@pytest.mark.parametrize('report', [b'', b'{', b'[1]', b'null', b'"text"', b'\xff', b'[' * 100_000, b'1' * 5000, {}, dict(request='7'), dict(request=dict(id=7)),
                                    dict(request=dict(id='')), dict(request=dict(id='a' * 5000)), dict(request=dict(id='a\nb')), dict(request=dict(id='7'), weights=dict(after='7')),
                                    dict(request=dict(id='7'), weights=[H]), dict(request=dict(id='7'), weights=dict(after=H.replace('0', 'G')))])
def test_malformed_report(tmp_path, report):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path/'earlier'/'report.json'))) as e: predecessor(handed(tmp_path, report))
    assert len(str(e.value)) < 1000


def test_what_is_too_large_is_not_read(tmp_path, keyfile):
    """Were it read to its end, a report of many gigabytes would fill the memory."""
    def endless(path): path.touch(); os.truncate(path, 2**28 + 1)
    with pytest.raises(ValueError, match='larger than 268,435,456 bytes'): predecessor(hand_over(tmp_path/'earlier', {'report.json': endless}))
    with open(keyfile, 'a') as f: f.write(' ' * 1000)
    with pytest.raises(ValueError, match='larger than 1,000 bytes'): read_key(keyfile, tmp_path/'out')


def test_a_report_on_many_images_is_read(tmp_path):
    """It has a rank of each."""
    rows = [[97.5, 95.1, 99.9]] * 215_000
    folder = handed(tmp_path, json.dumps(REPORT | dict(ranks=dict(before=rows, after=rows)), indent=1).encode())
    assert os.path.getsize(folder/'report.json') > module.LARGEST and predecessor(folder).request == '2031-07'


def test_report_that_was_changed_afterwards(tmp_path):
    folder = handed(tmp_path, REPORT)
    (folder/'report.json').write_text(json.dumps(REPORT | dict(weights=dict(after=H))))
    with pytest.raises(ValueError, match='not the file that SHA256SUMS names'): predecessor(folder)
    (folder/'report.json').unlink()
    with pytest.raises(FileNotFoundError, match='report.json'): predecessor(folder)


# A chain of requests

def asked(source, forget): return load_split(source, forget=forget)


@pytest.fixture
def answer(source, tmp_path):
    """Hand a request over, after another."""
    def answer(request, forget, follows=None, key=KEY, change=lambda made: made, **said):
        made = change(make_manifest(asked(source, forget), key, request, source.paths, follows))
        report = dict(request=dict(id=request), weights=dict(after='1' * 64), said=said)
        return predecessor(hand_over(tmp_path/request, {'report.json': text(json.dumps(report)), 'manifest.json': text(json.dumps(made))}))
    return answer


def old(made): return {name: value for name, value in made.items() if name != 'earlier'}


ONE, TWO, THREE = ['cat/01.png'], ['cat/02.png', 'dog/03.png'], ['dog/04.png']


@pytest.mark.parametrize('change', [lambda made: made, old])
def test_a_third_request_knows_what_the_first_named(answer, source, change):
    first = answer('1', ONE, change=change)
    third = answer('3', THREE, answer('2', TWO, first))
    count = lambda earlier, names: module.listed(earlier, KEY, asked(source, names).forget).sum()
    assert [count(third, names) for names in (ONE, TWO, THREE, ONE + TWO + THREE, ['cat/00.png'])] == [1, 2, 1, 4, 0]
    assert [count(first, names) for names in (ONE, TWO, THREE)] == [1, 0, 0]
    chain = make_manifest(asked(source, FORGET), KEY, '4', source.paths, third)
    assert [m['request'] for m in chain['earlier']] == ['3', '2', '1'] and not any('earlier' in m for m in chain['earlier'])
    assert parts(chain, name=ONE[0]) == [] and parts(chain['earlier'][2], name=ONE[0]) == ['forget']
    assert json.loads(json.dumps(chain)) == chain and source.paths[0] not in json.dumps(chain)


def test_images_whose_labels_were_wrong_may_stay(answer, source):
    """But not those of the requests before."""
    second = answer('2', TWO, answer('1', ONE), wrong_labels='labels.csv')
    for earlier in (second, answer('3', THREE, second)):
        assert [module.listed(earlier, KEY, asked(source, names).forget).sum() for names in (ONE, TWO)] == [1, 0]


def test_images_in_another_size_are_known_by_their_names(answer, source):
    """Their pixels are others."""
    first, part = answer('1', ONE), asked(source, ONE).forget
    smaller = in_memory(part.images[..., :4], part.labels)
    assert not module.listed(first, KEY, smaller).any()
    assert [source.paths[i] for i in np.flatnonzero(module.listed_names(first, KEY, source.paths))] == ONE


@pytest.mark.parametrize('earlier', [None, {}, 'manifest', [1], [{}]])
def test_a_chain_that_is_none(answer, source, earlier):
    first = answer('1', ONE, change=lambda made: made | dict(earlier=earlier))
    with pytest.raises(ValueError, match='no manifest'): module.listed(first, KEY, asked(source, ONE).forget)
    with pytest.raises(ValueError, match='no manifest'): answer('2', TWO, first)


@pytest.mark.parametrize('said', [None, [], 'wrong_labels', 7])
def test_a_report_that_says_nothing_sensible_was_of_images(source, tmp_path, said):
    report = REPORT | dict(said=said)
    made = make_manifest(asked(source, ONE), KEY, '2031-07', source.paths)
    first = predecessor(hand_over(tmp_path/'first', {'report.json': text(json.dumps(report)), 'manifest.json': text(json.dumps(made))}))
    assert module.listed(first, KEY, asked(source, ONE).forget).sum() == 1


def test_a_chain_of_two_keys(answer, source):
    """Its owner could not look an image up in all of it."""
    first = answer('1', ONE, key=OTHER)
    mixed = answer('2', TWO, change=lambda made: made | dict(earlier=[make_manifest(asked(source, ONE), OTHER, '1')]))
    for follows in (first, mixed):
        with pytest.raises(ValueError, match=f'{key_id(OTHER)}.*{key_id(KEY)}'): answer('3', THREE, follows)


def test_a_long_chain_is_read(answer, source):
    """Each request's manifest holds those of all before: many more bytes than a report."""
    many = lambda made: made | dict(items=made['items'] + [dict(part='forget', content=f'{i:064}', name=f'{i:064}') for i in range(100_000)])
    second = answer('2', TWO, answer('1', ONE, change=many))
    assert os.path.getsize(os.path.join(second.folder, 'manifest.json')) > module.LARGEST
    assert module.listed(second, KEY, asked(source, ONE).forget).sum() == 1


# Signing

@pytest.mark.skipif(shutil.which('ssh-keygen') is None, reason='there is no ssh-keygen on this machine')
def test_signature_of_ssh_keygen(out, tmp_path):
    """The commands of the page: a file that was changed fails, and so do sums that were changed to fit it."""
    run = lambda *words, **how: subprocess.run(['ssh-keygen', *words], capture_output=True, cwd=out, **how)
    if run('-q', '-t', 'ed25519', '-N', '', '-f', str(tmp_path/'id')).returncode or run('-Y', 'sign', '-f', str(tmp_path/'id'), '-n', 'unlearning', 'SHA256SUMS').returncode:
        pytest.skip('this ssh-keygen cannot sign (OpenSSH 8.1 can)')
    (tmp_path/'signers').write_text(f"owner@example.org {' '.join((tmp_path/'id.pub').read_text().split()[:2])}\n")
    def verified():
        with open(out/'SHA256SUMS') as f:
            return run('-Y', 'verify', '-f', str(tmp_path/'signers'), '-I', 'owner@example.org', '-n', 'unlearning', '-s', 'SHA256SUMS.sig', stdin=f).returncode == 0
    assert verified() and differences(out) == WHOLE
    (out/'report.html').write_text('<b>')
    assert verified() and differences(out)['changed'] == ['report.html']
    sums, new = (out/'SHA256SUMS').read_text(), hashlib.sha256(b'<b>').hexdigest()
    (out/'SHA256SUMS').write_text(re.sub('[0-9a-f]{64}(?=  report.html)', new, sums))
    assert differences(out) == WHOLE and not verified()


def test_a_set_that_there_is_not_is_refused():
    """It would hash to nothing, and read as if the image had not been named."""
    split, key = load_split('digits', forget=3), b'k' * 32
    manifest = make_manifest(split, key, '7')
    with pytest.raises(ValueError, match="part is 'tset': use train, .*test, val"): find(manifest, key, name=3, part='tset')
    assert len(find(manifest, key, name=int(split.forget.indices[0]), part='forget')) == 1
