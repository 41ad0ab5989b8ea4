"""Configuration of the documentation; `./dev docs` builds it."""

from __future__ import annotations

project = "postbus"
author = "postbus maintainers"
# Same text on every build.
html_last_updated_fmt = None
copyright = author  # noqa: A001

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "postbus"

nitpicky = True
# Other projects' names are not looked up over the network.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!postbus(_beanstalkd|_files|_gearman|_http|_kombu|_zeromq)?\b).*"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
