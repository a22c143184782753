"""The edges of a request: what an ImageFolder may hold and a list may name, few images and many, what `auto` may find."""
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from unlearning.check import ask
from unlearning.datasets.yours import PlainFolder, from_dataset
from unlearning.load import load_split
from unlearning.request import source_of


def colours(rng): return Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path):
    """Folders photos/train and photos/test: of cats and dogs four images each."""
    rng = np.random.default_rng(0)
    for name in ('train/cat', 'train/dog', 'test/cat', 'test/dog'):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(4): colours(rng).save(tmp_path / 'photos' / name / f'{i}.png')
    return tmp_path / 'photos'


def asked(photos): return source_of(str(photos / 'train'), str(photos / 'test'), 8, [0.5] * 3, [0.5] * 3)


# A file that cannot be read

def half(path): path.write_bytes(path.read_bytes()[:-60])
def led_astray(path): path.unlink(); path.symlink_to('nowhere.png')


@pytest.mark.parametrize('part', ('train', 'test'))
@pytest.mark.parametrize('damage', (half, led_astray))
def test_an_image_that_cannot_be_read_is_named_by_its_file(photos, part, damage):
    damage(photos / part / 'dog' / '2.png')
    with pytest.raises(ValueError, match=r'item 6 of 8, .*dog/2.png, cannot be read .*: restore it') as e: asked(photos)
    assert 'ends early' not in str(e.value)


def test_an_image_of_a_subset_is_named_by_its_file(photos):
    half(photos / 'train' / 'dog' / '2.png')
    data = ImageFolder(photos / 'train')
    with pytest.raises(ValueError, match=r'item 1 of 3, .*dog/2.png, cannot be read'): from_dataset(Subset(Subset(data, [7, 6, 0, 1]), [2, 1, 3]), data)


# Paths in a list

WAYS_IN = {
    'below train': lambda photos: 'cat/1.png',
    'with train/': lambda photos: 'train/cat/1.png',
    'absolute': lambda photos: str(photos / 'train/cat/1.png'),
    'as find prints it': lambda photos: os.path.relpath(photos / 'train/cat/1.png'),
    'through a link': lambda photos: str(photos.parent / 'link/train/cat/1.png'),
}


@pytest.mark.parametrize('kind', ('request', 'folder'))
@pytest.mark.parametrize('way', WAYS_IN)
def test_a_list_names_an_image_as_in_the_folder_source(photos, way, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('link').symlink_to(photos)
    Path('gone.txt').write_text(f'{WAYS_IN[way](photos)}\n')
    data = dict(dataset=asked(Path('photos'))) if kind == 'request' else dict(dataset='folder', root=photos)
    if way != 'as find prints it': monkeypatch.chdir(tmp_path / 'link')  # elsewhere than at reading
    assert load_split(**data, forget=tmp_path / 'gone.txt').forget.indices.tolist() == [1]


@pytest.mark.parametrize('written, says', [
    ('../../etc/passwd', "line 1, names '../../etc/passwd', which leads out of train/"), ('cat/../../test/cat/1.png', 'which leads out of train/'),
    ('/etc/passwd', 'the file lies outside of .*photos/train'), ('{}/others/train/cat/1.png', 'the file lies outside of .*photos/train'),
    ('{}/photos/test/cat/1.png', 'test images are never trained on'), ('{}/photos/train/cat/9.png', "write paths like 'cat/0.png'"),
    ('{}/photos/train/cat/notes.txt', 'not one of the images that were read')])
def test_a_list_that_leads_elsewhere(photos, written, says, tmp_path):
    (tmp_path / 'others/train/cat').mkdir(parents=True)
    (tmp_path / 'others/train/cat/1.png').write_bytes((photos / 'train/cat/1.png').read_bytes())
    (photos / 'train/cat/notes.txt').touch()
    (tmp_path / 'gone.txt').write_text(written.format(tmp_path) + '\n')
    with pytest.raises(ValueError, match=says): load_split(asked(photos), forget=tmp_path / 'gone.txt')


# How a folder is read

def sixteen(i): return Image.fromarray(np.full((6, 9), 5000 + i, np.uint16)), 'png', {}
def clear(i): return Image.new('RGBA', (9, 6), (i, 0, 0, 100)), 'png', {}
def turned(i):
    exif = Image.Exif()
    exif[0x112] = 6
    return Image.fromarray(np.arange(9 * 6 * 3, dtype=np.uint8).reshape(6, 9, 3) + np.uint8(i)), 'jpg', dict(exif=exif)


@pytest.mark.parametrize('kind', (sixteen, clear, turned))
def test_a_plain_folder_is_read_as_the_folder_source_reads(tmp_path, kind):
    for i, part in enumerate(('train', 'test')):
        for j, name in enumerate(('cat', 'dog')):
            (tmp_path / part / name).mkdir(parents=True)
            picture, ending, more = kind(4 * i + 2 * j)
            picture.save(tmp_path / part / name / f'0.{ending}', **more)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of alpha channels
        of_folder = load_split('folder', root=tmp_path, channels=3, forget=[0])
    ours, theirs = (from_dataset(*(read(tmp_path / part, v2.PILToTensor()) for part in ('train', 'test'))) for read in (PlainFolder, ImageFolder))
    assert all(torch.equal(getattr(ours, part).images, getattr(of_folder, part).images) for part in ('train', 'test'))
    assert not torch.equal(ours.train.images, theirs.train.images)


@pytest.mark.parametrize('mode, ending', [
    ('RGB', 'png'), ('RGB', 'jpg'), ('RGB', 'bmp'), ('RGB', 'webp'), ('L', 'png'), ('L', 'jpg'), ('P', 'png'), ('1', 'png'), ('CMYK', 'jpg')])
def test_usual_pictures_have_the_pixels_that_torchvision_gives(tmp_path, mode, ending):
    (tmp_path / 'cat').mkdir()
    for i in range(3): colours(np.random.default_rng(i)).convert(mode).save(tmp_path / 'cat' / f'{i}.{ending}')
    for (ours, _), (theirs, _) in zip(PlainFolder(tmp_path), ImageFolder(tmp_path), strict=True):
        assert ours.mode == theirs.mode and ours.tobytes() == theirs.tobytes()


def litter(photos):
    "What a Mac, a Zip and Jupyter leave behind."
    for part in ('train', 'test'):
        (photos / part / 'cat/._0.png').write_bytes(b'Mac OS X')
        for name in ('__MACOSX', '.ipynb_checkpoints', 'cat/.ipynb_checkpoints'): (photos / part / name).mkdir()
        (photos / part / '__MACOSX/1.png').write_bytes(b'Mac OS X')
        (photos / part / 'cat/.ipynb_checkpoints/0-checkpoint.png').write_bytes((photos / part / 'cat/0.png').read_bytes())


def test_what_is_hidden_is_no_image_of_a_plain_folder(photos):
    clean = ImageFolder(photos / 'train')
    litter(photos)
    hidden_above = photos.rename(photos.parent / '.photos')
    ours = PlainFolder(hidden_above / 'train')
    assert ours.classes == clean.classes and ours.class_to_idx == clean.class_to_idx and ours.targets == clean.targets
    assert [Path(path).name for path, _ in ours.samples] == [Path(path).name for path, _ in clean.samples]
    assert len(pickle.loads(pickle.dumps(ours))) == 8  # as to the workers of a loader


GREY = '''
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
steps = v2.Compose([v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])])
def train(): return ImageFolder({!r}, steps)
def test(): return ImageFolder({!r}, steps)
'''


def test_a_network_of_grey_images_is_told_what_to_be_given(photos, tmp_path, monkeypatch):
    (tmp_path / 'grey_data.py').write_text(GREY.format(str(photos / 'train'), str(photos / 'test')))
    monkeypatch.syspath_prepend(tmp_path)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(ValueError, match='its first layer is Conv2d.1.*a request takes a module:function that gives it'): ask(network, asked(photos).test)
    grey = source_of('grey_data:train', 'grey_data:test', mean=[0.5], std=[0.25])
    assert ask(network, grey.test)[0].shape == (8, 2) and grey.train.source.dtype == torch.uint8
    assert load_split(grey, forget=[str(photos / 'train/cat/1.png')]).forget.indices.tolist() == [1]
