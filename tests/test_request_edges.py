"""The edges of a request: what an ImageFolder may hold and a list may name, few images and many, what `auto` may find."""
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from unlearning.datasets.yours import from_dataset
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
