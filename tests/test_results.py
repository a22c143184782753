"""An executed copy in nbs/results was made by the code that stands beside it, or is named here as one that was not."""
import csv, html, re
from pathlib import Path

import nbformat, pandas as pd, pytest
from scipy.stats import binom

NBS = Path(__file__).resolve().parent.parent/'nbs'
COPIES = sorted(NBS.glob('results/*.ipynb'))
EXPERIMENTS = {path.stem: path for path in NBS.glob('experiments/*.ipynb')}
MADE_FROM = {'faces_laptop': 'celeba', 'writers_laptop': 'celeba'}  # whose name does not begin with the experiment's

# Executed by an earlier version of their notebook. A copy that is executed anew leaves this list.
FALLEN_BEHIND = set()


def code(path):
    """The code cells as their author wrote them: without the parameters that papermill puts in."""
    return [c.source for c in nbformat.read(path, as_version=4).cells
            if c.cell_type == 'code' and 'injected-parameters' not in c.metadata.get('tags', [])]


def prose(path): return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'markdown']


def source_of(copy):
    named = [name for name in EXPERIMENTS if copy.stem.startswith(f'{name}_')] or [MADE_FROM.get(copy.stem, copy.stem)]
    return EXPERIMENTS[max(named, key=len)]


@pytest.mark.parametrize('copy', COPIES, ids=lambda p: p.stem)
def test_copy_was_made_by_the_code_beside_it(copy):
    same = code(copy) == code(source_of(copy))
    assert same != (copy.stem in FALLEN_BEHIND), 'take it off the list' if same else f'{source_of(copy).name} has moved on: execute it anew'


@pytest.mark.parametrize('copy', [c for c in COPIES if c.stem not in FALLEN_BEHIND], ids=lambda p: p.stem)
def test_a_copy_says_what_its_experiment_says(copy):
    assert prose(copy) == prose(source_of(copy)), 'take the text cells of the experiment over'


def test_the_list_names_only_copies():
    assert FALLEN_BEHIND <= {copy.stem for copy in COPIES}


TABLES = [path for path in NBS.glob('results/*.csv') if re.search('league|as_unseen|verdicts', path.stem)]
VERDICTS = sorted(NBS.glob('results/verdicts_*.csv'))


def tables(copy):
    """The tables that a copy shows, each a list of rows, a row the list of its cells' texts."""
    outputs = [o for c in nbformat.read(copy, as_version=4).cells for o in c.get('outputs', []) if 'data' in o]
    rows = [re.findall('<tr.*?</tr>', o['data'].get('text/html', ''), re.S) for o in outputs]
    return [[re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', html.unescape(row)) for row in table] for table in rows if table]


@pytest.mark.parametrize('table', sorted(TABLES), ids=lambda p: p.stem)
def test_a_table_is_one_that_its_copy_shows(table):
    with table.open(encoding='utf-8') as file: header, *body = csv.reader(file)
    n = len(header) - (2 if table in VERDICTS else 1)  # columns of values, to the right of one name a row
    shown = tables(table.with_name(f"{table.stem.removesuffix('_league')}.ipynb"))
    assert [header[-n:], *(row[-n - 1:] for row in body)] in [[rows[0][-n:], *(row[-n - 1:] for row in rows[1:])] for rows in shown]


def spreads(row):
    """A mean and its deviation, which one network has not."""
    return [(float(m[1]), float(m[2] or 0)) for cell in row if (m := re.match(r'(-?\d[\d.]*)(?: ± ([\d.]+))?', cell))]


@pytest.mark.parametrize('summary', sorted(NBS.glob('results/*_summary.csv')), ids=lambda p: p.stem)
def test_a_summary_is_that_of_its_copy(summary):
    """Of each method the copy shows all three accuracies in one row, rounded to a tenth."""
    columns = ['RA', 'TA', 'UA']
    shown = [spreads(row) for table in tables(summary.with_name(f"{summary.stem.removesuffix('_summary')}.ipynb")) for row in table]
    def holds(row, values): return all(any(abs(m - x) < 0.051 and abs(s - y) < 0.051 for x, y in row) for m, s in values)
    for _, row in pd.read_csv(summary).fillna(0).iterrows():
        said = list(zip(row[columns], row[[f'{c}_sd' for c in columns]]))
        assert any(holds(there, said) for there in shown), row.method


@pytest.mark.parametrize('table', VERDICTS, ids=lambda p: p.stem)
def test_verdicts_keep_their_level(table):
    """What the page's table says: every trace of an untouched network is found, and none is claimed beyond chance."""
    found = pd.read_csv(table, index_col=[0, 1])
    retrained = found.loc[('retrained', 'there is none')]
    assert retrained['a trace was found'] <= binom.ppf(0.975, retrained.sum(), 0.05)
    assert found.loc[('No Unlearning', 'a trace is there')].drop('a trace was found').sum() == 0
    assert found.loc[('unlearned', 'something is left'), 'no trace was found that n images could show'] == 0


def test_there_are_tables_of_verdicts(): assert len(VERDICTS) >= 3


def test_what_was_computed_is_said_of_today(monkeypatch):
    """The page's committed table and commands are those that its cells make of the copies as they are."""
    monkeypatch.chdir(NBS)
    cells, now = [c for c in nbformat.read('executed.ipynb', as_version=4).cells if c.cell_type == 'code'], {}
    for c in cells: exec(c.source, now)
    shown = '\n'.join(o.get('text') or o['data'].get('text/markdown', '') for c in cells for o in c.outputs)
    assert len(now['rows']) == len(COPIES)
    for row in now['rows']: assert now['line'](row) in shown, 'execute executed.ipynb anew'
    for copy in now['copies'].values(): assert now['command'](copy) in shown, 'execute executed.ipynb anew'
