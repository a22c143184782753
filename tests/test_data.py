"""Splits and their files, hostile and damaged files, and what each augmentation may do to an image."""
import pickle

import numpy as np
import pytest
import torch

from unlearning import data
from unlearning.data import AUGMENTATIONS, Images, batches, in_memory, load_split, make_split, read_split, save_split


class Trap:
    """Unpickled, it writes a file."""
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (open, (self.marker, 'w'))


# Hand-made images: each holds its own number

def numbered(start, n, classes=3):
    number = torch.arange(start, start + n)
    pixels = torch.stack([number // 256, number % 256], 1).to(torch.uint8)[:, :, None, None].expand(n, 2, 4, 4).contiguous()
    return Images(pixels, number % classes, torch.arange(n), torch.zeros(2), torch.ones(2), identities=number * 7)


def numbers(images): return set((images.images[:, 0, 0, 0].long() * 256 + images.images[:, 1, 0, 0]).tolist())


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
