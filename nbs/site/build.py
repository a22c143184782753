"""Builds the site of all pages into a folder: `python nbs/site/build.py [_site]`.

It writes every notebook as a reader shall see it into a temporary folder, with the navigation and the API
reference, and has Sphinx (settings: `conf.py`) make pages of them. Nothing is executed, and nothing of the library
imported: the outputs are those committed.
"""
import re, shutil, sys, tempfile
from pathlib import Path
import nbformat
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import main as sphinx
from reference import write_reference

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT/"nbs"
FLOORS = {0: "Values", 10: "Data", 20: "Networks", 23: "Training", 30: "Seeing, and the grammar", 40: "Methods",
          70: "Metrics", 80: "Engine", 90: "Windows"}  # by the number of its first notebook


# One notebook

def title(nb): return re.match(r"# (.*)", nb.cells[0].source)[1]

def number(name): return int(m[1]) if (m := re.search(r"(?:^|/)(\d\d)_\w+$", name)) else None

def module(nb):
    "The module that a notebook exports, or None."
    names = [m[1] for c in nb.cells if (m := re.match(r"#\| *default_exp +(\S+)", c.source))]
    return f"unlearning.{names[0]}".removesuffix(".__init__") if names else None

def code(nb):
    "Its code cells as their author wrote them: without the parameters that papermill puts in."
    return [c.source for c in nb.cells
            if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]

def without_directives(cell):
    "The cell as MyST-NB understands it, without nbdev's directives; None where nobody shall see it."
    if cell.cell_type != "code": return cell
    directives = dict(re.findall(r"^#\| *([\w-]+):? *(.*)$", cell.source, flags=re.M))
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip("\n")
    tags = cell.metadata.get("tags", [])
    if "hide" in directives or "hide-cell" in tags or not (cell.source or cell.outputs): return None
    cell.metadata.tags = [t.replace("hide-input", "remove-input") for t in tags] + ["export"] * ("export" in directives)
    if "fig-alt" in directives: cell.metadata.mystnb = {"image": {"alt": directives["fig-alt"]}}
    return cell

def exports(nb, name):
    "What the page says of the module that it exports, if any."
    if not (full := module(nb)): return []
    source = "../" * name.count("/") + f"_modules/{full.replace('.', '/')}.html"
    return [f"Cells with a coloured edge are exported to [{full}](/api/{full}.md)", f'<a href="{source}">Source</a>']

def written(nb, name, heading, beside):
    "The notebook as text: below its heading what it exports, pages beside it, and the notebook itself."
    download = f"{{download}}`Download the notebook </notebooks/{name}.ipynb>`"
    links = " · ".join([*exports(nb, name), *beside, download])
    nb.cells[0].source = nb.cells[0].source.replace(title(nb), f"{heading}\n\n{{.page-links}}\n{links}\n", 1)
    nb.cells = [shown for c in nb.cells if (shown := without_directives(c))]
    nb.metadata["language_info"] = {"name": "python"}  # for the colours; nbdev_clean takes it out of the file
    return re.sub(r"\]\(\.\./(LICENSE|CONTRIBUTING\.md|data/)", r"](\1", nbformat.writes(nb))


# All of them

def add(nb, text): nb.cells.append(new_markdown_cell(text, id=f"site{len(nb.cells)}"))

def toctree(entries, *options):
    "The navigation, and next and previous: of (document, title)."
    lines = [f"{heading} </{document}>" for document, heading in entries]
    return "\n".join(["```{toctree}", *options, "", *lines, "```"])

def add_navigation(home, headings, experiments):
    "All pages in order, floor by floor."
    def of(names): return [(n, headings[n]) for n in names]
    floors = {"Start": [*of(["glossary", "own_network", "operations", "executed", "paper_arithmetic"]), ("data/README", "Data on disk"),
                        ("CONTRIBUTING", "Contributing")]}
    ends = [*list(FLOORS)[1:], 100]
    numbered = sorted((n for n in headings if number(n) is not None), key=number)
    for (first, caption), end in zip(FLOORS.items(), ends):
        floors[caption] = [(n, f"{number(n):02} {headings[n]}") for n in numbered if first <= number(n) < end]
    floors |= {"Experiments": of(experiments), "Reference": [("api/index", "API")]}
    for caption, entries in floors.items(): add(home, toctree(entries, f":caption: {caption}", ":hidden:"))

def add_results(pages, headings, beside, experiment):
    "Executed copies, below the experiment whose title they have: each leads to the other."
    copies = [n for n in pages if n.startswith("results/") and title(pages[n]) == title(pages[experiment])]
    for name in copies:
        headings[name] = f"{headings[name]}: results ({Path(name).name})"
        version = "" if code(pages[name]) == code(pages[experiment]) else "by an earlier version "
        beside[name] = [f"Executed {version}of [this experiment](/{experiment}.ipynb)"]
    if not copies: return
    named = ", ".join(f"[{Path(n).name}](/{n}.ipynb)" for n in copies)
    beside[experiment] = [f"Shown before it is run; executed: {named}"]
    add(pages[experiment], "## Executed\n\n" + toctree((n, headings[n]) for n in copies))

def write_pages(out):
    shutil.copytree(NBS, out/"notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))  # to be downloaded
    pages = {p.relative_to(out/"notebooks").with_suffix("").as_posix(): nbformat.read(p, as_version=4)
             for p in sorted((out/"notebooks").rglob("*.ipynb"))}
    headings = {name: title(nb) for name, nb in pages.items()}
    beside = {name: [] for name in pages}
    experiments = [n for n in pages if n.startswith("experiments/")]
    for experiment in experiments: add_results(pages, headings, beside, experiment)
    add_navigation(pages["index"], headings, experiments)
    homes = {module(nb): (name, headings[name]) for name, nb in pages.items() if module(nb)}
    write_reference(ROOT, out, dict(sorted(homes.items(), key=lambda home: number(home[1][0]))))
    for name, nb in pages.items():
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        (out/f"{name}.ipynb").write_text(written(nb, name, headings[name], beside[name]), encoding="utf-8")
    (out/"data").mkdir()
    for name in ("LICENSE", "CONTRIBUTING.md", "data/README.md"):
        (out/name).write_text((ROOT/name).read_text(encoding="utf-8").replace("](nbs/", "]("), encoding="utf-8")


def build(site):
    "The status of Sphinx: 0 where it had nothing to say, and the site is whole."
    if Path(site).exists() and not (Path(site)/"searchindex.js").exists():
        sys.exit(f"{site} is there, and no site: it would be replaced. Name another folder, or remove it")
    with tempfile.TemporaryDirectory() as folder:
        pages, made = Path(folder)/"pages", Path(folder)/"site"
        write_pages(pages)
        how = ["-q", "-W", "--keep-going", "-j", "auto", "-c", str(Path(__file__).parent), "-d", f"{folder}/doctrees"]
        if status := sphinx([*how, str(pages), str(made)]): return status
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(made, site)
        return 0


if __name__ == "__main__": sys.exit(build(sys.argv[1] if len(sys.argv) > 1 else ROOT/"_site"))
