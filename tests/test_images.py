"""Images in memory and in a file, splits, hostile and damaged files, batches, and augmentation."""
import json, pickle, subprocess, sys, textwrap
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import unlearning
from unlearning import images as module
from unlearning.augment import AUGMENTATIONS, augmentations
from unlearning.images import (Batch, ImageFile, Images, batches, channel_statistics, draw_balanced, in_memory,
                               make_split, read_split, save_split, shared_split)
from unlearning.show import show_images


def numbered(start, n, classes=3):
    """Images that hold their own numbers."""
    number = torch.arange(start, start + n)
    digits = torch.stack([number // 256, number % 256], 1).to(torch.uint8)
    pixels = digits[:, :, None, None].expand(n, 2, 4, 4).contiguous()
    return Images(pixels, number % classes, torch.arange(n), torch.zeros(2), torch.ones(2), identities=number * 7)


def numbers(images): return (images.images[:, 0, 0, 0].long() * 256 + images.images[:, 1, 0, 0]).tolist()
def ids(images): return set(images.indices.tolist())
def per_class(images): return torch.bincount(images.labels, minlength=3).tolist()
def generator(seed): return torch.Generator().manual_seed(seed)
def refused(says): return pytest.raises(ValueError, match=says)


def wrong(split):
    """The same split, every other image of which has a wrong label."""
    def change(part):
        labels = torch.where(part.indices % 2 == 1, (part.labels + 1) % 3, part.labels)
        return replace(part, truth=part.labels, labels=labels)
    return replace(split, **{name: change(part) for name, part in split.parts.items()})


@pytest.fixture(scope='module')
def split(): return make_split(numbered(0, 600), numbered(600, 300), range(0, 600, 10), classes='abc', name='mine')


@pytest.fixture(scope='module')
def filed(split, tmp_path_factory):
    """The same, with the pixels of train in a file."""
    path = tmp_path_factory.mktemp('pixels')/'pixels.npy'
    np.save(path, split.train.source.numpy())
    file = ImageFile(path)
    return replace(split, **{k: replace(getattr(split, k), source=file) for k in ('train', 'retain', 'forget')})


class Trap:
    """Unpickled, it writes a file."""
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (open, (self.marker, 'w'))


# Images

def test_a_part_of_a_part_keeps_everything_an_image_has():
    images = replace(numbered(0, 300), truth=torch.arange(300) // 2)
    at = [103, 107, 103]
    for part in (images[100:][[3, 7, 3]], images[np.array(at)], images[torch.tensor(at)]):
        assert part.source is images.source and part.rows.tolist() == at
        small = part.compact()
        assert len(small.source) == 3 and small.rows is None and numbers(small[1:]) == [107, 103]
        for some in (part, small):
            assert numbers(some) == some.indices.tolist() == at and some.labels.tolist() == [1, 2, 1]
            assert some.identities.tolist() == [721, 749, 721] and some.truth.tolist() == [51, 53, 51]


def test_moving_moves_every_tensor():
    images = replace(numbered(0, 10), truth=torch.arange(10))[2:5].to('meta')
    assert {t.device.type for t in vars(images).values()} == {'meta'} and images.device.type == 'meta'
    assert numbered(0, 10).to('cpu').truth is None


def test_pixels_and_what_a_network_sees():
    noise = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
    images = in_memory(noise, np.zeros(50, int))
    x = images.normalize(images.images / 255)
    std, mean = torch.std_mean(x, (0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-5) and torch.allclose(std, torch.ones(3), atol=1e-5)
    assert torch.allclose(images.pixels(x), images.images / 255, atol=1e-6)


@pytest.mark.parametrize('rows', [None, [0, 5, 1999, 700]])
def test_statistics_are_numpys(tmp_path, rows):
    pixels = np.random.default_rng(0).integers(0, 200, (2000, 3, 5, 4), dtype=np.uint8)
    np.save(tmp_path/'pixels.npy', pixels)
    for source in (torch.from_numpy(pixels), ImageFile(tmp_path/'pixels.npy')):
        mean, std = channel_statistics(source, rows)
        some = pixels[slice(None) if rows is None else rows] / 255
        assert mean.numpy() == pytest.approx(some.mean((0, 2, 3)), rel=1e-6)
        assert std.numpy() == pytest.approx(some.std((0, 2, 3)), rel=1e-6)


PIXELS, LABELS = np.zeros((6, 1, 8, 8), np.uint8), np.arange(6) % 3


@pytest.mark.parametrize('images, labels, says', [
    (PIXELS.transpose(0, 2, 3, 1), LABELS, r'uint8 of shape \(6, 8, 8, 1\): expected bytes, or floats in \[0, 1\], N × C × H × W'),
    (PIXELS.transpose(0, 2, 3, 1), LABELS, r'channels last: pass x.transpose\(0, 3, 1, 2\)$'),
    (PIXELS[:, 0], LABELS, r'grey images\): pass x\[:, None\]$'),
    (PIXELS - 2., LABELS, r'float64 of .*values from -2 to -2 seem to be normalised already: pass x \* std \+ mean'),
    (PIXELS, LABELS[:5], r'labels are int64 of shape \(5,\) for 6 images'),
    (PIXELS, LABELS + .5, 'labels are float64'),
    (PIXELS, np.eye(3)[LABELS].astype(int), r'of shape \(6, 3\) for 6 images: expected one class number'),
    (PIXELS, LABELS - 1, 'one of them -1: expected one class number')])
def test_arrays_that_are_no_images_or_labels_are_refused(images, labels, says):
    with refused(says): in_memory(images, labels)


@pytest.mark.parametrize('truth', [LABELS[:5], LABELS - 1, LABELS / 2])
def test_true_labels_are_labels(truth):
    assert in_memory(PIXELS, LABELS, truth=LABELS[::-1]).truth.tolist() == [2, 1, 0, 2, 1, 0]
    with refused('true labels are .* expected one class number'): in_memory(PIXELS, LABELS, truth=truth)


@pytest.mark.parametrize('people', [LABELS[:5], LABELS - 1, LABELS + 0.2, LABELS > 1])
def test_people_are_whole_numbers(people):
    assert in_memory(PIXELS, LABELS, identities=LABELS + 1).identities.tolist() == [1, 2, 3, 1, 2, 3]
    with refused('identities are .* expected one number of a person'): in_memory(PIXELS, LABELS, identities=people)


def test_a_file_has_a_layout_too(tmp_path):
    np.save(tmp_path/'last.npy', PIXELS.transpose(0, 2, 3, 1))
    with refused(r'uint8 of shape \(6, 8, 8, 1\).*channels last: pass x.transpose'): in_memory(ImageFile(tmp_path/'last.npy'), LABELS)
    np.save(tmp_path/'four.npy', np.repeat(PIXELS, 4, axis=1))
    assert in_memory(ImageFile(tmp_path/'four.npy'), LABELS, channels=4).shape == (4, 8, 8)


def test_train_and_test_belong_together():
    train = in_memory(PIXELS, LABELS)
    test, other = in_memory(PIXELS, LABELS, like=train), in_memory(PIXELS, LABELS + 5, like=train)
    assert len(make_split(train, test, [0]).retain) == 5
    with refused('test has the label 7, and there are 3 classes, 0 to 2'): make_split(train, other, [0])
    with refused(r'shape \(1, 4, 4\) are not like those of shape \(1, 8, 8\)'):
        in_memory(PIXELS[:, :, :4, :4], LABELS, like=train)


def test_a_class_may_be_known_from_the_true_labels_alone():
    train, test = in_memory(PIXELS, LABELS, truth=LABELS + 2), in_memory(PIXELS, LABELS)
    assert make_split(train, test, [0]).classes == tuple('01234')
    with refused('train has the label 4, and there are 3 classes'): make_split(train, test, [0], classes='abc')


# Images in a file

def test_images_in_a_file_are_those_in_memory(split, filed):
    file = filed.train.source
    assert filed.fingerprint == split.fingerprint
    assert filed.forget.compact().source is file and filed.to('cpu').train.source is file
    for name in ('train', 'forget'):
        for options in (lambda: {}, lambda: dict(rng=generator(1), augment=augmentations(('crop', 'flip')))):
            passes = [batches(s.parts[name], 50, **options()) for s in (filed, split)]
            for one, other in zip(*passes, strict=True): assert all(map(torch.equal, one, other))


def test_rows_of_a_file_in_every_form(filed):
    source = filed.train.source
    whole = np.load(source.path)
    for rows in (slice(3, 9), slice(None), torch.tensor([599, 0, 300]), np.array([5, 5]), torch.arange(0, 600, 2)):
        assert (source[rows].numpy() == whole[rows]).all()
    assert len(source) == 600 and source.shape == whole.shape


@pytest.mark.parametrize('content', ['floats', 'flat', 'objects', 'half', 'empty', 'pickle', 'missing'])
def test_file_that_holds_no_images_is_named(tmp_path, content):
    path = tmp_path/'pixels.npy'
    if content == 'floats': np.save(path, PIXELS / 255)
    if content == 'flat': np.save(path, np.zeros((4, 8), np.uint8))
    if content == 'objects': np.save(path, np.array([Trap(tmp_path/'marker')]), allow_pickle=True)
    if content == 'half': np.save(path, PIXELS); path.write_bytes(path.read_bytes()[:-9])
    if content == 'empty': path.touch()
    if content == 'pickle': path.write_bytes(pickle.dumps(Trap(tmp_path/'marker')))
    says = dict(floats=r'holds float64 .*: images are uint8', flat=r'holds uint8 \(4, 8\): images are uint8', missing='is not there: load')
    with refused(f"{path} {says.get(content, 'is not a whole file of images')}"): ImageFile(path)
    assert not (tmp_path/'marker').exists()


STREAM = '''
    import sys
    sys.path[:0] = [{path!r}]
    import torch
    from unlearning.images import ImageFile, Images, batches

    def resident():
        return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('VmRSS'))
    source, rng = ImageFile({file!r}), torch.Generator().manual_seed(0)
    n = 10_000
    labels, rows = torch.zeros(n, dtype=torch.int64), torch.randperm(len(source), generator=rng)[:n]
    images = Images(source, labels, torch.arange(n), torch.zeros(3), torch.ones(3), rows=rows)
    next(batches(images, 100, rng))
    before = resident()
    print(max(resident() for _ in range(3) for _ in batches(images, 100, rng)) - before)
'''


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='resident memory is read from /proc')
def test_training_does_not_fill_the_memory_with_its_file(tmp_path):
    """A file of a gigabyte, of which the disk holds nothing."""
    file = tmp_path/'sparse.npy'
    with open(file, 'wb') as f:
        np.lib.format.write_array_header_1_0(f, dict(descr='|u1', fortran_order=False, shape=(350_000, 3, 32, 32)))
        f.truncate(f.tell() + 350_000 * 3 * 32 * 32)
    code = textwrap.dedent(STREAM).format(path=str(Path(unlearning.__file__).parent.parent), file=str(file))
    grown = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)
    assert grown < 0.4 * file.stat().st_size


# A split

def test_parts_are_those_asked_for(split):
    assert numbers(split.forget) == list(range(0, 600, 10)) and numbers(split.train) == list(range(600))
    assert numbers(split.test) == list(range(600, 900))
    assert sorted(numbers(split.retain) + numbers(split.forget)) == numbers(split.train)
    assert split.train.source is split.retain.source is split.forget.source
    sizes = 'train 600, retain 540, forget 60, test 300'
    assert repr(split) == f'Split(mine: {sizes}; 3 classes; images 2 × 4 × 4)'


@pytest.mark.parametrize('forget, says', [
    ([-1], 'index -1 is outside.*0 to 599'), ([600], 'index 600 is outside'), ([4, 4], 'index 4 is listed 2 times'), ([1, 1, 2, 2, 2], 'index 1 is listed 2 times'),
    ([], 'empty'), (range(600), 'all 600'), ([1.0], 'float64.*whole-number'), (np.ones(600, bool), 'boolean mask'),
    ([[1, 2]], 'flat list'), (['3'], "such as .*'3'")])
def test_bad_positions_are_refused(split, forget, says):
    with refused(says): make_split(split.train, split.test, forget)


def test_positions_come_in_any_order_and_type(split):
    for form in (list, tuple, np.array, torch.tensor, lambda v: np.array(v, np.uint8)):
        assert numbers(make_split(split.train, split.test, form([200, 3, 50])).forget) == [3, 50, 200]


def test_val_and_subset_keep_the_proportions(split):
    def smaller(seed): return make_split(split.train, split.test, range(0, 600, 10), val=90, subset=200, seed=seed)
    small, again, other = map(smaller, (0, 0, 1))
    assert per_class(small.val) == [30, 30, 30]
    assert ids(small.val) <= ids(split.retain) and not ids(small.val) & ids(small.train)
    assert len(small.train) == 200
    assert len(small.forget) == round(200 * 60 / 510)  # val was taken from what is retained
    assert ids(small.forget) <= ids(split.forget) and ids(small.retain) <= ids(split.retain)
    for part in (small.retain, small.forget): assert max(per_class(part)) - min(per_class(part)) <= 1
    for part in small.parts.values(): assert numbers(part) == part.identities.floor_divide(7).tolist()
    assert len(small.train.source) == 290  # the others can be freed
    assert again.fingerprint == small.fingerprint
    assert ids(other.val) != ids(small.val) and ids(other.train) != ids(small.train)


@pytest.mark.parametrize('subset', [0, 1, 601])
def test_subset_that_cannot_be_kept_is_refused_by_its_own_number(split, subset):
    with refused(f'subset is {subset}: ask for 2 to 600 training images'):
        make_split(split.train, split.test, [1], subset=subset)


def test_draws_are_balanced_to_one():
    labels = np.repeat([0, 1, 2, 3], [500, 300, 150, 50])
    for n in (1, 7, 99, 1000):
        drawn = draw_balanced(labels, n, np.random.default_rng(0))
        fair = n * np.array([.5, .3, .15, .05])
        assert len(set(drawn)) == n and (abs(np.bincount(labels[drawn], minlength=4) - fair) < 1).all()


def test_fingerprints_are_those_of_the_first_version():
    """Results are kept under them."""
    train, test = numbered(0, 60), numbered(60, 30)
    assert make_split(train, test, [1, 5, 7], classes='abc').fingerprint == '32fea03ab37e18bf'
    train, test = (replace(images, identities=None) for images in (train, test))
    assert make_split(train, test, [1, 5, 7], classes='abc').fingerprint == '211433c8b3f84c28'


@pytest.mark.parametrize('field', ['source', 'labels', 'indices', 'mean', 'std', 'identities', 'truth'])
def test_every_byte_is_in_the_fingerprint(split, field):
    split = wrong(split)
    for name, part in split.parts.items():
        values = getattr(part, field).clone()
        values[part.rows[-1] if field == 'source' and part.rows is not None else -1] += 1
        other = replace(split, **{name: replace(part, **{field: values})})
        assert other.fingerprint != split.fingerprint
        if field in ('identities', 'truth'):
            assert replace(split, **{name: replace(part, **{field: None})}).fingerprint != split.fingerprint


def test_true_labels_do_not_pass_for_identities(split):
    bare = replace(split, train=replace(split.train, identities=None))
    def known(field): return replace(bare, train=replace(bare.train, **{field: split.train.labels}))
    assert len({s.fingerprint for s in (bare, known('identities'), known('truth'))}) == 3


def test_counts(split):
    split = wrong(split)
    counts = split.counts()  # of the labels that are given
    assert list(counts.columns) == ['train', 'retain', 'forget', 'test']
    assert list(counts.index) == ['a', 'b', 'c', 'all', 'identities']
    for name, part in split.parts.items(): assert counts[name].tolist() == [*per_class(part), len(part), len(part)]
    bare = replace(split, test=replace(split.test, identities=None))
    assert list(bare.counts().index) == ['a', 'b', 'c', 'all']


def test_moved_parts_go_on_sharing_their_pixels(split):
    moved = split.to('meta')
    assert moved.train.source is moved.retain.source is moved.forget.source
    assert moved.train.source.device.type == moved.test.labels.device.type == 'meta'


# A split in a file

def test_pixels_that_lie_in_another_order_in_memory_are_saved_as_they_are(tmp_path):
    train, test = numbered(0, 60), numbered(60, 30)
    train = replace(train, source=train.source.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))  # as files are decoded
    split = make_split(train, test, [1, 5])
    assert read_split(save_split(split, tmp_path/'split.safetensors')).fingerprint == split.fingerprint


@pytest.mark.parametrize('labels', ['right', 'wrong'])
def test_split_survives_saving(tmp_path, labels):
    split = make_split(numbered(0, 60), numbered(60, 30), [1, 5, 7], classes='abc', name='mine', val=6)
    if labels == 'wrong': split = wrong(split)
    again = read_split(save_split(split, tmp_path/'split.safetensors'))
    assert (again.name, again.classes, again.fingerprint) == (split.name, split.classes, split.fingerprint)
    for name, part in split.parts.items():
        for field in ('images', 'labels', 'indices', 'mean', 'std', 'identities', 'truth'):
            old, new = getattr(part, field), getattr(again.parts[name], field)
            if field == 'truth' and labels == 'right': assert old is new is None
            else: assert torch.equal(old, new) and old.dtype == new.dtype
    assert again.train.source is again.retain.source is again.forget.source  # their pixels are not kept twice
    assert [file.name for file in tmp_path.iterdir()] == ['split.safetensors']


@pytest.mark.parametrize('damage', ['truncated', 'pickle', 'foreign', 'part missing', 'field missing', 'unknown field',
                                    'no sources', 'empty'])
def test_damaged_split_file_is_named(tmp_path, damage):
    file = save_split(make_split(numbered(0, 60), numbered(60, 30), [1]), tmp_path/'split.safetensors')
    arrays = load_file(file)
    source = dict(train=0, retain=0, forget=0, test=1)
    def rewrite(arrays, source=source):
        facts = dict(name='custom', classes=['0', '1', '2'], source=source, files={})
        save_file(arrays, file, {'split': json.dumps(facts)})
    rewrite(arrays)
    assert len(read_split(file).train) == 60
    if damage == 'truncated': file.write_bytes(file.read_bytes()[:-5])
    if damage == 'pickle': file.write_bytes(pickle.dumps(Trap(tmp_path/'marker')))
    if damage == 'foreign': save_file({'a.b': np.ones(3)}, file)
    if damage == 'part missing':
        left = {k: a for k, a in arrays.items() if not k.startswith('retain')}
        rewrite(left, dict(train=0, forget=0, test=1))
    if damage == 'field missing': rewrite({k: a for k, a in arrays.items() if k != 'retain.labels'})
    if damage == 'unknown field': rewrite(arrays | {'retain.colour': np.ones(3)})
    if damage == 'no sources': rewrite(arrays, {})
    if damage == 'empty': file.write_bytes(b'')
    with refused('split.safetensors is not a whole file of save_split.*delete it'): read_split(file)
    assert not (tmp_path/'marker').exists()


def test_interrupted_saving_leaves_the_old_split(tmp_path, monkeypatch):
    one, other = (make_split(numbered(0, 60), numbered(60, 30), [k]) for k in (1, 2))
    file = save_split(one, tmp_path/'split.safetensors')
    before = file.read_bytes()
    def break_off(arrays, path, metadata): path.write_bytes(b'half'); raise OSError('disk full')
    monkeypatch.setattr(module, 'save_file', break_off)
    with pytest.raises(OSError, match='disk full'): save_split(other, file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_saved_split_leaves_the_pixels_where_they_are(filed, tmp_path):
    file = save_split(filed, tmp_path/'split.safetensors')
    pixels = [k for k in load_file(file) if k.startswith('pixels')]
    assert pixels == ['pixels.1']  # those of the test images
    for again in (read_split(file), shared_split(str(file))):
        assert again.fingerprint == filed.fingerprint
        assert again.train.source.path == filed.train.source.path and again.train.source is again.forget.source
    assert shared_split(str(file)) is shared_split(str(file))


def test_saved_split_without_its_pixels_is_named(split, tmp_path):
    np.save(tmp_path/'pixels.npy', split.train.source.numpy())
    source = ImageFile(tmp_path/'pixels.npy')
    filed = replace(split, train=replace(split.train, source=source))
    file = save_split(filed, tmp_path/'split.safetensors')
    source.path.unlink()
    with refused('split.safetensors is not a whole file of save_split.*pixels.npy.*make it again'): read_split(file)


# Batches

def ramp(n, size=8):
    """n copies of an image whose pixels all differ, and none is 0."""
    image = torch.arange(1., 1 + size * size).view(1, 1, size, size) / (size * size)
    return image.expand(n, 1, size, size).contiguous()


def test_a_batch_is_what_stands_at_its_positions(split):
    forget, seen = split.forget, []
    for batch in batches(forget, 25, generator(3)):
        assert isinstance(batch, Batch) and batch.at.dtype == torch.int64
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.y, forget.labels[batch.at])
        assert torch.equal(batch.x, forget.normalize(forget[batch.at].images.float() / 255))
        seen += batch.at.tolist()
    assert seen == torch.randperm(60, generator=generator(3)).tolist()


@pytest.mark.parametrize('size, drop_last, sizes', [
    (25, False, [25, 25, 10]), (25, True, [25, 25]), (30, True, [30, 30]),
    (60, True, [60]), (100, True, [60]), (100, False, [60])])
def test_sizes_of_batches(split, size, drop_last, sizes):
    found = [*batches(split.forget, size, drop_last=drop_last)]
    assert [len(batch.y) for batch in found] == sizes
    assert torch.cat([batch.at for batch in found]).tolist() == list(range(sum(sizes)))


def test_batches_are_drawn_from_their_own_seed_alone(split):
    def once(seed):
        found = batches(split.forget, 32, generator(seed), augmentations(AUGMENTATIONS))
        return torch.cat([batch.x.flatten() for batch in found])
    torch.manual_seed(1); first = once(5)
    torch.manual_seed(2)
    assert torch.equal(once(5), first) and not torch.equal(once(6), first)


def test_augmentations_act_in_order_on_pixels_and_share_the_generator(split):
    """Between zero and one, before they are normalised; each goes on drawing where the one before it stopped."""
    seen, images = [], replace(split.forget, mean=torch.full((2,), 0.5), std=torch.full((2,), 0.1))
    def draw(x, rng):
        assert x.min() >= 0 and x.max() <= 1
        seen.append(torch.rand(1, generator=rng))
        return x * 0 + 0.5
    def halve(x, rng): return x / 2
    rng, expected = generator(0), generator(0)
    x = torch.cat([batch.x for batch in batches(images, 30, rng, (draw, halve))])
    torch.randperm(60, generator=expected)
    assert seen == [torch.rand(1, generator=expected) for _ in range(2)]
    assert torch.equal(rng.get_state(), expected.get_state())
    assert torch.allclose(x, torch.tensor(-2.5))  # (0.25 − 0.5) / 0.1


@pytest.mark.parametrize('options, says', [
    (dict(size=0), 'batch size 0: use at least 1'),
    (dict(augment=(torch.neg,)), r'random numbers: pass rng=torch.Generator\(\)'),
    (dict(augment=('flip',), rng=generator(0)), r"'flip' is no function \(x, rng\) -> x: `augmentations` finds")])
def test_batches_that_cannot_be_made_are_refused(split, options, says):
    with refused(says): next(batches(split.forget, **dict(size=10) | options))


# Augmentation

@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_augmentation_is_drawn_from_its_own_seed_alone(name):
    augment, x = AUGMENTATIONS[name], ramp(50)
    torch.manual_seed(1); state = torch.get_rng_state()
    first = augment(x, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(x, generator(3)), first) and not torch.equal(augment(x, generator(4)), first)
    assert torch.equal(x, ramp(50))  # the input is left alone


def test_names_and_functions_mix():
    def own(x, rng): return x
    assert augmentations(('erase', own, 'crop')) == (AUGMENTATIONS['erase'], own, AUGMENTATIONS['crop'])
    assert augmentations(()) == ()
    for bad in ('blur', 3, ['flip']):
        with refused('unknown augmentation .*: the known ones are crop, flip, rotate, erase'):
            augmentations(('flip', bad))


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
    blob = torch.exp(-((at[0]) ** 2 + (at[1] - 9) ** 2) / 4)  # 9 pixels right of the centre
    x = blob.expand(300, 1, 32, 32)
    y = AUGMENTATIONS['rotate'](x, generator(0))[:, 0]
    row, column = ((y * a).sum((1, 2)) / y.sum((1, 2)) for a in at)
    angle = torch.rad2deg(torch.atan2(row, column))
    assert angle.abs().max() < 15.2 and angle.max() > 12 and angle.min() < -12
    assert torch.hypot(row, column).numpy() == pytest.approx(9, abs=0.1)


@pytest.mark.parametrize('classes', [None, 'abc'])
def test_no_test_images(classes):
    split = make_split(numbered(0, 60), numbered(60, 9)[[]], range(6), classes)
    assert len(split.test) == 0 and len(split.classes) == 3


@pytest.mark.parametrize('subset', [2, 4, 59])
def test_a_subset_of_a_large_forget_set_retains_something(subset):
    split = make_split(numbered(0, 60), numbered(60, 9), range(59), subset=subset)
    assert len(split.retain) == 1 and len(split.train) == subset


@pytest.mark.parametrize('channels, shape', [(1, (4, 4)), (2, (4, 4)), (3, (4, 4, 3)), (4, (4, 4))])
def test_images_of_any_number_of_channels_are_shown(channels, shape):
    pixels = torch.arange(2 * channels * 16, dtype=torch.uint8).reshape(2, channels, 4, 4)
    fig = show_images(Images(pixels, torch.tensor([0, 1]), torch.arange(2), torch.zeros(channels), torch.ones(channels)))
    assert [ax.images[0].get_array().shape for ax in fig.axes] == [shape] * 2
    plt.close(fig)


@pytest.mark.parametrize('top', [255, 1.])
def test_a_faint_image_is_shown_faint(top):
    pixels = torch.tensor([0, top]) * torch.tensor([0.2, 1.])[:, None]
    pixels = pixels.reshape(2, 1, 1, 2).repeat(1, 1, 2, 1).to(torch.uint8 if top == 255 else torch.float32)
    fig = show_images(Images(pixels, torch.tensor([0, 1]), torch.arange(2), torch.zeros(1), torch.ones(1)))
    assert [ax.images[0].get_clim() for ax in fig.axes] == [(0, top)] * 2
    plt.close(fig)


def test_a_file_in_the_other_byte_order_is_read(tmp_path):
    pixels = np.random.default_rng(0).random((8, 3, 8, 8)).astype('>f4')
    np.save(tmp_path/'big.npy', pixels)
    images = in_memory(ImageFile(tmp_path/'big.npy'), [0, 1] * 4)
    assert np.array_equal(images[[2, 5]].source[[2, 5]].numpy(), pixels[[2, 5]])


def test_crop_of_a_tall_image_leaves_some_of_it():
    """Sideways it goes by an eighth of the width."""
    x = torch.ones(1000, 1, 256, 16)
    seen = AUGMENTATIONS['crop'](x, torch.Generator().manual_seed(0))
    assert seen.shape == x.shape and seen.flatten(1).sum(1).min() >= 0.75 * 256 * 16
