"""Real CIFAR-10, a folder of image files, hostile and damaged files, and what each augmentation may do to an image."""
import pickle, shutil
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from unlearning import data
from unlearning.data import AUGMENTATIONS, Images, batches, data_root, in_memory, load_split, make_split, read_split, save_split, tuning_split

BATCHES = 'cifar-10-batches-py'


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
    monkeypatch.setattr(data.tvd.CIFAR10, 'train_list', [])
    monkeypatch.setattr(data.tvd.CIFAR10, 'test_list', [])
    if name != 'batches.meta': monkeypatch.setattr(data.tvd.CIFAR10, 'train_list', [[name, 32 * '0']])
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
    monkeypatch.setattr(torchvision.datasets.cifar, 'download_and_extract_archive', refuse)
    monkeypatch.setattr(data, 'download_url', refuse)


def test_without_data_and_network_the_remedy_is_told(tmp_path, offline):
    with pytest.raises(ValueError) as e: load_split('cifar10', root=tmp_path)
    assert all(part in str(e.value) for part in (str(tmp_path/BATCHES), 'no network', 'https://', 'UNLEARNING_DATA'))


@pytest.fixture
def digits_as_cifar(monkeypatch):
    monkeypatch.setitem(data.SOURCES, 'cifar10', lambda root: data.SOURCES['digits'](root)._replace(forget='challenge'))


def test_without_forget_file_and_network_the_remedy_is_told(tmp_path, offline, digits_as_cifar):
    with pytest.raises(ValueError) as e: load_split('cifar10', root=tmp_path)
    assert all(part in str(e.value) for part in (str(tmp_path/'forget_idx.npy'), 'no network', 'https://', 'forget=5000'))
    assert list(tmp_path.iterdir()) == []


def test_another_forget_file_is_refused(tmp_path, digits_as_cifar):
    np.save(tmp_path/'forget_idx.npy', np.arange(50))
    with pytest.raises(ValueError, match='forget_idx.npy is not the challenge.*sha256.*delete it'): load_split('cifar10', root=tmp_path)


def test_another_download_is_refused(tmp_path, monkeypatch, digits_as_cifar):
    monkeypatch.setattr(data, 'download_url', lambda url, root, filename: np.save(open(f'{root}/{filename}', 'wb'), np.arange(50)))
    with pytest.raises(ValueError, match='not the challenge'): load_split('cifar10', root=tmp_path)


# What to forget

def test_count_is_drawn_by_seed():
    first, again, other = (load_split('digits', forget=50, seed=s).forget.indices.tolist() for s in (0, 0, 1))
    assert len(set(first)) == 50 and first == again != other


@pytest.mark.parametrize('form', ['list', 'array', 'npy', 'txt', 'path'])
def test_positions_in_every_form(tmp_path, form):
    wanted = [3, 8, 500, 897]
    np.save(tmp_path/'forget.npy', np.array(wanted[::-1], dtype=np.int32))
    (tmp_path/'forget.txt').write_text('\n'.join(map(str, wanted)) + '\n\n')
    forms = dict(list=wanted, array=np.array(wanted), npy=str(tmp_path/'forget.npy'), txt=str(tmp_path/'forget.txt'), path=tmp_path/'forget.txt')
    split = load_split('digits', forget=forms[form])
    assert split.forget.indices.tolist() == wanted and len(split.retain) == 894


@pytest.mark.parametrize('forget, says', [([-1], 'index -1 is outside.*0 to 897'), ([898], 'index 898 is outside'), ([4, 4], 'index 4 is listed 2 times'),
                                          ([], 'empty'), (range(898), 'all 898'), ([1.0], 'float64.*whole-number'), (np.ones(898, bool), 'boolean mask'),
                                          (0, 'forget=0'), (-5, 'forget=-5'), (898, 'forget=898'), ('challenge', 'belongs to cifar10')])
def test_bad_positions_are_refused(forget, says):
    with pytest.raises(ValueError, match=says): load_split('digits', forget=forget)


def test_bad_forget_files_are_refused(tmp_path):
    def refused(name, says):
        with pytest.raises(ValueError, match=says): load_split('digits', forget=tmp_path/name)
    refused('nowhere.npy', 'nowhere.npy does not exist')
    (tmp_path/'forget.csv').write_text('1\n')
    refused('forget.csv', "'.csv': use .npy or .txt")
    (tmp_path/'forget.txt').write_text('1\n2.5\n')
    refused('forget.txt', "'2.5', which is not a whole number")
    (tmp_path/'empty.npy').write_bytes(b'')
    refused('empty.npy', 'empty.npy is not a .npy array')


def test_npy_of_pickled_objects_is_not_opened(tmp_path):
    np.save(tmp_path/'forget.npy', np.array([Trap(tmp_path/'marker')], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match='forget.npy is not a .npy array of integers'): load_split('digits', forget=tmp_path/'forget.npy')
    assert not (tmp_path/'marker').exists()


def test_environment_pointing_nowhere_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv('UNLEARNING_DATA', str(tmp_path/'gone'))
    with pytest.raises(ValueError, match='UNLEARNING_DATA names the folder.*gone.*create it, or unset it'): load_split('digits')


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


# Hand-made images: each holds its own number

def numbered(start, n, classes=3):
    number = torch.arange(start, start + n)
    pixels = torch.stack([number // 256, number % 256], 1).to(torch.uint8)[:, :, None, None].expand(n, 2, 4, 4).contiguous()
    return Images(pixels, number % classes, torch.arange(n), torch.zeros(2), torch.ones(2), identities=number * 7)


def numbers(images): return set((images.images[:, 0, 0, 0].long() * 256 + images.images[:, 1, 0, 0]).tolist())


def test_tuning_sees_neither_reported_forget_nor_test_images():
    split = make_split(numbered(0, 600), numbered(600, 300), range(0, 600, 10))
    tuning = tuning_split(split, val=90)
    seen = numbers(tuning.train) | numbers(tuning.test)
    assert not numbers(tuning.forget) & numbers(split.forget) and len(tuning.forget) == len(split.forget)
    assert not seen & numbers(split.test)
    assert not numbers(tuning.test) & (numbers(tuning.train) | numbers(split.forget)) and len(tuning.test) == 90


def test_split_survives_saving(tmp_path):
    split = make_split(numbered(0, 60), numbered(60, 30), [1, 5, 7], classes='abc', name='mine', val=6)
    again = read_split(save_split(split, tmp_path/'split.safetensors'))
    assert (again.name, again.classes, again.fingerprint) == (split.name, split.classes, split.fingerprint)
    for name, part in split.parts.items():
        for field in ('images', 'labels', 'indices', 'mean', 'std', 'identities'):
            old, new = getattr(part, field), getattr(again.parts[name], field)
            assert torch.equal(old, new) and old.dtype == new.dtype
    assert again.train.source is again.retain.source is again.forget.source  # their pixels are not kept twice
    assert [file.name for file in tmp_path.iterdir()] == ['split.safetensors']


@pytest.mark.parametrize('damage', ['truncated', 'pickle', 'foreign', 'part missing', 'empty'])
def test_damaged_split_file_is_named(tmp_path, damage):
    from safetensors.numpy import save_file
    file = save_split(make_split(numbered(0, 60), numbered(60, 30), [1]), tmp_path/'split.safetensors')
    if damage == 'truncated': file.write_bytes(file.read_bytes()[:-5])
    if damage == 'pickle': file.write_bytes(pickle.dumps(Trap(tmp_path/'marker')))
    if damage == 'foreign': save_file({'a.b': np.ones(3)}, file)
    if damage == 'part missing': save_file({'train.images': np.ones(3)}, file, {'split': '{"name": "x", "classes": []}'})
    if damage == 'empty': file.write_bytes(b'')
    with pytest.raises(ValueError, match='split.safetensors is not a whole file of save_split.*delete it'): read_split(file)
    assert not (tmp_path/'marker').exists()


def test_interrupted_saving_leaves_the_old_split(tmp_path, monkeypatch):
    file = save_split(make_split(numbered(0, 60), numbered(60, 30), [1]), tmp_path/'split.safetensors')
    before = file.read_bytes()
    def break_off(arrays, path, metadata): path.write_bytes(b'half'); raise OSError('disk full')
    monkeypatch.setattr(data, 'save_file', break_off)
    with pytest.raises(OSError, match='disk full'): save_split(make_split(numbered(0, 60), numbered(60, 30), [2]), file)
    assert file.read_bytes() == before


# Augmentation

def ramp(n, size=8):
    """n copies of an image whose pixels all differ, and none is 0."""
    return (torch.arange(1., 1 + size * size) / (size * size)).view(1, 1, size, size).expand(n, 1, size, size).contiguous()


def generator(seed): return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_augmentation_is_drawn_from_its_own_seed_alone(name):
    augment, x = AUGMENTATIONS[name], ramp(50)
    torch.manual_seed(1); state = torch.get_rng_state()
    first = augment(x, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(x, generator(3)), first) and not torch.equal(augment(x, generator(4)), first)
    assert torch.equal(x, ramp(50))  # the input is left alone


def test_batches_are_drawn_from_their_own_seed_alone():
    def once(seed): return torch.cat([x.flatten() for x, _ in batches(load_split('digits').forget, 32, generator(seed), tuple(AUGMENTATIONS))])
    torch.manual_seed(1); first = once(5)
    torch.manual_seed(2)
    assert torch.equal(once(5), first) and not torch.equal(once(6), first)


def test_crop_shifts_and_fills_with_zeros():
    x = ramp(300)
    padded = torch.nn.functional.pad(x[0, 0], (1,) * 4)
    shifts = {padded[i:i + 8, j:j + 8].numpy().tobytes() for i in range(3) for j in range(3)}
    assert {image.numpy().tobytes() for image in AUGMENTATIONS['crop'](x, generator(0))[:, 0].contiguous()} == shifts


def test_crop_reaches_4_pixels_at_32():
    x = ramp(2000, 32)
    empty = (AUGMENTATIONS['crop'](x, generator(0)) == 0)[:, 0]
    assert empty.all(1).sum(1).max() == 4 and empty.all(2).sum(1).max() == 4  # columns and rows


def test_flip_mirrors_about_half():
    x = ramp(400)
    y = AUGMENTATIONS['flip'](x, generator(0))
    same, mirrored = (y == x).all((1, 2, 3)), (y == x.flip(3)).all((1, 2, 3))
    assert (same ^ mirrored).all() and 140 < mirrored.sum() < 260


def test_erase_leaves_the_rest_untouched():
    x = ramp(400, 32)
    y = AUGMENTATIONS['erase'](x, generator(0))
    gone = (y == 0)[:, 0]
    assert torch.equal(torch.where(gone[:, None], x, y), x)
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None, :])      # what is gone is a rectangle
    for side in (rows, columns): assert (side.diff(dim=1).sum(1) <= 2).all()  # of one piece
    area = gone.float().mean((1, 2))
    assert 140 < (area > 0).sum() < 260 and area[area > 0].min() > 0.015 and area.max() < 0.36


def test_rotate_turns_by_at_most_15_degrees():
    at = torch.stack(torch.meshgrid(torch.arange(32.), torch.arange(32.), indexing='ij')) - 15.5
    x = torch.exp(-((at[0]) ** 2 + (at[1] - 9) ** 2) / 4).expand(300, 1, 32, 32)  # a blob, 9 pixels right of the centre
    y = AUGMENTATIONS['rotate'](x, generator(0))[:, 0]
    row, column = ((y * a).sum((1, 2)) / y.sum((1, 2)) for a in at)
    angle = torch.rad2deg(torch.atan2(row, column))
    assert angle.abs().max() < 15.2 and angle.max() > 12 and angle.min() < -12
    assert torch.hypot(row, column).numpy() == pytest.approx(9, abs=0.1)


@pytest.mark.parametrize('subset', [1, 900])
def test_subset_that_cannot_be_kept_is_refused_by_its_own_number(subset):
    with pytest.raises(ValueError, match=f'subset is {subset}: ask for 2 to 898 training images'): load_split('digits', forget=90, subset=subset)


PIXELS, LABELS = np.zeros((6, 1, 8, 8), np.uint8), np.arange(6) % 3


@pytest.mark.parametrize('images, labels, says', [
    (PIXELS.transpose(0, 2, 3, 1), LABELS, r'uint8 of shape \(6, 8, 8, 1\): expected uint8, N × C × H × W .*channels last: x.transpose\(0, 3, 1, 2\)'), (PIXELS[:, 0], LABELS, r'grey: x\[:, None\]'),
    (PIXELS / 255, LABELS, r'float64 of .*floats: \(255 \* x\)'), (PIXELS, LABELS[:5], r'labels are int64 of shape \(5,\) for 6 images'), (PIXELS, LABELS + .5, 'labels are float64'),
    (PIXELS, np.eye(3)[LABELS].astype(int), r'of shape \(6, 3\) for 6 images: expected one class number'), (PIXELS, LABELS - 1, 'expected one class number')])
def test_arrays_that_are_no_images_or_labels_are_refused(images, labels, says):
    with pytest.raises(ValueError, match=says): in_memory(images, labels)


def test_train_and_test_belong_together():
    train = in_memory(PIXELS, LABELS)
    with pytest.raises(ValueError, match=r'shape \(1, 4, 4\) are not like those of shape \(1, 8, 8\)'): in_memory(PIXELS[:, :, :4, :4], LABELS, like=train)
    with pytest.raises(ValueError, match='test has the label 7, and there are 3 classes, 0 to 2'): make_split(train, in_memory(PIXELS, LABELS + 5, like=train), [0])
    assert len(make_split(train, in_memory(PIXELS, LABELS, like=train), [0]).retain) == 5
