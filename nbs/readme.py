"""Writes README.md and its pictures from nbs/index.ipynb: `python nbs/readme.py`.

nbdev's own command needs Quarto, which no Python package index holds. What a README needs is little: markdown with its
links seen from the root of the repository, code and text in fences, pictures as files. Of nbdev's directives it
follows `hide`, `echo: false`, `output: false` and `fig-alt: words`; standard error, where progress goes, is left out.
"""
import base64, posixpath, re
from pathlib import Path

from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parent.parent


def relink(text: str) -> str:
    "Relative links and pictures of a notebook in nbs/, seen from the root"
    def moved(m): return f"]({posixpath.normpath('nbs/' + m[1])}{m[2]})"
    return re.sub(r'\]\((?![a-z]+:|[#/])([^)\s#]+)([^)]*)\)', moved, text)


def fenced(text: str, language: str) -> str:
    return f'```{language}\n{text.rstrip()}\n```'


def render(notebook: Path) -> tuple[str, dict[str, bytes]]:
    "The README's text, and its pictures by their path from the root"
    blocks, pictures = [f'<!-- Written from nbs/{notebook.name} by `make export`: edit it there. -->'], {}

    def show(output, alt):
        data = output.get('data', {'text/plain': output.get('text', '')})
        if 'text/markdown' in data: return relink(''.join(data['text/markdown']).rstrip())
        if 'image/png' not in data: return fenced(''.join(data['text/plain']), 'text')
        path = f'nbs/images/{notebook.stem}-{len(pictures) + 1}.png'
        pictures[path] = base64.b64decode(''.join(data['image/png']))
        return f'![{alt}]({path})'

    for cell in NBProcessor(notebook).nb.cells:
        directives = cell.directives_
        if cell.cell_type == 'markdown': blocks.append(relink(cell.source))
        if cell.cell_type != 'code' or 'hide' in directives: continue
        code = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip()
        if code and directives.get('echo:') != ['false']: blocks.append(fenced(code, 'python'))
        if directives.get('output:') == ['false']: continue
        for output in cell.outputs:
            if output.output_type == 'error': raise ValueError(f'{notebook}: the cell "{code[:60]}" failed; run it again')
            if output.get('name') != 'stderr': blocks.append(show(output, ' '.join(directives.get('fig-alt:', []))))
    return '\n\n'.join(blocks) + '\n', pictures


def write(root: Path = ROOT):
    "README.md and nbs/images/index-1.png, index-2.png, …; pictures of an earlier run are removed."
    text, pictures = render(root/'nbs'/'index.ipynb')
    for old in root.glob('nbs/images/index-*.png'): old.unlink()
    for path, data in pictures.items():
        (root/path).parent.mkdir(exist_ok=True)
        (root/path).write_bytes(data)
    (root/'README.md').write_text(text, encoding='utf-8')


if __name__ == '__main__': write()
