"""What to forget, said as people say it; files as people have them; options that are not what they should be."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unlearning import load
from unlearning.datasets.builtin import digits
from unlearning.images import in_memory, make_split
from unlearning.load import People, Share, gone_classes, load_split, tuning_split, untaught
from unlearning.models import create_model
from unlearning.show import STYLES, SAID, accuracies, plot_history
from unlearning.training import Training, class_weights, cross_entropy, fit

NAMES = ['cat/00.png', 'cat/01.png', 'cat/02.png', 'dog/Kühe.png', 'dog/b c.png', 'dog/#1.png']


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """8 × 8 images of two classes; train/ has also a file that is no image."""
    root = tmp_path_factory.mktemp('Bäume')
    for part in ('train', 'test'):
        for i, name in enumerate(NAMES):
            (root/part/name).parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 8), (30 * i,) * 3).save(root/part/name)
    (root/'train'/'cat'/'notes.txt').write_text('no image')
    return root


@pytest.fixture(scope='module')
def paths(tree): return load.load_source('folder', tree).paths


def forgotten(forget, tree=None, **options):
    """The paths of the images that are forgotten (of the digits: positions)."""
    split = load_split('folder' if tree else 'digits', root=tree, forget=forget, **options)
    at = split.forget.indices.tolist()
    return [load.load_source('folder', tree).paths[i] for i in at] if tree else at


def refused(forget, says, tree=None):
    """In words that name what is wrong, and every way to say it right."""
    with pytest.raises(ValueError, match=says) as e: load_split('folder' if tree else 'digits', root=tree, forget=forget)
    assert str(e.value).endswith(load.WAYS_TABLE)


@pytest.fixture
def write(tmp_path):
    def write(content, name='forget.txt', encoding='utf-8'):
        (tmp_path/name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return tmp_path/name
    return write


# D12: one way to say each

LABELS = digits().train.labels.numpy()


@pytest.mark.parametrize('forget, n', [(90, 90), (np.int32(90), 90), (0.1, 90), ('10%', 90), ('2.5 %', 22), (np.float32(0.5), 449)])
def test_so_many_and_such_a_share(forget, n):
    assert len(forgotten(forget)) == n and forgotten(forget) == forgotten(n)


@pytest.mark.parametrize('forget', [[3, 8, 500], (500, 8, 3), {3, 8, 500}, np.array([3, 8, 500], np.uint16), torch.tensor([3, 8, 500]), dict.fromkeys([3, 8, 500]).keys(),
                                    np.isin(np.arange(898), [3, 8, 500]), torch.isin(torch.arange(898), torch.tensor([3, 8, 500])), np.isin(np.arange(898), [3, 8, 500]).tolist()])
def test_positions_in_whatever_holds_them(forget):
    assert forgotten(forget) == [3, 8, 500]


def test_ranges_and_iterators_are_positions():
    assert forgotten(range(3, 6)) == forgotten(iter([5, 3, 4])) == [3, 4, 5]


@pytest.mark.parametrize('forget, classes', [('class:3', [3]), ('class: 3', [3]), ('Class:3', [3]), (['class:3', 'class:8'], [3, 8]), ({'class:0'}, [0])])
def test_classes(forget, classes):
    assert forgotten(forget) == np.flatnonzero(np.isin(LABELS, classes)).tolist()


@pytest.mark.parametrize('forget, found', [(['cat/00.png'], NAMES[:1]), (('dog/Kühe.png', 'cat/01.png'), ['cat/01.png', 'dog/Kühe.png']), (np.array(['cat/00.png']), NAMES[:1]),
                                           ('class:cat', NAMES[:3]), ('class:1', ['dog/#1.png', 'dog/Kühe.png', 'dog/b c.png']), ([0, 2], ['cat/00.png', 'cat/02.png'])])
def test_images_of_a_folder(tree, forget, found):
    assert sorted(forgotten(forget, tree)) == sorted(found)


@pytest.mark.parametrize('forget, says', [
    (True, 'True says neither how many'), (False, 'False says neither'), (np.bool_(True), 'neither how many'), (np.array(7), 'neither how many images nor which'), (torch.tensor(7), 'neither'),
    (1.0, 'between 0 and 1.*as 1, without a point'), (5.0, 'between 0 and 1.*as 5'), ('100%', 'between 0 and 1'), (-0.1, 'between 0 and 1'), (float('nan'), 'between 0 and 1'), (1e-4, '898 images is none.*ask for 0.0011'), (0.9999, 'is all'),
    ('class:12', "no class '12'.*0 to 9"), ('class:', "no class ''"), (['class:3', 'class:cat'], "no class 'cat'"), ([f'class:{i}' for i in range(10)], 'all 898'),
    ('3', "'class:3'"), ('90', 'write forget=90'), ('gone.txt', 'gone.txt does not exist.*name an existing .npy'), (['cat/00.png'], 'digits has no paths'), (b'a.txt', 'neither'), ({}, 'neither'),
    (pd.DataFrame(dict(index=[3, 4])), r"forget is a table: pass a column of it, such as table\['index'\]"),
    (np.ones(9, bool), r'boolean mask of shape \(9,\).*898 training images'), (np.zeros(898, bool), 'empty'), ([], 'empty'), ([[1, 2], [3]], 'flat list'), ([1, 'a'], '<U'), ([3.0], 'float64'), ([-1], 'outside'), ([4, 4], 'listed 2 times'),
    (0, 'ask for 1 to 897'), (898, 'ask for 1 to 897'), ('challenge', 'belongs to cifar10'), (Share(0.1), 'whose image is whose'), (People([3]), 'whose image is whose'), ('identities', 'whose image is whose')])
def test_what_is_refused_says_what_would_do(forget, says): refused(forget, says)


@pytest.mark.parametrize('forget, says', [(None, 'a folder needs forget='), ('class:cats', "no class 'cats'.*did you mean 'cat'.*cat, dog"), ('cat', "write 'class:cat'"), ('cat/00.png', r"write a list, \['cat/00.png'\]"),
                                          (['cat/00.png', 'cat/9.png'], "forget, entry 2, names 'cat/9.png'.*not an image under train/"), (['class:cat', 'dog/b c.png'], "entry 1, names 'class:cat'")])
def test_what_is_refused_in_a_folder(tree, forget, says): refused(forget, says, tree)


@pytest.mark.parametrize('share', [True, 3, 1.0, 0.0, 'some', None])
def test_a_share_of_people_is_a_share(share):
    with pytest.raises(ValueError, match="a tenth as 0.1 or '10%'") as e: Share(share)
    assert str(e.value).endswith(load.WAYS_TABLE)


def test_a_share_of_people_goes_by_percent_too(): assert Share('10%') == Share(0.1)


@pytest.fixture(scope='module')
def cast():
    """Fourteen people of six images each, in two classes, and two to test on."""
    who = np.repeat(np.arange(16), 6)
    pixels = np.repeat(16 * who, 48).astype(np.uint8).reshape(96, 3, 4, 4)
    train = in_memory(pixels[:84], who[:84] % 2, identities=who[:84])
    return lambda root: digits()._replace(name='cast', train=train, test=in_memory(pixels[84:], who[84:] % 2, train, who[84:]), classes=('even', 'odd'))


@pytest.mark.parametrize('who', [[3, 5], {3, 5}, np.array([5, 3]), torch.tensor([3, 5]), [torch.tensor(5), np.int64(3)]])
def test_people_by_name(monkeypatch, cast, who):
    monkeypatch.setitem(load.SOURCES, 'digits', cast)
    assert load_split(forget=People(who)).forget.identities.unique().tolist() == [3, 5]


@pytest.mark.parametrize('who, says', [([], 'empty'), ([99], 'identity 99 has no training image'), (range(14), 'all 84'),
    ([7.9], 'identity 7.9 is no whole number'), ([3, True], 'identity True is no whole number'), (np.array([3.]), 'identity 3.0 is no whole'), (['3'], "identity '3' is no whole"), ([b'3'], "identity b'3' is no whole"), (b'3', "identity b'3' is no whole")])
def test_people_who_cannot_be_forgotten(monkeypatch, cast, who, says):
    monkeypatch.setitem(load.SOURCES, 'digits', cast)
    refused(People(who), says)


def test_classes_of_a_share_are_whole_numbers(monkeypatch, cast):
    monkeypatch.setitem(load.SOURCES, 'digits', cast)
    for wrong in (0.9, True): refused(Share(0.2, classes=[wrong]), f'class {wrong} is no whole number')


def test_a_class_goes_by_its_name_first(monkeypatch):
    shifted = digits()._replace(classes=tuple('1234567890'))
    monkeypatch.setitem(load.SOURCES, 'digits', lambda root: shifted)
    with pytest.warns(UserWarning, match="read as the class named '3', number 2, and not as number 3"):
        assert forgotten('class:3') == np.flatnonzero(LABELS == 2).tolist()


def test_a_class_without_image_is_not_forgotten(monkeypatch):
    monkeypatch.setitem(load.SOURCES, 'digits', lambda root: digits()._replace(classes=(*'0123456789', 'ten')))
    refused('class:ten', 'class ten has no training image')


# D11: files as people have them

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
def test_text_in_any_unicode(tree, write, encoding, newline):
    lines = ['# to forget', '', 'cat/01.png', '  dog/Kühe.png  # moved', '   ', 'dog/b c.png', 'dog/#1.png', '']
    assert sorted(forgotten(write(newline.join(lines), encoding=encoding), tree)) == sorted(['cat/01.png', 'dog/#1.png', 'dog/Kühe.png', 'dog/b c.png'])
    assert forgotten(write(newline.join(['# to forget', '12  # blurry', '', '7', '']), encoding=encoding)) == [7, 12]


@pytest.mark.parametrize('line', ['./cat/01.png', r'cat\01.png', r'.\train\cat\01.png', 'train/cat/01.png', 'cat//01.png', 'cat/../cat/01.png', 'TREE/train/cat/01.png', 'LINK/train/cat/01.png', 'HERE'])
def test_paths_as_they_are_written_elsewhere(tree, write, tmp_path, monkeypatch, line):
    (tmp_path/'link').symlink_to(tree)
    monkeypatch.chdir(tree.parent)
    line = line.replace('TREE', str(tree)).replace('LINK', str(tmp_path/'link')).replace('HERE', f'{tree.name}/train/cat/01.png')
    assert forgotten(write(line + '\n'), tree) == ['cat/01.png'] == forgotten([line], tree)


@pytest.mark.parametrize('line', ['dog/Ku\u0308he.png', 'dog/K\u00fche.png', 'train\\dog\\Ku\u0308he.png'])
def test_umlauts_in_either_form(tree, write, tmp_path, line):
    assert forgotten(write(line), tree) == ['dog/Kühe.png']
    shutil.copytree(tree, tmp_path/'other')
    (tmp_path/'other'/'train'/'dog'/'K\u00fche.png').rename(tmp_path/'other'/'train'/'dog'/'Ku\u0308he.png')
    assert forgotten(write(line), tmp_path/'other') == ['dog/Ku\u0308he.png']


@pytest.mark.parametrize('lines', ['cat/00.png\n\ncat/01.png\ncat/00.png', 'cat/00.png\ncat/01.png\n\n.\\train\\cat\\00.png'])
def test_the_same_path_twice_is_meant_once(tree, write, lines):
    with pytest.warns(UserWarning, match='forget.txt, line 4 names the same image as line 1: it is meant once'): assert forgotten(write(lines), tree) == ['cat/00.png', 'cat/01.png']


def test_both_forms_of_an_umlaut_are_one_image(tree):
    with pytest.warns(UserWarning, match=r'entry 2 names the same image as entry 1 \(and 1 more\)'): assert forgotten(['dog/Ku\u0308he.png', 'dog/K\u00fche.png', './dog/K\u00fche.png'], tree) == ['dog/Kühe.png']


@pytest.mark.parametrize('values', [np.array([10, 15, 500]), np.array([10., 15., 500.])])
@pytest.mark.parametrize('header', ['', 'positions to forget'])
def test_what_savetxt_writes(tmp_path, values, header):
    np.savetxt(tmp_path/'forget.txt', values, header=header)
    np.savetxt(tmp_path/'forget.csv', values, header=header)
    assert forgotten(tmp_path/'forget.txt') == forgotten(tmp_path/'forget.csv') == [10, 15, 500]


@pytest.mark.parametrize('content', ['path,why\ncat/01.png,"blurry, and dark"\n\ndog/Kühe.png,\n', 'why;File;index\r\nblurry;cat\\01.png;7\r\n;dog/Kühe.png;8\r\n', 'label\tfilename\n0\tcat/01.png\n1\t./dog/Ku\u0308he.png\n',
                                     'image\ncat/01.png\ndog/Kühe.png\n', '# by hand\npath\ncat/01.png\ndog/Kühe.png\n', 'cat/01.png\ndog/Kühe.png\n', ',index\n0,1\n1,4\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_tables(tree, write, paths, content, encoding):
    if 'index\n0' in content: content = f',index\n0,{paths.index("cat/01.png")}\n1,{paths.index("dog/Kühe.png")}\n'
    assert forgotten(write(content, 'forget.csv', encoding), tree) == ['cat/01.png', 'dog/Kühe.png']


@pytest.mark.parametrize('content', ['index,path\n12,a.png\n7,b.png\n', 'position\n12.0\n7\n', 'image;label\n12;3\n7;1\n', '12\n7\n', 'Index\r\n12\r\n7\r\n'])
def test_tables_of_positions(write, content): assert forgotten(write(content, 'forget.csv')) == [7, 12]


@pytest.mark.parametrize('content', ['[12, 7]', '[12.0, "7"]', '\ufeff[\n 12,\n 7\n]', json.dumps([i in (7, 12) for i in range(898)])])
def test_lists_in_json(write, content): assert forgotten(write(content, 'forget.json')) == [7, 12]


def test_paths_in_json_and_in_numpy(tree, write, tmp_path):
    np.save(tmp_path/'forget.npy', np.array(['cat\\01.png', 'dog/Ku\u0308he.png']))
    for file in (write('["./cat/01.png", "dog/K\\u00fche.png"]', 'forget.json'), tmp_path/'forget.npy'): assert forgotten(file, tree) == ['cat/01.png', 'dog/Kühe.png']


def test_a_mask_in_numpy(tmp_path):
    np.save(tmp_path/'forget.npy', np.isin(np.arange(898), [7, 12]))
    assert forgotten(tmp_path/'forget.npy') == [7, 12]


@pytest.mark.parametrize('bad', ['²', '--5', '3.5', '１２', '1_000', '3 8', '3,8', 'nan', '1e400', 'cat/00.png', '0x10'])
def test_what_is_no_number_is_named_by_line(write, bad): refused(write(f'12\n\n{bad}\n'), f"forget.txt, line 3, holds '{bad}', which is not a whole number: write one position a line")


@pytest.mark.parametrize('bad, says', [('-5', 'outside the training set.*0 to 897'), ('898', 'outside'), ('9e15', 'outside'), ('12', 'as line 1 does: list each image once')])
def test_a_number_that_is_no_position_is_named_by_line(write, bad, says): refused(write(f'12\n\n{bad}\n'), f"forget.txt, line 3, holds '{bad}', {says if bad == '12' else 'which is ' + says}")


@pytest.mark.parametrize('bad, says', [('cat/9.png', r"not an image under train/.*did you mean 'cat/0\d.png'"), ('Dog/kuhe.png', "did you mean 'dog/Kühe.png'"), ('../x', 'leads out of train/'), (r'..\..\secret.png', 'leads out'), ('cat/../../test/cat/00.png', 'leads out'),
                                       ('test/cat/00.png', 'test images are never trained on'), ('TREE/test/cat/00.png', 'test images are never'), ('/etc/hostname', 'outside of'), ('cat/notes.txt', 'not one of the images that were read'), ('12', "'12', which is not an image"),
                                       (r'test\cat\00.png', 'test images are never'), (r'cat\notes.txt', 'not one of the images that were read')])
def test_what_is_no_path_is_named_by_line(tree, write, bad, says): refused(write(f'cat/00.png\n\n{bad.replace("TREE", str(tree))}\n'), f'forget.txt, line 3, names .*{says}', tree)


def test_two_files_of_one_name(tmp_path, tree, write):
    shutil.copytree(tree, tmp_path/'twins')
    for name in ('\u00fc\u00fc.png', 'u\u0308u\u0308.png'): shutil.copy(tree/'train'/'cat'/'00.png', tmp_path/'twins'/'train'/'cat'/name)
    assert forgotten(write('cat/u\u0308u\u0308.png'), tmp_path/'twins') == ['cat/u\u0308u\u0308.png']
    refused(write('cat/\u00fcu\u0308.png'), 'line 1, names .* as 2 images are called, in different Unicode', tmp_path/'twins')


@pytest.mark.parametrize('content, name, says', [
    (b'12\nK\xfche\n', 'a.txt', 'a.txt, line 2, is not UTF-8 text: save the file as UTF-8'), (b'\xff\xfe1\x002', 'a.txt', 'a.txt, line 1, is not UTF-16'), ('', 'a.txt', 'a.txt is empty'), ('# nothing\n\n', 'a.txt', 'a.txt is empty'),
    ('img,label\n12,3\n', 'a.csv', "the columns 'img', 'label': call the one .*path, file, filename, image, index or position"), ('12,3\n7,1\n', 'a.csv', "the columns '12', '3'"), ('index,position\n12,3\n', 'a.csv', 'index and position, which both say'),
    ('index,why\n12,\n,blurry\n', 'a.csv', 'a.csv, line 3, has nothing in the column index'), ('index\n12\n3.5\n', 'a.csv', "a.csv, line 3, holds '3.5'"), ('', 'a.csv', 'a.csv'), ('index\n', 'a.csv', 'a.csv is empty'),
    ('{"forget": [12]}', 'a.json', 'a.json holds a dict: write a list'), ('[12,\n7', 'a.json', 'a.json, line 2, is not JSON'), ('[12, [7]]', 'a.json', r"a.json, entry 2, holds '\[7\]'"), ('[12, null]', 'a.json', "entry 2, holds 'None'"), ('[true, false]', 'a.json', "a.json, entry 1, holds 'True'"),
    ('12', 'a.xlsx', "'.xlsx': use .npy, .txt, .csv"), ('12', 'forget', "ending ''")])
def test_files_that_say_nothing_clear(write, content, name, says): refused(write(content, name), says)


@pytest.mark.parametrize('array, says', [([12., 3.5], 'forget.npy: .*float64'), ([[12, 7]], 'forget.npy: .*flat'), ([898], 'forget.npy: .*outside'), ([4, 4], 'forget.npy: .*2 times'), (7, 'forget.npy: .*neither how many'), ([True], 'forget.npy: .*mask')])
def test_arrays_that_are_no_positions(tmp_path, array, says):
    np.save(tmp_path/'forget.npy', array)
    refused(tmp_path/'forget.npy', says)


@pytest.mark.parametrize('name', ['forget.pkl', 'forget.npy', 'forget.pt', 'forget.txt', 'forget.json'])
def test_nothing_is_unpickled(tmp_path, write, name):
    class Trap:
        def __reduce__(self): return open, (str(tmp_path/'marker'), 'w')
    import pickle
    with pytest.raises(ValueError): load_split('digits', forget=write(pickle.dumps(Trap()), name))
    assert not (tmp_path/'marker').exists()


# D13: all of one class

@pytest.fixture(scope='module')
def no_threes(): return load_split('digits', forget='class:3')


def test_all_of_a_class_is_gone(no_threes):
    assert gone_classes(no_threes) == [3] and 3 in no_threes.test.labels and len(no_threes.forget) == (LABELS == 3).sum()
    assert gone_classes(load_split('digits', forget=90)) == [] and gone_classes(load_split('digits', forget=['class:1', 'class:3'])) == [1, 3]
    assert gone_classes(load_split('digits', forget=np.union1d(np.flatnonzero(LABELS == 3), [0]))) == [3]


@pytest.mark.parametrize('forget, n', [('class:3', 1), (['class:3', 'class:8'], 2)])
@pytest.mark.parametrize('seed', range(4))
def test_another_class_is_tuned_on(forget, n, seed):
    split = load_split('digits', forget=forget)
    gone, tuning = gone_classes(split), tuning_split(split, 200, seed)
    assert len(gone_classes(tuning)) == n and not set(gone_classes(tuning)) & set(gone) and tuning.forget.labels.unique().tolist() == gone_classes(tuning)
    assert set(tuning.test.labels.tolist()) == set(range(10)) - set(gone)  # the class that is forgotten is held out, too
    places = lambda part: set(part.indices.tolist())
    assert not places(tuning.forget) & places(split.forget) and not places(tuning.test) & (places(tuning.train) | places(split.forget)) and len(tuning.test) == 200
    assert tuning.fingerprint == tuning_split(split, 200, seed).fingerprint


def test_other_classes_are_drawn_by_seed(no_threes): assert len({tuple(gone_classes(tuning_split(no_threes, 200, seed))) for seed in range(12)}) > 3


def test_a_class_and_some_others_is_no_request_for_a_class():
    forget = np.union1d(np.flatnonzero(LABELS == 3), np.flatnonzero(LABELS == 5)[:20])
    assert gone_classes(tuning_split(load_split('digits', forget=forget), 200)) == [] and len(tuning_split(load_split('digits', forget=forget), 200).forget) == len(forget)


def test_most_classes_leave_nothing_to_tune_on():
    with pytest.raises(ValueError, match='7 classes are forgotten and 3 are left'): tuning_split(load_split('digits', forget=[f'class:{i}' for i in range(7)]), 100)


def test_weights_of_the_classes_that_are_left():
    labels = torch.tensor([0, 0, 0, 2])
    assert class_weights(labels, 3, [1]).tolist() == pytest.approx([4 / 6, 0, 2]) and class_weights(labels, 4, [1, 3]).tolist() == pytest.approx([4 / 6, 0, 2, 0])
    assert torch.equal(class_weights(labels[labels != 1], 3, [1])[labels].mean(), torch.tensor(1.))  # 1 on average over the images
    assert torch.equal(class_weights(LABELS_T := torch.from_numpy(LABELS), 10), len(LABELS_T) / (10 * torch.bincount(LABELS_T).float()))  # bit for bit, where all are there


@pytest.mark.parametrize('gone', [[], [0], [3]])
def test_a_class_that_nobody_asked_to_forget_is_missed(gone):
    with pytest.raises(ValueError, match='class 1 has no training image.*drop the class'): class_weights(torch.tensor([0, 0, 2, 3]), 4, gone)


def test_a_weighted_training_without_the_class(no_threes):
    settings, model = Training(epochs=2, batch_size=64, lr=0.1, class_weights=True, augment=()), create_model('small', 10, 1, 8)
    with pytest.raises(ValueError, match='class 3 has no training image'): fit(model, no_threes.retain, settings)
    history = fit(model, no_threes.retain, settings, loss=cross_entropy(settings, no_threes.retain, gone_classes(no_threes)))
    assert np.isfinite(history[-1]['loss']) and history[-1]['loss'] < history[0]['loss']


class Says(torch.nn.Module):
    """A network that answers as it was told, one image at a time."""
    def __init__(self, answers): super().__init__(); self.answers, self.w = iter(answers), torch.nn.Parameter(torch.zeros(1))
    def forward(self, x): return torch.stack([torch.eye(3)[next(self.answers)] for _ in x]) + 0 * self.w


def test_accuracy_of_classes_that_stay_and_of_those_that_went():
    images = in_memory(np.zeros((6, 1, 4, 4), np.uint8), [0, 0, 1, 1, 2, 2])
    split = make_split(images, in_memory(np.zeros((8, 1, 4, 4), np.uint8), [0, 0, 0, 1, 1, 1, 1, 2], images), [4, 5], classes='abc')
    rates = accuracies(Says([0, 0, 1, 0] + [0, 2] + [0, 0, 1, 1, 1, 1, 1, 2]), split)
    assert rates == pytest.approx({'retain': 75, 'forget': 50, 'test': 87.5, 'test, kept': 600 / 7, 'test, gone': 100})
    assert set(rates) <= set(STYLES) == set(SAID)


@pytest.mark.parametrize('labels', [[0, 0, 1, 1], [2, 2, 2, 2]])
def test_a_test_set_of_one_kind_has_one_accuracy(labels):
    images = in_memory(np.zeros((6, 1, 4, 4), np.uint8), [0, 0, 1, 1, 2, 2])
    split = make_split(images, in_memory(np.zeros((4, 1, 4, 4), np.uint8), labels, images), [4, 5], classes='abc')
    assert set(accuracies(Says([0] * 10), split)) == {'retain', 'forget', 'test'}


def test_both_are_drawn():
    import pandas as pd
    rates = {'retain': 100., 'forget': 0., 'test': 88., 'test, kept': 98., 'test, gone': 0.}
    ax = plot_history(pd.DataFrame([rates, rates], index=['original', '1 erase']), rates)
    assert {'test (classes kept)', 'test (classes gone)'} <= {t.get_text().split(':')[0] for t in ax.get_legend().get_texts()}


# D14: options

@pytest.mark.parametrize('dataset, options, says', [
    ('digits', dict(image_size=32), 'digits takes no image_size=.*root, forget, seed, val, subset and copies.*its own options are mean, std; image_size belongs to folder, celeba'),
    ('digits', dict(sede=3), 'digits takes no sede='), ('folder', dict(attributes=('Male',)), 'folder takes no attributes=.*its own options are .*image_size.*attributes belongs to celeba'), ('celeba', dict(size=32), 'celeba takes no size=.*image_size, attributes, cache'),
    ('writers', dict(image_size=28), 'writers takes no image_size=')])
def test_options_of_another_data_set(dataset, options, says):
    with pytest.raises(ValueError, match=says): load_split(dataset, **options)


@pytest.mark.parametrize('dataset', ['folder', 'celeba'])
@pytest.mark.parametrize('size', [0, -8, (32, 32), '32', 32.5, True, np.int64(0), [32]])
def test_a_size_is_a_number_of_pixels(tree, dataset, size):
    with pytest.raises(ValueError, match=r'image_size is .*: use at least 1 pixel, one whole number'): load_split(dataset, root=tree, forget=1, image_size=size)


@pytest.mark.parametrize('size', [4, np.int64(4), np.uint8(4)])
def test_numbers_of_numpy_are_numbers(tree, size):
    assert load_split('folder', root=tree, forget=1, image_size=size).image_shape == (3, 4, 4)
    plain, numpys = (load_split('digits', forget=90, **{k: kind(v) for k, v in dict(val=50, subset=300, seed=2).items()}) for kind in (int, np.int64))
    assert plain.fingerprint == numpys.fingerprint


@pytest.mark.parametrize('option, value, says', [('val', '3', "val is '3': use a whole number"), ('val', -1, 'val is -1'), ('val', 2.5, 'val is 2.5'), ('val', True, 'val is True'), ('val', None, 'val is None'), ('val', 808, 'val is 808.*hold out 0 to 807'), ('val', (3,), r'val is \(3,\)'),
    ('seed', '3', "seed is '3': use a whole number, 0 or more"), ('seed', -1, 'seed is -1'), ('seed', 1.0, 'seed is 1.0'), ('subset', '300', "subset is '300': use a whole number, 2 or more"), ('subset', 1, 'subset is 1'), ('subset', 0, 'subset is 0: .*leave it out for all'), ('subset', False, 'subset is False'), ('subset', 0.5, 'subset is 0.5'), ('subset', 9999, 'subset is 9999.*2 to 898')])
def test_a_number_that_is_none(option, value, says):
    with pytest.raises(ValueError, match=says): load_split('digits', forget=90, **{option: value})


@pytest.mark.parametrize('options, says', [(dict(val='3'), "val is '3'"), (dict(val=50, seed=1.5), 'seed is 1.5')])
def test_the_same_for_tuning(options, says):
    with pytest.raises(ValueError, match=says): tuning_split(load_split('digits'), **options)


def test_a_loader_may_look_after_its_options(monkeypatch):
    seen = {}
    monkeypatch.setitem(load.SOURCES, 'mine', lambda root, **options: seen.update(options) or digits())
    assert len(load_split('mine', forget=5, colour='red', image_size=np.int64(8)).forget) == 5 and seen == dict(colour='red', image_size=8)
    with pytest.raises(ValueError, match='image_size is 0: use at least 1 pixel'): load_split('mine', image_size=0)


def test_a_text_is_no_tuple():
    with pytest.raises(ValueError, match=r"attributes is 'Male': write a tuple, \('Male',\)"): load_split('celeba', attributes='Male')


@pytest.mark.parametrize('dataset', ['cifar100', 5, None, ['digits']])
def test_an_unknown_data_set(dataset):
    with pytest.raises(ValueError, match='unknown data set .*digits, cifar10, cifar10n, folder'): load_split(dataset)


def test_subset_of_nothing_is_all(): assert load_split('digits', subset=None).fingerprint == load_split('digits').fingerprint


# D13 again: whoever trains on what is retained knows which class is gone

from unlearning.request import set_apart
from unlearning.study import Study, run_study
from unlearning.unlearn import Recipe, Repair, unlearn

WEIGHTED = Training(epochs=1, batch_size=64, lr=0.1, class_weights=True, augment=())


def test_a_weighted_recipe_without_the_class(no_threes):
    model = create_model('small', 10, 1, 8)
    student = unlearn(model, no_threes, Recipe(name='weighted', phases=(Repair(training=WEIGHTED),)))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), student.parameters()))


def test_a_weighted_study_without_the_class(no_threes, tmp_path):
    results = run_study(Study(no_threes, {'weighted': Recipe(name='weighted', phases=(Repair(training=WEIGHTED),))}, tmp_path, training=WEIGHTED, seeds=2, jobs=1), progress=False)
    assert not results.failures


def test_a_weighted_request_after_one_that_took_a_class(no_threes, tmp_path):
    """Of the class no image is left to weigh, and the network has its output still."""
    later, _ = set_apart(make_split(no_threes.train, no_threes.test, np.flatnonzero(no_threes.train.labels == 5)[:20], no_threes.classes),
                         np.flatnonzero(no_threes.train.labels == 3))
    assert gone_classes(later) == [] and untaught(later.retain, later) == untaught(no_threes.retain, no_threes) == [3]
    recipe = Recipe(name='weighted', phases=(Repair(training=WEIGHTED),))
    unlearn(create_model('small', 10, 1, 8), later, recipe)
    assert not run_study(Study(later, {'weighted': recipe}, tmp_path, training=WEIGHTED, seeds=2, jobs=1), progress=False).failures
    with pytest.raises(ValueError, match='class 3 has no training image'): fit(create_model('small', 10, 1, 8), later.retain, WEIGHTED)


@pytest.mark.parametrize('forget, val, says', [
    (90, 719, 'val is 719: 90 of the 808 retained images are forgotten in the tuning, so hold out 1 to 718'), (90, 0, 'val is 0: .* hold out 1 to 718'),
    (600, 100, 'val is 100: 600 of the 298 retained images .* none can be held out: forget fewer')])
def test_a_tuning_that_has_too_few_images_says_how_many_it_can_have(forget, val, says):
    with pytest.raises(ValueError, match=says): tuning_split(load_split('digits', forget=forget), val)


@pytest.mark.parametrize('table', ('index\n3,8,500\n', 'index\n1,204\n', 'why,index\nseen on page 3, 4,12\n'))
def test_a_row_with_more_cells_than_the_header_is_refused(table, tmp_path):
    """A cell was cut at its comma: less, or something else, would be forgotten."""
    (tmp_path/'gone.csv').write_text(table)
    with pytest.raises(ValueError, match='line 2, has . cells, and the header .: put quotes around'): load_split('digits', forget=tmp_path/'gone.csv')
