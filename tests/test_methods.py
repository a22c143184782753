"""Every recipe, whole: each phase changes what it should and nothing else. Then the pieces, against plain references."""
import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from unlearning.images import Images
from unlearning.load import load_split
from unlearning.methods import recipes
from unlearning.methods.activation_pruning import PruneActivations
from unlearning.methods.boundary import fgsm, nearest_other_class
from unlearning.methods.gradient_surgery import Ascend, OrthogonalToRetain, dot
from unlearning.methods.random_labels import random_other_labels
from unlearning.methods.scrub import AwayFromTeacher, distillation
from unlearning.methods.soft_relabeling import SoftRelabel, soft_targets
from unlearning.models import create_model
from unlearning.weights import load_weights, save_weights
from unlearning.activations import watch_activations
from unlearning.training import Training, fit, logits
from unlearning.unlearn import Descend, Erase, Freeze, Recipe, Run, unlearn

SETS = [name for name in ('RECIPES', 'DIGITS_RECIPES', 'PAPER_RECIPES') if hasattr(recipes, name)]


def shortened(recipe):
    """Its rates and phases, but two passes and one epoch at most."""
    erase = recipe.erase and replace(recipe.erase, passes=min(2, recipe.erase.passes), batch_size=min(20, recipe.erase.batch_size))
    repair = recipe.repair and replace(recipe.repair, epochs=min(1, recipe.repair.epochs), batch_size=min(50, recipe.repair.batch_size))
    return replace(recipe, erase=erase, repair=repair)


ALL = {f'{s}-{name}': shortened(recipe) for s in SETS for name, recipe in getattr(recipes, s).items()}
def having(condition): return pytest.mark.parametrize('name', [name for name, recipe in ALL.items() if condition(recipe)])
each_recipe = having(lambda recipe: True)
prunes = having(lambda recipe: any(isinstance(c, PruneActivations) for c in recipe.constraints))
operates = having(lambda recipe: isinstance(recipe.optimization, OrthogonalToRetain))


@pytest.fixture(scope='module')
def split(): return load_split('digits', forget=90, subset=400)


def network(seed=0): return create_model('small', 10, 1, 8, seed)


@pytest.fixture(scope='module')
def original(split):
    model = network()
    fit(model, split.train, Training(epochs=4, batch_size=32, lr=0.1, augment=()))
    return model.eval()


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def is_statistic(key): return 'running_' in key or 'num_batches' in key
def is_mask(key): return '.mask' in key


def moved(before, after):
    return {k for k, v in after.items() if k not in before or not torch.equal(before[k], v)}


@pytest.fixture(scope='module')
def ran(original, split):
    """Each recipe by name, run once: the states before, between and after its phases, and the unlearned network."""
    runs = {}
    def run(name):
        if name not in runs:
            before, phases = state(original), []
            student = unlearn(original, split, ALL[name], seed=3, after_phase=lambda phase, model: phases.append((phase, state(model))))
            runs[name] = SimpleNamespace(before=before, phases=phases, student=student, original_after=state(original))
        return runs[name]
    return run


def steps_of(run, kind):
    """What each phase of one kind moved."""
    states = [('start', run.before), *run.phases]
    return [moved(a, b) for (_, a), (phase, b) in itertools.pairwise(states) if phase == kind]


def test_every_method_of_the_paper_is_there():
    methods = ['finetune', 'random_labels', 'scrub', 'boundary', 'soft_relabeling', 'gradient_surgery', 'activation_pruning',
               'soft+surgery', 'soft+pruning', 'surgery+pruning', 'soft+surgery+pruning']
    for s in SETS:
        assert sorted(getattr(recipes, s)) == sorted(methods)
        assert all(name == recipe.name and recipe.source for name, recipe in getattr(recipes, s).items())


@each_recipe
def test_every_phase_is_run(name, ran):
    assert tuple(phase for phase, _ in ran(name).phases) == ALL[name].phases and 'repair' in ALL[name].phases
    assert 'erase' in ALL[name].phases or name.endswith('finetune')


@each_recipe
def test_erase_changes_weights_or_masks(name, ran):
    for keys in steps_of(ran(name), 'erase'): assert {k for k in keys if not is_statistic(k)}


@having(lambda recipe: recipe.erase is not None)
def test_erase_with_a_loss_changes_weights(name, ran):
    """Masks are not the excuse of a hybrid whose loss or optimization does nothing."""
    for keys in steps_of(ran(name), 'erase'): assert {k for k in keys if not is_statistic(k) and not is_mask(k)}


@prunes
def test_pruning_phases_change_masks(name, ran):
    for keys in steps_of(ran(name), 'erase'): assert {k for k in keys if is_mask(k)}
    for keys in steps_of(ran(name), 'repair'): assert not {k for k in keys if is_mask(k)}


@each_recipe
def test_repair_changes_weights(name, ran):
    assert steps_of(ran(name), 'repair')
    for keys in steps_of(ran(name), 'repair'): assert {k for k in keys if not is_statistic(k) and not is_mask(k)}


@each_recipe
def test_erase_leaves_batch_norm_statistics(name, ran):
    for keys in steps_of(ran(name), 'erase'): assert not {k for k in keys if is_statistic(k)}


@each_recipe
def test_original_is_left_alone(name, ran):
    run = ran(name)
    assert run.original_after.keys() == run.before.keys() and not moved(run.before, run.original_after)


@each_recipe
def test_student_is_what_learned(name, ran, original):
    """Not a copy whose parameters the optimizer held instead."""
    weights = dict(original.named_parameters())
    student = dict(ran(name).student.named_parameters())
    assert student.keys() == weights.keys() and all(not torch.equal(student[k], weights[k]) for k in weights)
    assert not ran(name).student.training and all(p.requires_grad for p in student.values())


@each_recipe
def test_seed_decides(name, ran, original, split):
    torch.manual_seed(len(name))  # torch's own random state does not
    again, other = (state(unlearn(original, split, ALL[name], seed)) for seed in (3, 4))
    want = state(ran(name).student)
    assert again.keys() == want.keys() and not moved(want, again) and moved(want, other)


@having(lambda recipe: recipe.erase is not None)
def test_seed_decides_the_erase_phase_too(name, original, split):
    first, again, other = (state(unlearn(original, split, replace(ALL[name], phases=('erase',)), seed)) for seed in (3, 3, 4))
    assert not moved(first, again) and moved(first, other)


@prunes
def test_masked_positions_stay_silent(name, ran, split):
    run = ran(name)
    x = split.retain.normalize(split.retain.images[:50].float() / 255)
    masks = {(k.rpartition('.mask')[0], int(k.rpartition('.mask')[2])): v for k, v in state(run.student).items() if is_mask(k)}
    seen = watch_activations(run.student, x)
    assert set(masks) == set(seen)
    for key, mask in masks.items(): assert not mask.all() and mask.any() and (seen[key][:, ~mask] == 0).all()


@each_recipe
def test_unlearned_network_survives_saving(name, ran, split, tmp_path):
    student = ran(name).student
    loaded = load_weights(network(seed=9), save_weights(student, tmp_path/'student.safetensors'))
    assert torch.equal(logits(loaded, split.test), logits(student, split.test))


# Surgery

@operates
def test_surgery_is_orthogonal_to_the_retain_gradient(name, original, split):
    """On real batches, with the recipe's own losses."""
    seen = []
    @dataclass(frozen=True)
    class Watched(OrthogonalToRetain):
        def direction(self, forget_gradient, retain_gradient):
            f, r = forget_gradient(), retain_gradient()
            direction = super().direction(lambda: f, lambda: r)
            seen.append((f, r, direction))
            return direction
    unlearn(original, split, replace(ALL[name], optimization=Watched(), phases=('erase',)))
    assert seen
    for f, r, direction in seen:
        assert abs(dot(direction, r)) <= 1e-5 * (dot(direction, direction) * dot(r, r)).sqrt()
        assert abs(dot(f, r)) > 1e-4 * (dot(f, f) * dot(r, r)).sqrt()  # there was something to remove


def test_surgery_without_retain_gradient_is_plain_ascent(original, split):
    @dataclass(frozen=True)
    class NothingToRetain(Ascend):
        def retain(self, run, logits, x, y, ordinary): return 0 * ordinary(logits, x, y)
    recipe = Recipe('ascent', NothingToRetain(), OrthogonalToRetain(), erase=Erase(passes=1, batch_size=20, lr=0.01), phases=('erase',))
    operated, ascended = (state(unlearn(original, split, replace(recipe, optimization=o))) for o in (OrthogonalToRetain(), Descend()))
    assert not moved(operated, ascended) and moved(state(original), operated)


def test_ascent_raises_the_forget_loss(original, split):
    recipe = Recipe('ascent', Ascend(), erase=Erase(passes=1, batch_size=20, lr=0.01), phases=('erase',))
    loss = [F.cross_entropy(logits(model, split.forget), split.forget.labels) for model in (original, unlearn(original, split, recipe))]
    assert loss[1] > loss[0]


# Soft-relabeling

@pytest.mark.parametrize('temperature', [0.01, 1., 7.])
def test_soft_targets_by_plain_loops(temperature):
    rng = torch.Generator().manual_seed(0)
    forget, retain = 5 * torch.randn(6, 5, generator=rng), 5 * torch.randn(9, 5, generator=rng)
    labels = torch.tensor([0, 0, 1, 1, 1, 3, 3, 4, 4])  # none is 2
    got = soft_targets(forget, retain, labels, temperature)
    for i in range(6):
        similar = [torch.exp((-(forget[i] - z).double().norm() + (forget[i] - retain).double().norm(dim=1).min()) / temperature) for z in retain]
        want = [sum(s for s, y in zip(similar, labels) if y == c) / sum(similar) for c in range(5)]
        assert got[i].tolist() == pytest.approx([float(w) for w in want], abs=1e-4)
    assert got.sum(1).tolist() == pytest.approx([1] * 6, abs=1e-5) and (got[:, 2] == 0).all()


def test_soft_labels_come_from_the_original_alone(original, split):
    """However far the student has gone."""
    run = Run(network(seed=5).eval(), original, split, torch.Generator())
    forget, retain = ((part.normalize(part.images[:20].float() / 255), part.labels[:20]) for part in (split.forget, split.retain))
    forget, retain = (SimpleNamespace(x=x, y=y) for x, y in (forget, retain))
    with torch.no_grad():
        target = soft_targets(original(forget.x), original(retain.x), retain.y, 2.)
        want = -(target * run.student(forget.x).log_softmax(1)).sum(1).mean()
        assert SoftRelabel(2.).forget(run, forget, retain).item() == pytest.approx(want.item(), rel=1e-5)


# SCRUB

def test_distillation_written_out():
    rng = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(8, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    for t in (1., 4.):
        p, q = ((z / t).exp() / (z / t).exp().sum(1, keepdim=True) for z in (teacher, student))
        assert distillation(student, teacher, t).item() == pytest.approx((t * t * (p * (p.log() - q.log())).sum(1).mean()).item(), rel=1e-9)


def test_scrub_has_no_gradient_at_the_teacher(original, split):
    """Hence the repair that goes first."""
    run = Run(original, original, split, torch.Generator())
    x = split.forget.normalize(split.forget.images.float() / 255)
    loss = AwayFromTeacher().forget(run, SimpleNamespace(x=x), None)
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(loss, list(original.parameters())))
    assert all(recipe.phases[0] == 'repair' for name, recipe in ALL.items() if isinstance(recipe.loss, AwayFromTeacher))


def test_scrub_goes_away_on_forget_and_stays_near_on_retain(original, split):
    run = Run(network(seed=5).eval(), original, split, torch.Generator())
    x, y = split.forget.normalize(split.forget.images.float() / 255), split.forget.labels
    loss = AwayFromTeacher(alpha=0.3, gamma=2., temperature=1.)
    with torch.no_grad():
        z = run.student(x)
        kl = distillation(z, original(x))
        assert loss.forget(run, SimpleNamespace(x=x), None).item() == pytest.approx(-kl.item(), rel=1e-5) and kl > 0.1
        want = 0.3 * kl + 2 * F.cross_entropy(z, y)
        assert loss.retain(run, z, x, y, lambda z, x, y: F.cross_entropy(z, y)).item() == pytest.approx(want.item(), rel=1e-5)


# Boundary unlearning

@pytest.fixture(scope='module')
def odd_images():
    """Normalised by .3 and .2, so that 0 and 1 in pixels are -1.5 and 3.5 here."""
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:, :, :2] = 0; pixels[:, :, -2:] = 255
    return Images(pixels, torch.arange(40) % 10, torch.arange(40), torch.tensor([.3]), torch.tensor([.2]))


@pytest.mark.parametrize('bound', [0.02, 0.1, 0.5])
def test_fgsm_keeps_bound_and_pixel_range(original, odd_images, bound):
    pixels, y = odd_images.images.float() / 255, odd_images.labels
    x = odd_images.normalize(pixels)
    attacked = fgsm(original, odd_images, x, y, bound) * 0.2 + 0.3
    change = attacked - pixels
    assert change.abs().max() <= bound + 1e-6 and attacked.min() >= -1e-6 and attacked.max() <= 1 + 1e-6
    inside = (pixels > bound) & (pixels < 1 - bound)
    slope, = torch.autograd.grad(F.cross_entropy(original(x.requires_grad_()), y), x)
    torch.testing.assert_close(change[inside], bound * slope.sign()[inside], atol=1e-5, rtol=0)


def test_fgsm_raises_the_loss(original, split):
    x, y = split.forget.normalize(split.forget.images.float() / 255), split.forget.labels
    attacked = fgsm(original, split.forget, x, y, 0.1)
    assert F.cross_entropy(original(attacked), y) > F.cross_entropy(original(x), y)


def test_nearest_class_is_never_its_own(original, split):
    x, y = split.forget.normalize(split.forget.images.float() / 255), split.forget.labels
    for bound in (0., 0.1): assert (nearest_other_class(original, split.forget, x, y, bound) != y).all()


# Random labels

def test_random_labels_are_any_but_their_own():
    y = torch.arange(10).repeat(1000)
    drawn = random_other_labels(y, 10, torch.Generator().manual_seed(0))
    counts = torch.zeros(10, 10).index_put_((y, drawn), torch.ones(len(y)), accumulate=True)
    assert (counts.diag() == 0).all() and counts[~torch.eye(10, dtype=bool)].min() > 60  # of 111 expected
    assert set(random_other_labels(torch.tensor([0, 1]), 2, torch.Generator()).tolist()) == {0, 1}


# Freezing

@pytest.mark.parametrize('names', [('0.',), ('0.', '3.', '8.bias')])
def test_frozen_stays_under_adamw_with_weight_decay(original, split, names):
    hard = dict(optimizer='adamw', lr=0.01, weight_decay=0.1)
    recipe = Recipe('frozen', Ascend(), constraints=(Freeze(names),), erase=Erase(passes=2, batch_size=20, **hard),
                    repair=Training(epochs=1, batch_size=50, **hard), phases=('erase', 'repair') * 2)
    before, after = (dict(m.named_parameters()) for m in (original, unlearn(original, split, recipe)))
    held = {k for k in before if torch.equal(before[k], after[k])}
    assert held == {k for k in before if k.startswith(names)} and held
