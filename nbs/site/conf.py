"""Sphinx's settings for the site (`make site`). Whatever a page needs lies beside it: no other host is asked."""
import importlib.util, re
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).parents[2]
parser = ConfigParser()
parser.read(ROOT/"settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
project, author, release = settings["title"], settings["author"], settings["version"]
copyright = settings["copyright"]

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["notebooks"]

# Notebooks are shown as they were committed.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # so that links in an output lead to pages, too
nb_render_image_options = {"alt": "What the code above draws"}  # where no `#| fig-alt:` says more
myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 4

smartquotes_action = "D"
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 90

html_theme = "furo"
html_title = project
html_favicon = "static/favicon.svg"
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_copy_source = html_show_sphinx = html_use_index = html_domain_indices = False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

# MathJax in one file: equations are drawn as SVG, without fonts and without a menu.
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent/"static"/"mathjax"/"tex-svg.js"
html_static_path = ["static", str(mathjax)]
mathjax_path = mathjax.name
mathjax3_config = {"options": {"enableMenu": False, "enableAssistiveMml": True}}

# The source of each module, read and not imported, without nbdev's marks of cells.
viewcode_follow_imported_members = False

@cache  # Sphinx asks anew for each function
def module_source(name):
    path = ROOT.joinpath(*name.split("."))
    path = path/"__init__.py" if path.is_dir() else path.with_suffix(".py")
    source = re.sub(r"^# %% .*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
    return source, ModuleAnalyzer.for_string(source, name).find_tags()

def setup(app): app.connect("viewcode-find-source", lambda app, name: module_source(name))
