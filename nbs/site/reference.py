"""The API reference, a page a module: from docstrings and docments (the comments beside parameters) in the source."""
import ast, io, re, tokenize

DOMAIN = {ast.FunctionDef: "function", ast.ClassDef: "class"}


def comments(source):
    "What the comments of a source say, by line."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}

def is_property(node): return any("property" in ast.unparse(d) for d in node.decorator_list)

def lineage(node, classes):
    "A class and its bases within the package, the oldest first."
    bases = [classes[name] for base in node.bases if (name := ast.unparse(base)) in classes]
    return [ancestor for base in bases for ancestor in lineage(base, classes)] + [node]

def initializer(node):
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)

def parameters(node):
    "The parameters of a function, or of a class its own fields or those of `__init__`: names and lines."
    if isinstance(node, ast.ClassDef):
        if init := initializer(node): return parameters(init)
        return [(n.target.id, n.lineno) for n in node.body if isinstance(n, ast.AnnAssign)]
    taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [(a.arg, a.lineno) for a in taken if a.arg not in ("self", "cls")]

def arguments(node): return re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args))

def made_with(node, classes):
    "What a class is called with: its fields after those of its bases, or what the youngest `__init__` takes."
    family = lineage(node, classes)
    for init in map(initializer, reversed(family)):
        if init: return arguments(init)
    fields = {n.target.id: ast.unparse(n) for c in family for n in c.body if isinstance(n, ast.AnnAssign)}
    return ", ".join(fields.values())

def signature(node, classes):
    if isinstance(node, ast.ClassDef):
        taken = made_with(node, classes)
        return f"{node.name}({taken})" if taken else node.name
    if is_property(node): return node.name
    return f"{node.name}({arguments(node)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")

def told(node, said):
    "What is said of each parameter, and of what is returned, where the comment is on a line of its own."
    found = parameters(node)
    if getattr(node, "returns", None): found.append(("", node.returns.lineno))
    lines = [line for _, line in found]
    return [f":param {name}: {said[line]}" if name else f":returns: {said[line]}"
            for name, line in found if line in said and lines.count(line) == 1]

def entry(node, said, domain, classes, fence="::::"):
    "One function or class, and its methods that say what they do."
    text = [f"{fence}{{py:{domain}}} {signature(node, classes)}", "", ast.get_docstring(node) or "", "", *told(node, said), ""]
    for n in node.body if domain == "class" else []:
        if isinstance(n, ast.FunctionDef) and n.name[0] != "_" and ast.get_docstring(n):
            text += entry(n, said, "property" if is_property(n) else "method", classes, fence[:-1])
    return [*text, fence, ""]

def constant(node, said):
    "A name whose line says what it is."
    names = [t.id for t in node.targets if isinstance(t, ast.Name) and t.id[0] != "_"]
    about = said.get(node.end_lineno) or said.get(node.lineno)
    return [line for name in names if about for line in [f"::::{{py:data}} {name}", "", about, "::::", ""]]

def page(source, full, notebook, heading, classes):
    tree, said = ast.parse(source), comments(source)
    text = [f"# {full}", "", "{.page-links}", f"Written in [{heading}](/{notebook}.ipynb)", "",
            f"> {ast.get_docstring(tree)}", "", f"```{{py:module}} {full}", "```", ""]
    for node in tree.body:
        if isinstance(node, ast.Assign): text += constant(node, said)
        elif type(node) in DOMAIN and node.name[0] != "_": text += entry(node, said, DOMAIN[type(node)], classes)
    return "\n".join(text)

def write_reference(root, out, homes):
    "A page for each module of `homes`: by its name, the notebook that exports it and that one's title."
    (out/"api").mkdir(parents=True)
    sources, classes = {}, {}
    for full in homes:
        path = root.joinpath(*full.split("."))
        path = path/"__init__.py" if path.is_dir() else path.with_suffix(".py")
        sources[full] = path.read_text(encoding="utf-8")
        classes |= {n.name: n for n in ast.parse(sources[full]).body if isinstance(n, ast.ClassDef)}
    for full, (notebook, heading) in homes.items():
        text = page(sources[full], full, notebook, heading, classes)
        (out/"api"/f"{full}.md").write_text(text, encoding="utf-8")
    text = ["# API", "", "> What each module exports: from docstrings, and from the comments beside parameters.", "",
            "In the order of imports: a module imports only from those above it.", "",
            "```{toctree}", ":titlesonly:", "", *homes, "```", ""]
    (out/"api"/"index.md").write_text("\n".join(text), encoding="utf-8")
