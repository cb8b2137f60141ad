"""`python -m docs.reference` writes the pages again; `make reference` does the same."""

from docs.reference import PAGES

for path, page in PAGES.items():
    path.write_text(page())
