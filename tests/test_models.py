"""Every network by name: shapes, the order of its activations, and masks that survive saving, copying and interruption."""
import copy

import pytest
import torch
from torch import nn

from unlearning import models
from unlearning.models import NETWORKS, activations, create_model, load_weights, mask_activations, save_weights, watch_activations

SIZE = 32
each_network = pytest.mark.parametrize('name', NETWORKS)


def images(n=3, channels=3, seed=0): return torch.randn(n, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def fresh(name, seed=0):
    model = create_model(name, 5, 3, SIZE, seed).eval()
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))  # torchvision's vit starts with zeros: the same logits always
    return model


def random_masks(model, keep=0.7):
    rng = torch.Generator().manual_seed(1)
    return {key: torch.rand(out.shape[1:], generator=rng) < keep for key, out in watch_activations(model, images(1)).items()}


@pytest.fixture(scope='module')
def pruned():
    """Each network by name, with masks on every call of every activation."""
    made = {}
    def get(name):
        if name not in made: made[name] = mask_activations(model := fresh(name), random_masks(model))
        return copy.deepcopy(made[name])
    return get


def ask(model, x=None):
    with torch.no_grad(): return model(images() if x is None else x)


@each_network
@pytest.mark.parametrize('channels', [1, 3])
def test_logits_for_grey_and_colour(name, channels):
    model = create_model(name, 7, channels, SIZE).eval()
    out = ask(model, images(2, channels))
    assert out.shape == (2, 7) and out.dtype == torch.float32 and out.isfinite().all()


@each_network
def test_activations_come_in_depth_order(name):
    """The order in which a forward pass first calls them, none left out."""
    model, called = fresh(name), []
    for path, module in model.named_modules():
        if isinstance(module, (nn.ReLU, nn.GELU)): module.register_forward_hook(lambda m, i, o, path=path: called.append(path))
    ask(model)
    assert activations(model) == list(dict.fromkeys(called)) and len(activations(model)) >= 6


@each_network
def test_every_call_is_watched(name):
    calls = {'small': 7, 'resnet18': 1 + 8 * 2, 'resnet50': 1 + 16 * 3, 'vit': 6}
    assert len(watch_activations(fresh(name), images(1))) == calls[name]


@each_network
def test_masked_positions_are_silent_and_others_speak(name, pruned):
    model = pruned(name)
    masks = random_masks(fresh(name))
    seen = watch_activations(model, images())
    assert set(seen) == set(masks) and not torch.equal(ask(model), ask(fresh(name)))
    assert all((out[:, ~masks[key]] == 0).all() and out[:, masks[key]].any() for key, out in seen.items())


@each_network
def test_masks_survive_saving(name, pruned, tmp_path):
    model = pruned(name)
    loaded = load_weights(fresh(name, seed=9), save_weights(model, tmp_path/'model.safetensors'))
    assert torch.equal(ask(loaded), ask(model))
    assert [file.name for file in tmp_path.iterdir()] == ['model.safetensors']


@each_network
def test_masks_survive_copying(name, pruned):
    model = pruned(name)
    want = ask(model)
    copied = copy.deepcopy(model)
    for _ in range(2): assert torch.equal(ask(copied), want)  # each forward pass counts its calls anew
    mask_activations(copied, {key: torch.zeros_like(mask) for key, mask in random_masks(fresh(name)).items()})
    assert torch.equal(ask(model), want)                      # the copy's masks are its own


@each_network
def test_interrupted_forward_does_not_misalign_masks(name, pruned):
    model = pruned(name)
    want = ask(model)
    def interrupt(module, args): raise KeyboardInterrupt
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt): ask(model)
    handle.remove()
    assert torch.equal(ask(model), want)


@each_network
def test_second_pruning_keeps_the_first(name, pruned):
    model, first = pruned(name), random_masks(fresh(name))
    second = {key: torch.roll(mask.flatten(), 1).view_as(mask) for key, mask in first.items()}
    mask_activations(model, second)
    for key, out in watch_activations(model, images()).items(): assert (out[:, ~(first[key] & second[key])] == 0).all()


@each_network
def test_plain_network_refuses_a_pruned_state(name, pruned):
    with pytest.raises(RuntimeError, match='mask0'): fresh(name).load_state_dict(pruned(name).state_dict())


def test_interrupted_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_weights(fresh('small'), tmp_path/'model.safetensors')
    before = path.read_bytes()
    def break_off(state, part): part.write_bytes(b'half'); raise OSError('disk full')
    monkeypatch.setattr(models, 'save_file', break_off)
    for target in (path, tmp_path/'new.safetensors'):
        with pytest.raises(OSError, match='disk full'): save_weights(fresh('small', seed=1), target)
    assert path.read_bytes() == before and not (tmp_path/'new.safetensors').exists()


@pytest.mark.parametrize('content', ['truncated', 'pickle'])
def test_damaged_weights_are_named(tmp_path, content):
    path = save_weights(fresh('small'), tmp_path/'model.safetensors')
    if content == 'truncated': path.write_bytes(path.read_bytes()[:-4])
    else: torch.save(fresh('small').state_dict(), path)
    with pytest.raises(ValueError, match='model.safetensors is not a whole safetensors file.*delete it'): load_weights(fresh('small'), path)


@pytest.mark.parametrize('masked', [False, True],
                         ids=['plain', 'pruned'])
def test_weights_of_another_network_are_refused(tmp_path, pruned, masked):
    path = save_weights(pruned('resnet18') if masked else fresh('resnet18'), tmp_path/'model.safetensors')
    with pytest.raises(ValueError, match='model.safetensors does not fit this network'): load_weights(fresh('small'), path)
