"""Where data are looked for, real CIFAR-10 and what may be wrong with its files, and a folder of image files."""
import os, pickle, shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import Subset

from unlearning import load
from unlearning.datasets import builtin, people
from unlearning.datasets.source import data_root, project_root
from unlearning.datasets.yours import from_dataset
from unlearning.images import ImageFile
from unlearning.load import load_source, load_split

BATCHES = 'cifar-10-batches-py'


# Where data are looked for

def test_relative_root_is_tried_from_here_and_from_the_project(monkeypatch, tmp_path):
    """A notebook's kernel starts in the caller's folder under papermill, in the notebook's under a test."""
    (tmp_path/'settings.ini').touch()
    for folder in ('nbs/deep', 'mine', 'nbs/deep/mine'): (tmp_path/folder).mkdir(parents=True)
    monkeypatch.delenv('UNLEARNING_DATA', raising=False)
    for here, found in (('nbs', 'mine'), ('nbs/deep', 'nbs/deep/mine'), ('.', 'mine')):
        monkeypatch.chdir(tmp_path/here)
        assert project_root() == tmp_path and data_root() == tmp_path/'data' and data_root('mine') == tmp_path/found


def test_source_is_loaded_by_name():
    source = load_source('digits')
    assert (source.name, len(source.train), len(source.test), source.forget) == ('digits', 898, 899, 89)
    with pytest.raises(ValueError, match="unknown data set 'cifar100': the known ones are digits, cifar10, cifar10n, folder, celeba, writers"): load_source('cifar100')


def test_environment_pointing_nowhere_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv('UNLEARNING_DATA', str(tmp_path/'gone'))
    with pytest.raises(ValueError, match='UNLEARNING_DATA names the folder.*gone.*create it, or unset it'): load_split('digits')


# CIFAR-10

@pytest.fixture(scope='module')
def cifar_root():
    root = data_root()
    if not (root/BATCHES).is_dir(): pytest.skip(f'no {BATCHES} in {root}: set UNLEARNING_DATA to a folder that holds it')
    if not (root/'forget_idx.npy').is_file(): pytest.skip(f'no forget_idx.npy in {root}')
    return root


@pytest.fixture(scope='module')
def cifar(cifar_root):
    return load_split('cifar10', root=cifar_root)


@pytest.fixture(scope='module')
def small_cifar(cifar_root):
    return load_split('cifar10', root=cifar_root, subset=5000, val=1000)


def ids(images): return set(images.indices.tolist())
def per_class(images): return torch.bincount(images.labels).tolist()


def test_cifar_sizes(cifar):
    assert [len(part) for part in (cifar.train, cifar.retain, cifar.forget, cifar.test)] == [50000, 45000, 5000, 10000]
    assert cifar.image_shape == (3, 32, 32) and cifar.train.images.dtype == torch.uint8
    assert cifar.classes[0] == 'airplane' and cifar.classes[9] == 'truck'


def test_challenge_forgets_500_of_each_class(cifar):
    assert per_class(cifar.forget) == [500] * 10
    assert ids(cifar.retain) | ids(cifar.forget) == set(range(50000)) and not ids(cifar.retain) & ids(cifar.forget)


def test_cifar_images_are_those_of_torchvision(cifar, cifar_root):
    theirs = torchvision.datasets.CIFAR10(cifar_root, train=False)
    assert (cifar.test.images.permute(0, 2, 3, 1).numpy() == theirs.data).all() and cifar.test.labels.tolist() == theirs.targets


def test_cifar_channel_means(cifar):
    """The published ones; test images are normalised by those of the training set."""
    assert cifar.train.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert cifar.train.std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
    assert torch.equal(cifar.test.mean, cifar.train.mean) and torch.equal(cifar.forget.std, cifar.train.std)


def test_subset_keeps_class_balance_and_forget_share(small_cifar):
    assert per_class(small_cifar.train) == [500] * 10
    assert len(small_cifar.forget) == round(5000 * 5000 / 49000)  # val was taken from what is retained
    assert max(per_class(small_cifar.forget)) - min(per_class(small_cifar.forget)) <= 1


def test_val_is_cut_from_retain(small_cifar, cifar):
    assert per_class(small_cifar.val) == [100] * 10
    assert ids(small_cifar.val) <= ids(cifar.retain) and not ids(small_cifar.val) & ids(small_cifar.train)


def test_cifar_is_divided_as_ever(cifar, cifar_root):
    """Stored networks are found by this fingerprint."""
    assert cifar.fingerprint == '01259cb537ddc131'
    assert load_split('cifar10', root=cifar_root, forget=2000, seed=1, subset=5000).fingerprint == '66eea2201103a08b'


def test_fingerprint_is_stable(small_cifar, cifar_root):
    again = load_split('cifar10', root=cifar_root, subset=5000, val=1000)
    assert again.fingerprint == small_cifar.fingerprint


def linked(root, to):
    """A data root of links to the files in another."""
    (to/BATCHES).mkdir()
    for file in (root/BATCHES).iterdir(): (to/BATCHES/file.name).symlink_to(file)
    return to/BATCHES


@pytest.mark.parametrize('name', ['data_batch_3', 'test_batch', 'batches.meta'])
@pytest.mark.parametrize('damage', ['truncated', 'missing'])
def test_damaged_cifar_file_is_named(cifar_root, tmp_path, name, damage):
    file = linked(cifar_root, tmp_path)/name
    whole = file.read_bytes()
    file.unlink()
    if damage == 'truncated': file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=f'{name} is (corrupt|missing).*put the files of https.*UNLEARNING_DATA'):
        load_split('cifar10', root=tmp_path)


class Trap:
    """Unpickled, it writes a file."""
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (open, (self.marker, 'w'))


@pytest.mark.parametrize('name', ['data_batch_1', 'batches.meta'])
def test_no_unknown_pickle_is_opened(tmp_path, name, monkeypatch):
    monkeypatch.setattr(builtin, 'CIFAR10_FILES', [[name, 32 * '0']])
    (tmp_path/BATCHES).mkdir()
    trap = tmp_path/BATCHES/name
    trap.write_bytes(pickle.dumps(Trap(tmp_path/'marker')))
    with pytest.raises(ValueError, match=f'{name} is corrupt'): load_split('cifar10', root=tmp_path)
    assert not (tmp_path/'marker').exists()
    pickle.loads(trap.read_bytes()).close()
    assert (tmp_path/'marker').exists()  # so the trap was armed


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kw): raise URLError('no network')
    monkeypatch.setattr(builtin, 'download_and_extract_archive', refuse)
    monkeypatch.setattr(builtin, 'download_url', refuse)


def test_without_data_and_network_the_remedy_is_told(tmp_path, offline):
    with pytest.raises(ValueError) as e: load_split('cifar10', root=tmp_path)
    assert all(part in str(e.value) for part in (str(tmp_path/BATCHES), 'no network', 'https://', 'UNLEARNING_DATA'))


@pytest.mark.parametrize('name, folder', [('cifar10', BATCHES), ('writers', 'QMNIST/raw/qmnist-train-images-idx3-ubyte')])
def test_what_was_unpacked_in_part_is_not_there(tmp_path, monkeypatch, name, folder):
    def cut_off(archive, to, remove_finished=False):
        (half := Path(to)/Path(folder).name).mkdir()
        (half/'data_batch_1').write_bytes(b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr(torchvision.datasets.utils, 'download_url', lambda *args: None)
    monkeypatch.setattr(torchvision.datasets.utils, 'extract_archive', cut_off)
    with pytest.raises(KeyboardInterrupt): load_split(name, root=tmp_path)
    assert not (tmp_path/folder).exists()


def test_a_kill_between_two_files_of_qmnist_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    def unpacked(part, *args, **kw):
        (raw := Path(part)/'QMNIST'/'raw').mkdir(parents=True)
        for name in ('qmnist-train-images-idx3-ubyte', 'qmnist-train-labels-idx2-int'): (raw/name).write_bytes(b'whole')
    moved, move = [], os.replace
    def killed(source, to):
        if moved: raise KeyboardInterrupt
        moved.append(move(source, to))
    monkeypatch.setattr(people, 'QMNIST', unpacked)
    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt): load_split('writers', root=tmp_path)
    assert [f.name for f in (tmp_path/'QMNIST'/'raw').iterdir()] == ['qmnist-train-labels-idx2-int']  # images are looked for


@pytest.fixture
def digits_as_cifar(monkeypatch):
    lists = lambda root: dict(challenge=lambda: builtin.challenge_indices(root))
    monkeypatch.setitem(load.SOURCES, 'cifar10', lambda root: builtin.digits()._replace(forget='challenge', lists=lists(root)))


def test_without_forget_file_and_network_the_remedy_is_told(tmp_path, offline, digits_as_cifar):
    with pytest.raises(ValueError) as e: load_split('cifar10', root=tmp_path)
    assert all(part in str(e.value) for part in (str(tmp_path/'forget_idx.npy'), 'no network', 'https://', 'forget=5000'))
    assert list(tmp_path.iterdir()) == []


def test_another_forget_file_is_refused(tmp_path, digits_as_cifar):
    np.save(tmp_path/'forget_idx.npy', np.arange(50))
    with pytest.raises(ValueError, match='forget_idx.npy is not the challenge.*sha256.*delete it'): load_split('cifar10', root=tmp_path)


def test_another_download_is_refused(tmp_path, monkeypatch, digits_as_cifar):
    monkeypatch.setattr(builtin, 'download_url', lambda url, root, filename: np.save(open(f'{root}/{filename}', 'wb'), np.arange(50)))
    with pytest.raises(ValueError, match='not the challenge'): load_split('cifar10', root=tmp_path)


# A folder of image files

@pytest.fixture
def folder(tmp_path):
    """8 × 8 images, each of one grey: train/cat/0.png … train/dog/3.png, test likewise; dog/3 is a JPEG."""
    for part in ('train', 'test'):
        for c, name in enumerate(('cat', 'dog')):
            (tmp_path/part/name).mkdir(parents=True)
            for i in range(4):
                ending = 'jpg' if (name, i) == ('dog', 3) else 'png'
                Image.new('RGB', (8, 8), (40 * i + 10 * c,) * 3).save(tmp_path/part/name/f'{i}.{ending}')
    return tmp_path


@pytest.mark.parametrize('prefix', ['', 'train/'])
def test_folder_forgets_the_listed_paths(folder, prefix):
    (folder/'forget.txt').write_text(f'{prefix}cat/1.png\n{prefix}dog/3.jpg\n')
    split = load_split('folder', root=folder, forget=folder/'forget.txt')
    assert split.classes == ('cat', 'dog') and split.image_shape == (3, 8, 8) and len(split.retain) == 6 and len(split.test) == 8
    assert split.forget.labels.tolist() == [0, 1] and split.forget.images.float().mean((1, 2, 3)).tolist() == pytest.approx([40, 130], abs=1)


def test_unknown_path_is_named(folder):
    (folder/'forget.txt').write_text('cat/1.png\ncat/9.png\n')
    with pytest.raises(ValueError, match="'cat/9.png', which is not an image under train/.*'cat/0.png'"):
        load_split('folder', root=folder, forget=folder/'forget.txt')


@pytest.mark.parametrize('content', ['text', 'half'])
def test_undecodable_image_is_named(folder, content):
    file = folder/'train'/'dog'/'2.png'
    file.write_bytes(b'not an image' if content == 'text' else file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r'dog/2.png cannot be read as an image.*restore it, or take it off'): load_split('folder', root=folder, forget=1)


def test_differing_sizes_name_their_remedy(folder):
    Image.new('RGB', (12, 8)).save(folder/'train'/'cat'/'0.png')
    with pytest.raises(ValueError, match=r'2 different sizes.*image_size='): load_split('folder', root=folder, forget=1)
    assert load_split('folder', root=folder, forget=1, image_size=6).image_shape == (3, 6, 6)


def test_folder_needs_a_forget_set(folder):
    with pytest.raises(ValueError, match='a folder needs forget='): load_split('folder', root=folder)


def test_class_in_one_part_only_is_named(folder):
    shutil.move(folder/'test'/'dog', folder/'test'/'wolf')
    with pytest.raises(ValueError, match=r"differ in their classes: \['dog', 'wolf'\]"): load_split('folder', root=folder, forget=1)


def test_class_without_images_is_refused(folder):
    (folder/'train'/'emu').mkdir(); (folder/'test'/'emu').mkdir()
    with pytest.raises(ValueError, match='emu'): load_split('folder', root=folder, forget=1)


def test_missing_part_is_named(folder):
    shutil.rmtree(folder/'test')
    with pytest.raises(ValueError, match=r'test is missing.*train/<class>'): load_split('folder', root=folder, forget=1)


# A data set of one's own, through load_split

@pytest.fixture
def tree_of_pngs(tmp_path):
    """An ImageFolder of forty small pictures of two classes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path/'pictures'/('cat' if i % 2 else 'dog')/f'{i:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return torchvision.datasets.ImageFolder(str(tmp_path/'pictures'))


def test_own_data_are_forgotten_by_the_names_of_their_files(tree_of_pngs, tmp_path):
    source = from_dataset(tree_of_pngs, tree_of_pngs)
    (tmp_path/'gone.txt').write_text('# asked for\n./cat/07.png\ndog\\04.png\n')
    split = load_split(source, forget=tmp_path/'gone.txt')
    want = [i for i, (path, _) in enumerate(tree_of_pngs.samples) if path.endswith(('07.png', '04.png'))]
    assert split.forget.indices.tolist() == want and len(split.retain) == 38 and split.classes == ('cat', 'dog')
    assert load_split(source, forget='class:cat').forget.labels.tolist() == [0] * 20
    with pytest.raises(ValueError, match="names 'cat/99.png', which is not an image"): load_split(source, forget=['cat/99.png'])


def test_a_subset_of_a_folder_has_the_names_of_its_own_files(tree_of_pngs):
    files = [Path(path).relative_to(tree_of_pngs.root).as_posix() for path, _ in tree_of_pngs.samples]
    subset = Subset(Subset(tree_of_pngs, torch.arange(39, 9, -1)), [5, 0, 29])
    source = from_dataset(subset, tree_of_pngs)
    assert source.paths == [files[34], files[39], files[10]] and source.folder == Path(tree_of_pngs.root).resolve()
    assert source.classes == ('cat', 'dog') and from_dataset(subset, tree_of_pngs, np.array(['a', 'b'])).classes == ('a', 'b')
    assert load_split(source, forget=[files[39]]).forget.indices.tolist() == [1]
    assert load_split(source, forget=[str(source.folder/files[39])]).forget.indices.tolist() == [1]
    assert from_dataset(Subset(tree_of_pngs, [5, 5, 39]), tree_of_pngs).paths is None  # a name for each, or none


def test_names_of_images_are_one_each():
    pairs = [(Image.new('L', (4, 4), i), i % 2) for i in range(4)]
    source = from_dataset(pairs, pairs, paths=['a', 'b', 'c', 'd'])
    assert load_split(source, forget=['c']).forget.indices.tolist() == [2]
    for paths, why in (['a'] * 4, "called 'a'"), (['a'], 'names 1 of 4'):
        with pytest.raises(ValueError, match=why): from_dataset(pairs, pairs, paths=paths)
    with pytest.raises(ValueError, match='needs forget='): load_split(source)
    with pytest.raises(ValueError, match='takes no image_size='): load_split(source, forget=1, image_size=4)


@pytest.mark.parametrize('bare', ['train', 'test'])
def test_images_in_no_folder_of_a_class(folder, bare):
    for path in [p for p in (folder/bare).rglob('*') if p.is_file()]: path.rename(folder/bare/f'{path.parent.name}{path.name}')
    for path in [p for p in (folder/bare).iterdir() if p.is_dir()]: path.rmdir()
    with pytest.raises(ValueError, match=rf'{bare} has no folder of a class .*in no class folder.*train/<class>'): load_split('folder', root=folder, forget=1)


class Late:
    """Pictures that are decoded after they have been handed out."""
    def __init__(self, folder): self.folder = folder
    def __len__(self): return 40
    def __getitem__(self, i): return Image.open(self.folder/f'{i}.jpg'), i % 2


@pytest.mark.parametrize('large', (False, True))
def test_a_picture_that_is_damaged_and_decoded_late_is_named(tmp_path, monkeypatch, large):
    for i in range(40): Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path/f'{i}.jpg')
    (tmp_path/'8.jpg').write_bytes((tmp_path/'8.jpg').read_bytes()[:2000])
    if large: monkeypatch.setattr('unlearning.datasets.yours.LARGE', 1)
    with pytest.raises(ValueError, match='item 8 of 40 cannot be read .*restore it'): from_dataset(Late(tmp_path), Late(tmp_path), cache=tmp_path)


@pytest.mark.parametrize('classes', ({'dog': 1, 'cat': 0}, {'dog', 'cat'}, 2))
def test_names_of_classes_without_an_order_are_none(classes):
    class Listed(list): pass
    Listed.classes = classes
    data = Listed((np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8), i % 2) for i in range(20))
    assert from_dataset(data, Listed(data)).classes == ('0', '1')


def test_a_class_is_found_however_its_name_is_composed(tmp_path):
    for i, name in enumerate(f'{part}/{c}' for part in ('train', 'test') for c in ('Cafe\u0301', 'bar')):
        (tmp_path/name).mkdir(parents=True)
        for k in range(3): Image.fromarray(np.full((6, 6, 3), 20 * i + k, np.uint8)).save(tmp_path/name/f'{k}.png')
    assert len(load_split('folder', tmp_path, forget='class:Caf\u00e9').forget) == 3


def test_labels_that_are_numbered_anew_have_no_names(tmp_path):
    for i, name in enumerate(('cat', 'dog')):
        (tmp_path/name).mkdir()
        for k in range(12): Image.fromarray(np.full((6, 6, 3), 100 * i + k, np.uint8)).save(tmp_path/name/f'{k}.png')
    anew = torchvision.datasets.ImageFolder(tmp_path, target_transform=lambda y: 1 - y)
    source = from_dataset(anew, anew)
    assert source.classes == ('0', '1') and from_dataset(anew, anew, classes=['dog', 'cat']).classes == ('dog', 'cat')


def test_labels_that_only_change_their_type_keep_their_names_and_their_order_is_looked_at(tmp_path):
    for part, names in dict(a=('cat', 'dog'), b=('bird', 'dog')).items():
        for i, name in enumerate(names):
            (tmp_path/part/name).mkdir(parents=True)
            for k in range(12): Image.fromarray(np.full((6, 6, 3), 100 * i + k, np.uint8)).save(tmp_path/part/name/f'{k}.png')
    train, test = (torchvision.datasets.ImageFolder(tmp_path/part, target_transform=torch.tensor) for part in 'ab')
    assert from_dataset(train, train).classes == ('cat', 'dog')
    with pytest.raises(ValueError, match="class 0 is 'cat' in train and 'bird' in test"): from_dataset(train, test)


def test_a_link_upwards_from_a_linked_folder_is_left_out(tmp_path):
    for i, path in enumerate(('data/cats', 'data/other', 'tree/train/dog', 'tree/test/cat', 'tree/test/dog')):
        (tmp_path/path).mkdir(parents=True)
        for k in range(3): Image.fromarray(np.full((6, 6, 3), 20 * i + k, np.uint8)).save(tmp_path/path/f'{k}.png')
    (tmp_path/'tree'/'train'/'cat').symlink_to(tmp_path/'data'/'cats')
    (tmp_path/'data'/'cats'/'up').symlink_to('..')
    with pytest.warns(UserWarning, match='1 a link to a folder above it'): split = load_split('folder', tmp_path/'tree', forget=1)
    assert len(split.train) == 6


def test_an_unlisted_folder_is_refused_and_a_link_upwards_is_left_out(tmp_path, monkeypatch):
    for part in ('train', 'test'):
        for i, c in enumerate(('cat', 'dog')):
            (tmp_path/part/c/'more').mkdir(parents=True)
            for k in range(3): Image.fromarray(np.full((6, 6, 3), 100 * i + k + 10 * (part == 'test'), np.uint8)).save(tmp_path/part/c/'more'/f'{k}.png')
    (tmp_path/'train'/'cat'/'all').symlink_to('.')
    with pytest.warns(UserWarning, match='1 a link to a folder above it'): split = load_split('folder', tmp_path, forget=1)
    assert len(split.train) == 6
    scan = os.scandir
    def denied(path):
        if str(path).endswith('dog/more'): raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)
    monkeypatch.setattr(os, 'scandir', denied)
    with pytest.raises(ValueError, match='dog/more cannot be read .*make it readable'): load_split('folder', tmp_path, forget=1)


def test_a_cache_stays_where_it_was_when_one_works_elsewhere(tmp_path, monkeypatch):
    np.save(tmp_path/'images.npy', np.zeros((4, 1, 8, 8), np.uint8))
    monkeypatch.chdir(tmp_path)
    file = ImageFile('images.npy')
    monkeypatch.chdir('/')
    assert file.path == tmp_path/'images.npy'


def test_human_labels_in_another_order_are_refused(monkeypatch):
    if not (data_root()/BATCHES).is_dir(): pytest.skip(f'no {BATCHES} in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    truth = load_source('cifar10').train.labels.numpy()
    monkeypatch.setattr(builtin, 'human_labels', lambda root, labels: np.random.default_rng(0).permutation(truth))
    with pytest.raises(ValueError, match='contradict CIFAR-10.s own on 90 % of the training images: they are in another order'): load_source('cifar10n', labels='worse')
