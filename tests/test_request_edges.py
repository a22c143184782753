"""The edges of a request: what an ImageFolder may hold and a list may name, few images and many, what `auto` may find."""
import json
import os
import pickle
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from unlearning import request
from unlearning.methods.budget import WITHIN, Budget
from unlearning.auto import DIVERGED, RANGES, LEAST_HARM, NO_TRIAL, NO_USE, TOO_COSTLY, UNSTEADY, Even, Found, _chosen, refuse_even, starts, _table
from unlearning.check import ask
from unlearning.datasets.yours import PlainFolder, from_dataset
from unlearning.images import in_memory, make_split
from unlearning.load import load_split
from unlearning.manifest import make_key
from unlearning.methods.activation_pruning import activation_pruning
from unlearning.methods.finetune import finetune
from unlearning.metrics.evidence import FOUND, NONE, UNDECIDABLE
from unlearning.models import create_model
from unlearning.request import Request, build, choose, limits, look, make_example, refusal, report, run, run_request, source_of, weigh
from unlearning.training import Training, logits
from unlearning.unlearn import Edit, NothingChanged, Recipe
from unlearning.weights import load_weights


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


@pytest.mark.parametrize('kind, what', [(sixteen, 'scaled to 8 bits'), (clear, 'shown over white'), (turned, 'turned upright')])
def test_pictures_that_torchvision_shows_otherwise_are_told(photos, kind, what):
    """Whoever trained through its ImageFolder has to know."""
    picture, ending, more = kind(0)
    picture.save(photos / f'train/cat/odd.{ending}', **more)
    with pytest.warns(UserWarning, match=f'1 of 9 images in .*train are not decoded as torchvision.*: 1 {what}.* by module:function'): asked(photos)


@pytest.mark.parametrize('mode, ending', [
    ('RGB', 'png'), ('RGB', 'jpg'), ('RGB', 'bmp'), ('RGB', 'webp'), ('L', 'png'), ('L', 'jpg'), ('P', 'png'), ('1', 'png'), ('CMYK', 'jpg')])
def test_usual_pictures_have_the_pixels_that_torchvision_gives(tmp_path, mode, ending):
    (tmp_path / 'cat').mkdir()
    for i in range(3): colours(np.random.default_rng(i)).convert(mode).save(tmp_path / 'cat' / f'{i}.{ending}')
    for (ours, _), (theirs, _) in zip(folder := PlainFolder(tmp_path), ImageFolder(tmp_path), strict=True):
        assert ours.mode == theirs.mode and ours.tobytes() == theirs.tobytes()
    assert not folder.otherwise


@pytest.mark.parametrize('part', ['train', 'test'])
def test_a_class_without_images_is_named_with_its_folder(photos, part):
    for file in (photos / part / 'dog').iterdir(): file.unlink()
    with pytest.raises(ValueError, match=f'{part} needs a subfolder with images for each class: .*dog'): asked(photos)


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


# Few images and many

TRAINING = Training(epochs=8, batch_size=32, lr=0.05, augment=(), label_smoothing=0., precision='float32')
NEXT_TO_NOTHING = finetune(repair=replace(TRAINING, epochs=0.04, lr=1e-9))


def test_an_image_is_known_among_bytes_and_floats():
    split = load_split('digits', forget=9)
    learned, test = split.train.images[:8], split.test.images / 255
    floats = torch.cat([test, learned / 255, learned * (1 / 255), test[:5] * (255 / 255.1)])  # the last are other images
    images = replace(split.test, source=floats, rows=None, labels=torch.zeros(len(floats), dtype=torch.int64), indices=torch.arange(len(floats)))
    r = SimpleNamespace(split=replace(split, test=images), earlier=None)
    assert len(request.unknown(r)) == len(test) + 5
    assert len(request.once(images)) == len(request.once(split.test)) + 8 + 5


@pytest.mark.parametrize('kept, copies, unseen', [((920, 120), 1, (10, 490)), ((30, 30), 15, (250, 250))])
def test_a_network_that_has_learned_nothing_shows_no_trace(kept, copies, unseen):
    """Nor where unseen images are of other proportions, or retained ones were copied."""
    def images(counts, copies=1):
        labels, pixels = np.repeat([0, 1], counts), rng.integers(0, 256, (sum(counts), 1, 4, 4)).astype(np.uint8)
        return in_memory(np.repeat(pixels, copies, axis=0), np.repeat(labels, copies))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        net, train = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), images(kept, copies)
        split = make_split(train, images(unseen), np.r_[:20, len(train) - 20:len(train)])
        with pytest.raises(Even): refuse_even(net, split, split.test)


def test_twelve_images_decide_nothing_and_two_hundred_show_that_nothing_was_done(tmp_path):
    given = make_example(tmp_path, epochs=8)
    source = source_of(given['train'], given['test'], given['size'], given['mean'], given['std'])
    found = {}
    for n in (12, 200):
        split = load_split(source, forget=n)
        r = Request(load_weights(build(given['builder'], 10), given['checkpoint']), split, TRAINING, NEXT_TO_NOTHING, max_test_drop=50.)
        for step in (look, limits, choose, run, weigh): step(r)
        found[n] = report(r)
    assert found[200]['verdict']['word'] == FOUND and found[200]['limits']['smallest_share'] < 100
    assert found[12]['verdict']['word'] == UNDECIDABLE and found[12]['limits']['smallest_share'] > 100
    assert '12 forgotten images would not show it' in found[12]['verdict']['sentence'] and 'too few to tell' in found[12]['limits']['says']


@pytest.mark.slow
def test_two_hundred_images_of_a_torchvision_network_are_found_and_less_of_them_after(tmp_path):
    """As a stranger brings it: ResNet-18, which has learned 500 images."""
    given = make_example(tmp_path, n=500, epochs=10, builder='resnet18')
    source, left = source_of(given['train'], given['test'], given['size'], given['mean'], given['std']), {}
    for n, recipe, words in ((12, NEXT_TO_NOTHING, {UNDECIDABLE}), (200, NEXT_TO_NOTHING, {FOUND}), (200, 'soft_unseen', {FOUND, NONE, UNDECIDABLE})):
        net = load_weights(build('resnet18', 10), given['checkpoint'])
        r = Request(net, load_split(source, forget=n), replace(TRAINING, epochs=10), recipe, budget=25., max_test_drop=50.)
        for step in (look, limits, choose, run, weigh): step(r)
        left[n, recipe] = abs(r.facts['evidence']['after']['auc'][0] - 50)
        assert r.verdict.word in words
    assert left[200, 'soft_unseen'] < 0.8 * left[200, NEXT_TO_NOTHING]


# What a search may find

def trials(*rows):
    "A table as `auto` makes it: round, trace, points of accuracy lost, why it is out."
    rows = [dict(round=k, method='finetune', trace=left, lost=lost, price=left and left + 10 * max(0., lost), out=out, numbers={}) for k, left, lost, out in rows]
    return _table(rows)


@pytest.mark.parametrize('rows, at, word', [
    ([(1, 80., 0.5, ''), (1, 60., 0.5, ''), (2, 60., 0.5, ''), (2, 50., 0.4, '')], 3, ''),
    ([(1, 80., 0.5, ''), (1, 60., 0.5, ''), (2, 60., 1.5, TOO_COSTLY), (2, 50., 2.5, TOO_COSTLY)], 2, UNSTEADY.format(2, 1., 1.5)),
    ([(1, 80., 0.5, ''), (1, 120., 0., ''), (2, 99., 0.5, ''), (2, 110., 0., '')], 2, NO_USE.format(2, 1.)),
    ([(1, 80., 7., TOO_COSTLY), (1, 90., 3., TOO_COSTLY), (1, None, None, 'diverged')], 1, LEAST_HARM.format(3, 1., 3.)),
    ([(1, 140., -0.9, ''), (1, 80., 0.5, ''), (1, 90., -0.5, ''), (1, 40., -1.2, TOO_COSTLY), (2, None, None, 'diverged'), (2, None, None, 'diverged')],
     2, DIVERGED.format(4, 1., -0.5))])
def test_why_what_a_search_has_found_should_not_be_used(rows, at, word): assert _chosen(trials(*rows), 1.) == (at, word)


@pytest.mark.parametrize('method', RANGES)
def test_a_search_begins_with_numbers_that_its_method_takes_and_its_ranges_hold(method):
    budget = Budget(load_split('digits', forget=30, subset=300), TRAINING, 0.3)
    for start in starts(method):
        assert all(RANGES[method][name]._contains(RANGES[method][name].to_internal_repr(value)) for name, value in start.items())
        assert WITHIN[method](budget, **start).phases


def test_a_search_of_which_no_trial_came_to_an_end():
    table = trials((1, None, None, 'diverged'), (1, None, None, 'diverged'), (1, None, None, 'does not fit into the budget'))
    with pytest.raises(ValueError) as e: _chosen(table, 1.)
    assert str(e.value) == NO_TRIAL.format(3, 'diverged, does not fit into the budget')


def never_trained():
    torch.manual_seed(0)
    return create_model('small', 10, 1, 8).eval()


@pytest.fixture
def digits():
    "A request of a network that was never trained; what it remembers is of no concern here."
    split = load_split('digits', forget=30, subset=300)
    return lambda recipe=NEXT_TO_NOTHING, **more: Request(never_trained(), split, TRAINING, recipe, max_test_drop=100., **more)


@pytest.mark.parametrize('wrong', (False, True))
def test_a_request_that_no_unseen_image_is_like_is_refused_by_name(wrong):
    split = load_split('digits', forget=30, subset=300)
    without = replace(split, test=split.test[np.flatnonzero(split.test.labels != 3)])
    threes = make_split(without.train, without.test, np.flatnonzero(split.train.labels == 3)[:9])
    with pytest.raises(ValueError, match='no unseen image is of the classes of those that must go: name'):
        look(Request(never_trained(), threes, TRAINING, NEXT_TO_NOTHING, max_test_drop=100., wrong_labels=wrong))


def test_what_a_search_warns_of_is_not_handed_over(digits, tmp_path, monkeypatch):
    r, word = digits('auto'), UNSTEADY.format(12, 1., 1.5)
    monkeypatch.setattr(request, 'auto', lambda *args, **options: Found(NEXT_TO_NOTHING, {}, trials((1, 60., 0.5, ''), (2, 60., 1.5, TOO_COSTLY)), 0., word))
    out = run_request(r, tmp_path / 'answer', make_key(tmp_path / 'owner.key', tmp_path / 'answer'))
    assert refusal(r, SimpleNamespace(value=0.)) == word == json.loads((out / 'report.json').read_text())['refused']
    assert {p.name for p in out.iterdir()} == {'report.json', 'report.html', 'manifest.json', 'SHA256SUMS'}
    assert 'No weights are handed over' in (text := (out / 'report.html').read_text()) and word[1:] in text


@pytest.mark.parametrize('wrong, says', [
    (dict(seed=1.5), 'seed is 1.5, a float: pass a whole number'), (dict(accuracy='91'), "accuracy is '91', a str: pass a number or None"),
    (dict(wrong_labels='no'), "wrong_labels is 'no', a str"), (dict(id=7), 'id is 7, a int'), (dict(references=True), 'references is True, a bool')])
def test_a_request_with_a_setting_of_another_type_is_refused_by_name(digits, wrong, says):
    with pytest.raises(ValueError, match=says): digits(**wrong)


class Still(Edit):
    def images(self, split): return 0
    def edit(self, run): return 0


def test_weights_that_nothing_changed_are_not_handed_over(digits, tmp_path):
    still = Recipe(name='still', phases=(Still(),))
    with pytest.warns(NothingChanged): out = run_request(digits(still), tmp_path / 'answer', make_key(tmp_path / 'owner.key', tmp_path / 'answer'))
    assert 'changed no weight' in json.loads((out / 'report.json').read_text())['refused'] and not list(out.glob('unlearned*'))


def test_a_search_without_a_trace_ends_in_a_report(digits, tmp_path):
    """Whoever asked gets an answer, not an error."""
    out = run_request(digits('auto'), tmp_path / 'answer', make_key(tmp_path / 'owner.key', tmp_path / 'answer'))
    facts, text = json.loads((out / 'report.json').read_text()), (out / 'report.html').read_text()
    assert 'there is no trace by which a recipe could be chosen. Name one' in facts['refused'] and not list(out.glob('unlearned*'))
    assert facts['verdict']['word'] == UNDECIDABLE and facts['recipe']['trials'] == [] and facts['cost']['percent_of_search'] == 0
    assert 'No weights are handed over' in text and 'Finetune, in want of a trace to search by' in text


# What is handed over, elsewhere

SERVED = '''
import sys
sys.modules['unlearning'] = None
import torch
program = torch.export.load({!r}).module()
with torch.no_grad(): torch.save(program(torch.load({!r}, weights_only=True)), {!r})
'''


def test_a_program_answers_as_measured_where_this_library_is_not(digits, tmp_path):
    r = digits(activation_pruning(last=0.9, repair=replace(TRAINING, epochs=0.4), rounds=1))
    out = run_request(r, tmp_path / 'answer', make_key(tmp_path / 'owner.key', tmp_path / 'answer'))
    x, z = tmp_path / 'x.pt', tmp_path / 'z.pt'
    torch.save(r.unseen.normalize(r.unseen.take(torch.arange(64)).float() / 255), x)
    subprocess.run([sys.executable, '-I', '-c', SERVED.format(str(out / 'unlearned.pt2'), str(x), str(z))], check=True)
    served, own = torch.load(z, weights_only=True), logits(r.unlearned, r.unseen[:64])
    assert (served - own).abs().max() <= 1e-5 * own.abs().max().clamp(min=1) and torch.equal(served.argmax(1), own.argmax(1))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_program_of_another_precision_is_compared(dtype, digits, tmp_path):
    r = digits()
    r.unlearned = never_trained().to(dtype)
    request._write_program(r, tmp_path / 'unlearned.pt2')


def test_a_program_of_other_weights_is_not_handed_over(digits, tmp_path, monkeypatch):
    def other(net, path, x):
        with torch.no_grad(): next(net.parameters()).add_(0.5)
        export(net, path, x)
    r = digits()
    r.unlearned, export = never_trained(), request.export
    monkeypatch.setattr(request, 'export', other)
    with pytest.raises(RuntimeError, match='nothing is handed over'): request._write_program(r, tmp_path / 'unlearned.pt2')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_a_program_made_on_a_gpu_answers_where_there_is_none(tmp_path):
    split = load_split('digits', forget=30, subset=300).to('cuda')
    recipe = activation_pruning(last=0.9, repair=replace(TRAINING, epochs=0.4), rounds=1)
    r = Request(never_trained().cuda(), split, TRAINING, recipe, max_test_drop=100.)
    out = run_request(r, tmp_path / 'answer', make_key(tmp_path / 'owner.key', tmp_path / 'answer'))
    x, z = tmp_path / 'x.pt', tmp_path / 'z.pt'
    torch.save(r.unseen.normalize(r.unseen.take(torch.arange(64, device='cuda')).float() / 255).cpu(), x)
    subprocess.run([sys.executable, '-I', '-c', SERVED.format(str(out / 'unlearned.pt2'), str(x), str(z))], check=True, env=os.environ | {'CUDA_VISIBLE_DEVICES': ''})
    own = logits(r.unlearned, r.unseen[:64])
    assert (torch.load(z, weights_only=True) - own).abs().max() <= 1e-2 * own.abs().max().clamp(min=1)


class OfSize(nn.Module):
    "A network whose answers depend on the size of a batch, as those of a GPU do in the last digits."
    def __init__(self): super().__init__(); self.net = never_trained()
    def forward(self, x): return self.net(x) + 0.01 * len(x)


def test_a_program_is_compared_in_batches_of_its_own_size(digits):
    r, served = digits(), OfSize().eval()
    r.unlearned = OfSize().eval()
    request.refuse_other(r, served, program=True)
    with torch.no_grad(): next(served.parameters()).add_(0.5)
    with pytest.raises(RuntimeError, match='nothing is handed over'): request.refuse_other(r, served, program=True)


# What is killed while references are made

def train_nothing(keep, seed):
    "A training function: the network that was never trained, a little off. It notes in the current folder what it made."
    if Path('kill').exists() and seed == 2: killed()
    Path(f'made-{seed}').mkdir()  # a second time is an error
    net = never_trained()
    with torch.no_grad(): next(net.parameters()).add_(1e-4 * (seed + 1))
    return net


def killed(): os.kill(os.getpid(), signal.SIGKILL)


def half_of_the_third(weights, path, facts):
    if '-2.safetensors' not in str(path): return save_file(weights, path, facts)
    Path(path).write_bytes(save(weights, facts)[:9999])
    killed()


def rename_but_the_third(part, path):
    if '-2.safetensors' in str(path): killed()
    os.rename(part, path)


DEATHS = {
    'in training': lambda patch: Path('kill').touch(),
    'while it is written': lambda patch: patch.setattr('unlearning.weights.save_file', half_of_the_third),
    'before it has its name': lambda patch: patch.setattr('unlearning.files.os.replace', rename_but_the_third)}


@pytest.mark.parametrize('when', DEATHS)
def test_a_reference_that_was_killed_is_made_again_and_no_other(digits, tmp_path, monkeypatch, when):
    monkeypatch.chdir(tmp_path)
    r = digits(references=4, train=train_nothing)
    torch.set_num_threads(1)  # a forked child has no other threads to wait for
    if (child := os.fork()) == 0:
        signal.alarm(120)  # of another kind, and the test fails
        try:
            DEATHS[when](monkeypatch)
            request._by_owner(r, 'references')
        finally: os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    whole = {path: path.read_bytes() for path in Path('references').glob('*.safetensors')}
    assert sorted(path.name[-14:] for path in whole) == ['-0.safetensors', '-1.safetensors']
    for left in ('kill', 'made-2'):
        if Path(left).exists(): Path(left).rename(f'{left}-before')
    again = [request._by_owner(r, 'references') for _ in range(2)]
    assert [p.name for p in sorted(Path().glob('made-?'))] == ['made-0', 'made-1', 'made-2', 'made-3']
    assert all(path.read_bytes() == content for path, content in whole.items())
    for networks in again: assert [round(1e4 * (next(net.parameters()) - next(r.model.parameters())).mean().item()) for net in networks] == [1, 2, 3, 4]


def test_a_request_reads_its_folders_as_the_folder_source_does(photos, tmp_path):
    clean = asked(photos)
    litter(photos)
    (tmp_path / 'alike').mkdir()
    for name in ('cat', '.ipynb_checkpoints'): (photos / 'test' / name).rename(tmp_path / 'alike' / name)
    Image.fromarray(np.full((8, 8), 20000, np.uint16)).save(tmp_path / 'alike/cat/4.png')
    alike = request.comparable_images(str(tmp_path / 'alike'), clean, 8, [0.5] * 3, [0.5] * 3)
    assert alike.images.amax((1, 2, 3))[4] == 78 and len(alike) == 5  # of 65,535 as bytes
    (tmp_path / 'alike/cat').rename(photos / 'test/cat')
    read = asked(photos)
    assert read.classes == clean.classes and read.paths == clean.paths and torch.equal(read.train.images, clean.train.images)
    assert len(read.test) == 9
