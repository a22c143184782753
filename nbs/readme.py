"""Writes README.md and its pictures from nbs/index.ipynb, by nbconvert: `python nbs/readme.py`. (nbdev's own command needs Quarto, which is not on PyPI.)"""
import posixpath, re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags=["hide-input"], remove_cell_tags=["hide-cell"]),
                ExtractOutputPreprocessor=dict(output_filename_template="images/index-{cell_index}{extension}"))


def described(m) -> str:
    "A picture and the caption below it, whose words are what is read where the picture is not seen."
    return f"![{' '.join(m[3].split())}]({m[1]}){m[2]}*{m[3]}*"


def render(notebook: Path) -> tuple[str, dict[str, bytes]]:
    "The README's text, with links as seen from the root, and its pictures by their path from the root."
    nb = nbformat.read(notebook, as_version=4)
    nb.metadata["language_info"] = {"name": "python"}  # for the fences; nbdev_clean takes it out of the file
    text, resources = MarkdownExporter(config=CONFIG).from_notebook_node(nb)
    def from_root(m): return f"]({posixpath.normpath('nbs/' + m[1])}{m[2]})"
    text = re.sub(r"\]\((?![a-z]+:|[#/])([^)\s#]+)([^)]*)\)", from_root, text)
    text = re.sub(r"!\[png\]\((\S+)\)(\s+)\*([^*]+)\*", described, text)
    pictures = {posixpath.join("nbs", name): data for name, data in resources["outputs"].items()}
    return f"<!-- Written from nbs/{notebook.name} by `make export`: edit it there. -->\n\n{text.strip()}\n", pictures


def write(root: Path = ROOT):
    "Write README.md and nbs/images/index-*.png; pictures of an earlier run are removed."
    text, pictures = render(root / "nbs" / "index.ipynb")
    for old in root.glob("nbs/images/index-*.png"): old.unlink()
    for path, data in pictures.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data)
    (root / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__": write()
