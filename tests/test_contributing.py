"""What CONTRIBUTING.md says of writing a method, done as it says."""
import re
from pathlib import Path

from unlearning.unlearn import unlearn

ROOT = Path(__file__).resolve().parent.parent


def test_the_example_of_a_method_runs_as_it_stands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8'), re.S)
    assert len(blocks) == 3
    made = {'__name__': '__main__'}  # as in a notebook
    for block in blocks: exec(compile(block, 'CONTRIBUTING.md', 'exec'), made)
    assert {'Finetune', 'Reset the head'} <= {row.rstrip('*') for row in made['table'].index}
    last = made['history'].iloc[-1]
    assert 'forget, true' in capsys.readouterr().out and last.retain > 95 and last.test > 85
    same = unlearn(made['original'], made['split'], made['reset_head'](), seed=0)
    assert all((a == b).all() for a, b in zip(same.state_dict().values(), made['student'].state_dict().values()))


def test_its_files_exist():
    links = re.findall(r'\]\((?![a-z]+:|#)([^)\s#]+)', (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8'))
    assert links and [link for link in links if not (ROOT/link).exists()] == []
