"""How the documentation is built: `sphinx-build -W -b html docs docs/_build`; the suite builds it so."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from rpcd import __version__  # noqa: E402

project = "rpcd"
copyright = "the authors of rpcd"  # noqa: A001  # Sphinx's name
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "rpcd_reference"]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"rpcd {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autoclass_content = "both"
default_role = "code"  # what docstrings put between backquotes
python_use_unqualified_type_names = True
