"""Takes docs/console.png, the console over the last run: `python -m docs.console_picture`, or `make pictures`.

Needs a run (`make demo`), a Chromium on PATH, and the extras `console` and `browser`.
"""

import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from playwright.sync_api import sync_playwright

from serving.client import CascadeClient
from training.console.running import address, listener, prepared
from training.console.settings import ConsoleSettings
from training.server_process import server_process

PICTURE = Path(__file__).with_name("console.png")
RUN = Path("outputs/latest")
WIDTH, HEIGHT = 1320, 960
TRIED = "policy.temperature=0&policy.epsilon=0&policy.diversity=0.3"


def take(run: Path, picture: Path) -> None:
    """The page of the user who did most in a run, with something tried beside the slate that is served.

    Raises:
        FileNotFoundError: there is no run, or no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("no Chromium on PATH (Debian: the package chromium)")
    events = pl.read_parquet(run / "history.parquet", columns=["user_id"])
    user = events["user_id"].value_counts().sort("count", "user_id", descending=True)[0, 0]
    with TemporaryDirectory(prefix="cascade-picture-") as name:
        folder = Path(name)
        (folder / "history.parquet").symlink_to((run / "history.parquet").resolve())
        overrides = (f"generations={(run / 'generations').resolve()}", f"log={folder / 'log'}", "lame_duck_s=0")
        with server_process(folder, overrides) as (target, admin):
            settings = ConsoleSettings(target=target, admin=admin, reports=(run / "report.html",), port=0)
            with CascadeClient(target, admin_target=admin, deadline_s=10.0) as client, listener(settings) as bound:
                server = prepared(settings, client)
                thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
                thread.start()
                try:
                    _shoot(chromium, f"{address(settings, bound)}?user={user}&draw=picture&{TRIED}", picture)
                finally:
                    server.should_exit = True
                    thread.join()


def _shoot(chromium: str, url: str, picture: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(url)
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    take(RUN, PICTURE)
