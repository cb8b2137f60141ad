"""How Sphinx makes a site of these pages; `make docs` lets no link or anchor lead nowhere."""

project = html_title = "Cascade"
extensions = ["myst_parser"]
myst_heading_anchors = 4
smartquotes = False
highlight_language = "text"
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_use_index = False
