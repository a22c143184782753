"""What cannot work is refused before the work, by name and with the remedy; what goes badly says so. (Networks of other people: test_zoo.)"""
import copy, math, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from unlearning.check import Doubt, check, gradients, refuse_accuracy, tolerance
from unlearning.images import in_memory, make_split
from unlearning.load import load_split
from unlearning.methods.finetune import finetune
from unlearning.methods.gradient_surgery import gradient_surgery
from unlearning.methods.random_labels import RandomLabels, random_labels
from unlearning.methods.recipes import RECIPES
from unlearning.models import create_model
from unlearning.report import protocol
from unlearning.show import accuracies
from unlearning.study import Study, run_study
from unlearning.training import Training, fit, logits
from unlearning.unlearn import Erase, ForgetLoss, Freeze, NothingChanged, Recipe, Repair, RetainCollapse, follow, unlearn

BRIEF = Training(epochs=0.5, batch_size=64, lr=0.01, augment=())


@pytest.fixture(scope='module')
def split(): return load_split('digits', forget=90, subset=600)


@pytest.fixture(scope='module')
def original(split):
    model = create_model('small', 10, 1, 8)
    fit(model, split.train, Training(epochs=8, batch_size=64, lr=0.1, augment=()))
    return model


def small(classes=10, channels=1): return create_model('small', classes, channels, 8)


def then(*more): return nn.Sequential(small(), *more)


class Answer(nn.Module):
    """A network whose answer is made into something else."""
    def __init__(self, net, f):
        super().__init__()
        self.net, self.f = net, f
    def forward(self, x): return self.f(self.net(x))


class Dims(nn.Module):
    """Normalises by itself, in the place where the images lie."""
    def __init__(self):
        super().__init__()
        self.net = small()
    def forward(self, x): return self.net(x.sub_(0.5))


@pytest.mark.parametrize('model, says', [
    (lambda: then(nn.BatchNorm1d(10, track_running_stats=False)), 'depends on what else is in its batch'),
    (lambda: small().to('meta'), 'lies on the meta device'), (Dims, 'writes into the images that it is given'), (lambda: nn.Sequential(nn.ReLU(inplace=True), small()), 'writes into the images')])
def test_networks_that_spoil_what_is_measured(split, model, says):
    with pytest.raises(ValueError, match=says): check(model(), split)


# What the network answers (N9)

@pytest.mark.parametrize('model, says', [
    (small(7), '7 outputs, and the data set 10 classes'),
    (nn.Sequential(small(1), nn.Sigmoid()), '1 outputs, and the data set 10 classes'),
    (small(channels=3), 'refuses images of 1 × 8 × 8: its first layer is Conv2d(3'),
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), r'refuses images of 1 × 8 × 8: its first layer is Linear(in_features=784'),
    (then(nn.Softmax(1)), 'are probabilities'),
    (Answer(small(), lambda z: z[..., None, None]), 'flatten'),
    (Answer(small(), lambda z: z.mean(1)), '32'),
    (Answer(small(), lambda z: z * math.nan), 'not finite'),
    (Answer(small(), lambda z: z * math.inf), 'not finite'),
], ids=['7 of 10', 'sigmoid', '3 channels', 'pixels', 'probabilities', 'N x 10 x 1 x 1', 'no classes', 'nan', 'inf'])
def test_answers_that_are_not_logits(split, model, says):
    for look in (check, lambda m, s: unlearn(m, s, finetune(repair=BRIEF))):
        with pytest.raises(ValueError) as e: look(model, split)
        assert says in str(e.value)


class Views(nn.Module):
    """As an old tutorial flattens."""
    def __init__(self): super().__init__(); self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(288, 10)
    def forward(self, x): return self.fc(self.conv(x).view(-1, 288))


def test_a_view_of_what_lies_channels_last_is_named(split):
    colour = lambda part: in_memory(part.take(torch.arange(len(part))).expand(-1, 3, -1, -1), part.labels)
    with pytest.raises(ValueError, match=r'channels last.*\.flatten\(1\) or \.reshape in place of \.view$'):
        check(Views(), make_split(colour(split.train), colour(split.test), [0, 1]))


def test_a_checkpoint_that_computes_otherwise_is_not_called_reentrant(split):
    class Otherwise(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.fc, self.calls = nn.Conv2d(1, 8, 3), nn.Linear(8, 10), 0
        def half(self, x): self.calls += 1; return self.conv(x)[:, :, self.calls % 2:].relu()
        def forward(self, x): return self.fc(checkpoint(self.half, x, use_reentrant=False).mean((2, 3)))
    net = Otherwise()
    with pytest.raises(CheckpointError): gradients(net(torch.randn(2, 1, 8, 8)).sum(), list(net.parameters()))


def test_one_class_only(split):
    only = torch.where(split.train.labels == 3)[0]
    one = make_split(split.train[only], split.test, [0, 1], split.classes)
    with pytest.raises(ValueError, match='all training images are of one class'): check(small(), one)


def test_more_outputs_than_classes_are_no_fault(split):
    assert check(small(12), split).outputs == 12


def test_log_probabilities_are_logits_too(split):
    assert check(then(nn.LogSoftmax(1)), split).classes == 10


def test_a_sigmoid_for_each_class_has_a_word(split, original):
    with pytest.warns(Doubt, match='between 0 and 1.*before the sigmoid'): check(Answer(original, torch.sigmoid), split)
    small_logits = Answer(small(), lambda z: 0.01 * z.abs())
    for model, trained in ((original, True), (small_logits, False)):
        with warnings.catch_warnings():
            warnings.simplefilter('error', Doubt)
            check(model, split, trained=trained)


def test_the_accuracy_that_its_owner_states(split, original):
    seen = accuracies(original, split)['test']
    assert check(original, split, accuracy=seen).images == len(split.test)
    darker = replace(split, test=replace(split.test, mean=split.test.mean + 1))
    with pytest.raises(ValueError, match=r'% were stated: are mean, std'): check(original, darker, accuracy=seen)
    with pytest.raises(ValueError, match='accuracy is 0.87: write it in percent, 87'): check(original, darker, accuracy=0.87)


def test_a_stated_accuracy_is_believed_where_classes_take_turns():
    """Of ten, the network does not know two; of 5,000 images 2,000 are looked at."""
    def images(n):
        pixels, labels = np.zeros((n, 1, 8, 8), np.uint8), np.arange(n) % 10
        pixels.reshape(n, 64)[np.arange(n), labels] = 255
        pixels[:, 0, 7, 6], pixels[:, 0, 7, 7] = np.divmod(np.arange(n), 251)  # none is a copy
        return in_memory(pixels, labels)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(10 * torch.eye(10, 64))
        net[1].bias.copy_(torch.tensor([0., 0, 0, 0, -1e3, 0, 0, 0, 0, -1e3]))
    assert check(net, make_split(images(500), images(5000), np.arange(20)), accuracy=80.).test == pytest.approx(80, abs=3)


def test_a_stated_accuracy_is_of_the_same_images(split, original):
    """About one point is for rounding and another decoder; what is beyond half of it has a word."""
    seen = accuracies(original, split)['test']
    for off in (1.2, -1.2, 5):
        with pytest.raises(ValueError, match=rf'right on {seen:.1f} % of 899 test images, and {seen - off:.1f} % were stated'): check(original, split, accuracy=seen - off)
    for off in (0.7, -0.7):
        with pytest.warns(Doubt, match=rf'right on {seen:.1f} % of 899 test images, and {seen - off:.1f} % were stated'): check(original, split, accuracy=seen - off)
    with warnings.catch_warnings():
        warnings.simplefilter('error', Doubt)
        check(original, split, accuracy=seen + 0.4)


def test_a_sample_of_test_may_differ_by_chance():
    """400 images, all there are, or drawn from 10,000; 40, of which one may be decided otherwise."""
    for seen, n, of, fits in (90, 400, 400, True), (91.1, 400, 400, False), (93, 400, 10_000, True), (96, 400, 10_000, False), (91.1, 2000, 2001, False), (92.5, 40, 40, True), (95, 40, 40, False):
        if fits: refuse_accuracy(seen, 90, n, of)
        else:
            with pytest.raises(ValueError, match='90.0 % were stated'): refuse_accuracy(seen, 90, n, of)
    rng = np.random.default_rng(0)
    right = np.arange(10_000) < 9_000
    drawn = [100 * rng.choice(right, 2_000, replace=False).mean() for _ in range(1_000)]
    assert max(abs(d - 90) for d in drawn) < tolerance(90, 2_000, 10_000) < 3


# Types (N10)

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_inputs_follow_the_network(split, original, dtype):
    model = copy.deepcopy(original).to(dtype)
    assert check(model, split).dtype == str(dtype).removeprefix('torch.')
    assert (logits(model, split.test).argmax(1) == logits(original, split.test).argmax(1)).float().mean() > 0.98
    for recipe in (finetune(repair=BRIEF), RECIPES['digits']['gradient_surgery'], RECIPES['digits']['activation_pruning'], RECIPES['digits']['boundary']):
        done = unlearn(model, split, recipe)
        assert all(p.dtype == dtype for p in done.parameters()) and logits(done, split.test).isfinite().all()


def test_half_precision_can_be_looked_at_and_not_trained(split, original):
    model = copy.deepcopy(original).half()
    assert abs(accuracies(model, split)['test'] - accuracies(original, split)['test']) < 1
    with pytest.raises(ValueError, match=r'train network.float\(\), and call .half'): unlearn(model, split, finetune(repair=BRIEF))
    with pytest.raises(ValueError, match=r'train network.float\(\), and call .half'): unlearn(model, split, Recipe(name='up', phases=gradient_surgery().phases[:1]))


# Batches that batch norm cannot take (N11)

def few(split, n, forget): return make_split(split.train[:n], split.test, list(range(forget)), split.classes)


@pytest.mark.parametrize('n, forget, batch', [(11, 10, 64), (10, 9, 64), (600, 90, 1)], ids=['1 retained', '1 of 10', 'batch size 1'])
def test_batches_of_one_image(split, n, forget, batch):
    with pytest.raises(ValueError, match='batch norm cannot train on a batch of 1 image: use a batch size of 2 or more'):
        unlearn(small(), few(split, n, forget), finetune(repair=replace(BRIEF, batch_size=batch)))


def test_one_image_to_forget_in_train_mode(split):
    one, recipe = few(split, 600, 1), random_labels(erase=dict(batch_size=59, lr=1e-3, train=True), repair=BRIEF)
    with pytest.raises(ValueError, match=r'batch of 1 image.*change\(Erase, train=False\)'): unlearn(small(), one, recipe)
    unlearn(small(), one, recipe.change(Erase, train=False))  # in eval mode a batch of one is as good as any


def test_two_images_are_enough(split):
    unlearn(small(), few(split, 12, 10), finetune(repair=replace(BRIEF, batch_size=2)))


def test_networks_without_batch_norm_take_one_image(split):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    unlearn(plain, few(split, 11, 10), finetune(repair=BRIEF))


# What its owner froze

def frozen_stem(model):
    for part in model[:3]: part.requires_grad_(False)
    return model


@pytest.mark.parametrize('name', ['finetune', 'gradient_surgery', 'random_labels', 'scrub', 'soft+surgery+pruning'])
def test_what_is_frozen_stays_statistics_included(split, original, name):
    model = frozen_stem(copy.deepcopy(original))
    before = {k: v.clone() for k, v in model[:3].state_dict().items()}
    done = unlearn(model, split, RECIPES['digits'][name])
    after = {k: v for k, v in done.state_dict().items() if k.startswith(('0.', '1.'))}
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    assert not torch.equal(done[-1].weight, model[-1].weight)


@pytest.mark.parametrize('recipe', ['finetune', 'soft_relabeling', 'activation_pruning'])
def test_the_mode_of_a_network_decides_nothing(split, original, recipe):
    """Everybody leaves a network in eval mode, or some of it; a wrapper around it is in train mode."""
    mixed, wrapped = copy.deepcopy(original).train(), nn.Sequential(copy.deepcopy(original).eval(), nn.Identity())
    mixed[1].eval()
    plain, *others = (unlearn(net, split, RECIPES['digits'][recipe], seed=1) for net in (original, mixed, wrapped))
    for other in others: assert torch.equal(logits(plain, split.test), logits(other, split.test))
    assert not mixed[1].training and mixed.training and wrapped.training and not wrapped[0].training  # looked at, not touched


def test_a_frozen_backbone_without_weights_in_its_norms(split):
    """Statistics move in no part of which every parameter is frozen."""
    backbone = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU()).requires_grad_(False)
    model = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    for recipe in (finetune(repair=BRIEF), RECIPES['digits']['soft_relabeling']):
        done = unlearn(model, split, recipe)
        assert all(torch.equal(v, done[0].state_dict()[k]) for k, v in backbone.state_dict().items()) and not torch.equal(done[-1].weight, model[-1].weight)


def test_everything_frozen_is_refused(split, original):
    with pytest.raises(ValueError, match='no gradient reaches a weight'):
        unlearn(copy.deepcopy(original).requires_grad_(False), split, finetune(repair=BRIEF))


# Copies

def test_tensors_kept_between_calls(split):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.last = small(), None
        def forward(self, x):
            self.last = self.net(x)
            return self.last

    model = Keeps()
    logits(model, split.test)
    assert not model.last.is_inference()
    model.train()(next(iter(split.test.images.float().split(8)))).sum()  # now it keeps a tensor with a history
    done = unlearn(model, split, finetune(repair=BRIEF))
    fit(done, split.retain, BRIEF)  # nothing that was left behind stops a training


def test_a_copy_that_uses_the_original(split):
    class Knot(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()
            self.run = lambda x: self.net(x)
        def forward(self, x): return self.run(x)

    with pytest.raises(ValueError, match="uses? the original's|using the original's|cannot be copied"):
        unlearn(Knot(), split, finetune(repair=BRIEF))


def test_a_network_that_cannot_be_copied(split):
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()
        def forward(self, x): return self.net(x)
        def __deepcopy__(self, memo): raise TypeError('cannot pickle a lock')

    with pytest.raises(ValueError, match='Locked'): unlearn(Locked(), split, finetune(repair=BRIEF))


# Ends that are no networks (N15), and ends that cost too much (N16)

@pytest.mark.parametrize('erase', [dict(batch_size=90, lr=1e30), dict(batch_size=90, passes=3, lr=1e30), dict(batch_size=90, lr=math.inf)])
def test_erasing_that_ends_in_no_numbers(split, original, erase):
    recipe = gradient_surgery(erase=erase, repair=BRIEF, repair_first=True)
    for go in (unlearn, follow):
        with pytest.raises(FloatingPointError, match='learning rate|has diverged'): go(original, split, recipe)


def test_an_original_that_is_no_network(split, original):
    model = copy.deepcopy(original)
    with torch.no_grad(): model[-1].weight.fill_(math.nan)
    for go in (unlearn, follow):
        with pytest.raises(ValueError, match='the original network answers'): go(model, split, finetune(repair=BRIEF))


def test_accuracy_of_no_numbers_is_no_accuracy(split, original):
    model = copy.deepcopy(original)
    with torch.no_grad(): model[-1].bias[0] = math.nan
    with pytest.raises(FloatingPointError, match='not finite'): accuracies(model, split)


@pytest.mark.parametrize('name', ['random_labels', 'scrub'])
def test_collapse_has_a_word(split, original, name):
    """The paper's settings are for another network."""
    with pytest.warns(RetainCollapse, match=rf"'{name}' took the accuracy on retained images from \d+.\d to \d+.\d %"):
        unlearn(original, split, RECIPES['paper'][name])
    with warnings.catch_warnings():
        warnings.simplefilter('error', RetainCollapse)
        with pytest.raises(RetainCollapse): unlearn(original, split, RECIPES['paper'][name])


def test_what_costs_little_is_silent(split, original):
    with warnings.catch_warnings():
        warnings.simplefilter('error', RetainCollapse)
        unlearn(original, split, RECIPES['digits']['finetune'])


def test_a_study_says_what_collapsed(split, original, tmp_path):
    recipes = dict(wild=RECIPES['paper']['random_labels'], mild=RECIPES['digits']['finetune'])
    results = run_study(Study(split, recipes, tmp_path, original=original, training=BRIEF, seeds=2, permutations=2, jobs=1), progress=False)
    assert results.facts['collapsed'] == ['wild'] and 'Under wild networks lost much of their accuracy on retained images, on average.' in protocol(results)


@pytest.mark.parametrize('bad, says', [
    (lambda: finetune(repair=replace(BRIEF, optimizer='adam')), "unknown optimizer 'adam'"), (lambda: finetune(repair=replace(BRIEF, schedule='linear')), "unknown schedule 'linear'"),
    (lambda: finetune(repair=replace(BRIEF, precision='bf16')), "unknown precision 'bf16'"), (lambda: finetune(repair=replace(BRIEF, epochs=0)), '0 epochs'),
    (lambda: finetune(repair=replace(BRIEF, epochs='1.5')), "epochs is '1.5', a str"), (lambda: random_labels(erase=dict(lr='0.1')), "lr is '0.1', a str"), (lambda: random_labels(erase=dict(passes=0)), '0 passes'), (lambda: random_labels(erase=dict(lr=0)), 'at rate 0'),
    (lambda: Recipe(name='x', phases=(Erase(forget=RandomLabels),)), 'pass a ForgetLoss'), (lambda: Recipe(name='x', phases=Repair(training=BRIEF)), 'pass a tuple')])
def test_a_recipe_is_refused_when_it_is_written_down(bad, says):
    with pytest.raises(ValueError, match=says): bad()


def test_what_gives_no_loss(split):
    class Odd(ForgetLoss):
        def __call__(self, run, forget, retain): return None
    with pytest.raises(ValueError, match='a loss gave None'): unlearn(small(), split, Recipe(name='odd', phases=(Erase(forget=Odd()),)))
    with pytest.raises(ValueError, match="the recipe is 'surgery'"): unlearn(small(), split, 'surgery')
    with pytest.raises(ValueError, match="a repair on 'val': the split has train"): unlearn(small(), split, Recipe(name='v', phases=(Repair(training=BRIEF, part='val'),)))


@pytest.mark.parametrize('model, says', [
    (lambda: torch.jit.script(small()), 'before torch.jit'), (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), 'call it once on a batch'),
    (lambda: Answer(small(), lambda z: (z.repeat(1, 3), z)), 'which are the logits')])
def test_networks_that_are_not_ready(split, model, says):
    with pytest.raises((ValueError, TypeError), match=says): unlearn(model(), split, finetune(repair=BRIEF))


def test_a_hook_on_a_parameter_would_be_lost(split):
    model = small()
    model[-1].weight.register_hook(lambda g: 0 * g)
    with pytest.raises(ValueError, match=r"hook on its parameter '8.weight'"): unlearn(model, split, finetune(repair=BRIEF))


def test_whoever_calls_without_gradients(split, original):
    want = logits(unlearn(original, split, finetune(repair=BRIEF)), split.test)
    for off in (torch.no_grad, torch.inference_mode):
        with off(): got = unlearn(original, split, finetune(repair=BRIEF))
        assert torch.equal(logits(got, split.test), want)


def test_threads_that_unlearn_take_turns(split):
    """torch has one random state a process, from which dropout draws."""
    model = nn.Sequential(small()[:6], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 10))
    before = torch.get_rng_state()
    want = logits(unlearn(model, split, finetune(repair=BRIEF), seed=1), split.test)
    with ThreadPoolExecutor(4) as pool: got = list(pool.map(lambda _: logits(unlearn(model, split, finetune(repair=BRIEF), seed=1), split.test), range(4)))
    assert all(torch.equal(z, want) for z in got) and torch.equal(torch.get_rng_state(), before)


def test_held_layers_keep_their_statistics(split, original):
    done = unlearn(original, split, replace(finetune(repair=BRIEF), constraints=(Freeze(['0.', '1.']),)))
    assert all(torch.equal(v, done[1].state_dict()[k]) for k, v in original[1].state_dict().items())


def test_nothing_to_hold_is_refused(split, original):
    with pytest.raises(ValueError, match='names is empty'):
        unlearn(original, split, replace(finetune(repair=BRIEF), constraints=(Freeze(()),)))


def test_a_phase_that_moves_nothing_says_so(split, original):
    with pytest.warns(NothingChanged, match="'repair' of 'finetune' moved no weight"):
        unlearn(original, split, replace(finetune(repair=BRIEF), constraints=(Freeze(('',)),)))


def test_refusals_come_before_the_work(split, original, monkeypatch):
    def work(*args, **kw): raise AssertionError('work has begun')
    monkeypatch.setattr(sys.modules['unlearning.unlearn'], 'fit', work)
    with pytest.raises(ValueError, match='7 outputs'): unlearn(small(7), split, finetune(repair=BRIEF))
    with pytest.raises(AssertionError, match='work has begun'): unlearn(original, split, finetune(repair=BRIEF))


class Drops(nn.Module):
    """Functional dropout, which goes on in eval mode unless it is told."""
    def __init__(self, told): super().__init__(); self.told, self.f, self.fc = told, nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 10)
    def forward(self, x): return self.fc(F.dropout(self.f(x), 0.5, training=self.training or not self.told))


def test_a_network_that_draws_in_eval_mode_is_refused():
    split = load_split('digits', forget=20, subset=200)
    check(Drops(True), split, trained=False)
    with pytest.raises(ValueError, match='otherwise from call to call, in eval mode.*training=self.training'): check(Drops(False), split, trained=False)


def test_weights_of_eight_bits_are_doubted():
    split = load_split('digits', forget=20, subset=200)
    with pytest.warns(Doubt, match='bfloat16, in which steps below 0.2 % of a weight vanish'): check(create_model('small', 10, 1, 8).bfloat16(), split, trained=False)
