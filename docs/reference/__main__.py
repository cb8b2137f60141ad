"""`python -m docs.reference` writes the pages again; `make reference` does the same."""

from docs.reference import pages

for path, text in pages().items():
    path.write_text(text)
