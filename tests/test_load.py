"""Every way to say what to forget, splits to tune on, and wrong labels."""
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlearning import load
from unlearning.datasets.builtin import digits
from unlearning.datasets.source import Source, data_root
from unlearning.images import Images, in_memory, make_split
from unlearning.load import People, Share, load_split, tuning_split, with_identities, with_truth, wrong_labels


class Trap:
    """Unpickled, it writes a file."""
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (open, (self.marker, 'w'))


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
                                          ([], 'empty'), (range(898), 'all 898'), ([1.0], 'float64.*whole-number'), (np.ones(9, bool), 'boolean mask'),
                                          (0, 'forget=0'), (-5, 'forget=-5'), (898, 'forget=898'), ('challenge', 'belongs to cifar10')])
def test_bad_positions_are_refused(forget, says):
    with pytest.raises(ValueError, match=says): load_split('digits', forget=forget)


def test_bad_forget_files_are_refused(tmp_path):
    def refused(name, says):
        with pytest.raises(ValueError, match=says): load_split('digits', forget=tmp_path/name)
    refused('nowhere.npy', 'nowhere.npy does not exist')
    refused('~$list.csv', r'~\$list.csv does not exist')  # as a spreadsheet's lock file is called: no home of anybody
    (tmp_path/'forget.xlsx').write_text('1\n')
    refused('forget.xlsx', "'.xlsx': use .npy, .txt")
    (tmp_path/'forget.txt').write_text('1\n2.5\n')
    refused('forget.txt', "'2.5', which is not a whole number")
    (tmp_path/'empty.npy').write_bytes(b'')
    refused('empty.npy', 'empty.npy is not a .npy array')


def test_npy_of_pickled_objects_is_not_opened(tmp_path):
    np.save(tmp_path/'forget.npy', np.array([Trap(tmp_path/'marker')], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match='forget.npy is not a .npy array of integers'): load_split('digits', forget=tmp_path/'forget.npy')
    assert not (tmp_path/'marker').exists()


# A split to tune on; each of these hand-made images holds its own number

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


# The same draws as ever: stored networks are found by these fingerprints

@pytest.mark.parametrize('request_, fingerprint', [
    (dict(), '59c935210baa787d'), (dict(forget=90, seed=2), '4a35b8b04520d97c'), (dict(forget=[3, 8, 500]), 'acdd261122c86b33'),
    (dict(forget=90, val=50), 'db15d058e8c37f7f'), (dict(forget=90, subset=300, val=100, seed=1), '21fd2c1124f8d47e')])
def test_digits_are_divided_as_ever(request_, fingerprint):
    assert load_split('digits', **request_).fingerprint == fingerprint


def test_tuning_is_drawn_as_ever():
    assert [tuning_split(load_split('digits'), 100, seed).fingerprint for seed in (0, 3)] == ['18b4f921ada47ef2', '85b350eaab580c30']


@pytest.mark.parametrize('request_, fingerprint', [
    (dict(), 'dc3989e41ed951b6'), (dict(forget=Share(0.1)), '64589e00d1bd1d47'), (dict(val=3000, subset=6000), 'f01160d697460f90'),
    (dict(forget=Share(0.05, 'images'), val=1000, subset=9000), '28302948f197b723'), (dict(forget=People([5]), val=500, subset=2000), 'c5b896dae37f4f5f')])
def test_writers_are_divided_as_ever(request_, fingerprint):
    if not (data_root()/'QMNIST').is_dir(): pytest.skip(f'no QMNIST in {data_root()}: set UNLEARNING_DATA to a folder that holds it')
    assert load_split('writers', **request_).fingerprint == fingerprint


# Adding a form, and forms that do not fit

def test_a_new_form_is_a_function(monkeypatch):
    def by_class(forget, source, seed):
        if isinstance(forget, str) and forget.startswith('class '): return np.flatnonzero(source.train.labels == int(forget[6:]))
    monkeypatch.setattr(load, 'FORMS', (by_class, *load.FORMS))
    assert load_split('digits', forget='class 3').forget.labels.unique().tolist() == [3]
    assert len(load_split('digits', forget=50).forget) == 50  # the others go on working


def test_a_list_that_comes_with_the_data_set_goes_by_its_name(monkeypatch):
    monkeypatch.setitem(load.SOURCES, 'digits', lambda root: digits()._replace(lists=dict(smudged=lambda: [5, 2])))
    assert load_split('digits', forget='smudged').forget.indices.tolist() == [2, 5]
    with pytest.raises(ValueError, match='the forget file blurred does not exist'): load_split('digits', forget='blurred')


@pytest.mark.parametrize('request_, says', [(Share(0.1), "of='identities'.*whose image is whose, and digits does not"), (People([3]), r'who=\[3\].*whose image is whose, and digits does not')])
def test_data_without_people_have_nobody_to_forget(request_, says):
    with pytest.raises(ValueError, match=says): load_split('digits', forget=request_)


def test_a_share_is_of_people_or_images():
    with pytest.raises(ValueError, match="a share of 'faces': use 'identities' or 'images'"): Share(0.1, 'faces')


# Wrong labels

@pytest.fixture(scope='module')
def clean(): return make_split(numbered(0, 6000, 5), numbered(6000, 300, 5), [1], classes='abcde', val=500)


@pytest.fixture(scope='module')
def wrong(clean): return wrong_labels(clean, 0.2)


def test_forget_is_exactly_what_has_a_wrong_label(wrong, clean):
    assert len(wrong.forget) == round(0.2 * len(clean.train)) and numbers(wrong.train) == numbers(clean.train)
    assert (wrong.forget.labels != wrong.forget.truth).all() and torch.equal(wrong.retain.labels, wrong.retain.truth)
    assert numbers(wrong.forget).isdisjoint(numbers(wrong.retain)) and numbers(wrong.forget) | numbers(wrong.retain) == numbers(wrong.train)
    for part in (wrong.train, wrong.retain, wrong.forget):  # each image's truth is still its own
        assert (part.truth == (part.images[:, 0, 0, 0].long() * 256 + part.images[:, 1, 0, 0]) % 5).all()


def test_nothing_else_changes(wrong, clean):
    assert torch.equal(wrong.train.images, clean.train.images) and torch.equal(wrong.train.identities, clean.train.identities)
    assert torch.equal(wrong.train.indices, clean.train.indices) and torch.equal(wrong.train.truth, clean.train.labels)
    for part in (wrong.train, wrong.retain, wrong.forget): assert torch.equal(part.mean, clean.train.mean) and torch.equal(part.std, clean.train.std)
    assert wrong.test is clean.test and wrong.val is clean.val and wrong.classes == clean.classes


def test_all_other_classes_are_equally_likely(wrong):
    pairs = np.zeros((5, 5), int)
    np.add.at(pairs, (wrong.forget.truth, wrong.forget.labels), 1)
    others = pairs[~np.eye(5, dtype=bool)]  # 20 of them, of 1,100 images
    assert pairs.trace() == 0 and others.min() > 30 and others.max() < 85


def test_wrong_labels_are_drawn_by_seed(wrong, clean):
    assert wrong_labels(clean, 0.2).fingerprint == wrong.fingerprint
    other = wrong_labels(clean, 0.2, seed=1)
    assert numbers(other.forget) != numbers(wrong.forget)
    both = np.isin(wrong.forget.indices, other.forget.indices)
    assert not torch.equal(wrong.forget.labels[both], other.forget.labels[np.isin(other.forget.indices, wrong.forget.indices)])


def test_labels_are_made_wrong_from_the_truth(wrong):
    again = wrong_labels(wrong, 0.1, seed=3)  # whatever the first draw did is undone
    assert torch.equal(again.train.truth, wrong.train.truth)
    assert set(again.forget.indices.tolist()) == set(again.train.indices[again.train.labels != again.train.truth].tolist())


@pytest.mark.parametrize('share, says', [(0, 'names 0 of 898'), (0.0005, 'names 0 of 898'), (1, 'names 898 of 898'), (1.5, 'names 1347 of 898.*ask for one that names 1 to 897'), (-0.1, 'names -90 of 898'),
                                         ('10%', "a share of '10%': 0.1 is a tenth")])
def test_share_of_nothing_or_everything_is_refused(share, says):
    with pytest.raises(ValueError, match=says): wrong_labels(load_split('digits'), share)


def test_positions_need_no_share():
    assert wrong_labels(make_split(numbered(0, 4, 2), numbered(60, 4, 2), [1]), at=[2]).forget.indices.tolist() == [2]


def test_one_class_has_no_wrong_label():
    with pytest.raises(ValueError, match='one class, so no label can be wrong'): wrong_labels(make_split(numbered(0, 60, 1), numbered(60, 30, 1), [1]))


# Lists with columns

@pytest.fixture
def letters():
    """Eight images with paths."""
    x = np.random.default_rng(0).integers(0, 255, (8, 1, 8, 8), dtype=np.uint8)
    train, test = (in_memory(x, np.arange(8) % 2) for _ in range(2))
    return Source('letters', train, test, ('a', 'b'), paths=tuple(f'{folder}/{i}.png' for folder in ('#1', 'a') for i in range(4)))


@pytest.mark.parametrize('text, says', [
    ('path,why\na/0.png,"blurry\na/1.png,ok\na/2.png,"dup"\n', 'is not a row of a table|several lines'),
    ('path,why\na/0.png,"blurry\na/1.png,ok"\n', 'line 3, has a cell of several lines: is a quote not closed')])
def test_an_open_quote_swallows_no_image(letters, tmp_path, text, says):
    (path := tmp_path/'gone.csv').write_text(text)
    with pytest.raises(ValueError, match=says): load_split(letters, forget=path)


@pytest.mark.parametrize('name, text', [('gone.csv', 'path,why\n# a note\n#1/0.png,x\na/0.png,y\n'), ('gone.csv', 'path\n"#1/0.png"\na/0.png\n'),
                                        ('gone.txt', '# a note\n#1\\0.png\na/0.png\n')])
def test_a_folder_that_begins_as_a_comment_does(letters, tmp_path, name, text):
    (path := tmp_path/name).write_text(text)
    assert load_split(letters, forget=path).forget.indices.tolist() == [0, 4]


def test_a_row_that_begins_as_a_comment_does_is_not_dropped(letters, tmp_path):
    """A ticket's number, say, in a table of tickets and images."""
    for row in ('#1042,7', '"#1042","7"'):  # some programs put all cells in quotes, comments' too
        (path := tmp_path/'gone.csv').write_text(f'"# of 3, in May"\nticket,index\n1041,12\n{row}\n')
        with pytest.raises(ValueError, match='line 4, may be a comment or a row: take the line out, or the # off'): load_split('digits', forget=path)
    path.write_text('ticket,path\n1041,a/0.png\n#1042,a/1.png\n')
    with pytest.raises(ValueError, match='line 3, may be a comment or a row'): load_split(letters, forget=path)
    path.write_text('index,why\n12,blurry\n#7,after all not\n#8,9\n')  # no number of an image begins so
    assert load_split('digits', forget=path).forget.indices.tolist() == [12]


@pytest.mark.parametrize('mark', '\u2028\x85\x0b\x0c\x1c')
def test_only_the_end_of_a_line_ends_a_row(tmp_path, mark):
    (path := tmp_path/'gone.csv').write_text(f'index,why\r\n12,see{mark}7\r\n', encoding='utf-8', newline='')
    assert load_split('digits', forget=path).forget.indices.tolist() == [12]


@pytest.mark.parametrize('who, numbers', [
    (['7', '8'] * 4, [7, 8] * 4), (['007', '010'] * 4, [7, 10] * 4), (['7.0', '10.0'] * 4, [7, 10] * 4), (['007', '7'] * 4, [0, 1] * 4), (['Müller', 'Mu\u0308ller', 'Ada  L', ' Ada L'] * 2, [1, 1, 0, 0] * 2)])
def test_people_are_who_the_list_says(letters, tmp_path, who, numbers):
    (path := tmp_path/'people.csv').write_text('path,identity\n' + ''.join(f'{p},{w}\n' for p, w in zip(letters.paths, who)))
    assert with_identities(letters, path).train.identities.tolist() == numbers


@pytest.mark.parametrize('who', [['Ada'], 'Ada', {'Ada'}, np.array(['Ada']), [' Ada'], [1], ['Ada', 1]])
def test_people_of_a_list_go_by_name(letters, tmp_path, who):
    (path := tmp_path/'people.csv').write_text('path,identity\n' + ''.join(f'{p},{w}\n' for p, w in zip(letters.paths, ['Mu\u0308ller', 'Ada', '7', 'Ada'] * 2)))
    known = with_identities(letters, path)
    split = load_split(known, forget=People(who))
    assert split.forget.indices.tolist() == [1, 3, 5, 7] and split.fingerprint == load_split(known._replace(people=None), forget=People([1])).fingerprint
    assert load_split(known, forget=People(['M\u00fcller', '7'])).forget.indices.tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match=r"letters has nobody called 'Adda' \(did you mean 'Ada'\?\)"): load_split(known, forget=People(['Adda']))
    path.write_text('path,identity\n' + ''.join(f'{p},{w}\n' for p, w in zip(letters.paths, '01Ab' * 2)))
    assert load_split(with_identities(letters, path), forget=People([0, 'A'])).forget.indices.tolist() == [0, 2, 4, 6]
    path.write_text('path,identity\n' + ''.join(f'{p},{w}\n' for p, w in zip(letters.paths, '12Ab' * 2)))
    with pytest.raises(ValueError, match="identity 1 may be the person called '1' or the one of this number: ask by name"): load_split(with_identities(letters, path), forget=People([1]))
    path.write_text('path,identity\n' + ''.join(f'{p},{i % 2}\n' for i, p in enumerate(letters.paths)))
    with pytest.raises(ValueError, match="identity '1' is no whole number"): load_split(with_identities(known, path), forget=People(['1']))


@pytest.mark.parametrize('row, says', [('a/3.png,unknown', "says 'unknown': people whom nobody knows are not one"), ('a/3.png,-1', "says '-1'"),
                                       ('a/3.png,Doe, J.', 'line 9, has 3 cells, and the header 2: put quotes'), ('', 'whose 1 of the 8 training images are, a/3.png for one')])
def test_what_a_list_of_people_cannot_mean(letters, tmp_path, row, says):
    rows = [f'{p},Ada' for p in letters.paths[:7]] + [row]
    (path := tmp_path/'people.csv').write_text('\n'.join(['path,identity', *rows]))
    with pytest.raises(ValueError, match=says): with_identities(letters, path)


def test_a_list_of_people_that_is_none(letters, tmp_path):
    with pytest.raises(ValueError, match='does not exist'): with_identities(letters, tmp_path/'none.csv')
    (path := tmp_path/'people.csv').write_text('')
    with pytest.raises(ValueError, match='is empty|columns'): with_identities(letters, path)
    path.write_text('path,identity,identity\na/0.png,7,8\n')
    with pytest.raises(ValueError, match='one has to be called'): with_identities(letters, path)


def test_lists_lie_at_home_too(letters, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'true.csv').write_text('path,true\na/0.png,b\n')
    assert with_truth(letters, '~/true.csv').train.truth.tolist() == [0, 1, 0, 1, 1, 1, 0, 1]


def test_a_list_of_true_labels_adds_to_what_is_known(letters, tmp_path):
    (path := tmp_path/'true.csv').write_text('path,true\na/0.png,b\n')
    known = letters._replace(train=replace(letters.train, truth=1 - letters.train.labels))
    assert with_truth(known, path).train.truth.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    path.write_text('path,true\na/0.png,a\n')
    with pytest.raises(ValueError, match='the true label is the one that was given, a'): with_truth(known, path)


@pytest.mark.parametrize('name, text', [('gone.txt', '3\n'), ('gone.txt', '003\n'), ('gone.csv', '3\n'), ('gone.json', '["3"]')])
def test_a_number_that_may_be_a_file_is_not_guessed(letters, tmp_path, name, text):
    """Of a folder a/0.png … b/3.png."""
    (path := tmp_path/name).write_text(text)
    with pytest.raises(ValueError, match="which may be a position, or the image '.*3.png': write paths"): load_split(letters, forget=path)


@pytest.mark.parametrize('name, text', [('gone.csv', 'index\n3\n'), ('gone.csv', 'position,why\n3,x\n'), ('gone.json', '[3]'), ('gone.txt', '7\n'), ('gone.csv', '7\n')])
def test_a_number_that_is_a_position_by_its_form(letters, tmp_path, name, text):
    (path := tmp_path/name).write_text(text)
    assert load_split(letters, forget=path).forget.indices.tolist() == [int(re.search(r'\d', text)[0])]


def test_a_column_of_files_names_files(letters, tmp_path):
    (path := tmp_path/'gone.csv').write_text('filename\n3\n')
    with pytest.raises(ValueError, match="names '3', which is not an image under train/"): load_split(letters, forget=path)


def test_a_validation_part_of_its_own_is_as_train(letters):
    dark = replace(letters.train, mean=torch.zeros(1), std=torch.ones(1))
    split = load_split(letters._replace(val=dark), forget=[1])
    assert torch.equal(split.val.mean, split.train.mean) and torch.equal(split.val.std, split.train.std)
    with pytest.raises(ValueError, match='val has the label 5, and there are 2 classes'): load_split(letters._replace(val=replace(dark, labels=dark.labels + 4)), forget=[1])
    small = in_memory(dark.images[:, :, :4, :4], dark.labels)
    with pytest.raises(ValueError, match=r'val images of shape \(1, 4, 4\) are not like'): load_split(letters._replace(val=small), forget=[1])


def test_two_classes_of_one_name(letters):
    """ImageNet has two cranes."""
    cranes = letters._replace(classes=('crane', 'crane'))
    with pytest.raises(ValueError, match="classes 0 and 1 are called 'crane': write class:0 or class:1"): load_split(cranes, forget='class:crane')
    assert load_split(cranes, forget='class:1').forget.labels.unique().tolist() == [1]
