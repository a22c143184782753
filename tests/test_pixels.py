"""The user's own pixels: files as their viewers see them, trees that say what they leave out, copies, normalisation, arrays, and data sets of torch."""
import os, re, shutil, subprocess, sys, textwrap, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import unlearning
from unlearning.check import Doubt, check
from unlearning.datasets import folder as folder_module, source as source_module
from unlearning.datasets.folder import image_folder
from unlearning.datasets.faces import render_faces
from unlearning.datasets.source import data_root, decode, decode_once
from unlearning.datasets.yours import from_dataset
from unlearning.images import ImageFile, batches, duplicates, in_memory, make_split, read_split, save_split
from unlearning.load import SOURCES, load_source, load_split
from unlearning.models import create_model
from unlearning.training import Training, fit

NOISE = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(40) % 2


def picture(i, mode='RGB'): return Image.fromarray(NOISE[i].transpose(1, 2, 0)).convert(mode)
def refused(says): return pytest.raises(ValueError, match=says)
def pixels(images): return images.images.numpy()


@pytest.fixture
def tree(tmp_path):
    """train/cat/0.png … train/dog/7.png and test likewise: 32 pictures that all differ."""
    for k, part in enumerate(('train', 'test')):
        for c, name in enumerate(('cat', 'dog')):
            (tmp_path/part/name).mkdir(parents=True)
            for i in range(8): picture(16 * k + 8 * c + i).save(tmp_path/part/name/f'{i}.png')
    return tmp_path


def warned(call):
    """What it returns, and its warnings in one string."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        made = call()
    return made, ' | '.join(str(w.message) for w in seen)


# D1: more than 8 bits

DEEP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)


def pgm(path): path.write_bytes(b'P5 8 8 65535\n' + DEEP.astype('>u2').tobytes())


@pytest.mark.parametrize('name, save', [
    ('deep.png', lambda path: Image.fromarray(DEEP).save(path)),
    ('deep.tif', lambda path: Image.fromarray(DEEP).save(path)),
    ('deep.pgm', pgm),
    ('floats.tiff', lambda path: Image.fromarray((DEEP / 65535).astype(np.float32)).save(path))])
def test_deep_pixels_are_scaled_by_their_range(tree, name, save):
    for part in ('train', 'test'): shutil.rmtree(tree/part/'dog'); (tree/part/'dog').mkdir(); save(tree/part/'dog'/name)
    right = np.rint(DEEP / 257).astype(np.uint8)
    assert (pixels(image_folder(tree).train)[-1] == right).all()
    assert (decode(tree/'train'/'dog'/name, channels=1)[0] == right).all()


@pytest.mark.parametrize('values', [np.linspace(0, 255, 64), np.linspace(-1, 1, 64), np.full(64, np.nan), np.arange(64, dtype=np.int32)],
                         ids=['0 to 255', '-1 to 1', 'nan', '32 bits'])
def test_deep_pixels_of_unknown_range_are_refused_by_file_name(tree, values):
    values = values if values.dtype == np.int32 else values.astype(np.float32)
    Image.fromarray(values.reshape(8, 8)).save(tree/'train'/'cat'/'odd.tiff')
    with refused('cat/odd.tiff cannot be read as an image .*of no known range: scale them to 0…1, or to bytes'): image_folder(tree)


# D2: cameras that were turned

@pytest.mark.parametrize('orientation, turn', [
    (2, lambda a: a[:, ::-1]), (3, lambda a: np.rot90(a, 2)), (4, lambda a: a[::-1]), (5, lambda a: a.transpose(1, 0, 2)),
    (6, lambda a: np.rot90(a, 1)), (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)), (8, lambda a: np.rot90(a, -1))])
def test_every_orientation_is_upright(tmp_path, orientation, turn):
    scene = np.random.default_rng(1).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    (exif := Image.Exif())[0x0112] = orientation
    sensor = Image.fromarray(np.ascontiguousarray(turn(scene)))
    for name in ('turned.png', 'turned.tiff'):
        sensor.save(tmp_path/name, exif=exif)
        assert (decode(tmp_path/name).transpose(1, 2, 0) == scene).all()


def test_a_turned_photograph_stands_beside_its_twin(tree):
    scene = Image.linear_gradient('L').resize((8, 12)).convert('RGB')
    (exif := Image.Exif())[0x0112] = 6
    for part in ('train', 'test'):
        for name in ('cat', 'dog'):
            shutil.rmtree(tree/part/name); (tree/part/name).mkdir()
            scene.save(tree/part/name/'0.jpg', quality=95)
            scene.rotate(90, expand=True).save(tree/part/name/'1.jpg', exif=exif, quality=95)
    for size in (None, 8):
        one, twin = pixels(image_folder(tree, size).train)[:2].astype(int)
        assert abs(one - twin).max() < 12


# D3: hidden files and folders

def test_hidden_things_are_no_images_and_that_is_said(tree):
    plain, nothing = warned(lambda: image_folder(tree))
    assert nothing == ''
    for folder in ('.ipynb_checkpoints', 'cat/.ipynb_checkpoints', '__MACOSX'):
        (tree/'train'/folder).mkdir()
        shutil.copy(tree/'train'/'cat'/'0.png', tree/'train'/folder/'0-checkpoint.png')
    for name in ('.DS_Store', 'cat/.DS_Store', 'cat/._0.png'): (tree/'train'/name).write_bytes(b'x')
    (tree/'test'/'dog'/'.hidden.png').write_bytes(b'x')
    again, said = warned(lambda: image_folder(tree))
    assert again.classes == ('cat', 'dog') and again.paths == plain.paths and (pixels(again.train) == pixels(plain.train)).all()
    assert '6 hidden (2 .DS_Store, 1 ._0.png, 2 .ipynb_checkpoints, 1 __MACOSX)' in said and '1 hidden (1 .hidden.png)' in said


def test_a_class_of_hidden_images_alone_is_refused(tree):
    for file in (tree/'train'/'cat').iterdir(): file.rename(file.with_name('.' + file.name))
    with refused("class without images, 'cat' .8 hidden"): image_folder(tree)


# D4: copies

@pytest.fixture
def copied(tree):
    cat = tree/'train'/'cat'
    (cat/'link.png').symlink_to(cat/'0.png')
    for path in (cat/'copy.png', tree/'train'/'dog'/'copy.png', tree/'test'/'cat'/'copy.png'): shutil.copy(cat/'0.png', path)
    (tree/'forget.txt').write_text('cat/0.png\n')
    return tree


def test_copies_are_found_and_forgotten_on_demand(copied):
    split = load_split('folder', root=copied, forget=copied/'forget.txt')
    found = duplicates(split)
    assert found.part.tolist() == ['retain'] * 3 + ['test'] and found.same_class.tolist() == [True, True, False, True]
    assert set(found.forget) == {int(split.forget.indices[0])}
    assert all((pixels(split.train)[at] == pixels(split.forget)[0]).all() for at in found.twin[:3])
    network = create_model('small', 2, 3, 8)
    with pytest.warns(Doubt, match=r'1 of 1 .*copies in retain \(3, 1 under another label\); .*in test \(1, 0 under.*copies=True, in load_split or make_split'):
        check(network, split)
    everything = load_split('folder', root=copied, forget=copied/'forget.txt', copies=True)
    assert len(everything.forget) == 4 and duplicates(everything).part.unique().tolist() == ['test']
    assert sorted(everything.forget.indices.tolist() + everything.retain.indices.tolist()) == list(range(19))


def test_a_copy_in_another_format_is_a_copy(tree):
    Image.open(tree/'train'/'cat'/'0.png').save(tree/'train'/'dog'/'z.bmp')
    (tree/'forget.txt').write_text('cat/0.png\n')
    assert duplicates(load_split('folder', root=tree, forget=tree/'forget.txt')).same_class.tolist() == [False]


def test_copies_among_bytes_and_floats_and_in_val():
    floats = NOISE[20:].astype(np.float32) / np.float32(255)
    floats[0] = NOISE[0] / np.float32(255); floats[1] *= 0.123
    train = in_memory(NOISE[[*range(20), *range(20)]], LABELS)
    test = in_memory(floats, LABELS[20:], like=train)
    assert test.source.dtype == torch.float32
    split = make_split(train, test, [0, 1], val=19)
    found = duplicates(split)
    assert set(found.part) <= {'retain', 'val', 'test'} and found[found.part != 'test'].twin.sort_values().tolist() == [20, 21]
    assert found[found.part == 'test'][['forget', 'twin']].values.tolist() == [[0, 0]]
    assert not set(make_split(train, test, [0, 1], copies=True).retain.indices.tolist()) & {0, 1, 20, 21}


def test_forgetting_all_copies_of_everything_is_refused():
    train = in_memory(NOISE[[0, 0, 0]], [0, 1, 0])
    with refused('all 3 training images'): make_split(train, train, [1], copies=True)


def test_no_copies_no_word():
    split = load_split('digits', forget=90, subset=600)
    assert not len(duplicates(split)) and load_split('digits', forget=90, subset=600, copies=True).fingerprint == split.fingerprint
    _, said = warned(lambda: check(trained(split), split))
    assert said == ''


# D5: endings

def test_what_can_be_read_is_read_and_the_rest_is_counted(tree):
    cat = tree/'train'/'cat'
    picture(33).convert('P').save(cat/'a.gif'); picture(34).save(cat/'b.jfif', 'JPEG'); picture(35).save(cat/'c', 'PNG'); picture(36).save(cat/'D.GIF')
    for name in ('notes.txt', 'more.TXT', 'e.heic', 'nothing'): (cat/name).write_text('no image')
    (tree/'train'/'readme.png').write_text('in no class')
    (tree/'forget.txt').write_text('cat/a.gif\ncat/b.jfif\ncat/c\ncat/D.GIF\n')
    split, said = warned(lambda: load_split('folder', root=tree, forget=tree/'forget.txt'))
    assert len(split.forget) == 4 and len(split.train) == 20
    assert (pixels(split.forget)[3] == NOISE[35]).all()  # D.GIF, a.gif, b.jfif, c
    assert '4 no image by the ending (1 .heic, 2 .txt, 1 without an ending); 1 in no class folder (1 readme.png)' in said


def test_animations_and_transparency_are_said(tree):
    frames = [picture(i).convert('P') for i in (33, 34)]
    frames[0].save(tree/'test'/'cat'/'moving.gif', save_all=True, append_images=frames[1:])
    picture(35, 'RGBA').save(tree/'test'/'cat'/'glass.png')
    _, said = warned(lambda: image_folder(tree))
    assert '1 images have an alpha channel, and are shown over white' in said and '1 images have several frames' in said


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new('RGBA', (2, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (90, 90, 90, 255))
    image = image.convert(mode) if mode != 'P' else image.quantize()
    image.save(tmp_path/'glass.png')
    assert decode(tmp_path/'glass.png')[0].tolist() == [[90, 255], [255, 255]]


# D6: classes that are numbers

@pytest.mark.parametrize('names, order', [
    ([str(k) for k in range(12)], [str(k) for k in range(12)]),
    (['002', '010', '1'], ['1', '002', '010']),
    (['9', '10', 'other'], ['10', '9', 'other']),
    (['class10', 'class9'], ['class10', 'class9'])])
def test_numbers_in_the_order_of_numbers(tmp_path, names, order):
    for part in ('train', 'test'):
        for i, name in enumerate(names):
            (tmp_path/part/name).mkdir(parents=True)
            picture(i).save(tmp_path/part/name/'0.png')
    source, said = warned(lambda: image_folder(tmp_path))
    assert list(source.classes) == order and [p.split('/')[0] for p in source.paths] == order and source.train.labels.tolist() == list(range(len(order)))
    assert ('in the order of numbers' in said) == (order != sorted(order))


# D7: grey trees

def grey(tree):
    for file in tree.rglob('*.png'): Image.open(file).convert('L').save(file)
    return tree


def test_channels_follow_the_files(tree):
    assert image_folder(tree).train.shape == (3, 8, 8)
    assert image_folder(grey(tree)).train.shape == (1, 8, 8)
    assert load_split('folder', root=tree, forget=1, channels=3).image_shape == (3, 8, 8)
    fit(create_model('small', 2, 1, 8), image_folder(tree).train, Training(epochs=1, batch_size=8, lr=0.1, augment=()))


def test_one_coloured_file_makes_colours_and_channels_unmakes_them(tree):
    picture(39).save(grey(tree)/'test'/'dog'/'9.png')
    assert image_folder(tree).train.shape == (3, 8, 8)
    one = image_folder(tree, channels=1)
    assert one.train.shape == one.test.shape == (1, 8, 8) and (pixels(one.test)[-1, 0] == np.asarray(picture(39).convert('L'))).all()


@pytest.mark.parametrize('mode', ['1', 'LA', 'I;16'])
def test_other_modes_are_grey_too(tree, mode):
    for file in tree.rglob('*.png'):
        image = Image.open(file).convert('L')
        (Image.fromarray(np.asarray(image).astype(np.uint16)) if mode == 'I;16' else image.convert(mode)).save(file)
    assert warned(lambda: image_folder(tree))[0].train.shape == (1, 8, 8)


@pytest.mark.parametrize('options, says', [(dict(channels=4), 'channels is 4: use 1'), (dict(image_size=0), 'image_size is 0'), (dict(image_size=(8, 8)), 'image_size is')])
def test_other_channels_and_sizes_are_refused(tree, options, says):
    with refused(says): image_folder(tree, **options)


# D8: the network's own normalisation

def trained(split):
    network = create_model('small', len(split.classes), split.image_shape[0], 8)
    fit(network, split.train, Training(epochs=8, batch_size=64, lr=0.1, augment=()))
    return network.eval()


@pytest.mark.parametrize('mean, std', [(0, 1), (0.5, 0.5), ([0.9], [0.05])])
def test_what_its_owner_normalised_is_normalised_so(mean, std):
    theirs = load_split('digits', forget=90, mean=mean, std=std)
    for part in theirs.parts.values(): assert part.mean.tolist() == pytest.approx(np.ravel(mean)) and part.std.tolist() == pytest.approx(np.ravel(std))
    again = make_split(*(p for p in (load_split('digits', forget=90).train, theirs.test)), theirs.forget.indices, mean=mean, std=std)
    assert again.fingerprint == theirs.fingerprint
    array = in_memory(pixels(theirs.train), theirs.train.labels, mean=mean, std=std)
    assert torch.equal(array.mean, theirs.train.mean) and torch.equal(array.std, theirs.train.std)


REAL = dict(cifar10='cifar-10-batches-py', cifar10n='cifar-10n', writers='QMNIST')  # in the data root, or not


@pytest.mark.parametrize('dataset', SOURCES)
def test_every_loader_takes_its_owners_statistics(dataset, tree, tmp_path):
    if dataset in REAL and not (data_root()/REAL[dataset]).is_dir(): pytest.skip(f'{dataset} is not in the data root')
    root = dict(folder=tree, celeba=tmp_path).get(dataset)
    if dataset == 'celeba': render_faces(tmp_path, 60, identities=10)
    source = load_source(dataset, root, mean=0.5, std=0.25)
    for part in filter(None, (source.train, source.val, source.test)): assert set(part.mean.tolist()) == {0.5} and set(part.std.tolist()) == {0.25}
    with refused('belong together'): load_source(dataset, root, mean=0.5)


def test_a_network_near_chance_raises_a_doubt():
    theirs, ours = load_split('digits', forget=90, mean=0.95, std=0.01), load_split('digits', forget=90)
    network = trained(theirs)
    look, said = warned(lambda: check(network, theirs))
    assert look.test > 60 and said == ''
    with pytest.warns(Doubt, match=r'always naming their commonest class is on .*normalised otherwise\? Pass its own mean= and std='): look = check(network, ours)
    assert look.test < 25


def test_always_the_commonest_class_is_chance():
    labels = (np.arange(40) % 10 == 0).astype(int)
    data = in_memory(NOISE, labels)
    class Zero(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x): return torch.stack([x.mean((1, 2, 3)) * self.w + 2, x.mean((1, 2, 3)) * self.w], 1)
    with pytest.warns(Doubt, match='right on 90.0 %'): check(Zero(), make_split(data, data[:40], [1]))


@pytest.mark.parametrize('mean, std, says', [
    (0.5, None, 'belong together'), (None, 1, 'belong together'), ((0.5, 0.5), 1, 'mean has 2 values for 3 channels'), (123.7, 58.4, 'divide them by 255'),
    (0.5, 0, 'divided by it'), (float('nan'), 1, 'not of pixels'), (-0.5, 1, 'not of pixels')])
def test_statistics_that_cannot_be_are_refused(mean, std, says):
    data = in_memory(NOISE, LABELS)
    for call in (lambda: in_memory(NOISE, LABELS, mean=mean, std=std), lambda: make_split(data, data, [0], mean=mean, std=std)):
        with refused(says): call()


# D9: test as train

def test_test_is_normalised_as_train(tree):
    train, dark = in_memory(NOISE, LABELS), in_memory(NOISE // 4, LABELS)
    assert not torch.equal(train.mean, dark.mean)
    for split in (make_split(train, dark, [0]), make_split(train, dark, [0], val=4), make_split(train, in_memory(NOISE // 4, LABELS, mean=0, std=1), [0])):
        for part in split.parts.values(): assert torch.equal(part.mean, train.mean) and torch.equal(part.std, train.std)
    for file in (tree/'test').rglob('*.png'): Image.open(file).point(lambda v: v // 4).save(file)
    source = image_folder(tree)
    assert torch.equal(source.test.mean, source.train.mean)
    assert torch.equal(make_split(in_memory(NOISE, LABELS, mean=0.3, std=0.2), dark, [0]).test.mean, torch.full((3,), 0.3))


def test_test_of_another_shape_is_refused():
    with refused(r'test images of shape \(3, 4, 4\) are not like those of shape \(3, 8, 8\): resize them'):
        make_split(in_memory(NOISE, LABELS), in_memory(NOISE[:, :, :4, :4], LABELS), [0])


# D10: arrays

def flat(x): return x.transpose(0, 2, 3, 1)

GREY, RGBA, BANDS = NOISE[:, :1], np.repeat(NOISE, 2, 1)[:, :4], np.repeat(NOISE, 5, 1)[:, :13]
TALL = np.repeat(np.repeat(NOISE, 2, 2), 3, 3)  # 16 × 24


@pytest.mark.parametrize('x, right', [
    (flat(NOISE), NOISE), (GREY[:, 0], GREY), (flat(TALL), TALL),
    (NOISE * 1., NOISE), (NOISE.astype(np.float32), NOISE), (NOISE.astype(int), NOISE), (flat(NOISE) * 1., NOISE),
    (NOISE * 0.5, NOISE / 510), (flat(NOISE) * 0.5, NOISE / 510), (GREY[:, 0] * 1., GREY), (GREY[:, 0] * 0.5, GREY / 510),
    (NOISE.astype(np.uint16) * 257, NOISE), (NOISE * 85.7, NOISE * 85.7 / 65535),
    (NOISE.astype(np.uint16) * 16, NOISE * 16. / 4095), (NOISE / 127.5 - 1, NOISE / 255), (NOISE > 99, 255 * (NOISE > 99).astype(np.uint8)),
    (flat(np.repeat(TALL, 2, 1)[:, :4]), np.repeat(TALL, 2, 1)[:, :3]), (RGBA, RGBA[:, :3]), (flat(RGBA), RGBA[:, :3]), (RGBA * 1., RGBA[:, :3]),
    (torch.from_numpy(flat(NOISE)), NOISE), (torch.from_numpy(NOISE) * 1., NOISE), (torch.from_numpy(flat(NOISE) * 0.5), NOISE / 510)])
def test_the_remedy_is_right_for_that_range_and_layout(x, right):
    with refused('^images are ') as e: in_memory(x, LABELS)
    remedy = re.search(r': pass (.*)$', str(e.value))[1]
    made = in_memory(eval(remedy, dict(x=x, torch=torch)), LABELS).images
    right = torch.from_numpy(right) if right.dtype == np.uint8 else torch.from_numpy(right).float()
    assert made.dtype in (right.dtype, torch.uint8) and torch.allclose(made / 255 if made.dtype == torch.uint8 else made, right / 255 if right.dtype == torch.uint8 else right, atol=1e-6)


@pytest.mark.parametrize('x, channels, says', [
    (BANDS, 13, 'pass x, with channels=13 if the network takes so many'),
    (flat(np.repeat(np.repeat(BANDS, 2, 2), 2, 3)), 13, r'13 channels, last: pass x.transpose\(0, 3, 1, 2\), with channels=13'),
    (NOISE[:, :2], 2, '2 channels: pass x, with channels=2')])
def test_other_numbers_of_channels_are_taken_when_they_are_stated(x, channels, says):
    with refused(says): in_memory(x, LABELS)
    x = x if x.shape[1] == channels else x.transpose(0, 3, 1, 2)
    train = in_memory(x, LABELS, channels=channels)
    assert train.shape[0] == channels == len(train.mean) and in_memory(x, LABELS, like=train).shape == train.shape
    with refused(rf'{channels} channels: pass an x of 3 channels'): in_memory(x, LABELS, channels=3)


def test_normalised_arrays_and_those_of_no_range():
    with refused(r'seem to be normalised already: pass x \* std \+ mean$'): in_memory((NOISE / 255 - 0.5) / 0.25, LABELS)
    with refused('not finite'): in_memory(NOISE * np.nan, LABELS)
    with refused('pass numbers'): in_memory(np.array([['a']]), [0])
    with refused('2 axes, not 4'): in_memory(NOISE.reshape(40, -1), LABELS)


def test_floats_between_bytes_are_kept(tmp_path):
    floats = (NOISE / 510).astype(np.float32)
    images = in_memory(floats, LABELS)
    mean, std = (NOISE / 510).mean((0, 2, 3)), (NOISE / 510).std((0, 2, 3))
    assert images.mean.numpy() == pytest.approx(mean, rel=1e-5) and images.std.numpy() == pytest.approx(std, rel=1e-5)
    x = torch.cat([batch.x for batch in batches(images, 7)])
    assert torch.equal(x, images.normalize(torch.from_numpy(floats)))
    split = make_split(images, images[:9], [1, 2])
    assert split.train.images.dtype == torch.float32 and split.fingerprint != make_split(in_memory(NOISE, LABELS), in_memory(NOISE, LABELS)[:9], [1, 2]).fingerprint
    again = read_split(save_split(split, tmp_path/'split.safetensors'))
    assert again.fingerprint == split.fingerprint
    np.save(tmp_path/'floats.npy', floats)
    filed = in_memory(ImageFile(tmp_path/'floats.npy'), LABELS)
    assert torch.allclose(filed.mean, images.mean) and make_split(filed, filed[:9], [1, 2], mean=0, std=1).fingerprint == make_split(images, images[:9], [1, 2], mean=0, std=1).fingerprint
    for one, other in zip(batches(filed, 7), batches(images, 7)): assert torch.allclose(one.x, other.x)


@pytest.mark.parametrize('make', [lambda x: x / 255, lambda x: (x / 255).astype(np.float32), lambda x: x * np.float32(1 / 255), lambda x: torch.from_numpy(x) / 255])
def test_floats_that_were_bytes_are_bytes(make):
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(in_memory(make(every), [0]).images, torch.from_numpy(every))


def test_one_rounded_above_is_one():
    """An antialiased resize of floats gives 1 + 2.4e-7."""
    x = np.full((4, 1, 8, 8), 1 + 2.4e-7, np.float32)
    assert (pixels(in_memory(x, [0, 1, 0, 1])) == 255).all()
    x[0] = 0.3
    assert pixels(in_memory(x, [0, 1, 0, 1])).max() == 1
    data = [(torch.full((3, 8, 8), 1 + 2.4e-7 if i % 2 else 0.5), i % 2) for i in range(20)]
    assert np.unique(pixels(from_dataset(data, data, mean=0.5, std=0.25).train)).tolist() == [0.5, 1]


@pytest.mark.parametrize('stated', [{}, dict(mean=0.5, std=0.25)])
@pytest.mark.parametrize('size', [6, 12, 32])
def test_pixels_that_overshoot_are_not_taken_for_normalised_ones(stated, size):
    bicubic = v2.Resize(size, v2.InterpolationMode.BICUBIC)
    data = [(bicubic(image / 255), label) for image, label in zip(load_source('digits').train.images[:20], LABELS)]
    with refused('values go from -.*overshoot.*end the transform with .*clamp'): from_dataset(data, data, **stated)
    x = torch.stack([image for image, _ in data])
    with refused(r'overshoot.*: pass x.clip\(0, 1\)'): in_memory(x, LABELS[:20])
    clamped = [(image.clamp(0, 1), label) for image, label in data]
    assert torch.equal(from_dataset(clamped, clamped, **stated).train.images, x.clip(0, 1))


def test_bright_pixels_that_were_normalised_are_none_that_overshoot():
    """Of which few lie beyond [0, 1]: that bytes come of it when it is undone shows what they are."""
    data = [((torch.randint(120, 256, (1, 8, 8)) / 255 - 0.55) / 0.45, i % 2) for i in range(20)]
    assert from_dataset(data, data, mean=0.55, std=0.45).train.images.dtype == torch.uint8


# Decoded files follow their sources

@pytest.mark.parametrize('change', ['content', 'content and time', 'order'])
def test_a_decoded_file_follows_the_content(tmp_path, change):
    files = [tmp_path/f'{i}.bmp' for i in range(3)]  # all of one size
    for i, file in enumerate(files): picture(i).save(file)
    before, facts = decode_once(files, None, tmp_path), files[1].stat()
    assert decode_once(files, None, tmp_path) == before
    if change == 'order': files = files[::-1]
    else:
        picture(9).save(files[1])
        if change == 'content and time': os.utime(files[1], ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert files[1].stat().st_size == facts.st_size
    after = ImageFile(decode_once(files, None, tmp_path))
    assert after.path != before and (after[:].numpy() == np.stack([decode(f) for f in files])).all()


@pytest.mark.parametrize('at', [0, 50_000, 99_999])
def test_the_sample_sees_beginning_middle_and_end(tmp_path, at):
    file, content = tmp_path/'large', bytearray(100_000)
    file.write_bytes(content); before = source_module.sample(file, 100_000)
    content[at] = 1
    file.write_bytes(content)
    assert source_module.sample(file, 100_000) != before


def test_a_large_tree_is_a_file(tree, tmp_path_factory, monkeypatch):
    small, cache = load_split('folder', root=tree, forget=3), tmp_path_factory.mktemp('cache')
    monkeypatch.setattr(folder_module, 'LARGE', 1000)
    large = load_split('folder', root=tree, forget=3, cache=cache)
    assert isinstance(large.train.source, ImageFile) and large.train.source.path.parent == cache and large.fingerprint == small.fingerprint
    grey(tree)
    assert load_split('folder', root=tree, forget=3).image_shape == (1, 8, 8)
    Image.new('L', (9, 8)).save(tree/'train'/'dog'/'9.png')
    with refused('2 different sizes'): load_split('folder', root=tree, forget=3)


# Data sets of torch

class Pictures(Dataset):
    def __init__(self, n, transform=lambda x: x, mode='RGB', first=0): self.n, self.transform, self.mode, self.first = n, transform, mode, first
    def __len__(self): return self.n
    def __getitem__(self, i):
        if i >= self.n: raise IndexError(i)
        return self.transform(picture(self.first + i, self.mode)), torch.tensor(LABELS[i])


def tensor(image): return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
def halves(image): return tensor(image) / 510
def normal(image): return (tensor(image) / 255 - 0.4) / 0.3
FORMS = dict(pictures=lambda x: x, arrays=np.asarray, tensors=tensor, floats=lambda x: tensor(x) / 255, doubles=lambda x: tensor(x).double() / 255,
             scaled=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), normalised=normal)


@pytest.mark.parametrize('large', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_the_same_source(form, large, tmp_path, monkeypatch):
    if large: monkeypatch.setattr('unlearning.datasets.yours.LARGE', 0)
    source = from_dataset(Pictures(30, FORMS[form]), Pictures(10, FORMS[form], first=30), mean=0.4, std=0.3, val=Pictures(4, FORMS[form]), cache=tmp_path)
    assert isinstance(source.train.source, ImageFile) == large and source.classes == ('0', '1')
    assert (pixels(source.train) == NOISE[:30]).all() and (pixels(source.test) == NOISE[30:]).all() and (pixels(source.val) == NOISE[:4]).all()
    assert source.train.labels.tolist() == LABELS[:30].tolist()
    x = next(batches(source.train, 30)).x
    assert torch.allclose(x, torch.stack([normal(picture(i)) for i in range(30)]), atol=1e-5)
    assert not list(tmp_path.glob('*.part'))
    check(create_model('small', 2, 3, 8), make_split(source.train, source.test, [1, 2], source.classes))


@pytest.mark.parametrize('large', [False, True])
def test_floats_stay_floats_even_if_they_come_late(large, tmp_path, monkeypatch):
    if large: monkeypatch.setattr('unlearning.datasets.yours.LARGE', 0)
    class Late(Pictures):
        def __getitem__(self, i): return tensor(picture(i % 40)) / (510 if i == 150 else 255), i % 2
    source = from_dataset(Late(200), Pictures(9, halves), cache=tmp_path)
    assert source.train.source.dtype == torch.float32 and len(list(tmp_path.iterdir())) == (2 if large else 0)
    right = torch.from_numpy(NOISE[np.arange(200) % 40]).float() / 255
    right[150] /= 2
    assert torch.allclose(source.train.images, right) and torch.allclose(source.test.images, torch.from_numpy(NOISE[:9]) / 510)


def test_values_of_an_unknown_normalisation_are_what_the_network_sees():
    source, said = warned(lambda: from_dataset(Pictures(30, normal), Pictures(10, normal, first=30)))
    assert 'mean= and std= were not passed' in said
    assert torch.equal(next(batches(source.test, 10)).x, torch.stack([normal(picture(30 + i)) for i in range(10)]))


class Endless(Dataset):
    def __getitem__(self, i): return picture(i % 40), 0

class Claims(Endless):
    def __len__(self): return 10**15

class Stream(IterableDataset):
    def __len__(self): return 40
    def __iter__(self): return iter(Pictures(40))

class Short(Pictures):
    def __len__(self): return 50


class Backwards(ImageFolder):
    def find_classes(self, directory): return ['a', 'b', 'c'], dict(a=2, b=1, c=0)


def test_a_class_is_the_one_of_its_number(tmp_path):
    """A folder may number its classes as it likes, and a request names one of them."""
    for i, name in enumerate('abc' * 6):
        (folder := tmp_path / ('train' if i < 12 else 'test') / name).mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f'{i}.png')
    def read(kind): return from_dataset(*(kind(tmp_path / part, v2.PILToTensor()) for part in ('train', 'test')))
    for kind in (ImageFolder, Backwards):
        forget = load_split(read(kind), forget='class:a').forget
        assert len(forget) == 4 and {read(kind).paths[i][0] for i in forget.indices} == {'a'}


@pytest.mark.parametrize('data, says', [
    (Endless(), 'train has no length .*may never end: pass a map-style Dataset'), (Claims(), r'1,000,000,000,000,000 images are .* pass a data set that ends'),
    (Stream(), 'train is a Stream, which can only be iterated over'), ((p for p in Pictures(3)), 'train is a generator'), ([], 'train has no image'),
    (Short(30), 'item 3[0-9] of 50 cannot be read .*ends early'),
    ([dict(image=picture(0), label=1)], r'item 0 is a dict of image, label: it should be \(image, label\)'), ([(picture(0), 1, 'cat.png')], 'item 0 is a tuple of Image, int, str'),
    ([picture(0)], 'item 0 is a Image'), ([(picture(0), 'cat')] * 3, "label of item 0 is 'cat'"), ([(picture(0), 0), (picture(0), 0.5)], 'label of item 1 is 0.5'),
    ([(picture(0), 0)] * 20 + [(picture(0).resize((9, 9)), 0)], r'item 20 is uint8 of shape \(3, 9, 9\), and the first uint8 of shape \(3, 8, 8\)'),
    ([(picture(0), 0)] * 20 + [(picture(0, 'L'), 0)], 'item 20 is .*channels='), (Pictures(30, lambda x: tensor(x).float()), 'mean= and std= undone|values from'),
    (Pictures(30, v2.RandomCrop(4)), 'is another image each time: pass the data set with its transform for evaluation'),
    (Pictures(30, lambda x: tensor(x)[[0, 1, 2, 2]]), '4 channels look like RGBA')])
def test_data_sets_that_cannot_be_used_are_named(data, says, tmp_path):
    with refused(says): from_dataset(data, Pictures(10), mean=0.5, std=0.5, cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('wrong', [dict(mean=123., std=58.), dict(mean=0.5), dict(std=0.5), dict(paths=['a']), dict(test=[(np.zeros((9, 9), np.uint8), 0)]),
                                   dict(val=[(np.zeros((8, 8), np.float32), 0)])])
def test_what_can_be_known_before_all_is_read_is_said_before(wrong):
    reads = []
    class Counted(Dataset):
        def __len__(self): return 40
        def __getitem__(self, i): reads.append(i); return GREY[i], LABELS[i]
    with refused('belong together|divide them by 255|paths names 1 of 40|item 0 of (test|val) is'): from_dataset(**dict(train=Counted(), test=[(GREY[0], 0)]) | wrong)
    assert len(reads) <= 32


def test_test_images_of_another_range_are_named_before_all_of_train_is_read():
    reads, bright = [], [(torch.full((1, 8, 8), 200. + i), i % 2) for i in range(4)]
    class Counted(Dataset):
        def __len__(self): return 40
        def __getitem__(self, i): reads.append(i); return torch.full((1, 8, 8), i / 40), i % 2
    with refused('values from 200 to'): from_dataset(Counted(), bright)
    assert len(reads) <= 32


@pytest.mark.parametrize('part', ['train', 'test', 'val'])
def test_images_that_differ_each_time_are_noticed_in_each_part(part):
    parts = {name: Pictures(12, tensor) for name in ('train', 'test', 'val')} | {part: Pictures(12, lambda x: tensor(v2.RandomCrop(8, 2)(x)))}
    with refused(rf'item \d+ of {part} is another image each time: pass the data set with its transform for evaluation'): from_dataset(**parts)


@pytest.mark.parametrize('transform, std, says', [
    (lambda x: tensor(x).float(), 0.25, 'values go from 0.5 to 64.*: the pixels are of 0 to 255, divide them by 255 in the transform'),
    (lambda x: (tensor(x).float() - 0.5) / 0.25, 0.25, 'values go from 0 to 255: the pixels are of 0 to 255, divide'),
    (normal, 0.9, "values go from -.*: pass those of the transform's Normalize"), (lambda x: tensor(x) / 255 * 4, 0.9, "pass those of the transform's Normalize")])
def test_floats_that_are_no_pixels_are_told_apart(transform, std, says):
    with refused(says): from_dataset(Pictures(30, transform), Pictures(9, transform), mean=0.5, std=std)


def test_grey_pictures_among_colours_are_made_alike():
    mixed = [(picture(0), 0)] * 20 + [(picture(0, 'L'), 1)]
    assert from_dataset(mixed, mixed, channels=3).train.shape == (3, 8, 8) and from_dataset(mixed, mixed, channels=1).train.shape == (1, 8, 8)
    assert from_dataset(Pictures(9, mode='L'), Pictures(9, mode='L')).train.shape == (1, 8, 8)


def test_classes_are_those_of_the_data_set():
    named = Pictures(9); named.classes = ['cat', 'dog']
    bare = TensorDataset(torch.from_numpy(NOISE), torch.from_numpy(LABELS))
    assert from_dataset(named, bare).classes == ('cat', 'dog') and from_dataset(bare, bare, classes=['a', 'b']).classes == ('a', 'b')


@pytest.mark.parametrize('theirs, says', [
    (['cat', 'emu'], "class 1 is 'dog' in train and 'emu' in test, and 'dog' is in one of them only"), (['cat', 'bee', 'dog'], "'bee' is in one of them only"),
    (['dog', 'cat'], "class 0 is 'cat' in train and 'dog' in test"), (['cat', 'dog', 'emu'], None), (['cat'], None), (('cat', 'dog'), None), (None, None)])
def test_a_number_means_one_class_in_each_part(theirs, says):
    train, test = Pictures(9), [(picture(0), 0)] * 9
    train.classes = ['cat', 'dog']
    class Named(list): classes = theirs
    def made(): return from_dataset(train, Subset(Named(test), range(9)), val=Pictures(9))
    if not says: assert made().classes == ('cat', 'dog')
    else:
        with refused(says + '.*: give both the same classes, in the same order'): made()


MEMORY = '''
    import sys
    sys.path[:0] = [{path!r}]
    import threading, time
    import numpy as np
    from unlearning.datasets import yours
    from unlearning.datasets.yours import from_dataset
    from unlearning.images import make_split

    def status(name):
        return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(name))
    most = 0  # of the program's own memory: pages of the file, which the system may keep or drop, do not count
    def watch():
        global most
        while True: most = max(most, status('RssAnon')); time.sleep(0.002)
    class Large:
        def __len__(self): return {n}
        def __getitem__(self, i): return np.full((224, 224, 3), i % 256, np.uint8), i % 7
    yours.LARGE = 2**20
    from_dataset([*zip(np.zeros((3, 8, 8, 3), np.uint8), (0, 1, 2))], [(np.zeros((8, 8, 3), np.uint8), 0)], cache={cache!r})
    before = status('RssAnon')
    threading.Thread(target=watch, daemon=True).start()
    made = from_dataset(Large(), [Large()[i] for i in range(7)], cache={cache!r})
    make_split(made.train, made.test, [1, 2]).fingerprint
    print(most - before, status('VmHWM'))
'''


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='peak memory is read from /proc')
def test_large_data_are_streamed(tmp_path):
    """A tenth of 20,000 images of 224 × 224, which are 3 GB and may take 1.5, of which torch itself is half a gigabyte."""
    code = textwrap.dedent(MEMORY).format(path=str(Path(unlearning.__file__).parent.parent), cache=str(tmp_path), n=2000)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, peak = map(int, done.stdout.split())
    assert grown < 0.9 * 2000 * 3 * 224 * 224 and peak < 1.5e9, (grown, peak)  # held whole it is 1 and more


def test_pixels_in_bfloat16():
    x = torch.rand(20, 3, 8, 8).bfloat16()
    made = from_dataset(*[TensorDataset(x, torch.arange(20) % 2)] * 2)
    assert torch.equal(made.train.images, x.float())
