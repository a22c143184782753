"""Rendered faces: torchvision's own reader accepts them, nothing but the seed decides a byte, and no folder is half finished or overwritten."""
import json

import numpy as np
import pytest
from torchvision.datasets import CelebA

from unlearning.datasets import faces
from unlearning.datasets.faces import CELEBA_ATTRIBUTES, CLASS_SHARES, cast_faces, draw_face, draw_person, render_faces
from unlearning.datasets.people import celeba
from unlearning.load import load_split

SMALL = dict(images=60, identities=12, size=32, progress=False)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def rendered(tmp_path_factory):
    return render_faces(tmp_path_factory.mktemp('faces'), jobs=1, **SMALL)


def test_torchvision_reads_what_was_cast(rendered, monkeypatch):
    monkeypatch.setattr(CelebA, '_check_integrity', lambda self: True)  # which compares with CelebA's own checksums
    cast, seen = cast_faces(60, 12), 0
    for number, name in enumerate(('train', 'valid', 'test')):
        data, rows = CelebA(rendered, name, ['attr', 'identity', 'bbox', 'landmarks']), cast[cast.partition == number]
        assert data.filename == [f'{i:06}.jpg' for i in rows.index] and data.attr_names == CELEBA_ATTRIBUTES
        for (image, (attributes, identity, box, landmarks)), row in zip(data, rows.itertuples(), strict=True):
            on = dict(zip(data.attr_names, attributes.tolist()))
            assert (image.size, image.format, identity.item()) == ((32, 32), 'JPEG', row.identity)
            assert (on['Male'], on['Gray_Hair'], on['Chubby']) == (row.male, row.gray, row.chubby) and set(on.values()) <= {0, 1}
            (left, right, nose, left_mouth, right_mouth), (x, y, width, height) = landmarks.view(5, 2).tolist(), box.tolist()
            assert x <= left[0] < nose[0] < right[0] <= x + width and left_mouth[0] < right_mouth[0]
            assert y <= max(left[1], right[1]) < nose[1] < min(left_mouth[1], right_mouth[1]) <= y + height <= 32
            seen += 1
    assert seen == 60 and len(CELEBA_ATTRIBUTES) == len(set(CELEBA_ATTRIBUTES)) == 40


def test_our_loader_reads_them_and_says_what_they_are(tmp_path):
    folder, cast = render_faces(tmp_path, 600, 60, size=16, jobs=1, progress=False), cast_faces(600, 60)
    split = load_split('celeba', root=folder, image_size=16)
    assert split.name == 'rendered faces' and (split.test.identities.numpy() == cast.identity[cast.partition == 2]).all()
    assert (split.test.labels.numpy() == cast.label[cast.partition == 2]).all() and set(split.forget.labels.tolist()) <= {0, 4}


def test_only_about_json_says_what_they_are(tmp_path):
    """Trees of before it have the renderer's marks alone; the renderer's marks are nobody else's business."""
    root = render_faces(tmp_path, jobs=1, **SMALL)
    assert json.loads((root/'celeba/about.json').read_text()) == dict(name='rendered faces') and celeba(root, 16).name == 'rendered faces'
    (root/'celeba/about.json').unlink()
    assert render_faces(root, jobs=1, **SMALL) == root and celeba(root, 16).name == "a tree in CelebA's layout"


def test_attributes_are_celebas_own(rendered):
    p = draw_person(True, np.random.default_rng(0))
    assert set(draw_face(p, np.random.default_rng(0)).attributes) < set(CELEBA_ATTRIBUTES)
    lines = (rendered / 'celeba/list_attr_celeba.txt').read_text().splitlines()
    assert lines[0] == '60' and len(lines) == 62 and set(' '.join(line.split(' ', 1)[1] for line in lines[2:]).split()) == {'1', '-1'}


def test_same_bytes_for_any_number_of_processes(rendered, tmp_path):
    assert contents(render_faces(tmp_path / 'two', jobs=2, **SMALL)) == contents(rendered)
    other = contents(render_faces(tmp_path / 'other', jobs=1, seed=1, **SMALL))
    assert not any(other[name] == data for name, data in contents(rendered).items() if name.endswith('.jpg'))


@pytest.mark.parametrize('images, identities, seed', [(100, 10, 0), (999, 40, 1), (1000, 50, 2), (1000, 250, 3), (3000, 150, 4), (6000, 300, 0), (10_000, 500, 5)])
def test_cast_is_as_unbalanced_as_celeba(images, identities, seed):
    cast = cast_faces(images, identities, seed)
    counts, people = np.bincount(cast.label, minlength=8), cast.groupby('identity')
    assert len(cast) == images and set(cast.identity) == set(range(1, identities + 1))
    assert abs(counts - np.array(CLASS_SHARES) * images / 10_000).max() <= 1
    assert (people.male.nunique() == 1).all() and (people.partition.nunique() == 1).all()
    assert (cast.label == 4 * cast.male + 2 * cast.gray + cast.chubby).all() and cast.partition.is_monotonic_increasing
    share = people.partition.first().value_counts(normalize=True)
    assert abs(share[[0, 1, 2]].to_numpy() - (.8, .1, .1)).max() < .04
    if images >= 1000: assert set(cast.label[cast.partition == 0]) == set(range(8))
    if images >= 3000:
        for part in (1, 2):
            mine = cast.label[cast.partition == part]
            assert abs((mine == 0).mean() - .567) < .08 and abs((mine == 4).mean() - .342) < .08 and .07 < len(mine) / images < .13
        assert .08 < (people.label.nunique() > 1).mean() < .22 and people.size().max() <= 40 and people.size().std() > 5


def test_attributes_change_what_they_name_and_nothing_random():
    for who in range(20):
        p = draw_person(who % 2 == 0, np.random.default_rng(who))
        plain, gray, chubby = (draw_face(p, np.random.default_rng([who, 9]), **on) for on in ({}, dict(gray=True), dict(chubby=True)))
        assert chubby.box[2] > 1.05 * plain.box[2] and (gray.box == plain.box).all() and (gray.landmarks == plain.landmarks).all()
        assert (np.asarray(gray.image) != np.asarray(plain.image)).any()
        free = {'Gray_Hair', 'Black_Hair', 'Brown_Hair', 'Blond_Hair', 'Young', 'Chubby', 'Double_Chin'}
        for face in (gray, chubby): assert {k for k, v in face.attributes.items() if v != plain.attributes[k]} <= free


def test_grey_hair_is_grey():
    for who in range(20):
        p = draw_person(False, np.random.default_rng(who))
        moment = faces.draw_moment(p, np.random.default_rng(who), gray=True)
        assert np.ptp(moment.hair) < max(30, .5 * np.ptp(p.hair)) and moment.hair.mean() > 110


def test_finished_folder_is_left_alone(rendered, monkeypatch):
    monkeypatch.setattr(faces, '_render', lambda *args: pytest.fail('rendered again'))
    before = {p: p.stat().st_mtime_ns for p in rendered.rglob('*')}
    assert render_faces(rendered, jobs=1, **SMALL) == rendered
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 3.*choose another folder"):
        render_faces(rendered, jobs=1, seed=3, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in rendered.rglob('*')} == before
    facts = json.loads((rendered / 'celeba/rendered.json').read_text())
    assert facts == dict(name='rendered faces', seed=0, images=60, identities=12, size=32, version=faces.__version__)


@pytest.mark.parametrize('victim, survives', [('draw_face', 30), ('_write', 3)])
def test_killed_rendering_is_not_finished_and_can_be(rendered, tmp_path, monkeypatch, victim, survives):
    real, calls = getattr(faces, victim), iter(range(survives))
    def dying(*args, **options):
        if next(calls, None) is None: raise KeyboardInterrupt
        return real(*args, **options)
    monkeypatch.setattr(faces, victim, dying)
    with pytest.raises(KeyboardInterrupt): render_faces(tmp_path, jobs=1, **SMALL)
    assert not (tmp_path / 'celeba/rendered.json').exists() and any((tmp_path / 'celeba/img_align_celeba').iterdir())
    with pytest.raises(ValueError, match='choose another folder'): render_faces(tmp_path, jobs=1, **SMALL | dict(size=48))
    monkeypatch.setattr(faces, victim, real)
    assert contents(render_faces(tmp_path, jobs=1, **SMALL)) == contents(rendered)


def test_missing_mark_means_unfinished(rendered, tmp_path):
    render_faces(tmp_path, jobs=1, **SMALL)
    (tmp_path / 'celeba/rendered.json').unlink()
    (tmp_path / 'celeba/img_align_celeba/000007.jpg').write_bytes(b'torn')
    assert contents(render_faces(tmp_path, jobs=1, **SMALL)) == contents(rendered)


def test_somebody_elses_celeba_is_never_touched(tmp_path):
    images = tmp_path / 'celeba/img_align_celeba'
    images.mkdir(parents=True)
    (images / '000001.jpg').write_bytes(b'a real face')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='not rendered here, perhaps CelebA itself'): render_faces(tmp_path, jobs=1, **SMALL)
    assert contents(tmp_path) == before


@pytest.mark.parametrize('wrong, message', [
    (dict(identities=9), '9 identities cannot be divided'), (dict(images=40), '40 images are too few for 12 identities.*at least 48'), (dict(size=8), '8 pixels'),
])
def test_refuses_what_cannot_be_drawn(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message): render_faces(tmp_path / 'new', jobs=1, **SMALL | wrong)
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('images, seed', [(1000, 0), (100, 7)])
def test_a_cast_has_somebody_in_each_partition(images, seed):
    with pytest.raises(ValueError, match='none of 10 identities to validate or test on: ask for more identities'): cast_faces(images, 10, seed)


def test_a_list_of_files_means_files_and_not_positions(tmp_path):
    """CelebA's images are numbered from 1, positions from 0."""
    root = render_faces(tmp_path, 600, 40)
    faces = cast_faces(600, 40)
    faces[faces.index == 5].to_csv(tmp_path/'one.csv')
    with pytest.raises(ValueError, match="names '5', which is not an image"): load_split('celeba', root, forget=tmp_path/'one.csv')
    (tmp_path/'two.txt').write_text('000005.jpg\n')
    split = load_split('celeba', root, forget=tmp_path/'two.txt')
    assert split.forget.indices.tolist() == [4]
    (tmp_path/'three.txt').write_text('5\n')
    with pytest.raises(ValueError, match='may be a position, or the image .000005.jpg'): load_split('celeba', root, forget=tmp_path/'three.txt')
