"""Weights in files: whole or not there, masks and ties included; read safely whoever wrote them; exported for those without the library."""
import os
import re
import stat
import subprocess
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
from nets import OWN, Functional, Transformer, ask, build, images, pruned
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from unlearning import weights
from unlearning.activations import masks, place_masks
from unlearning.models import NETWORKS, create_model
from unlearning.weights import export, load_weights, save_weights

X = images()


def small(seed=0): return create_model('small', 10, seed=seed).eval()


@pytest.mark.parametrize('name', [*OWN, *NETWORKS])
def test_masks_survive_saving(name, tmp_path):
    make = OWN[name][0] if name in OWN else lambda: create_model(name, 10, 3, 16)
    net = pruned(build(make), X)
    if name == 'vit': nn.init.normal_(net.heads.head.weight)
    loaded = load_weights(build(make, seed=9), save_weights(net, tmp_path/'deep'/'model.safetensors'))
    assert torch.equal(ask(loaded, X), ask(net, X)) and list(masks(loaded)) == list(masks(net))
    assert [file.name for file in (tmp_path/'deep').iterdir()] == ['model.safetensors']


def test_a_plain_network_is_saved_under_its_own_names(tmp_path):
    """Anybody with torch and safetensors loads it."""
    path = save_weights(Functional(), tmp_path/'model.safetensors')
    Functional().load_state_dict(load_file(path))
    assert not masks(load_weights(Functional(), path))


@pytest.mark.parametrize('wrap', [lambda n: torch.compile(n, backend='eager'), nn.DataParallel, lambda n: nn.DataParallel(torch.compile(n, backend='eager'))])
def test_wrapped_networks_are_saved_under_plain_names_and_loaded(wrap, tmp_path):
    net, other = small(), wrap(small(seed=1))
    path = save_weights(wrap(net), tmp_path/'model.safetensors')
    assert set(load_file(path)) == set(net.state_dict())
    loaded = load_weights(other, path)
    assert loaded is other and torch.equal(ask(other, X), ask(net, X))


def test_a_compiled_part_is_saved_under_plain_names(tmp_path):
    make = lambda seed, wrap: nn.Sequential(wrap(small(seed)), nn.Identity())
    compiled = make(0, lambda n: torch.compile(n, backend='eager'))
    path = save_weights(compiled, tmp_path/'model.safetensors')
    plain = load_weights(make(1, lambda n: n), path).eval()
    assert torch.equal(ask(plain, X), ask(compiled, X))
    assert torch.equal(ask(load_weights(make(2, lambda n: torch.compile(n, backend='eager')), path), X), ask(compiled, X))


# N7: tied weights

class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        if tie: self.b.weight = self.a.weight
        if tie: self.c = self.b
    def forward(self, x): return self.c(F.relu(self.b(F.relu(self.a(x.mean((2, 3)).repeat(1, 4))))))


def written_once(net, path):
    """A file as it was written before: a tied tensor under its first name, the others in the header."""
    state, ties = net.state_dict(), {'b.weight': 'a.weight', 'c.weight': 'a.weight', 'c.bias': 'b.bias'}
    save_file({k: v for k, v in state.items() if k not in ties}, path, ties)
    return path


@pytest.mark.parametrize('tie', [True, False])
@pytest.mark.parametrize('write', [save_weights, written_once])
def test_tied_weights_are_restored_tied(tie, write, tmp_path):
    net, other = build(Tied), build(lambda: Tied(tie), seed=1)
    load_weights(other, write(net, tmp_path/'model.safetensors'))
    assert torch.equal(ask(other, X), ask(net, X)) and other.c.weight is other.b.weight is other.a.weight


@pytest.mark.parametrize('tie', [True, False])
def test_tied_weights_are_loaded_by_torch_alone(tie, tmp_path):
    net, other = build(Tied), build(lambda: Tied(tie), seed=1)
    other.load_state_dict(load_file(save_weights(net, tmp_path/'model.safetensors')))
    assert torch.equal(ask(other, X), ask(net, X))


def test_tied_weights_written_by_safetensors_itself(tmp_path):
    net = build(Tied)
    save_model(net, tmp_path/'model.safetensors')
    assert torch.equal(ask(load_weights(build(Tied, seed=1), tmp_path/'model.safetensors'), X), ask(net, X))


def test_a_file_is_open_to_whom_any_new_file_is(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        old = os.umask(umask)
        try: path = save_weights(Functional(), tmp_path/'model.safetensors')
        finally: os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_views_and_empty_tensors_are_saved(tmp_path):
    class Views(Functional):
        def __init__(self):
            super().__init__()
            whole = torch.arange(12.)
            for name, v in {'part': whole[2:5], 'same': whole[2:5], 'all': whole, 'none': torch.zeros(0)}.items():
                self.register_buffer(name, v)
    net, other = Views(), Views()
    other.part.zero_()
    load_weights(other, save_weights(net, tmp_path/'model.safetensors'))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


# N12: other people's checkpoints

def averaged(net):
    mean = AveragedModel(net)
    mean.update_parameters(net)
    return mean.state_dict()


def renamed(prefix): return lambda net: {prefix + k: v for k, v in net.state_dict().items()}


CONTENTS = {'state': lambda net: net.state_dict(), 'module.': renamed('module.'), '_orig_mod.': renamed('_orig_mod.'), 'module._orig_mod.': renamed('module._orig_mod.'),
            '_orig_mod.module.': renamed('_orig_mod.module.'), 'state_dict': lambda net: {'state_dict': net.state_dict(), 'epoch': 3},
            'model': lambda net: {'model': renamed('module.')(net), 'optimizer': torch.optim.Adam(net.parameters()).state_dict(), 'args': {'lr': 0.1}},
            'model_state_dict': lambda net: {'model_state_dict': net.state_dict(), 'loss': torch.tensor(1.)}, 'net': lambda net: {'net': net.state_dict(), 'acc': 93.8},
            'network': lambda net: {'network': {'state_dict': net.state_dict()}}, 'ema': lambda net: {'ema': net.state_dict(), 'step': 7},
            'ema as well, the same': lambda net: {'ema': net.state_dict(), 'model': net.state_dict()},
            'own word': lambda net: {'generator': net.state_dict(), 'optimizer': {'state': {}, 'param_groups': []}}, 'averaged': averaged}


@pytest.mark.parametrize('ending', ['.pt', '.pth', '.pth.tar', '.bin', '.safetensors', ''])
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_checkpoints_are_known_by_their_content(ending, legacy, tmp_path):
    torch.save(small().state_dict(), path := tmp_path/f'model{ending}', _use_new_zipfile_serialization=not legacy)
    assert torch.equal(ask(load_weights(small(seed=1), path), X), ask(small(), X))


@pytest.mark.parametrize('content', CONTENTS)
def test_checkpoints_of_every_form_are_loaded(content, tmp_path):
    torch.save(CONTENTS[content](small()), path := tmp_path/'model.pth.tar')
    assert torch.equal(ask(load_weights(small(seed=1), path), X), ask(small(), X))


def test_safetensors_under_another_ending(tmp_path):
    path = save_weights(small(), tmp_path/'model.pt')
    assert torch.equal(ask(load_weights(small(seed=1), path), X), ask(small(), X))


class Part(nn.Module):
    """A layer, and a part that is called module and has a layer of the same name."""
    def __init__(self, depth=1):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        if depth: self.module = Part(depth - 1)


@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda n: nn.DataParallel(torch.compile(n, backend='eager')), AveragedModel, lambda n: n])
def test_a_part_that_is_called_module_keeps_its_weights(wrap, tmp_path):
    net = Part()
    torch.save(wrap(net).state_dict(), path := tmp_path/'model.pt')
    loaded = load_weights(Part(), path).state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in net.state_dict().items())


def test_files_without_counts_of_batches_are_loaded(tmp_path):
    """As torch loads those of before 0.4.1."""
    net = small()
    torch.save({k: v for k, v in net.state_dict().items() if 'num_batches' not in k}, path := tmp_path/'old.pt')
    assert torch.equal(ask(load_weights(small(1), path), X), ask(net, X))


@pytest.mark.parametrize('image', ['224', '[3, 224, 224]', 'a cat'])
def test_a_header_of_somebody_else_is_no_place_of_masks(image, tmp_path):
    plain = {k: v.contiguous() for k, v in small().state_dict().items()}
    save_file(plain, path := tmp_path/'theirs.safetensors', metadata=dict(format='pt', image=image))
    assert torch.equal(ask(load_weights(small(1), path), X), ask(small(), X))


class Evil:
    def __reduce__(self): return print, ('executed',)


@pytest.mark.parametrize('thing', [small, Evil, lambda: {'state_dict': small().state_dict(), 'args': Evil()}, lambda: {'model': small()}],
                         ids=['network', 'code', 'code beside', 'network nested'])
def test_what_would_be_executed_is_refused(thing, tmp_path, capsys):
    torch.save(thing(), path := tmp_path/'model.pt')
    with pytest.raises(ValueError, match=r'model.pt cannot be read safely: .*torch.save\(model.state_dict\(\), …\)'): load_weights(small(), path)
    assert 'executed' not in capsys.readouterr().out


def test_scripted_networks_are_named(tmp_path):
    torch.jit.script(small()).save(path := tmp_path/'model.pt')
    with pytest.raises(ValueError, match='model.pt is a scripted network: write its weights'): load_weights(small(), path)


@pytest.mark.parametrize('content', [lambda: {'epoch': 3, 'lr': 0.1}, lambda: torch.zeros(3), lambda: {}, lambda: [1, 2]], ids=['facts', 'tensor', 'empty', 'list'])
def test_checkpoints_without_weights_are_named(content, tmp_path):
    torch.save(content(), path := tmp_path/'model.pt')
    with pytest.raises(ValueError, match='model.pt holds no weights by name, but a'): load_weights(small(), path)


@pytest.mark.parametrize('write', [save_weights, lambda net, path: torch.save(net.state_dict(), path)], ids=['safetensors', 'torch'])
@pytest.mark.parametrize('left', [0.05, 0.5, 0.999])
def test_damaged_files_are_named_and_never_to_be_deleted(write, left, tmp_path):
    write(small(), path := tmp_path/'model.pt')
    path.write_bytes(path.read_bytes()[:int(left * path.stat().st_size)])
    with pytest.raises(ValueError, match='model.pt') as e: load_weights(small(), path)
    assert 'delete' not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize('data', [b'', b'hello', b'\x89PNG\r\n\x1a\n' + bytes(50), b'PK' + bytes(50), b'\x80' + bytes(50), bytes(8) + b'{' + bytes(9)])
def test_other_files_are_named(data, tmp_path):
    (path := tmp_path/'model.pt').write_bytes(data)
    with pytest.raises(ValueError, match='model.pt'): load_weights(small(), path)


@pytest.mark.parametrize('lazy', [lambda: nn.LazyLinear(10), nn.LazyBatchNorm1d])
def test_networks_without_shapes_are_named(lazy, tmp_path):
    make = lambda: nn.Sequential(nn.Flatten(), lazy())
    made = make()
    made(X)
    path = save_weights(made, tmp_path/'model.safetensors')
    for use in (load_weights, save_weights):
        with pytest.raises(ValueError, match="the network's '1.[a-z_]*' has no shape yet: call it once on a batch"): use(make(), path)
    load_weights(made, path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='model.pt'): load_weights(small(), tmp_path/'model.pt')


@pytest.mark.parametrize('other, why', [
    (lambda: create_model('resnet18', 10), r"it lacks '0.weight' \(and \d+ more\); it has 'conv1.weight', which the network lacks \(and \d+ more\)$"),
    (lambda: create_model('small', 7), r"'\d.weight' is \(7, 128\), and in the network \(10, 128\) \(and 1 more\)$"),
    (lambda: create_model('small', 10, 1), r"'0.weight' is \(32, 1, 4, 4\), and in the network \(32, 3, 4, 4\)$")], ids=['resnet18', 'classes', 'channels'])
def test_weights_of_another_network_are_refused_and_nothing_is_loaded(other, why, tmp_path):
    net, want = small(), ask(small(), X)
    torch.save(other().state_dict(), path := tmp_path/'model.pt')
    with pytest.raises(ValueError, match='model.pt does not fit this network: ') as e: load_weights(net, path)
    assert torch.equal(ask(net, X), want)
    assert re.search(why, str(e.value)), str(e.value)


def test_masks_of_another_network_are_refused(tmp_path):
    path = save_weights(pruned(create_model('resnet18', 10), X), tmp_path/'model.safetensors')
    with pytest.raises(ValueError, match='does not fit this network'): load_weights(small(), path)


def test_a_pruned_state_by_torch_alone(tmp_path):
    """It has no header that says for which images: the remedy is named, and works."""
    net = pruned(small(), X)
    torch.save(net.state_dict(), path := tmp_path/'model.pt')
    with pytest.raises(ValueError, match='Its network had masks: save it with save_weights, or call place_masks'): load_weights(small(1), path)
    assert torch.equal(ask(load_weights(place_masks(small(1), X), path), X), ask(net, X))


def test_interrupted_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_weights(small(), tmp_path/'model.safetensors')
    before = path.read_bytes()
    def break_off(state, part, facts): part.write_bytes(b'half'); raise OSError('disk full')
    monkeypatch.setattr(weights, 'save_file', break_off)
    for target in (path, tmp_path/'new.safetensors'):
        with pytest.raises(OSError, match='disk full'): save_weights(small(seed=1), target)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['model.safetensors']


def test_interrupted_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = export(Functional(), tmp_path/'model.pt2', X)
    before = path.read_bytes()
    def break_off(program, f): f.write(b'half'); raise OSError('disk full')
    monkeypatch.setattr(torch.export, 'save', break_off)
    with pytest.raises(OSError, match='disk full'): export(small(), path, X)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['model.pt2']


# Exported

SERVE = """
import sys
sys.modules['unlearning'] = None  # it cannot be imported
import torch
todo, answers = torch.load(sys.argv[1]), {}
for path, asked in todo.items():
    net = torch.export.load(path).module()
    answers[path] = [net(x).detach() for x in asked]
torch.save(answers, sys.argv[2])
"""


def served(todo, folder):
    """{path: images} -> {path: answers} of exported networks, in a process of its own that has torch only."""
    torch.save(todo, folder/'asked.pt')
    subprocess.run([sys.executable, '-I', '-W', 'ignore', '-c', SERVE, folder/'asked.pt', folder/'answers.pt'], check=True, cwd=folder)
    return torch.load(folder/'answers.pt')


class Tuples(Functional):
    def forward(self, x): return {'features': self.features(x), 'logits': super().forward(x)}


def test_exported_networks_are_served_without_the_library(tmp_path):
    """For other numbers of images than the example's, too."""
    nets = {make.__name__: pruned(build(make), X) for make in (Functional, Tuples, Transformer, small)}
    paths = {name: str(export(net.train(), tmp_path/f'{name}.pt2', X[:1])) for name, net in nets.items()}
    asked = [images(n, seed=n) for n in (1, 2, 5)]
    answers = served({path: asked for path in paths.values()}, tmp_path)
    for name, net in nets.items():
        assert net.training  # as it was
        for answer, x in zip(answers[paths[name]], asked): assert torch.allclose(answer, ask(net.eval(), x), atol=1e-5)


class Secret(Functional):
    def forward(self, x):
        x = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))  # of the owner alone
        return super().forward(x)  # of the owner alone


def test_exported_networks_hold_no_source_no_path_and_no_image(tmp_path):
    example = torch.full((2, 3, 16, 16), 0.123)
    for net in (Secret(), pruned(build(Functional), X), torch.compile(Secret(), backend='eager')):
        with zipfile.ZipFile(export(net, tmp_path/'model.pt2', example)) as file: found = b''.join(map(file.read, file.namelist()))
        for secret in (b'.py', b'of the owner', str(tmp_path).encode(), os.getcwd().encode(), torch.full((9,), 0.123).numpy().tobytes()):
            assert secret not in found, secret


def test_export_refuses_what_is_no_classifier(tmp_path):
    with pytest.raises(ValueError, match='flatten it'): export(nn.Conv2d(3, 10, 16), tmp_path/'model.pt2', X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('names', [('model', 'ema'), ('state_dict', 'state_dict_ema'), ('model', 'teacher'), ('model', 'shadow')])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_two_sets_of_weights_are_not_chosen_from(names, prefix, tmp_path):
    own = small().state_dict()
    torch.save(dict(zip(names, (own, {prefix + k: v + 1 for k, v in own.items()}))), path := tmp_path/'two.pt')
    net, before = small(1), small(1).state_dict()
    with pytest.raises(ValueError, match=f"two.pt may hold the weights of a network twice, under '{names[0]}' and '{names[1]}'"): load_weights(net, path)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('change, why', [
    (lambda w: {'0.weight': w, 'module.0.weight': 2 * w}, "holds '0.weight' twice, with a prefix and without, and they differ"),
    (lambda w: {'0.weight': (40 * w).to(torch.int8)}, "does not fit this network: '0.weight' is int8, and in the network float32$"),
    (lambda w: {'0.weight': torch.complex(w, w)}, "does not fit this network: '0.weight' is complex64, and in the network float32$")], ids=['twice', 'integers', 'complex'])
def test_weights_that_are_not_those_of_the_network_are_refused(change, why, tmp_path):
    net, own = small(), small(1).state_dict()
    torch.save(own | change(own['0.weight']), path := tmp_path/'model.pt')
    with pytest.raises(ValueError, match=f'model.pt {why}'): load_weights(net, path)
    assert torch.equal(net[0].weight, small()[0].weight)


def test_weights_in_a_file_twice_and_alike_are_read(tmp_path):
    own = small(1).state_dict()
    torch.save(own | {'module.0.weight': own['0.weight'].clone()}, path := tmp_path/'model.pt')
    assert torch.equal(load_weights(small(), path)[0].weight, own['0.weight'])


def test_two_networks_in_a_file_are_no_twins(tmp_path):
    own = small().state_dict()
    other = {'head': {'weight': torch.zeros(2)}, 'fisher': {k: v * v for k, v in own.items()}, 'masks': {k: v > 0 for k, v in own.items()}}
    torch.save({'model': own, **other}, path := tmp_path/'two.pt')
    assert torch.equal(load_weights(small(1), path)[0].weight, small()[0].weight)


def test_a_name_without_a_dot_stays(tmp_path):
    torch.save({'weight': torch.zeros(2, 3)}, path := tmp_path/'layer.pt')
    with pytest.raises(ValueError, match="it lacks 'bias'"): load_weights(nn.Linear(3, 2), path)


def test_a_name_that_all_have_in_common_falls_away(tmp_path):
    """As Lightning writes them."""
    own = small().state_dict()
    torch.save({'state_dict': {f'model.{k}': v for k, v in own.items()}}, path := tmp_path/'lightning.ckpt')
    assert all(torch.equal(v, own[k]) for k, v in load_weights(small(1), path).state_dict().items())


def test_two_tensors_do_not_fit_into_one(tmp_path):
    free, tied = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    tied[1].weight = tied[0].weight
    torch.save(free.state_dict(), tmp_path/'free.pt')
    with pytest.raises(ValueError, match='0.weight and 1.weight are one tensor there, and two in the file'): load_weights(tied, tmp_path/'free.pt')


class PerImage(nn.Module):
    """Divides by what an image of one colour has not."""
    def __init__(self): super().__init__(); self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 10)
    def forward(self, x):
        x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
        return self.fc(self.conv(x).relu().flatten(1))


def test_masks_of_a_network_that_divides_by_the_spread_are_placed_again(tmp_path):
    net = place_masks(PerImage(), torch.rand(3, 3, 8, 8))
    mask = next(iter(masks(net).values()))
    mask.mask = torch.rand(mask.size) < 0.5
    back = load_weights(PerImage(), save_weights(net, tmp_path/'pruned.safetensors'))
    assert torch.equal(next(iter(masks(back).values())).mask, mask.mask)
