"""Whole people to forget: a tree in CelebA's layout made of other pictures, its decoded file under kills and damage, and QMNIST's writers."""
import os, pickle, shutil, signal, subprocess, sys, textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images

import unlearning
from unlearning import load as loading
from unlearning.datasets import people as people_module, source as source_module
from unlearning.datasets.people import write_about
from unlearning.datasets.source import data_root, decode_once
from unlearning.images import ImageFile
from unlearning.load import People, Share, load_split, tuning_split, wrong_labels
from unlearning.methods.finetune import finetune
from unlearning.methods.random_labels import random_labels
from unlearning.models import create_model
from unlearning.study import Study, run_study
from unlearning.training import Training, fit, logits

ATTRIBUTES = '''5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows
    Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin
    Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
    Wearing_Necktie Young'''.split()
TEXTS = ('list_attr_celeba.txt', 'identity_CelebA.txt', 'list_eval_partition.txt')


def draw_people():
    """48 people (36 to train on, 6 valid, 6 test) with 8 to 19 images each, shuffled; every third has grey hair and every fifth is chubby on half of the images."""
    rng = np.random.default_rng(0)
    who = rng.permutation(np.repeat(np.arange(48), 8 + np.arange(48) % 12))
    on = rng.random((len(who), 40)) < 0.3
    on[:, ATTRIBUTES.index('Male')], on[:, ATTRIBUTES.index('Bald')] = who % 2 == 1, False
    for name, each in (('Gray_Hair', 3), ('Chubby', 5)): on[:, ATTRIBUTES.index(name)] = (who % each == 0) & (rng.random(len(who)) < 0.5)
    has = {name: on[:, i] for i, name in enumerate(ATTRIBUTES)}
    return SimpleNamespace(who=who, identity=100 + 7 * who, partition=np.where(who < 36, 0, np.where(who < 42, 1, 2)), has=has,
                           label=4 * has['Male'] + 2 * has['Gray_Hair'] + has['Chubby'], name=[f'{i:06}.jpg' for i in range(1, 1 + len(who))])


P = draw_people()
N, TRAIN = len(P.who), np.flatnonzero(P.partition == 0)


def build(root):
    """CelebA's layout, its two blanks before a 1 and its other text files included. A person is a place in one of scikit-learn's two photographs."""
    folder, rng, photos = root/'celeba', np.random.default_rng(1), [Image.fromarray(p) for p in load_sample_images().images]
    (folder/'img_align_celeba').mkdir(parents=True)
    for name, k in zip(P.name, P.who):
        left, top, w, h = 60 * (k % 8) + rng.integers(20), 60 * (k // 8) + rng.integers(20), *rng.integers(24, 60, 2)
        photos[k % 2].crop((left, top, left + w, top + h)).save(folder/'img_align_celeba'/name)
    rows = [' '.join([name, *(f'{1 if P.has[a][i] else -1:2d}' for a in ATTRIBUTES)]) for i, name in enumerate(P.name)]
    (folder/'list_attr_celeba.txt').write_text('\n'.join([str(N), ' '.join(ATTRIBUTES) + ' ', *rows]) + '\n')
    (folder/'identity_CelebA.txt').write_text(''.join(f'{name} {k}\n' for name, k in zip(P.name, P.identity)))
    (folder/'list_eval_partition.txt').write_text(''.join(f'{name} {k}\r\n' for name, k in zip(P.name, P.partition)))
    (folder/'list_bbox_celeba.txt').write_text(f'{N}\nimage_id x_1 y_1 width height\n')
    return root


@pytest.fixture(scope='module')
def root(tmp_path_factory): return build(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def load(root):
    """Load the tree at 16 × 16, with a tenth of the people forgotten unless told otherwise."""
    def load(forget=Share(0.1), **options): return load_split('celeba', root=root, image_size=16, forget=forget, **options)
    load()
    return load


@pytest.fixture(scope='module')
def split(load): return load()


@pytest.fixture
def copy(root, load, tmp_path):
    """The tree, its decoded images too, for a test to damage."""
    shutil.copytree(root, tmp_path/'data')
    return tmp_path/'data'/'celeba'


def people(*parts): return set().union(*(part.identities.tolist() for part in parts))
def theirs(ids, among=TRAIN): return among[np.isin(P.identity[among], list(ids))].tolist()


# Who is where

def test_parts_are_the_official_ones(split):
    for part, k in dict(train=0, val=1, test=2).items():
        at = np.flatnonzero(P.partition == k)
        assert split.parts[part].rows.tolist() == at.tolist() and split.parts[part].indices.tolist() == list(range(len(at)))
    for part in split.parts.values():
        assert part.identities.tolist() == P.identity[part.rows].tolist() and part.labels.tolist() == P.label[part.rows].tolist()
    assert split.name == "a tree in CelebA's layout" and split.classes == ('none', 'Chubby', 'Gray_Hair', 'Gray_Hair+Chubby', 'Male', 'Male+Chubby', 'Male+Gray_Hair', 'Male+Gray_Hair+Chubby')


def test_whole_people_are_forgotten(split):
    gone = people(split.forget)
    assert len(gone) == round(0.1 * 36) and not gone & people(split.retain, split.test, split.val)
    assert split.forget.rows.tolist() == theirs(gone) and split.retain.rows.tolist() == theirs(people(split.train) - gone)
    assert set(split.forget.labels.tolist()) <= {0, 4} < set(split.retain.labels.tolist())


def test_share_of_people(load):
    for forget in (None, 'identities', Share()): assert len(people(load(forget).forget)) == 1  # 2 % of 36, rounded
    assert len(people(load(Share(0.25)).forget)) == 9


def test_people_come_from_the_classes_asked_for(load):
    split = load(Share(0.1, classes=(4,)))
    assert set(split.forget.labels.tolist()) == {4} and split.forget.rows.tolist() == theirs(people(split.forget))


@pytest.mark.parametrize('form', [list, np.array, torch.tensor])
def test_named_people_are_forgotten_with_all_their_images(load, form):
    split = load(People(form([100, 100 + 7 * 15])))
    assert split.forget.rows.tolist() == theirs({100, 205}) and set(split.forget.labels.tolist()) > {0, 4}


def test_images_are_forgotten_whoever_is_on_them(load):
    split = load(Share(0.1, 'images'))
    assert len(split.forget) == round(0.1 * len(TRAIN)) and set(split.forget.labels.tolist()) == {0, 4}
    assert people(split.forget) & people(split.retain)
    assert sorted([*split.forget.rows.tolist(), *split.retain.rows.tolist()]) == TRAIN.tolist()


def test_other_attributes_make_other_classes(load):
    split = load(Share(0.1, 'images', [1, 2]), attributes=('Smiling', 'Young'))
    assert split.classes == ('none', 'Young', 'Smiling', 'Smiling+Young')
    assert split.train.labels.tolist() == (2 * P.has['Smiling'] + P.has['Young'])[TRAIN].tolist() and set(split.forget.labels.tolist()) == {1, 2}


@pytest.mark.parametrize('identities', [(), (100, 205)])
def test_subset_is_of_whole_people(load, identities):
    split = load(People(identities) if identities else Share(0.1), subset=200)
    kept = people(split.train)
    assert split.train.rows.tolist() == theirs(kept) and 200 <= len(split.train) < 219 and kept >= set(identities)
    assert people(split.forget).isdisjoint(people(split.retain)) and people(split.forget) >= set(identities)


def test_val_is_of_whole_people(load, monkeypatch):
    """For a data set without a validation part of its own."""
    real = loading.SOURCES['celeba']
    monkeypatch.setitem(loading.SOURCES, 'celeba', lambda root, **options: real(root, **options)._replace(val=None))
    split = load(val=100, subset=200)
    assert split.val.rows.tolist() == theirs(people(split.val)) and 100 <= len(split.val) < 119
    assert people(split.val).isdisjoint(people(split.train)) and split.train.rows.tolist() == theirs(people(split.train))


def test_tuning_shares_nobody_with_what_is_reported(split):
    for seed in range(5):
        tuning = tuning_split(split, val=60, seed=seed)
        reported, tuned = people(split.forget), people(tuning.forget)
        assert len(tuned) == len(reported) and not tuned & (reported | people(tuning.retain, tuning.test)) and set(tuning.forget.labels.tolist()) <= {0, 4}
        assert not people(tuning.test) & (people(tuning.train, split.test, split.val) | reported) and len(tuning.test) >= 60
        assert tuning.forget.rows.tolist() == theirs(tuned) and tuning.test.rows.tolist() == theirs(people(tuning.test))


def test_people_are_drawn_by_seed(load, split):
    assert load().fingerprint == split.fingerprint
    assert people(load(seed=1).forget) != people(split.forget) and people(load(seed=1).train) == people(split.train)
    assert people(load(subset=200, seed=1).train) != people(load(subset=200).train)


def test_counts(split):
    counts = split.counts()
    assert list(counts.columns) == ['train', 'retain', 'forget', 'test', 'val'] and list(counts.index) == [*split.classes, 'all', 'identities']
    for name, part in split.parts.items():
        assert counts[name].tolist() == [*np.bincount(P.label[part.rows], minlength=8), len(part), len(people(part))]
    assert counts.forget['identities'] == 4 and counts.train['all'] == len(TRAIN) == counts.retain['all'] + counts.forget['all']
    assert list(load_split('digits').counts().index) == [*'0123456789', 'all']  # nobody knows whose they are
    assert list(replace(split, test=replace(split.test, identities=None)).counts().index) == [*split.classes, 'all']


# A study of it

def test_whole_study_without_a_change_of_code(load, tmp_path):
    repair = Training(epochs=1, batch_size=64, lr=0.05, augment=('flip',), class_weights=True)
    recipes = dict(finetune=finetune(repair=repair), random_labels=random_labels(erase=dict(batch_size=20, lr=0.01), repair=repair))
    results = run_study(Study(load(), recipes, tmp_path, training=repair, seeds=2, permutations=3, jobs=1), progress=False)
    assert results.networks.method.value_counts().to_dict() == dict(original=1, retrain=2, finetune=2, random_labels=2) and not results.failures
    assert np.isfinite(results.networks.select_dtypes('number')).all(axis=None) and len(results.quality) == 4
    assert results.facts['data'] == "a tree in CelebA's layout" and results.facts['forget'] == len(load().forget)
    file, = tmp_path.glob('split-*.safetensors')
    assert file.stat().st_size < 0.2 * N * 3 * 16 * 16  # the images stay where they are


def test_class_without_a_training_image_cannot_be_weighed(load):
    split = load(attributes=('Male', 'Gray_Hair', 'Bald'))
    with pytest.raises(ValueError, match='class 1 has no training image.*class_weights=False'):
        fit(create_model('small', 8, 3, 16), split.train, Training(epochs=1, class_weights=True))


# A network learns from a file what it learns from memory; wrong labels leave the file alone

def test_training_on_a_file_is_training_in_memory(split):
    pixels = torch.from_numpy(np.load(split.train.source.path))
    memory = replace(split, **{name: replace(part, source=pixels) for name, part in split.parts.items()})
    assert isinstance(split.train.source, ImageFile) and memory.fingerprint == split.fingerprint
    trained = []
    for images in (split.retain, memory.retain):
        fit(model := create_model('small', 8, 3, 16), images, Training(epochs=1, batch_size=64, lr=0.05))
        trained.append(logits(model, split.test))
    assert torch.equal(*trained)


def test_wrong_labels_copy_no_pixel(split):
    wrong = wrong_labels(split, 0.05)
    assert wrong.forget.source is split.train.source and wrong.val is split.val
    assert wrong.forget.truth.tolist() == P.label[wrong.forget.rows].tolist() and not people(wrong.train) - people(split.train)


# What is wrong with it

def rewrite(name, change): return lambda folder: (folder/name).write_bytes(change((folder/name).read_bytes()))
def cut(name, n): return rewrite(name, lambda text: text[:-n])
def drop_line(name): return rewrite(name, lambda text: b''.join(text.splitlines(keepends=True)[:-1]))
def image(content): return rewrite('img_align_celeba/000300.jpg', content)

BY_HAND = '(.|\n)*mmlab.ie.cuhk.edu.hk.*UNLEARNING_DATA'
DAMAGE = {
    'no folder': (shutil.rmtree, 'celeba is missing' + BY_HAND),
    **{f'no {name}': (lambda folder, name=name: (folder/name).unlink(), f'{name} is missing' + BY_HAND) for name in TEXTS},
    **{f'empty {name}': (rewrite(name, lambda text: b''), f'{name} (is damaged|0)' + BY_HAND) for name in TEXTS},
    **{f'{name} is not text': (rewrite(name, lambda text: bytes(range(256)) * 9), f'{name} is damaged' + BY_HAND) for name in TEXTS},
    'attributes cut in a row': (cut(TEXTS[0], 31), 'list_attr_celeba.txt is damaged.*row' + BY_HAND),
    'attributes cut in a value': (lambda folder: (rewrite(TEXTS[0], lambda text: text[:-3] + b'-1\n')(folder), cut(TEXTS[0], 2)(folder)), 'list_attr_celeba.txt is damaged.*row' + BY_HAND),
    'attributes cut in the header': (rewrite(TEXTS[0], lambda text: text[:30]), 'list_attr_celeba.txt is damaged' + BY_HAND),
    'identity cut away': (cut(TEXTS[1], 5), 'identity_CelebA.txt is damaged.*row' + BY_HAND),
    'identity cut in its number': (cut(TEXTS[1], 2), 'identity_CelebA.txt has no newline at its end.*row' + BY_HAND),
    'partition cut away': (cut(TEXTS[2], 4), 'list_eval_partition.txt is damaged.*row' + BY_HAND),
    'a row of attributes less': (drop_line(TEXTS[0]), f'different numbers of images.*list_attr_celeba.txt announces {N}, and has {N - 1}, identity_CelebA.txt {N},' + BY_HAND),
    'an identity less': (drop_line(TEXTS[1]), f'different numbers of images.*and has {N}, identity_CelebA.txt {N - 1}, list_eval_partition.txt {N}' + BY_HAND),
    'a partition less': (drop_line(TEXTS[2]), f'different numbers of images.*identity_CelebA.txt {N}, list_eval_partition.txt {N - 1}' + BY_HAND),
    'all a row less': (lambda folder: [drop_line(name)(folder) for name in TEXTS], f'announces {N}, and has {N - 1}' + BY_HAND),
    'other images': (rewrite(TEXTS[1], lambda text: text.replace(b'000300.jpg', b'300000.jpg')), 'identity_CelebA.txt lists other images' + BY_HAND),
    'no test images': (rewrite(TEXTS[2], lambda text: text.replace(b' 2\r', b' 1\r')), 'list_eval_partition.txt puts no image into test' + BY_HAND),
    'a partition that does not exist': (rewrite(TEXTS[2], lambda text: text.replace(b' 2\r', b' 3\r')), 'list_eval_partition.txt holds the value 3, and only 0, 1, 2' + BY_HAND),
    'an attribute that is neither': (rewrite(TEXTS[0], lambda text: text[:-5] + text[-5:].replace(b'1', b'7')), 'list_attr_celeba.txt holds the value -?7, and only -1, 1' + BY_HAND),
    'an image listed twice': (lambda folder: [rewrite(name, lambda text: text.replace(b'000300.jpg', b'000299.jpg'))(folder) for name in TEXTS], 'list_attr_celeba.txt lists 000299.jpg twice' + BY_HAND),
    'somebody whom nobody knows': (rewrite(TEXTS[1], lambda text: text.replace(f'{P.name[0]} {P.identity[0]}'.encode(), f'{P.name[0]} -1'.encode())), 'identity_CelebA.txt has the identity -1: people whom nobody knows are not one person'),
    'a person in two parts': (rewrite(TEXTS[1], lambda text: text.replace(f'{P.name[-1]} {P.identity[-1]}'.encode(), f'{P.name[-1]} {P.identity[0]}'.encode())), rf'identity {P.identity[0]} is in the partitions 0 and . of .*list_eval_partition.txt: whoever is forgotten must not be tested on'),
    'no images': (lambda folder: shutil.rmtree(folder/'img_align_celeba'), 'img_align_celeba is missing' + BY_HAND),
    'an image less': (lambda folder: (folder/'img_align_celeba'/'000300.jpg').unlink(), '000300.jpg is missing.*restore it' + BY_HAND),
    'half an image': (image(lambda jpeg: jpeg[:len(jpeg) // 2]), '000300.jpg cannot be read as an image.*restore' + BY_HAND),
    'text for an image': (image(lambda jpeg: b'not an image'), '000300.jpg cannot be read as an image.*restore' + BY_HAND),
}


def test_only_what_has_celebas_size_is_called_celeba(load, monkeypatch):
    """The paper's figures are printed beside no other photographs."""
    monkeypatch.setattr(people_module, 'CELEBA_IMAGES', N)
    assert load().name == 'celeba'


def test_tree_is_called_what_it_says(copy, monkeypatch):
    monkeypatch.setattr(people_module, 'CELEBA_IMAGES', N)
    write_about(copy, 'photographs of furniture')
    assert load_split('celeba', root=copy.parent, image_size=16, forget=Share(0.1)).name == 'photographs of furniture'


@pytest.mark.parametrize('content', ['', '{}', '[]', '{"name"', 'null'])
def test_tree_that_does_not_say_what_it_is_is_refused(copy, content):
    (copy/'about.json').write_text(content)
    with pytest.raises(ValueError, match='about.json does not say what the tree is.*delete it'): load_split('celeba', root=copy.parent, image_size=16, forget=Share(0.1))


@pytest.mark.parametrize('name', ['rendered.json', 'rendering.json'])
def test_a_renderers_own_marks_mean_nothing_here(copy, name):
    (copy/name).write_text('{"name": "rendered faces"}')
    assert load_split('celeba', root=copy.parent, image_size=16, forget=Share(0.1)).name == "a tree in CelebA's layout"


@pytest.mark.parametrize('size', [0, -4])
def test_image_without_pixels_is_refused(root, size):
    with pytest.raises(ValueError, match=f'image_size is {size}: use at least 1 pixel'): load_split('celeba', root=root, image_size=size)


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_tree_is_refused(copy, damage):
    change, says = DAMAGE[damage]
    change(copy)
    with pytest.raises(ValueError, match=says): load_split('celeba', root=copy.parent, image_size=16, forget=Share(0.1))
    assert len(list(copy.glob('*.npy')) if copy.exists() else '1') == 1  # the one that was there: none is made of half the images


@pytest.mark.parametrize('options, says', [(dict(attributes=('Male', 'Tall')), f"unknown attribute 'Tall': CelebA has {', '.join(ATTRIBUTES)}"),
    (dict(forget=Share(0.01)), 'share of 0.01 of 36 identities is none: ask for 0.028 or more'), (dict(forget=Share(0.9)), r'32 of 36 identities.*\b\d+ have all of their images in the classes 0, 4.*smaller share'),
    (dict(forget=People([100, 3])), 'identity 3 has no training image.*100 to 345'), (dict(forget=People([100 + 7 * 47])), 'identity 429 has no training image'), (dict(forget=People([])), 'forget is empty'),
    (dict(forget=Share(classes=(0, 8))), 'class 8 does not exist.*0 to 7'), (dict(val=10), 'layout has a validation part of its own'), (dict(subset=9999), 'cannot draw 9999 images'),
    (dict(forget=Share(0.9, 'images')), r'\d+ of 486 images.*\b\d+ lie in the classes 0, 4.*smaller share'), (dict(forget=Share(1e-4, 'images')), 'share of 0.0001 of 486 images is none: ask for 0.0021 or more'),
    (dict(forget=50, val=10), 'layout has a validation part of its own')])
def test_bad_requests_are_refused(load, options, says):
    with pytest.raises(ValueError, match=says): load(**options)


@pytest.mark.parametrize('forget', ['identities', 'images'])
def test_nobody_knows_who_wrote_the_digits(forget):
    with pytest.raises(ValueError, match=f'{forget}.*whose image is whose, and digits does not'): load_split('digits', forget=forget)


# The decoded file

@pytest.fixture
def decoded(monkeypatch):
    """The images that this process decodes."""
    seen, real = [], source_module.decode
    monkeypatch.setattr(source_module, 'decode', lambda path, *how: seen.append(Path(path).name) or real(path, *how))
    return seen


def paths(folder): return [folder/'img_align_celeba'/name for name in P.name]


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
    """The bytes of an undisturbed build at 32 × 32."""
    return decode_once(paths(root/'celeba'), 32, tmp_path_factory.mktemp('whole')).read_bytes()


def test_pixels_are_pillows(split):
    def square(path):
        picture = Image.open(path)
        (w, h), side = picture.size, min(picture.size)
        corner = (w - side) / 2, (h - side) / 2
        return np.array(picture.resize((16, 16), Image.Resampling.BILINEAR, box=(*corner, corner[0] + side, corner[1] + side)))
    folder = split.train.source.path.parent
    for part in split.parts.values():
        theirs = np.stack([square(path) for path in np.array(paths(folder))[part.rows]])
        assert (part.images.permute(0, 2, 3, 1).numpy() == theirs).all()


def test_images_are_decoded_once(root, tmp_path, decoded):
    first = load_split('celeba', root=root, image_size=8, cache=tmp_path)
    assert sorted(decoded) == P.name
    again = load_split('celeba', root=root, image_size=8, cache=tmp_path)
    assert len(decoded) == N and again.fingerprint == first.fingerprint
    assert [file.suffix for file in tmp_path.iterdir() if file.name != '.pixels.lock'] == ['.npy']


def test_another_size_or_image_gives_another_file(copy, decoded):
    def load(size): return load_split('celeba', root=copy.parent, image_size=size)
    before, = copy.glob('*.npy')
    assert load(16).train.source.path == before and not decoded
    assert load(8).train.source.path != before and len(decoded) == N
    Image.new('RGB', (40, 40), 'red').save(copy/'img_align_celeba'/'000300.jpg')
    after = load(16).train.source
    assert after.path != before and after[299:300].float().mean((0, 2, 3)).tolist() == pytest.approx([255, 0, 0], abs=3) and len(list(copy.glob('*.npy'))) == 3


def test_repaired_image_is_decoded(copy, root):
    file = copy/'img_align_celeba'/'000300.jpg'
    right = file.read_bytes()
    file.write_bytes(bytes(len(right)))
    with pytest.raises(ValueError, match='000300.jpg cannot be read'): decode_once(paths(copy), 8, copy)
    file.write_bytes(right)
    assert decode_once(paths(copy), 8, copy).read_bytes() == decode_once(paths(root/'celeba'), 8, root).read_bytes()


DECODE = '''
    import sys, time
    from pathlib import Path
    sys.path[:0] = {path!r}
    from unlearning.datasets import source

    folder, real, seen = Path({folder!r}), source.decode, []
    def hang(path, size, channels):
        if path.name == '000600.jpg':
            while not any(p.stat().st_size > 300 * 3 * size * size for p in folder.iterdir()): time.sleep(0.01)
            print('ready', flush=True); time.sleep(600)
        return real(path, size, channels)
    def slow(path, *how):
        if not seen: print('ready', flush=True)
        seen.append(path); time.sleep(0.003)
        return real(path, *how)
    source.decode = {how}
    source.decode_once(sorted(Path({root!r}, 'img_align_celeba').iterdir()), 32, folder)
    print(len(seen))
'''


def child(code, **values):
    path = [str(Path(unlearning.__file__).parent.parent)]
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(code).format(path=path, **values)], stdout=subprocess.PIPE, start_new_session=True, text=True)


def test_killed_decoding_goes_on_to_the_same_pixels(root, tmp_path, whole, decoded):
    """SIGKILL in the middle; and whatever number of bytes had not reached the disk by then."""
    killed = tmp_path/'killed'
    killed.mkdir()
    process = child(DECODE, how='hang', folder=str(killed), root=str(root/'celeba'))
    try: assert process.stdout.readline() == 'ready\n'
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    part, = killed.glob('*.part')
    assert not list(killed.glob('*.npy'))
    for lost in (0, 1, 3 * 32 * 32 + 5, part.stat().st_size - 50):
        shutil.copytree(killed, folder := tmp_path/str(lost))
        os.truncate(folder/part.name, part.stat().st_size - lost)
        decoded.clear()
        assert decode_once(paths(root/'celeba'), 32, folder).read_bytes() == whole and not list(folder.glob('*.part'))
        assert len(decoded) == N if lost > 10_000 else 0 < len(decoded) < N - 290


def test_two_processes_decode_once(root, tmp_path, whole, decoded):
    process = child(DECODE, how='slow', folder=str(tmp_path), root=str(root/'celeba'))
    assert process.stdout.readline().startswith('ready')
    file = decode_once(paths(root/'celeba'), 32, tmp_path)
    assert file.read_bytes() == whole and int(process.communicate()[0].split()[-1]) + len(decoded) == N and process.returncode == 0
    assert not list(tmp_path.glob('*.part'))


class Trap:
    """Unpickled, it writes a file."""
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (open, (self.marker, 'w'))


@pytest.mark.parametrize('damage', ['truncated', 'header only', 'empty', 'pickle', 'pickled array', 'floats', 'flat'])
def test_damaged_decoded_file_is_named(copy, tmp_path, damage):
    file, = copy.glob('*.npy')
    content = file.read_bytes()
    if damage == 'truncated': file.write_bytes(content[:-100])
    if damage == 'header only': file.write_bytes(content[:128])
    if damage == 'empty': file.write_bytes(b'')
    if damage == 'pickle': file.write_bytes(pickle.dumps(Trap(tmp_path/'marker')))
    if damage == 'pickled array': np.save(file, np.array([Trap(tmp_path/'marker')], dtype=object), allow_pickle=True)
    if damage == 'floats': np.save(file, np.load(file).astype(np.float32))
    if damage == 'flat': np.save(file, np.load(file).reshape(N, -1))
    says = 'holds.*images are uint8, N × C' if damage in ('floats', 'flat') else 'is not a whole file of images.*delete it'
    with pytest.raises(ValueError, match=f'{file.name} {says}'): load_split('celeba', root=copy.parent, image_size=16)
    assert not (tmp_path/'marker').exists()


def test_folder_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(ValueError, match=r'0.00 GB of decoded images cannot be kept in .*file .*make room, or pass cache='): load_split('celeba', root=root, image_size=9, cache=tmp_path/'file')


def test_full_disk_leaves_no_file_that_would_be_used(root, tmp_path, monkeypatch):
    def full(descriptor): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(source_module.os, 'fsync', full)
    with pytest.raises(ValueError, match='cannot be kept in.*No space left.*make room'): decode_once(paths(root/'celeba'), 8, tmp_path)
    assert not list(tmp_path.glob('*.npy'))


# Writers

@pytest.fixture(scope='module')
def qmnist():
    root = data_root()
    if not (root/'QMNIST'/'raw').is_dir(): pytest.skip(f'no QMNIST in {root}: set UNLEARNING_DATA to a folder that holds it')
    return root


@pytest.fixture(scope='module')
def writers(qmnist): return load_split('writers', root=qmnist)


def test_writers_are_counted_and_disjoint(writers):
    assert len(people(writers.train)) == 539 and len(people(writers.test)) == 297 and not people(writers.train) & people(writers.test)
    assert len(people(writers.forget)) == round(0.02 * 539) and not people(writers.forget) & people(writers.retain)
    assert len(writers.train) == 60_000 and len(writers.test) == 10_000 and writers.image_shape == (1, 28, 28)
    assert writers.counts().forget.tolist() == [*torch.bincount(writers.forget.labels), len(writers.forget), 11]


def test_writers_images_are_those_of_torchvision(writers, qmnist):
    for what, part in (('train', writers.train), ('test10k', writers.test)):
        theirs = torchvision.datasets.QMNIST(qmnist, what, compat=False)
        assert torch.equal(part.images[:, 0], theirs.data) and torch.equal(part.labels, theirs.targets[:, 0]) and torch.equal(part.identities, theirs.targets[:, 2])


def test_other_digits_of_forgotten_writers_are_nowhere(qmnist, writers):
    split = load_split('writers', root=qmnist, forget=Share(classes=(3, 8)))
    gone = people(split.forget)
    assert set(split.forget.labels.tolist()) == {3, 8} and len(gone) == 11 and not gone & people(split.retain, split.test)
    of_them = torch.isin(writers.train.identities, torch.tensor(list(gone)))
    wanted = of_them & torch.isin(writers.train.labels, torch.tensor([3, 8]))
    assert split.forget.indices.tolist() == writers.train.indices[wanted].tolist()
    assert split.train.indices.tolist() == writers.train.indices[wanted | ~of_them].tolist()


def test_val_and_tuning_are_of_whole_writers(qmnist):
    split = load_split('writers', root=qmnist, val=3000, subset=6000)
    tuning = tuning_split(split, val=1000)
    for part in (split.val, split.forget, tuning.forget, tuning.test): assert people(part).isdisjoint(people(*({split.val, split.forget, tuning.forget, tuning.test} - {part})))
    assert not people(split.val) & people(split.train) and not people(tuning.test) & people(tuning.train) and len(split.val) >= 3000


def linked(qmnist, to):
    (to/'QMNIST'/'raw').mkdir(parents=True)
    for file in (qmnist/'QMNIST'/'raw').iterdir(): (to/'QMNIST'/'raw'/file.name).symlink_to(file)
    return to/'QMNIST'/'raw'


@pytest.fixture
def offline(monkeypatch):
    asked = []
    def refuse(url, *args, **kw): asked.append(url); raise URLError('no network')
    monkeypatch.setattr(torchvision.datasets.mnist, 'download_and_extract_archive', refuse)
    return asked


@pytest.mark.parametrize('what, kind', [('train', 'images-idx3-ubyte'), ('train', 'labels-idx2-int'), ('test', 'images-idx3-ubyte'), ('test', 'labels-idx2-int')])
@pytest.mark.parametrize('damage', ['truncated', 'missing'])
def test_damaged_writers_are_refused(qmnist, tmp_path, offline, what, kind, damage):
    file = linked(qmnist, tmp_path)/f'qmnist-{what}-{kind}'
    content = file.read_bytes()
    file.unlink()
    if damage == 'truncated': file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=f"QMNIST's {what}.* files could not be.*four files.*QMNIST/raw.*UNLEARNING_DATA"): load_split('writers', root=tmp_path)


def test_without_writers_and_network_the_remedy_is_told(tmp_path, offline):
    for attempt in (1, 2):  # a failure leaves nothing behind that would keep the next call from trying
        with pytest.raises(ValueError, match='could not be.* downloaded.*no network.*facebookresearch/qmnist.*QMNIST/raw.*UNLEARNING_DATA'): load_split('writers', root=tmp_path)
        assert len(offline) == attempt
