"""The training loop: what the seed decides, how many steps are taken, what the loss and the schedule are, and what is left alone."""
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from unlearning.images import Batch
from unlearning.load import load_split
from unlearning.methods.random_labels import random_labels
from unlearning.models import create_model
from unlearning.training import Training, class_weights, cross_entropy, fit, forward_type, logits, make_optimizer, make_schedule, native_bfloat16, settled
from unlearning.unlearn import unlearn

SETTINGS = Training(epochs=2, batch_size=50, lr=0.05, augment=('crop', 'flip', 'rotate', 'erase'))


@pytest.fixture(scope='module')
def images(): return load_split('digits', subset=200).train


def network(seed=0):
    """With batch norm and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(288, 10))


def trained(images, seed=0, **changes):
    model = network()
    fit(model, images, replace(SETTINGS, **changes), seed)
    return torch.cat([t.flatten().float() for t in model.state_dict().values()])


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_seed_alone_decides(images, optimizer):
    """Not torch's own random state, which dropout would use."""
    torch.manual_seed(1); first = trained(images, 5, optimizer=optimizer)
    torch.manual_seed(2); again = trained(images, 5, optimizer=optimizer)
    assert torch.equal(first, again) and not torch.equal(first, trained(images, 6, optimizer=optimizer))


@pytest.mark.parametrize('what', ['fit', 'create_model', 'unlearn', 'logits'])
def test_global_random_states_are_left_alone(images, what):
    split, model = load_split('digits', subset=100), create_model('small', 10, 1, 8)
    actions = dict(fit=lambda: fit(network(), images, SETTINGS), create_model=lambda: create_model('vit', 10, 1, 8, seed=3),
                   unlearn=lambda: unlearn(model, split, random_labels(erase=dict(batch_size=32), repair=SETTINGS), seed=3), logits=lambda: logits(model, images))
    def states(): return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
    before = states()
    actions[what]()
    assert states() == before


# 200 images make 4 batches of 50
@pytest.mark.parametrize('epochs, steps, rows', [(0.25, 1, 1), (0.5, 2, 1), (1, 4, 1), (1.5, 6, 2), (2.25, 9, 3), (1e-9, 1, 1),
                                                 (1.1, 4, 1)])
def test_fractions_of_an_epoch(images, epochs, steps, rows):
    taken = []
    history = fit(network(), images, replace(SETTINGS, epochs=epochs), after_step=lambda: taken.append(1))
    assert len(taken) == steps and [h['epoch'] for h in history] == list(range(1, rows + 1))


def test_bfloat16_is_coarser_in_the_products_only(images):
    """Reproducible as the other; weights, statistics, loss and what the loss is computed from stay in float32."""
    first, again, fine = (trained(images, 5, precision=p) for p in ('bfloat16', 'bfloat16', 'float32'))
    assert torch.equal(first, again) and not torch.equal(first, fine)
    assert 0 < (first - fine).norm() / fine.norm() < 0.05
    model, inside, seen = network(), [], []
    model[0].register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    def loss(z, batch):
        seen.append(z.dtype)
        return nn.functional.cross_entropy(z, batch.y)
    fit(model, images, replace(SETTINGS, precision='bfloat16'), loss=loss)
    assert set(inside) == {torch.bfloat16} and set(seen) == {torch.float32} and {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
    inside.clear()
    assert logits(model, images).dtype == torch.float32 and set(inside) == {torch.float32}


@pytest.mark.skipif(not Path('/proc/cpuinfo').exists(), reason='only Linux lists the instructions')
def test_native_bfloat16_is_what_the_processor_says():
    flags = set(Path('/proc/cpuinfo').read_text().split())
    assert native_bfloat16() == bool(flags & {'avx512_bf16', 'amx_bf16'})


@pytest.mark.parametrize('native', [True, False])
def test_auto_is_one_of_the_types_by_name(images, monkeypatch, native):
    """To the bit."""
    monkeypatch.setattr('unlearning.training.native_bfloat16', lambda: native)
    assert torch.equal(trained(images, 5), trained(images, 5, precision='bfloat16' if native else 'float32'))


@pytest.mark.parametrize('name', ['small', 'resnet18', 'vit'])
def test_every_network_trains_in_bfloat16(images, name):
    fit(model := create_model(name, 10, 1, 8), images[:64], Training(epochs=1, batch_size=32, lr=0.01, precision='bfloat16'))
    assert logits(model, images).isfinite().all()


@pytest.mark.parametrize('native, on_cpu', [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_of_a_device(monkeypatch, native, on_cpu):
    monkeypatch.setattr('unlearning.training.native_bfloat16', lambda: native)
    assert [forward_type('auto', torch.device(d)) for d in ('cpu', 'cuda')] == [on_cpu, torch.float16]
    assert settled(Training(precision='float32'), 'cpu').precision == 'float32'
    assert forward_type('bfloat16', torch.device('cpu')) == torch.bfloat16  # who asks for it gets it, emulated if need be
    with pytest.raises(ValueError, match="'float16' is for GPUs: on a CPU use 'bfloat16'"): forward_type('float16', torch.device('cpu'))
    with pytest.raises(ValueError, match="unknown precision 'half': use 'auto', 'float32', 'bfloat16'"): forward_type('half', torch.device('cpu'))


def test_no_batch_is_smaller_than_asked_for(images):
    sizes = []
    fit(network(), images, replace(SETTINGS, epochs=2, batch_size=99), loss=lambda z, batch: (sizes.append(len(batch.y)), nn.functional.cross_entropy(z, batch.y))[1])
    assert sizes == [99] * 4


def test_class_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(4, size=300, p=[.6, .25, .1, .05])
    want = compute_class_weight('balanced', classes=np.arange(4), y=labels)
    np.testing.assert_allclose(class_weights(torch.tensor(labels), 4), want, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0., 0.1, 0.4])
@pytest.mark.parametrize('weighted', [False, True])
def test_loss_written_out(images, smoothing, weighted):
    some = images[:40]
    z = torch.randn(40, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p, one_hot = z.log_softmax(1), torch.eye(10, dtype=torch.float64)[some.labels]
    w = 40 / (10 * one_hot.sum(0)) if weighted else torch.ones(10, dtype=torch.float64)
    target = (1 - smoothing) * one_hot + smoothing / 10
    want = -(w[some.labels] * (target * log_p).sum(1)).sum() / w[some.labels].sum()
    got = cross_entropy(Training(label_smoothing=smoothing, class_weights=weighted), some)(z.float(), Batch(None, some.labels, None))
    assert got.item() == pytest.approx(want.item(), rel=1e-5)


def test_a_rare_class_does_not_swallow_the_others(images):
    """Label smoothing and class weights together: 3 images of one class among 1,000, as in CelebA."""
    zeros, ones = (torch.nonzero(images.labels == c)[:, 0] for c in (0, 1))
    some = images[torch.cat([zeros.repeat(1000 // len(zeros) + 1)[:997], ones[:3]])]
    model = create_model('small', 2, 1, 8)
    fit(model, some, Training(epochs=8, lr=0.1, batch_size=50, augment=(), class_weights=True, precision='float32'))
    assert (logits(model, some).argmax(1) == some.labels).float().mean() > 0.95


def rates(schedule, steps_per_epoch=10, total=40):
    settings = Training(schedule=schedule, lr=0.4)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], settings)
    curve = make_schedule(optimizer, settings, steps_per_epoch, total)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]['lr'])
        optimizer.step(); curve.step()
    return np.array(seen), optimizer.param_groups[0]['lr']


def test_onecycle_rises_to_the_rate_and_ends_near_zero():
    seen, last = rates('onecycle')
    peak = seen.argmax()
    assert seen[0] < 0.05 and seen.max() == pytest.approx(0.4, rel=0.01) and last < 1e-4
    assert (np.diff(seen[:peak + 1]) > 0).all() and (np.diff(seen[peak:]) < 0).all()


def test_cosine_falls_from_the_rate_to_zero():
    seen, last = rates('cosine')
    assert seen[0] == 0.4 and seen[20] == pytest.approx(0.2) and last == pytest.approx(0, abs=1e-9) and (np.diff(seen) < 0).all()


def test_halving_halves_after_each_epoch():
    seen, last = rates('halving')
    assert seen.tolist() == pytest.approx(np.repeat([0.4, 0.2, 0.1, 0.05], 10))


def test_constant_stays():
    seen, last = rates('constant')
    assert set(seen) == {0.4}


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_loss_that_is_not_finite_names_epoch_and_step(images, value):
    calls = []
    def loss(z, batch):
        calls.append(1)
        return z.sum() * 0 + (value if len(calls) == 7 else 1.)
    with pytest.raises(FloatingPointError, match=rf'loss is {value} at step 3 of epoch 2: lower the learning rate \(it is 0.05\)'):
        fit(network(), images, SETTINGS, loss=loss)


def test_every_parameter_learns_and_weight_decay_acts(images):
    model = network()
    before = [p.clone() for p in model.parameters()]
    fit(model, images, SETTINGS)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert not torch.equal(trained(images, weight_decay=0.), trained(images, weight_decay=0.1))


@pytest.mark.parametrize('training', [False, True])
def test_logits_in_order_in_eval_mode(images, training):
    model = network().train(training)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    got = logits(model, images, batch_size=64)
    assert model.training == training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    x = (images.images.float() / 255 - images.mean[:, None, None]) / images.std[:, None, None]
    with torch.no_grad(): want = torch.cat([network().eval()(one[None]) for one in x])  # one by one
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert got.dtype == torch.float32 and not got.requires_grad
