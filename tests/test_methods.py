"""Every recipe, whole: each phase changes what it should and nothing else. Then the pieces, against plain references."""
import copy
import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from test_rivals import RIVALS
from unlearning.activations import masks, watch_activations
from unlearning.images import Images, batches
from unlearning.load import load_split
from unlearning.methods.activation_pruning import PruneActivations
from unlearning.methods.boundary import fgsm, nearest_other_class
from unlearning.methods.budget import WITHIN, Budget, all_within
from unlearning.methods.finetune import finetune
from unlearning.methods.gradient_surgery import Ascend, ElasticNet, MeanElasticNet, OrthogonalToRetain, dot
from unlearning.methods.l1_sparse import FadingL1
from unlearning.methods.neggrad_plus import Mixture
from unlearning.methods.prune_reset import matrices
from unlearning.methods.sfron import SalientThenRetain
from unlearning.methods.random_labels import random_labels, random_other_labels
from unlearning.methods.recipes import RECIPES
from unlearning.methods.scrub import AwayFromTeacher, TowardsTeacher, distillation
from unlearning.methods.soft_relabeling import SoftRelabel, soft_targets
from unlearning.models import create_model
from unlearning.training import Training, fit, logits
from unlearning.unlearn import Descend, Edit, Erase, Freeze, Recipe, Repair, RetainLoss, Run, run_recipe, unlearn
from unlearning.weights import load_weights, save_weights

pytestmark = pytest.mark.filterwarnings('ignore::unlearning.unlearn.RetainCollapse')  # the paper's settings, on digits
SETS = ('cifar10_fifth', 'digits', 'paper')


def shorter(phase):
    if isinstance(phase, Erase):
        return replace(phase, passes=min(2, phase.passes), batch_size=min(20, phase.batch_size), lr=min(0.02, phase.lr))
    if not isinstance(phase, Repair): return phase
    epochs, batch_size = min(1, phase.training.epochs), min(50, phase.training.batch_size)
    return replace(phase, training=replace(phase.training, epochs=epochs, batch_size=batch_size))


def shortened(recipe):
    """Its phases, but two passes, one epoch, and a rate that small batches bear, at most."""
    return replace(recipe, phases=tuple(map(shorter, recipe.phases)))


def only(recipe, *kinds):
    phases = tuple(p for p in recipe.phases if isinstance(p, kinds))
    return replace(recipe, phases=phases, constraints=recipe.constraints if Repair in kinds else ())
def has(recipe, kind): return any(isinstance(piece, kind) for piece in recipe.pieces())


ALL = {f'{s}-{name}': shortened(recipe) for s in SETS for name, recipe in RECIPES[s].items()}
def having(*kinds): return pytest.mark.parametrize('name', [n for n, r in ALL.items() if all(has(r, k) for k in kinds)])
each_recipe = having()
erases = having(Erase)
prunes = having(PruneActivations)
operates = having(OrthogonalToRetain)


@pytest.fixture(scope='module')
def split(): return load_split('digits', forget=90, subset=400)


def network(seed=0): return create_model('small', 10, 1, 8, seed)


@pytest.fixture(scope='module')
def original(split):
    model = network()
    fit(model, split.train, Training(epochs=4, batch_size=32, lr=0.1, augment=()))
    return model.eval()


def batch_of(part, n=None): return next(batches(part, n or len(part)))
def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def is_statistic(key): return 'running_' in key or 'num_batches' in key
def is_mask(key): return key.endswith('mask')


def moved(before, after):
    return {k for k, v in after.items() if k not in before or not torch.equal(before[k], v)}


@pytest.fixture(scope='module')
def ran(original, split):
    """Each recipe by name, run once: the states before, between and after its phases, and the unlearned network."""
    runs = {}
    def run(name):
        if name not in runs:
            before, phases = state(original), []
            def look(phase, model): phases.append((phase, state(model)))
            student = unlearn(original, split, ALL[name], seed=3, after_phase=look)
            runs[name] = SimpleNamespace(before=before, phases=phases, student=student, original_after=state(original))
        return runs[name]
    return run


def moves(run, kind):
    """What each phase of one kind moved."""
    states = [(None, run.before), *run.phases]
    return [moved(a, b) for (_, a), (phase, b) in itertools.pairwise(states) if isinstance(phase, kind)]


def test_every_method_of_the_paper_is_there():
    methods = ['finetune', 'random_labels', 'scrub', 'boundary', 'soft_relabeling', 'gradient_surgery',
               'activation_pruning', 'soft+surgery', 'soft+pruning', 'surgery+pruning', 'soft+surgery+pruning']
    for recipes in RECIPES.values():
        assert sorted(recipes) == sorted(methods)
        assert all(name == recipe.name and recipe.title and recipe.source for name, recipe in recipes.items())


@each_recipe
def test_every_phase_is_run(name, ran):
    assert tuple(phase for phase, _ in ran(name).phases) == ALL[name].phases and has(ALL[name], Repair)
    assert has(ALL[name], (Erase, Edit)) or name.endswith('finetune')


@erases
def test_erase_changes_weights_and_in_train_mode_statistics(name, ran):
    """No masks; and statistics alone are no excuse of a loss or a step that does nothing."""
    phases = [phase for phase in ALL[name].phases if isinstance(phase, Erase)]
    for phase, keys in zip(phases, moves(ran(name), Erase), strict=True):
        weights = {k for k in keys if not is_statistic(k)}
        assert weights and (weights != keys) == phase.train and not any(map(is_mask, keys))


@prunes
def test_pruning_changes_masks_and_nothing_else(name, ran):
    for keys in moves(ran(name), PruneActivations): assert keys and all(map(is_mask, keys))


@each_recipe
def test_repair_changes_weights_and_statistics_and_no_mask(name, ran):
    assert moves(ran(name), Repair)
    for keys in moves(ran(name), Repair):
        assert {is_statistic(k) for k in keys} == {True, False} and not any(map(is_mask, keys))


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


@erases
def test_seed_decides_the_erase_phase_too(name, original, split):
    recipe = only(ALL[name], Erase)
    if has(recipe, AwayFromTeacher): recipe = only(ALL[name], Erase, Repair)  # away from itself there is no way
    first, again, other = (state(unlearn(original, split, recipe, seed)) for seed in (3, 3, 4))
    assert not moved(first, again) and moved(first, other)


@prunes
def test_masked_positions_stay_silent(name, ran, split):
    student = ran(name).student
    found, seen = masks(student), watch_activations(student, batch_of(split.retain, 50).x)
    assert set(found) == set(seen)
    for key, m in found.items(): assert not m.mask.all() and m.mask.any() and (seen[key][:, ~m.mask] == 0).all()


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
        def directions(self, run, forget, retain):
            f, r = forget(), retain()
            direction, = super().directions(run, lambda: f, lambda: r)
            seen.append((f, r, direction))
            yield direction
    unlearn(original, split, only(ALL[name], Erase).change(Erase, step=Watched()))
    assert seen
    for f, r, direction in seen:
        assert abs(dot(direction, r)) <= 1e-5 * (dot(direction, direction) * dot(r, r)).sqrt()
        assert abs(dot(f, r)) > 1e-4 * (dot(f, f) * dot(r, r)).sqrt()  # there was something to remove


def ascent(**settings):
    return Recipe(name='ascent', phases=(Erase(forget=Ascend(), passes=1, batch_size=20, lr=0.01, **settings),))


def test_surgery_without_retain_gradient_is_plain_ascent(original, split):
    @dataclass(frozen=True)
    class NothingToRetain(RetainLoss):
        def __call__(self, run, logits, batch, ordinary): return 0 * ordinary(logits, batch)
    steps = OrthogonalToRetain(), Descend()
    recipes = [ascent(retain=NothingToRetain(), step=step) for step in steps]
    operated, ascended = (state(unlearn(original, split, recipe)) for recipe in recipes)
    assert not moved(operated, ascended) and moved(state(original), operated)


def test_surgery_has_no_weight_for_retain():
    with pytest.raises(ValueError, match='nothing of retain is left to weigh by retain_weight'): OrthogonalToRetain(retain_weight=1.)


def test_ascent_raises_the_forget_loss(original, split):
    models, labels = (original, unlearn(original, split, ascent())), split.forget.labels
    loss = [F.cross_entropy(logits(model, split.forget), labels) for model in models]
    assert loss[1] > loss[0]


# Soft-relabeling

@pytest.mark.parametrize('temperature', [0.01, 1., 7.])
def test_soft_targets_by_plain_loops(temperature):
    rng = torch.Generator().manual_seed(0)
    forget, retain = 5 * torch.randn(6, 5, generator=rng), 5 * torch.randn(9, 5, generator=rng)
    labels = torch.tensor([0, 0, 1, 1, 1, 3, 3, 4, 4])  # none is 2
    got = soft_targets(forget, retain, labels, temperature)
    for i in range(6):
        distances = (forget[i] - retain).double().norm(dim=1)
        similar = [torch.exp((distances.min() - d) / temperature) for d in distances]
        want = [sum(s for s, y in zip(similar, labels) if y == c) / sum(similar) for c in range(5)]
        assert got[i].tolist() == pytest.approx([float(w) for w in want], abs=1e-4)
    assert got.sum(1).tolist() == pytest.approx([1] * 6, abs=1e-5) and (got[:, 2] == 0).all()


def test_soft_labels_come_from_the_original_alone(original, split):
    """However far the student has gone."""
    run = Run(network(seed=5).eval(), original, split)
    forget, retain = (batch_of(part, 20) for part in (split.forget, split.retain))
    with torch.no_grad():
        target = soft_targets(original(forget.x), original(retain.x), retain.y, 2.)
        want = -(target * run.student(forget.x).log_softmax(1)).sum(1).mean()
        assert SoftRelabel(2.)(run, forget, retain).item() == pytest.approx(want.item(), rel=1e-5)


def test_soft_labels_of_a_bfloat16_network(original, split):
    """torch has no distances of bfloat16 on a CPU."""
    model = network()
    model.load_state_dict(original.state_dict())
    student = unlearn(model.bfloat16(), split, ALL['digits-soft_relabeling'])
    assert next(student.parameters()).dtype == torch.bfloat16


# SCRUB

def test_distillation_written_out():
    rng = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(8, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    for t in (1., 4.):
        p, q = ((z / t).exp() / (z / t).exp().sum(1, keepdim=True) for z in (teacher, student))
        want = t * t * (p * (p.log() - q.log())).sum(1).mean()
        assert distillation(student, teacher, t).item() == pytest.approx(want.item(), rel=1e-9)


def test_scrub_has_no_gradient_at_the_teacher(original, split):
    """Hence the repair that goes first."""
    loss = AwayFromTeacher()(Run(original, original, split), batch_of(split.forget), None)
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(loss, list(original.parameters())))
    assert all(isinstance(recipe.phases[0], Repair) for recipe in ALL.values() if has(recipe, AwayFromTeacher))


def test_scrub_goes_away_on_forget_and_stays_near_on_retain(original, split):
    run, batch = Run(network(seed=5).eval(), original, split), batch_of(split.forget)
    with torch.no_grad():
        z = run.student(batch.x)
        kl = distillation(z, original(batch.x))
        assert AwayFromTeacher()(run, batch, None).item() == pytest.approx(-kl.item(), rel=1e-5) and kl > 0.1
        want = 0.3 * kl + 2 * F.cross_entropy(z, batch.y)
        towards = TowardsTeacher(alpha=0.3, gamma=2., temperature=1.)
        got = towards(run, z, batch, lambda z, batch: F.cross_entropy(z, batch.y))
        assert got.item() == pytest.approx(want.item(), rel=1e-5)


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
    batch = batch_of(split.forget)
    attacked = fgsm(original, split.forget, batch.x, batch.y, 0.1)
    assert F.cross_entropy(original(attacked), batch.y) > F.cross_entropy(original(batch.x), batch.y)


def test_nearest_class_is_never_its_own(original, split):
    batch = batch_of(split.forget)
    for bound in (0., 0.1):
        assert (nearest_other_class(original, split.forget, batch.x, batch.y, bound) != batch.y).all()


# Random labels

def test_random_labels_are_any_but_their_own():
    y = torch.arange(10).repeat(1000)
    drawn = random_other_labels(y, 10, torch.Generator().manual_seed(0))
    counts = torch.zeros(10, 10).index_put_((y, drawn), torch.ones(len(y)), accumulate=True)
    assert (counts.diag() == 0).all() and counts[~torch.eye(10, dtype=bool)].min() > 60  # of 111 expected
    assert set(random_other_labels(torch.tensor([0, 1]), 2, torch.Generator()).tolist()) == {0, 1}
    with pytest.raises(ValueError, match='one class, and so no other label'): random_other_labels(torch.tensor([0]), 1, torch.Generator())


@pytest.mark.parametrize('net', [ElasticNet(), MeanElasticNet(0.1), FadingL1()])
def test_a_penalty_that_no_repair_would_pay_is_refused(net):
    with pytest.raises(ValueError, match="adds to the loss of a repair, and recipe 'up' has none"):
        Recipe(name='up', phases=(Erase(forget=Ascend()),), constraints=(net,))


# Freezing

def test_a_part_is_frozen_by_its_whole_name(split):
    """And its namesakes of two digits learn."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *(nn.Linear(10, 10) for _ in range(9)))
    done = unlearn(net, split, replace(finetune(repair=Training(epochs=1, batch_size=50, lr=0.01, augment=())), constraints=(Freeze('1'),)))
    assert [torch.equal(net[i].weight, done[i].weight) for i in (1, 10)] == [True, False]


@pytest.mark.parametrize('names', [('0.',), ('0.', '3.', '8.bias')])
def test_frozen_stays_under_adamw_with_weight_decay(original, split, names):
    hard = dict(optimizer='adamw', lr=0.01, weight_decay=0.1)
    erase = Erase(forget=Ascend(), passes=2, batch_size=20, **hard)
    repair = Repair(training=Training(epochs=1, batch_size=50, **hard))
    recipe = Recipe(name='frozen', phases=(erase, repair) * 2, constraints=(Freeze(names),))
    before, after = (dict(m.named_parameters()) for m in (original, unlearn(original, split, recipe)))
    held = {k for k in before if torch.equal(before[k], after[k])}
    assert held == {k for k in before if k.startswith(names)} and held


# What a recipe costs, and every method at one price

def test_cost_comes_from_the_phases():
    split, repair = load_split('digits', forget=90), Training(epochs=3, augment=())
    assert finetune(repair=repair).images(split) == 3 * 808
    beside = random_labels(erase=dict(passes=2, batch_size=30, lr=0.1), repair=repair)
    assert beside.images(split) == 2 * 90 + 3 * 808


@pytest.mark.parametrize('share', [0.001, 0.004, 0.013, 0.03])
def test_the_least_share_that_a_refusal_names_is_enough(share):
    """But for a method of which a part grows with the share: there it is a bound."""
    budget = Budget(load_split('digits', forget=90), Training(epochs=20, batch_size=64, lr=0.1, augment=()), share)
    for name, why in all_within(budget)[1].items():
        least = float(re.search(r'larger share, ([0-9.]+) at least', why)[1])
        refused = name in all_within(replace(budget, share=least))[1]
        assert least > share and refused <= (name == 'soft_witness')


def test_passes_that_fit_exactly_are_made():
    """Four passes of 180 images in 719.9999999999999."""
    split, training = load_split('digits', forget=90), Training(epochs=12, batch_size=64, lr=0.1, augment=())
    made = WITHIN['neggrad_plus'](Budget(split, training, 4 * 180 / (12 * 808)))
    assert made.phases[0].passes == 4


@pytest.mark.parametrize('share', [0.12, 0.3])
def test_every_method_spends_a_budget_and_no_more(share):
    budget = Budget(load_split('digits', forget=90), Training(epochs=20, batch_size=64, lr=0.1, augment=()), share)
    recipes, too_dear = all_within(budget)
    assert set(recipes) | set(too_dear) == set(WITHIN) and len(recipes) > 20
    for name, recipe in recipes.items():
        spent = recipe.images(budget.split)
        assert spent <= 1.001 * budget.passes and (name in ('ssd', 'sfron', 'neggrad_plus', 'bad_teacher') or spent > 0.99 * budget.passes), name


def test_a_budget_refuses_what_it_cannot_pay():
    budget = Budget(load_split('digits', forget=90), Training(epochs=12, batch_size=64, lr=0.1, augment=()), 0.05)
    with pytest.raises(ValueError, match='bad_teacher cannot be done for a share of 0.05: .* 619 image passes, and the budget is 485'): WITHIN['bad_teacher'](budget)
    with pytest.raises(ValueError, match="there is no method 'surgery'"): all_within(budget, {'surgery': {}})


@pytest.mark.parametrize('forget, batch_size, retain', [(90, 32, None), (90, 32, 100), (90, 90, 300), (5, 64, 50)])
def test_the_cost_of_an_erase_phase_is_what_it_asks_for(forget, batch_size, retain):
    """Images that go through the student, counted."""
    split, seen = load_split('digits', forget=forget), []
    net = create_model('small', 10, 1, 8)
    recipe = Recipe(name='counted', phases=(Erase(forget=Ascend(), step=OrthogonalToRetain(), passes=2, batch_size=batch_size, retain_batch_size=retain, lr=1e-4),))
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, args: seen.append(len(args[0])) if isinstance(m, torch.nn.Linear) and m.training is False else None)
    try: run_recipe(net, split, recipe, 0)
    finally: handle.remove()
    assert sum(seen) == recipe.images(split)


def passes_through(networks_run):
    """Image passes, counted at the last layer: one where a gradient comes back, a third where none does."""
    seen = []
    def count(layer, args):
        if not isinstance(layer, torch.nn.Linear): return
        back = torch.is_grad_enabled() and (layer.weight.requires_grad or args[0].requires_grad)
        seen.append(len(args[0]) * (1 if back else 1 / 3))
    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try: networks_run()
    finally: handle.remove()
    return sum(seen)


def test_every_method_costs_what_its_recipe_says():
    """Teachers, looks before the first phase and retain batches beside forget's included."""
    plain = dict(batch_size=64, lr=0.1, augment=(), precision='float32')
    split, net = load_split('digits', forget=90), create_model('small', 10, 1, 8)
    fit(net, split.train, Training(epochs=4, **plain), 0)
    recipes, too_dear = all_within(Budget(split, Training(epochs=20, **plain), 0.3))
    assert not too_dear
    for name, recipe in recipes.items():
        spent = passes_through(lambda: run_recipe(net, split, recipe, 0)) / recipe.images(split)
        assert 0.94 < spent < 1.001, f'{name}: {spent:.3f}'  # repairs end on a whole step


@pytest.mark.parametrize('forget, sizes', [(65, [65]), (64, [64]), (129, [65, 64]), (66, [64, 2]), (2, [2])])
def test_no_image_is_left_for_a_batch_alone(forget, sizes):
    """In train mode, where batch norm could not take it; and the cost counts what is drawn."""
    split, seen = load_split('digits', forget=forget), []
    net = create_model('small', 10, 1, 8)

    @dataclass(frozen=True)
    class Counted(Ascend):
        def __call__(self, run, forget, retain):
            seen.append(len(forget.y))
            return super().__call__(run, forget, retain)
    phase = Erase(forget=Counted(), train=True, batch_size=64, lr=1e-4)
    unlearn(net, split, Recipe(name='counted', phases=(phase,)))
    assert seen == sizes and phase.steps(split) == (len(sizes),) * 2 and phase.images(split) == forget
    assert replace(phase, train=False).batch(split) == 64


# The pages

@pytest.mark.parametrize('recipe', [r for name, r in ALL.items() if name.startswith('digits')] + [*RIVALS.values()], ids=lambda r: r.name)
def test_a_network_in_double_precision_unlearns_in_it(recipe, original, split):
    """The gradients that arrive at its logits are no float32 numbers, and what comes of 1e-13 stays as small."""
    full, ends = [], []
    def watch(module, inputs, out):
        if isinstance(module, nn.Linear) and out.requires_grad: out.register_hook(lambda g: full.append((g != g.float()).any().item()))
    for push in (0, 1e-13):
        net = copy.deepcopy(original).double()
        with torch.no_grad(): [p.mul_(1 + push) for p in net.parameters()]
        with register_module_forward_hook(watch):
            ends.append([t.double() for t in unlearn(net, split, recipe, seed=3).state_dict().values()])
    apart = max((a - b).abs().max().item() for a, b in zip(*ends))
    assert full and all(full) and 0 < apart < 1e-9


def test_the_page_of_recipes_names_every_method():
    """As its reader sees it: each page of a method is linked from the table, with what it is made of."""
    pages = Path(__file__).resolve().parent.parent/'nbs'/'methods'
    outputs = [o for c in nbformat.read(pages/'69_recipes.ipynb', as_version=4).cells if c.cell_type == 'code' for o in c.outputs]
    table = '\n'.join(o.get('data', {}).get('text/markdown', '') for o in outputs)
    linked = re.findall(r'\]\((.+?)\)', table)
    assert set(linked) == {p.name for p in pages.glob('*.ipynb')} - {'68_budget.ipynb'} and linked.count('62_dual.ipynb') == 2
    for piece in ('WitnessRelabel', 'AscendUnlearned', 'OrthogonalToRetain', 'OnlySalient', 'FadingL1', 'ResetEnds', 'Dampen', 'PruneOwn', 'AsUnseen'): assert piece in table
    for recipe in RECIPES['paper'].values(): assert f'[{recipe.title}](' in table


class Tied(nn.Module):
    """Two layers, one weight."""
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight
    def forward(self, x): return self.fc(self.b(self.a(x.flatten(1)).relu()).relu())


def test_a_shared_weight_is_frozen_by_either_name():
    split, training = load_split('digits', forget=20, subset=200), Training(epochs=1, batch_size=32, lr=0.05, augment=(), precision='float32')
    net = Tied()
    done = unlearn(net, split, replace(finetune(repair=training), constraints=(Freeze('b.'),)))
    assert torch.equal(done.b.bias, net.b.bias) and torch.equal(done.b.weight, net.b.weight) and not torch.equal(done.fc.weight, net.fc.weight)


def test_a_shared_weight_counts_once_among_the_smallest():
    net = Tied()
    assert len(matrices(net)) == 2 and sum(w.numel() for w in matrices(net)) == 64 * 64 + 640


@pytest.mark.parametrize('step', [Mixture, SalientThenRetain])
def test_a_weight_that_would_do_nothing_is_refused(step):
    with pytest.raises(ValueError, match='leave retain_weight out'): step(0.3)
