"""Sphinx configuration: the site is built from the Markdown of this folder.

python -m sphinx -W --keep-going docs _site
"""

import pathlib
import re
import shutil

import insgd_optax

HERE = pathlib.Path(__file__).parent

project = "insgd_optax"
author = "The insgd_optax authors"
version = release = insgd_optax.__version__
html_title = f"insgd_optax {version}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # Formulas without a CDN.
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["examples", "benchmarks"]
nitpicky = False

# Markdown. The notebook carries its outputs, which a test computes again.
myst_enable_extensions = ["dollarmath"]
# GitHub renders such a block, too.
myst_fence_as_directive = {"math"}
myst_heading_anchors = 3
nb_execution_mode = "off"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Docstrings.
default_role = "code"
autodoc_member_order = "bysource"
# The arguments are described in words; aliases such as optax.ScalarOrSchedule would be
# spelt out as unions of a dozen types.
autodoc_typehints = "none"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_custom_sections = ["Source"]

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}


def copy_examples(app):
    """Copies the examples and the changelog into the site's sources."""
    folder = HERE / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in sorted((HERE.parent / "examples").iterdir()):
        if path.suffix == ".ipynb":
            # Its links lead from examples/ to docs/, and here from gallery/.
            text = path.read_text().replace("(../docs/", "(../")
            (folder / path.name).write_text(text)
        elif path.suffix == ".py":
            # One page a script, under its docstring's first line.
            title = path.read_text().partition('"""')[2].partition(".\n")[0]
            page = f"# {title}\n\n`examples/{path.name}`\n\n"
            page += f"```{{literalinclude}} ../../examples/{path.name}\n```\n"
            (folder / f"{path.stem}.md").write_text(page)


def link_pages(app, name, source):
    """Points links from the guides to files above docs/ at the site's own pages."""
    for page in ("SECURITY", "CONTRIBUTING", "CHANGELOG"):
        source[0] = source[0].replace(f"(../{page}.md)", f"({page.lower()}.md)")
    source[0] = re.sub(r"\(\.\./examples/(\w+)\.py\)", r"(gallery/\1.md)", source[0])
    source[0] = re.sub(r"\(\.\./examples/(\w+\.ipynb)\)", r"(gallery/\1)", source[0])


def escape_bars(app, what, name, obj, options, lines):
    """Escapes `|x|` in docstrings: a norm, not a reStructuredText substitution."""
    in_math = False
    for i, line in enumerate(lines):
        if line.strip() and not line.startswith(" "):
            in_math = False
        if line.startswith(".. math::") or line.lstrip().startswith(">>>"):
            in_math = line.startswith(".. math::")
            continue
        if not in_math:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            lines[i] = "".join(parts)


def setup(app):
    """Registers the steps of this project."""
    app.connect("builder-inited", copy_examples)
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", escape_bars)
