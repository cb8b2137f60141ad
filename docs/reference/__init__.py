"""Pages that are made from the sources they tell of: protos/, conf/ and the command line."""

from pathlib import Path

from docs.reference import api, commands, settings

FOLDER = Path(__file__).parents[1]
PAGES = {
    FOLDER / "api.md": api.page,
    FOLDER / "configuration.md": settings.page,
    FOLDER / "command_line.md": commands.page,
}
