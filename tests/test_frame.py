"""What holds for the repository as a whole: its README, the form of its notebooks, and what the library may import."""
import ast, json, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import nbformat, papermill, pytest, yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
LIBRARY = sorted(p for folder in ('.', 'datasets', 'methods', 'metrics') for p in (NBS/folder).glob('*.ipynb'))
EXPERIMENTS = sorted(NBS.glob('experiments/*.ipynb'))
RESULTS = sorted(NBS.glob('results/**/*.ipynb'))
PROFILES = sorted(NBS.glob('experiments/profiles/*/*.yaml'))
KB = 1000


def each(name, paths):
    return pytest.mark.parametrize(name, paths, ids=lambda p: p.relative_to(NBS).as_posix())


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def test_every_notebook_has_its_place():
    """The lists above leave none out, so neither do the tests that use them."""
    found = {p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert found == {*LIBRARY, *EXPERIMENTS, *RESULTS}


# The README

@pytest.fixture
def readme(monkeypatch):
    monkeypatch.syspath_prepend(str(NBS))
    import readme
    return readme


def test_readme_agrees_with_its_notebook(readme):
    text, pictures = readme.render(NBS/'index.ipynb')
    assert (ROOT/'README.md').read_text(encoding='utf-8') == text, 'run `make export`'
    assert {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in NBS.glob('images/index-*.png')} == pictures


def test_readme_says_what_the_tables_say(monkeypatch):
    """What its notebook computes from nbs/results is what it shows, so a new table cannot leave the old words standing."""
    monkeypatch.chdir(NBS)
    given, compared = {}, 0
    for cell in nbformat.read(NBS/'index.ipynb', as_version=4).cells:
        if cell.cell_type != 'code' or 'wrong_digits' in cell.source: continue
        *body, last = ast.parse(cell.source).body
        exec(compile(ast.Module(body, []), 'index', 'exec'), given)
        value = eval(compile(ast.Expression(last.value), 'index', 'eval'), given)
        shown, = (o.data for o in cell.outputs)
        if 'image/png' in shown: continue  # its caption, the next cell, is compared
        assert value.data == shown['text/html' if 'text/html' in shown else 'text/markdown'], 'run nbs/index.ipynb anew'
        compared += 1
    assert compared == 7


def test_the_code_in_readme_prints_what_stands_below_it(capsys):
    """The history of an unlearning, in float64: on every processor the same."""
    cell, = (c for c in cells(NBS/'index.ipynb', 'code') if 'print(history' in c.source)
    exec(cell.source, {})
    assert capsys.readouterr().out == ''.join(o.text for o in cell.outputs), 'run nbs/index.ipynb anew'


def test_readme_is_read_in_a_few_minutes():
    """Under 700 words: without its tables, the code, and what a link or a picture's text hides."""
    text, _ = (ROOT/'README.md').read_text(encoding='utf-8').split('## The map')
    for hidden in (r'<!--.*?-->', r'<table.*?</table>', r'```.*?```', r'^    [^\n]*$', r'!\[.*?\]\(.*?\)', r'\]\([^)]*\)'):
        text = re.sub(hidden, '', text, flags=re.S | re.M)
    assert len(text.split()) < 700


def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\((?![a-z]+:|#)([^)\s#]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert links and [link for link in links if not (ROOT/link).exists()] == []


def test_readme_is_seen_from_the_root_without_hidden_cells(readme, tmp_path):
    v4, picture = nbformat.v4, nbformat.v4.new_output('display_data', {'image/png': 'AAEC'})
    (tmp_path/'nbs').mkdir()
    nbformat.write(v4.new_notebook(cells=[
        v4.new_markdown_cell('# Title\n\n[a](methods/10_a.ipynb#b) [up](../LICENSE) [web](https://example.org/x) [here](#b)'),
        v4.new_code_cell('secret = 1', metadata={'tags': ['hide-cell']}),
        v4.new_code_cell('draw()', metadata={'tags': ['hide-input']}, outputs=[picture]),
        v4.new_markdown_cell('*What is\nseen.* And more.')]), tmp_path/'nbs'/'index.ipynb')
    readme.write(tmp_path)
    text = (tmp_path/'README.md').read_text()
    assert '[a](nbs/methods/10_a.ipynb#b) [up](LICENSE) [web](https://example.org/x) [here](#b)' in text
    assert 'secret' not in text and 'draw' not in text
    shown = re.search(r'!\[What is seen\.\]\((nbs/images/.*\.png)\)', text)[1]  # whoever cannot see it is told
    assert (tmp_path/shown).read_bytes() == b'\x00\x01\x02'


# The form of the notebooks

@each('notebook', LIBRARY + EXPERIMENTS)
def test_opens_with_title_and_summary(notebook):
    first = nbformat.read(notebook, as_version=4).cells[0]
    assert first.cell_type == 'markdown' and re.match(r'# \S.*\n+> \S.*(\n[^>]|$)', first.source)


@each('notebook', LIBRARY + EXPERIMENTS + RESULTS)
def test_no_cell_is_over_45_lines(notebook):
    assert [c.source[:80] for c in cells(notebook, 'code') if len(c.source.splitlines()) > 45] == []


@each('notebook', LIBRARY)
def test_library_notebook_is_small_and_executed(notebook):
    outputs = [o for c in cells(notebook, 'code') for o in c.outputs]
    assert notebook.stat().st_size <= 300 * KB
    assert outputs and not [o for o in outputs if o.output_type == 'error']


@each('notebook', RESULTS)
def test_result_is_small_and_complete(notebook):
    outputs = [o for c in cells(notebook, 'code') for o in c.outputs]
    assert notebook.stat().st_size <= 1000 * KB
    assert outputs and not [o for o in outputs if o.output_type == 'error']


@each('notebook', LIBRARY)
def test_imports_only_from_lower_numbers(notebook):
    number = {p.stem[3:]: int(p.stem[:2]) for p in LIBRARY if p.stem[:2].isdigit()}
    assert len(set(number.values())) == len(number)
    exported = '\n\n'.join(c.source for c in cells(notebook, 'code') if re.match(r'#\|\s*export', c.source))
    found = [f'{n.module}.{a.name}' if isinstance(n, ast.ImportFrom) else a.name
             for n in ast.walk(ast.parse(exported)) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    imported = {next((part for part in full.split('.') if part in number), 'front') for full in found if re.match(r'unlearning\.(?!__)', full)}
    assert [m for m in imported if number[m] >= number[notebook.stem[3:]]] == []


@each('notebook', LIBRARY + RESULTS)
def test_no_output_is_a_message_of_stderr(notebook):
    assert [o.text for c in cells(notebook, 'code') for o in c.outputs if o.get('name') == 'stderr'] == []


# Experiments

@each('notebook', EXPERIMENTS)
def test_experiment_source_has_no_outputs(notebook):
    assert [c.source[:80] for c in cells(notebook, 'code') if c.outputs or c.execution_count] == []


@each('notebook', EXPERIMENTS)
def test_every_parameter_is_annotated_and_explained(notebook):
    """Then `papermill --help-notebook` explains them all."""
    tagged = [c for c in cells(notebook, 'code') if 'parameters' in c.metadata.get('tags', [])]
    assert len(tagged) == 1
    statements = ast.parse(tagged[0].source).body
    assert [ast.unparse(s) for s in statements if not isinstance(s, ast.AnnAssign)] == []
    explained = {name for name, p in papermill.inspect_notebook(str(notebook)).items() if p['help']}
    assert {s.target.id for s in statements} == explained


@each('profile', PROFILES)
def test_profile_sets_only_what_the_notebook_takes(profile):
    """papermill itself accepts an unknown name with a warning."""
    assert set(yaml.safe_load(profile.read_text())) <= set(papermill.inspect_notebook(str(NBS/f'experiments/{profile.parent.name}.ipynb')))


def test_commands_set_only_what_their_notebook_takes():
    """Those of the Makefile; all that README gives is for a request."""
    makefile, readme = ((ROOT/name).read_text(encoding='utf-8') for name in ('Makefile', 'README.md'))
    given = re.findall(r'\$\(NBS\)/(\w+)\.ipynb(.*?)(?=\$\(NBS\)|\n\n)', makefile, re.S) + [('request', readme)]
    assert len(given) == 6 + 1
    for notebook, text in given:
        named = set(re.findall(r'-[py] \W?(\w+)', text))
        assert named <= set(papermill.inspect_notebook(str(NBS/f'experiments/{notebook}.ipynb')))


@pytest.mark.parametrize('study', ['cifar10', 'celeba', 'architectures'])
def test_every_study_has_the_four_profiles_and_smoke_is_its_default(study):
    profiles = {p.stem: yaml.safe_load(p.read_text()) for p in PROFILES if p.parent.name == study}
    assert set(profiles) >= {'smoke', 'laptop', 'full', 'paper'}
    defaults = papermill.inspect_notebook(str(NBS/f'experiments/{study}.ipynb'))
    assert {k: ast.literal_eval(defaults[k]['default']) for k in profiles['smoke']} == profiles['smoke']


# The repository

def text_files():
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.split('\0')
    for path in (ROOT/name for name in listed if (ROOT/name).is_file()):  # a deleted file is listed until it is committed
        try: yield path, path.read_text(encoding='utf-8')
        except UnicodeDecodeError: pass  # a picture


def strings(x):
    if isinstance(x, dict): x = [*x.values()]
    return [x] if isinstance(x, str) else [s for part in x for s in strings(part)] if isinstance(x, list) else []


def read(path, text):
    """A notebook's strings without JSON's escapes, and everything without a terminal's colours."""
    if path.suffix == '.ipynb': text = '\n'.join(strings(json.loads(text)))
    return re.sub(r'\x1b\[[\d;]*m', '', text)


def test_no_file_names_a_path_of_one_machine():
    pattern = re.compile(r'(?<![\w.~-])/(?:work|root|home|tmp|mnt|Users)/\S*|[A-Z]:\\+Users\b')
    assert {p.relative_to(ROOT).as_posix(): found for p, text in text_files() if (found := pattern.findall(read(p, text)))} == {}


def test_library_needs_no_development_package():
    """Every module is imported with nbdev and the other development requirements out of reach."""
    settings = ConfigParser()
    settings.read(ROOT/'settings.ini')
    packages = [re.match(r'[\w-]+', r)[0] for r in settings['DEFAULT']['dev_requirements'].split()]
    named = {'pyyaml': 'yaml', 'pytest-xdist': 'xdist',
             'sphinx': 'sphinx.application'}  # SciPy looks whether 'sphinx' is in sys.modules
    modules = [named.get(p, p.replace('-', '_')) for p in packages] + ['IPython']
    code = f'''import sys, pkgutil, importlib
sys.modules.update(dict.fromkeys({modules}))
import unlearning
for m in pkgutil.walk_packages(unlearning.__path__, 'unlearning.'): importlib.import_module(m.name)'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
