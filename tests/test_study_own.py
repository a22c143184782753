"""A study of networks and pieces of one's own: typed into a notebook or a script, already trained, edited between two runs."""
import argparse, collections, dataclasses, json, types
import functools, importlib, os, subprocess, sys, textwrap
from dataclasses import replace
from pathlib import Path

import cloudpickle, nbformat, numpy as np, papermill, pytest, torch
from torch import nn

import unlearning, unlearning.study
from test_study import RECIPES, files, kinds, networks, run, tiny
from unlearning.activations import mask_activations, masks, place_masks
from unlearning.ensemble import Store, describe, hash_of
from unlearning.methods.bad_teacher import bad_teacher
from unlearning.methods.hybrids import soft_witness
from unlearning.models import NETWORKS
from unlearning.report import protocol
from unlearning.study import Blueprint, blueprint, half, in_bfloat16, maker, network_tasks, original_task, titles
from unlearning.training import Training, fit, logits
from unlearning.unlearn import Edit, Recipe, Repair

ROOT, HERE = Path(unlearning.__file__).parent.parent, Path(__file__).parent
ONE = dict(finetune=RECIPES['finetune'])


def mlp(num_classes, in_channels, image_size, width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels*image_size**2, width), nn.BatchNorm1d(width), nn.ReLU(),
                         nn.Linear(width, num_classes))


def keys(study): return {method: row[0].key for method, row in network_tasks(study).items()}


def trained(split, epochs=3):
    torch.manual_seed(5)
    model = mlp(10, 1, 8)
    fit(model, split.train, Training(epochs=epochs, batch_size=32, lr=0.1, augment=()))
    return model


# A builder

@pytest.mark.parametrize('jobs', [1, 2])
def test_builder(tmp_path, jobs):
    """Retrained networks of several seeds, drawn anew each."""
    results = run(tiny(tmp_path, recipes=ONE, network=mlp, jobs=jobs))
    assert len(networks(tmp_path)) == 5 and results.failures == {} and results.facts['network'] == 'mlp'
    arrays = [Store(tmp_path).load(t)[0]['test'] for t in network_tasks(tiny(tmp_path, recipes=ONE, network=mlp))['retrain']]
    assert not np.allclose(*arrays)


def test_registered_by_hand_works_in_other_processes_and_counts_by_content(tmp_path, monkeypatch):
    """Its name means nothing in another process, nor tomorrow."""
    monkeypatch.setitem(NETWORKS, 'mine', mlp)
    first = tiny(tmp_path, recipes=ONE, network='mine', jobs=2)
    run(first)
    before = files(tmp_path)
    monkeypatch.setitem(NETWORKS, 'mine', lambda num_classes, in_channels, image_size: mlp(num_classes, in_channels, image_size, 8))
    run(tiny(tmp_path, recipes=ONE, network='mine', jobs=2))
    new = files(tmp_path).keys() - before.keys()
    assert kinds(n for n in new if not n.startswith('measure')) == ['finetune-0', 'finetune-1', 'original-0', 'retrain-0', 'retrain-1']


def test_named_networks_keep_their_seeds_and_weights(tmp_path):
    from unlearning.models import create_model
    study = tiny(tmp_path)
    for seed in (0, 3):
        want = create_model('small', 10, 1, 8, seed).state_dict()
        got = study.plan.fresh(seed).state_dict()
        assert all(torch.equal(got[k], want[k]) for k in want)
    assert network_tasks(study)['retrain'][0].settings['network'] == 'small'


@pytest.mark.parametrize('wrong, says', [(lambda: torch.nn.Linear(2, 2).state_dict(), 'OrderedDict'), (3, 'gives a int'),
                                         (lambda a, b: mlp(10, 1, 8), 'cannot be called'), ('resnet19', 'unknown network')])
def test_what_is_no_network_is_refused_before_the_work(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says): tiny(tmp_path, network=wrong)


def test_builder_of_the_same_weights_is_refused(tmp_path):
    """A retrained network would start from what it has to know nothing of."""
    model = mlp(10, 1, 8)
    with pytest.raises(ValueError, match='same weights under every seed'): tiny(tmp_path, network=lambda: model)


# A module

def test_module_is_an_architecture(tmp_path):
    """Its own weights do not matter, nor reach a retrained network; what else it is does."""
    one, other, wide = mlp(10, 1, 8), mlp(10, 1, 8), mlp(10, 1, 8, 32)
    study = tiny(tmp_path, recipes=ONE, network=one, jobs=2)
    assert keys(study) == keys(tiny(tmp_path, recipes=ONE, network=other))
    assert keys(study)['retrain'] != keys(tiny(tmp_path, recipes=ONE, network=wide))['retrain']
    with torch.no_grad():
        for p in one.parameters(): p.fill_(float('inf'))
    assert all(p.isfinite().all() for p in study.plan.fresh(0).parameters())
    assert run(study).failures == {}


class Scaled(nn.Module):
    """A parameter that no reset_parameters draws, and constants of both kinds."""
    def __init__(self, width=4, kept=True):
        super().__init__()
        self.inner, self.scale = mlp(10, 1, 8), nn.Parameter(torch.ones(1)) if kept else 1.
        self.register_buffer('table', torch.arange(3.))
        self.register_buffer('hidden', torch.full((width,), 2.), persistent=False)
    def forward(self, x): return self.inner(x)*self.scale + self.table.sum() + self.hidden.sum()


def test_parameter_that_nothing_draws_anew_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match='scale is drawn anew by no reset_parameters.*a function that builds'):
        tiny(tmp_path, network=Scaled())


def test_constants_of_a_module_reach_its_copies(tmp_path):
    plan = tiny(tmp_path, network=Scaled(kept=False)).plan
    plan = cloudpickle.loads(cloudpickle.dumps(plan))
    fresh = plan.fresh(1)
    assert fresh.table.tolist() == [0, 1, 2] and fresh.hidden.tolist() == [2]*4
    assert all(t.is_meta for name, t in plan.network.state_dict().items() if name != 'table')


def test_attention_is_drawn_anew():
    """torch calls its method _reset_parameters."""
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    from unlearning.study import drawn_anew
    fresh = drawn_anew(layer)
    assert not torch.equal(fresh.self_attn.in_proj_weight, layer.self_attn.in_proj_weight)


def test_shared_weights_stay_shared():
    from unlearning.study import drawn_anew, skeleton, with_weights
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    for made in (drawn_anew(model), with_weights(skeleton(model), weights)): assert made[0].weight is made[1].weight


# An original that was there already

@pytest.mark.parametrize('jobs', [1, 2])
def test_original_trained_by_its_owner(tmp_path, jobs):
    """None is trained; every method starts from its weights, and its logits are the owner's."""
    split = tiny(tmp_path).split
    model = trained(split)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    study = tiny(tmp_path, recipes=ONE, original=model, jobs=jobs)
    results = run(study)
    arrays, _ = Store(tmp_path).load(original_task(study))
    np.testing.assert_array_equal(arrays['test'], half(logits(model, study.split.test)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    make = maker(study, '', Store(tmp_path), original_task(study))
    filled = make.of_original.filled({k.removeprefix('weights/'): v for k, v in arrays.items() if k.startswith('weights/')})
    np.testing.assert_array_equal(half(logits(filled, study.split.test)), arrays['test'])
    assert results.networks.seconds.isna().tolist() == (results.networks.method == 'original').tolist()
    again = files(tmp_path)
    run(tiny(tmp_path, recipes=ONE, original=model, jobs=jobs))
    assert files(tmp_path) == again


def test_other_weights_are_another_original(tmp_path):
    split = tiny(tmp_path).split
    one, other = trained(split), trained(split, epochs=1)
    first, second = (keys(tiny(tmp_path, recipes=ONE, original=m)) for m in (one, other))
    assert first['retrain'] == second['retrain'] and first['original'] != second['original'] and first['finetune'] != second['finetune']


def test_weights_of_the_original_are_stored_once_and_do_not_travel(tmp_path, monkeypatch):
    wide = functools.partial(mlp, width=4000)
    study = tiny(tmp_path, recipes=ONE, network=wide, original=wide(10, 1, 8), training=Training(epochs=0.2, batch_size=32, lr=0.1, augment=()))
    run(study)
    size = sum(p.numel()*4 for p in study.original.parameters())
    assert sorted(p.name.split('-')[0] for p in tmp_path.iterdir() if p.stat().st_size > size) == ['original', 'retrain', 'retrain']
    make = maker(study, '', Store(tmp_path), original_task(study))
    assert len(cloudpickle.dumps((make, network_tasks(study)['finetune'][0]))) < size/50


def test_original_that_is_no_module_is_refused(tmp_path):
    with pytest.raises(ValueError, match='original is a dict: pass the trained network'): tiny(tmp_path, original={})


def test_original_in_bfloat16(tmp_path):
    """NumPy has no such type; the values come back whole."""
    from unlearning.study import skeleton, weights_in, weights_of
    model = mlp(10, 1, 8).bfloat16()
    assert describe(Blueprint(skeleton(model), (10, 1, 8)).filled(weights_in(weights_of(model)))) == describe(model)


# Scripts and notebooks

OWN = '''
    import torch
    from dataclasses import dataclass, replace
    from torch import nn
    from unlearning.load import load_split
    from unlearning.methods.finetune import finetune
    from unlearning.study import Study, run_study
    from unlearning.training import Training, fit
    from unlearning.unlearn import Erase, ForgetLoss, Recipe, Repair

    WIDTH = 16

    class Scale(nn.Module):
        def __init__(self, by): super().__init__(); self.by = by
        def forward(self, x): return self.by * x

    def net(num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), Scale(2.), nn.ReLU(), nn.Linear(WIDTH, num_classes))

    @dataclass(frozen=True)
    class TowardsUniform(ForgetLoss):
        weight: float = 1.
        def __call__(self, run, forget, retain): return -self.weight * run.student(forget.x).log_softmax(1).mean()
'''
WORK = '''
    split, quick = load_split('digits', forget=90, subset=200), Training(epochs=1, batch_size=32, lr=0.05, augment=())
    recipe = Recipe(name='uniform', phases=(Erase(forget=TowardsUniform(), batch_size=32, lr=0.01), Repair(training=quick)))
    original = net(10) if {given} else None
    study = Study(split, dict(uniform=recipe), {folder!r}, network=net, original=original, training=quick, seeds=2, permutations=3, jobs=2)
    results = run_study(study, progress=False)
    print(sorted(results.quality.method.unique()), len(results.networks), results.failures)
'''
SAYS = "['uniform'] 5 {}"


@pytest.mark.parametrize('given', [False, True], ids=['trained here', 'given'])
def test_loss_and_builder_typed_into_a_notebook(tmp_path, given):
    """A cell each, run by papermill; two processes make the networks."""
    folder = str(tmp_path/'study')
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(code).strip()) for code in (OWN, WORK.format(folder=folder, given=given))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'own.ipynb')
    done = papermill.execute_notebook(str(tmp_path/'own.ipynb'), str(tmp_path/'out.ipynb'), kernel_name='python3', cwd=str(tmp_path),
                                      progress_bar=False)
    assert done.cells[-1].outputs[-1].text.strip() == SAYS


def script(path, code):
    path.write_text(textwrap.dedent(code))
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), str(HERE)]))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=path.parent, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_script_without_a_main_guard(tmp_path):
    assert script(tmp_path/'own.py', textwrap.dedent(OWN) + textwrap.dedent(WORK.format(folder=str(tmp_path/'study'), given=True))) == SAYS


def test_same_key_in_a_fresh_process(tmp_path):
    """Whatever seeds the hashes of strings, and wherever memory lies."""
    code = textwrap.dedent(OWN) + textwrap.dedent('''
        from unlearning.ensemble import describe, hash_of
        LAYERS = {'b', 'a', 'c', 'd'}
        helpers = dict(f=lambda x: x in LAYERS, g=len)
        def uses(x): return [helpers['f'](x), net(3)]
        exec('def made(x): return x in {"p", "q", "r"}')
        print(hash_of([net, TowardsUniform(), uses, made, Scale(3.), LAYERS, lambda: uses]), describe(net))
    ''')
    assert len({script(tmp_path/'key.py', code) for _ in range(3)}) == 1


# Keys by content

HELPERS = '''
    from dataclasses import dataclass
    from torch import nn
    import helpers
    DEPTH, NOISE = 2, dict(sd=0.1)
    def layer(width): return nn.Linear(width, width)
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = layer(width)
        def forward(self, x): return self.inner(x)
    def net(): return nn.Sequential(*[Block(4) for _ in range(DEPTH)], nn.Dropout(NOISE['sd']), helpers.head())
    def even(n): return n == 0 or odd(n - 1)
    def odd(n): return n != 0 and even(n - 1)
    @dataclass(frozen=True)
    class Base:
        weight: float = 1.
    class Sub(Base):
        factor = 3
        def __init__(self, weight, own=1):
            super().__init__(weight)
            object.__setattr__(self, 'own', own)
        @property
        def strength(self): return self.factor*self.weight
'''
HEAD = 'from torch import nn\ndef head(): return nn.Linear(4, 10)\ndef other(): return 1\n'


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Import the user's two modules, with edits."""
    monkeypatch.syspath_prepend(tmp_path)
    count = iter(range(99))
    def load(code=(), head=()):
        for name, text, edit in (('helpers', HEAD, head), ('own_nets', textwrap.dedent(HELPERS), code)):
            if edit:
                assert text.count(edit[0]) == 1
                text = text.replace(*edit)
            folder = tmp_path/str(next(count))
            folder.mkdir()
            (folder/f'{name}.py').write_text(text)
            monkeypatch.syspath_prepend(folder)
            sys.modules.pop(name, None)
            importlib.invalidate_caches()
            module = importlib.import_module(name)
        return module
    yield load
    for name in ('helpers', 'own_nets'): sys.modules.pop(name, None)


@pytest.mark.parametrize('edit', [('DEPTH, NOISE = 2', 'DEPTH, NOISE = 3'), ('sd=0.1', 'sd=0.2'), ('nn.Linear(width, width)', 'nn.Linear(width, width, False)'),
                                  ('self.inner(x)', 'self.inner(x)*2')])
def test_edited_helper_gives_another_key(module, edit):
    before = describe(module().net)
    assert describe(module().net) == before != describe(module(edit).net)
    assert describe(module(('n == 0', 'n == 2')).net) == before  # which it does not use


def test_edit_in_another_module_of_the_user_gives_another_key(module):
    before = describe(module().net)
    assert describe(module(head=('nn.Linear(4, 10)', 'nn.Linear(4, 10, False)')).net) != before
    assert describe(module(head=('return 1', 'return 2')).net) == before  # which it does not use


@pytest.mark.parametrize('imports, build', [('import mine.nets', 'return mine.nets.make()'), ('from . import nets', 'return nets.make()'),
                                            ('from mine.nets import make', 'return make()'), ('', 'import mine.nets; return mine.nets.make()'),
                                            ('', 'from mine import nets; return nets.make()'), ('', 'from . import nets; return nets.make()'),
                                            ('', 'from .nets import make; return make()'), ('', 'import mine.nets as n; return n.make()')])
def test_edit_in_a_package_of_the_user_gives_another_key(tmp_path, imports, build):
    """However it is imported, and whether or not somebody has imported it before."""
    (tmp_path/'mine').mkdir()
    def key(result):
        (tmp_path/'mine'/'__init__.py').write_text('')
        (tmp_path/'mine'/'nets.py').write_text(f'def make(): return {result}\ndef unused(): return {result[::-1]}')
        (tmp_path/'mine'/'build.py').write_text(f'{imports}\ndef build():\n    {build}')
        for name in [n for n in sys.modules if n.partition('.')[0] == 'mine']: del sys.modules[name]
        importlib.invalidate_caches()
        f = importlib.import_module('mine.build').build
        before = describe(f)
        assert f() == int(result) and describe(f) == before
        return before
    sys.path.insert(0, str(tmp_path))
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    try: assert key('1') == key('1') != key('2')
    finally:
        sys.path.remove(str(tmp_path))
        sys.dont_write_bytecode = kept
        for name in [n for n in sys.modules if n.partition('.')[0] == 'mine']: del sys.modules[name]


def test_what_a_package_holds_is_not_a_module_of_the_same_name(tmp_path, monkeypatch):
    """A key imports what `from` would import, and no more; and it outlasts code that never runs."""
    (tmp_path/'ours').mkdir()
    for name, text in dict(__init__='from .v2 import net', v2='def net(): return 1', net='raise RuntimeError', script='raise SystemExit').items():
        (tmp_path/'ours'/f'{name}.py').write_text(text)
    (tmp_path/'uses.py').write_text('def build(debug=False):\n    if debug: from ours import script\n    from ours import net\n    return net()')
    monkeypatch.syspath_prepend(tmp_path)
    build = importlib.import_module('uses').build
    assert describe(build) and build() == 1


def test_what_a_function_writes_on_itself_is_not_in_its_key():
    def counted(): counted.calls += 1
    counted.calls, counted.width = 0, 8
    before = describe(counted)
    counted()
    assert describe(counted) == before
    counted.width = 16
    assert describe(counted) != before


def test_keywords_that_are_for_somebody_else():
    class Net(torch.nn.Module):
        def __init__(self, width=8, **kw): super().__init__(**kw)
    assert type(unlearning.study.build(Net, (10, 3, 8))) is Net
    assert unlearning.study.build(lambda **kw: kw, (10, 3, 8)) == dict(num_classes=10)


def test_functions_that_call_each_other(module):
    before = describe(module().even)
    assert describe(module().even) == before != describe(module(('n != 0', 'n != 1')).even)


@pytest.mark.parametrize('edit', [('factor = 3', 'factor = 4'), ('self.factor*self.weight', 'self.factor+self.weight'), ('weight: float = 1.', 'weight: float = 1.; other: int = 1')])
def test_subclass_of_a_dataclass_that_is_none(module, edit):
    """Its attributes, its methods and its base count."""
    before = hash_of(module().Sub(0.5))
    m = module()
    assert hash_of(m.Sub(0.5)) == before and len({before, hash_of(m.Sub(0.5, own=2)), hash_of(m.Sub(0.25))}) == 3
    assert hash_of(module((edit[0], edit[1])).Sub(0.5)) != before


class Ids(list): pass
class Level(int): pass


@pytest.mark.parametrize('kind, value', [(Ids, [1, 2]), (Level, 3)])
def test_attributes_of_ones_own_data_count(kind, value):
    plain, before, after = kind(value), kind(value), kind(value)
    before.source, after.source = 'a.txt', 'b.txt'
    assert describe(plain) == describe(value)  # as it was before attributes counted
    assert len({hash_of(x) for x in (plain, before, after)}) == 3


def test_closures_defaults_partials_and_methods():
    def outer(n):
        def f(x=1): return x + n
        return f
    assert describe(outer(1)) == describe(outer(1)) != describe(outer(2))
    f, g = outer(1), outer(1)
    g.__defaults__ = (2,)
    assert describe(f) != describe(g)
    assert describe(functools.partial(f, 3)) == describe(functools.partial(f, np.int64(3))) != describe(functools.partial(f, 4))
    class Counter:
        def __init__(self, start): self.start = start
        def next(self): return self.start + 1
    assert describe(Counter(1).next) == describe(Counter(1).next) != describe(Counter(2).next)
    assert describe(functools.lru_cache(f)) == describe(f)


def test_two_lambdas_of_one_line():
    one, other, same = (lambda x: x + 1), (lambda x: x + 2), (lambda x: x + 1)
    assert describe(one) == describe(same) != describe(other)


def test_code_without_a_source():
    def made(code):
        space = {}
        exec(code, space)
        return space['f']
    assert describe(made('def f(x): return x + 1')) == describe(made('def f(x): return x + 1')) != describe(made('def f(x): return x + 2'))
    assert describe(made('K = 1\ndef f(x): return x + K')) != describe(made('K = 2\ndef f(x): return x + K'))
    same_bytes = [('def f(x, rng): return x, rng', 'def f(x, *rng): return x, rng'), ('def f(x, rng): return x', 'def f(x, *, rng): return x'),
                  ('def f(x):\n try: x = g(x); x = h(x)\n except ValueError: pass\n return x',
                   'def f(x):\n x = g(x)\n try: x = h(x)\n except ValueError: pass\n return x')]
    for one, other in same_bytes: assert describe(made(one)) == describe(made(one)) != describe(made(other))


def test_cached_values_are_no_settings():
    class Piece:
        def __init__(self): self.n = 3
        @functools.cached_property
        def table(self): return list(range(self.n))
    piece = Piece()
    before = hash_of(piece)
    assert piece.table and hash_of(piece) == before


def test_fields_of_arrays_and_long_floats_are_told_apart():
    fields = [np.array([(1, 2.)], dtype=[(a, int), ('b', float)]) for a in 'xy'] + [np.array([(word,)], dtype=[('a', object)]) for word in ('one', 'two')]
    assert len({hash_of(thing) for thing in (*fields, np.longdouble(1), np.longdouble(2))}) == 6
    assert hash_of(np.longdouble(1)) == hash_of(np.longdouble(1)) and hash_of(np.array([(1, 2.)], dtype=[('x', int), ('b', float)])) == hash_of(fields[0])


def test_numpy_scalars_are_numbers(tmp_path):
    plain = tiny(tmp_path, seeds=3, samples=50, training=Training(epochs=2, batch_size=32, lr=0.1, augment=()))
    scalars = tiny(tmp_path, seeds=np.int64(3), samples=np.int32(50), training=Training(epochs=np.int64(2), batch_size=np.int16(32), lr=np.float64(0.1), augment=[]))
    assert keys(plain) == keys(scalars) and type(scalars.seeds) is type(scalars.training.epochs) is int
    assert type(scalars.training.augment) is tuple


@pytest.mark.parametrize('wrong, says', [
    (dict(seeds=1), 'seeds is 1: .*at least 2'), (dict(jobs=2.5), 'jobs is 2.5'),
    (dict(seeds='8'), "seeds is '8', a str: pass a whole number"), (dict(seeds=2.5), 'seeds is 2.5'), (dict(seeds=True), 'seeds is True'),
    (dict(samples=True), 'samples is True, a bool: pass a whole number or None'), (dict(training=Training(epochs=True)), 'training.epochs is True, a bool: pass a number'),
    (dict(jobs=0), 'jobs is 0'), (dict(permutations=-1), 'permutations is -1'), (dict(samples='all'), "samples is 'all', a str: pass a whole number or None"),
    (dict(training=Training(epochs='1.5')), "training.epochs is '1.5', a str: pass a number"), (dict(training=Training(epochs=0)), 'training.epochs is 0'),
    (dict(training=Training(epochs=float('nan'))), 'training.epochs is nan'), (dict(training=Training(lr=0.)), 'training.lr is 0.0'), (dict(training=Training(lr=float('nan'))), 'training.lr is nan'),
    (dict(training=Training(weight_decay=float('nan'))), 'training.weight_decay is nan'), (dict(training=Training(label_smoothing=5.)), 'training.label_smoothing is 5.0: a share, 0 to 1'), (dict(training=Training(augment=('flp',))), "unknown augmentation 'flp'"),
    (dict(training=Training(augment='flip')), r"training.augment is 'flip', a str: pass a tuple, such as \('flip',\)"),
    (dict(training=Training(optimizer='adam')), "unknown optimizer 'adam': use 'sgd' or 'adamw'"),
    (dict(training=Training(schedule='linear')), "unknown schedule 'linear': use 'onecycle'"),
    (dict(training=Training(precision='fp8')), "unknown precision 'fp8': use 'auto'"),
    (dict(recipes={'mine': Recipe(name='mine', phases=(Repair(training=Training(augment='flip')),))}), r"recipes\['mine'\].phases\[0\].training.augment is 'flip', a str: pass a tuple")])
def test_option_of_another_type_is_refused_by_name_before_the_work(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says): tiny(tmp_path/'study', **wrong)
    assert not (tmp_path/'study').exists()


@dataclasses.dataclass(frozen=True)
class Blur(Edit):
    training: int = 3  # as a repair's is called
    def images(self, split): return 0
    @torch.no_grad()
    def edit(self, run):
        for p in run.student.parameters(): p.mul_(0.9)
        return 1


def test_a_phase_of_ones_own_may_have_a_field_called_training(tmp_path):
    results = run(tiny(tmp_path, recipes=dict(blur=Recipe(name='blur', phases=(Blur(),)))))
    assert 'blur' in results.answers and 'Repairs in' not in protocol(results) and not in_bfloat16(Recipe(name='blur', phases=(Blur(),)))


def test_no_two_rows_have_one_title(tmp_path):
    r = replace(RECIPES['finetune'], name='mine', title='Mine')
    named = dict(mine=r, v2=replace(r, name='v2'), late=replace(r, name='late', title='Retrain'), fine=replace(r, name='fine', title='Fine'), other=r)
    assert titles(tiny(tmp_path, recipes=named)) == dict(retrain='Retrain', mine='mine', v2='v2', late='late', fine='Fine', other='other', original='No Unlearning')


@pytest.mark.parametrize('name, says', [('Retrain', "may not be named 'Retrain'"), ('No Unlearning', 'may not be named'), ('a' * 240, 'a row.s name has 240 characters: 200 at most')])
def test_names_of_rows_that_would_be_taken_for_others(tmp_path, name, says):
    with pytest.raises(ValueError, match=says): tiny(tmp_path, recipes={name: RECIPES['finetune']})


def test_a_folder_of_results_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert Store('~/runs').folder == tmp_path / 'runs'
    (tmp_path / 'base.py').write_text('x = 1')
    with pytest.raises(ValueError, match='base.py is a file: name a folder'): Store(tmp_path / 'base.py')


# What else determines a result: other people's objects that code refers to, hooks of the owner, what was frozen

OPTIONS = argparse.Namespace(width=16)


def built_from_options(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, OPTIONS.width), nn.ReLU(), nn.Linear(OPTIONS.width, num_classes))


def doubled(module, images): return (2 * images[0],)


def tripled(module, images): return (3 * images[0],)


def test_key_sees_a_namespace_that_the_builder_reads(monkeypatch):
    narrow = describe(built_from_options)
    monkeypatch.setattr(OPTIONS, 'width', 64)
    assert describe(built_from_options) != narrow


def halved(p): return p / 2


def other(p): return p / 3


HELD = types.SimpleNamespace(how=halved)
MIXED = collections.defaultdict(lambda: 0.5)
FAST = np.vectorize(halved)
def through_a_namespace(p): return HELD.how(p)
def through_a_dict(p): return MIXED['of a key that it lacks'] * p
def through_numpy(p): return FAST(p)


@pytest.mark.parametrize('how, thing, name, value', [
    (through_a_namespace, HELD, 'how', other), (through_a_namespace, HELD, 'how', functools.partial(other)), (through_a_namespace, HELD, 'how', types.SimpleNamespace(deep=other)),
    (through_a_namespace, HELD, 'how', torch.float64), (through_a_dict, MIXED, 'default_factory', lambda: 0.), (through_numpy, FAST, 'pyfunc', other)])
def test_key_sees_a_function_that_something_holds(monkeypatch, how, thing, name, value):
    before = describe(how)
    assert describe(how) == before
    monkeypatch.setattr(thing, name, value)
    assert describe(how) != before


def test_key_sees_the_hooks_of_an_original():
    nets = [built_from_options(10) for _ in range(3)]
    for net in nets: net.load_state_dict(nets[0].state_dict())
    nets[1].register_forward_pre_hook(doubled)
    nets[2].register_forward_pre_hook(tripled)
    assert len({json.dumps(describe(net), sort_keys=True) for net in nets}) == 3


def test_what_is_frozen_is_no_trainings_work():
    """A retrained network starts from the frozen weights, and without the masks of a pruned one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    net[1].requires_grad_(False)
    pruned = mask_activations(place_masks(net, torch.randn(2, 1, 8, 8)), {'2.mask': torch.arange(16) < 8})
    fresh = blueprint(pruned, (10, 1, 8)).fresh(1)
    assert torch.equal(fresh[1].weight, net[1].weight) and not fresh[1].weight.requires_grad and not torch.equal(fresh[3].weight, net[3].weight)
    assert all(m.mask is None or m.mask.all() for m in masks(fresh).values())


@pytest.mark.parametrize('recipe', (bad_teacher(), soft_witness()))
def test_a_recipe_that_cannot_work_on_the_network_is_refused_before_the_first_training(recipe, tmp_path):
    """A transformer's class token is drawn by no layer: no such network can be made anew."""
    study = tiny(tmp_path / 'out', recipes={'odd': recipe}, network='vit')
    with pytest.raises(ValueError, match="recipe 'odd': .* is drawn anew by no reset_parameters .*give its module one; or leave this recipe out$"): run(study)
    assert not networks(tmp_path / 'out')


def drawn_beside(num_classes, in_channels, image_size):
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('waves', torch.randn(64, 32), persistent=False)
            self.head = nn.Linear(32, num_classes)
        def forward(self, x): return self.head(torch.cos(x.flatten(1) @ self.waves))
    return Fourier()


class Redrawn(nn.Linear):
    """Its `reset_parameters` draws what no checkpoint holds."""
    def reset_parameters(self):
        super().reset_parameters()
        self.register_buffer('noise', torch.randn(self.in_features), persistent=False)
    def forward(self, x): return super().forward(x + self.noise)


def drawn_by_numpy(num_classes, in_channels, image_size):
    net = mlp(num_classes, in_channels, image_size)
    with torch.no_grad(): net[1].weight.add_(float(np.random.normal()))
    return net


@pytest.mark.parametrize('network, said', [(drawn_beside, 'persistent buffer'), (nn.Sequential(nn.Flatten(), Redrawn(64, 10)), 'persistent buffer'),
                                           (drawn_by_numpy, 'another .1.weight. under the same seed')])
def test_a_network_that_its_seed_and_its_weights_do_not_bring_back_is_refused_before_the_work(network, said, tmp_path):
    with pytest.raises(ValueError, match=said): run(tiny(tmp_path, network=network))
    assert not networks(tmp_path)


def test_a_study_whose_networks_are_all_there_does_not_ask_whether_they_come_back(tmp_path, monkeypatch):
    study = tiny(tmp_path, network=mlp, recipes=ONE)
    run(study)
    monkeypatch.setattr(unlearning.study, 'refuse_unstored', lambda study: pytest.fail('asked'))
    run(study)
