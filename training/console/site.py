"""The console as a site: one page, its style, the reports, and one form that changes something.

The page is drawn by the server and holds no script, so that a strict content security policy holds and whatever a
browser can do with a form and a link works by keyboard. Its address is its whole state.
"""

import re
import secrets
import uuid
from base64 import b64decode
from collections.abc import Callable, Mapping
from importlib.resources import files
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from protos.admin_pb2 import GetStatusResponse, GetTrafficResponse, ListGenerationsResponse
from serving.client import CallFailed, CascadeClient, ShownSlate
from serving.client.probe import is_serving
from serving.clock import now_ms
from serving.security import Role, Tokens
from training.console import views
from training.console.question import Question
from training.console.reports import reports
from training.console.settings import ConsoleSettings
from training.reports.report import environment

AGAIN_S = 5
"""After which a page that could not reach the server asks again by itself."""
_ADMIN = "cascade.v1.Admin"
_LOST = 5
"""Items lost that are told of, for each stage."""
_MOST_BYTES = 1 << 14
"""Of a form."""
_LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",  # with none at all, forms would not say where they come from
    "x-content-type-options": "nosniff",
}
_OF_REPORTS = {**_HEADERS, "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'"}

Form = Mapping[str, str]


def site(settings: ConsoleSettings, client: CascadeClient) -> Starlette:
    """
    Raises:
        ValueError: the file of tokens cannot be read.
    """
    console = _Console(settings, client)
    door = _Door(settings)
    return Starlette(
        routes=[
            Route("/", door.behind(console.page, role="debug")),
            Route("/generations", door.behind(console.change, role="admin"), methods=["POST"]),
            Route("/reports/{name}", door.behind(console.report, role="debug")),
            Route("/console.css", door.behind(console.style, role=None)),
        ]
    )


class _Door:
    """Who may come in, and from where."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self._tokens = Tokens(settings.security.tokens) if settings.security.tokens is not None else None
        self._local = settings.host == "localhost" or ip_address(settings.host).is_loopback

    def behind(self, answer: Callable[[Request, Form], Response], *, role: Role | None) -> Callable[[Request], Any]:
        """An endpoint for those who have the role; None: for everybody."""

        async def endpoint(request: Request) -> Response:
            refusal = self._refusal(request, role)
            if refusal is not None:
                return refusal
            if request.method == "POST":
                body = b""
                async for part in request.stream():
                    body += part
                    if len(body) > _MOST_BYTES:
                        return _plain(413, f"a form is at most {_MOST_BYTES:,} bytes long")
                form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
                return await run_in_threadpool(answer, request, form)
            return await run_in_threadpool(answer, request, {})

        return endpoint

    def _refusal(self, request: Request, role: Role | None) -> Response | None:
        host = request.headers.get("host", "")
        # A name that somebody points at this machine makes their page one origin with this one.
        if self._local and not _LOCAL.fullmatch(host):
            return _plain(421, "this page is for 127.0.0.1 and localhost alone")
        if request.method == "POST" and request.headers.get("origin") != f"{request.url.scheme}://{host}":
            return _plain(403, "the form was not sent from this page")
        if self._tokens is None or role is None:
            return None
        held = self._tokens.roles(_password(request.headers.get("authorization", "")))
        if held is None:
            asked = {"www-authenticate": 'Basic realm="Cascade", charset="UTF-8"'}
            return _plain(401, "a token that this page knows is needed, as the password", asked)
        return None if role in held else _plain(403, f"the token does not have the role {role}")


class _Console:
    def __init__(self, settings: ConsoleSettings, client: CascadeClient) -> None:
        self._settings = settings
        self._client = client
        self._access = settings.access()
        self._secret = secrets.token_urlsafe(16)
        """In every form that changes something: it was drawn by this process."""
        self._environment = _environment()
        folder = files("training") / "templates"
        self._style = "\n".join((folder / name).read_text() for name in ("page.css", "console/style.css"))

    def style(self, _request: Request, _form: Form) -> Response:
        return Response(self._style, media_type="text/css", headers=_HEADERS)

    def report(self, request: Request, _form: Form) -> Response:
        for page in self._settings.reports:
            if page.stem == request.path_params["name"] and page.is_file():
                return FileResponse(page, media_type="text/html", headers=_OF_REPORTS)
        return _plain(404, "there is no such report")

    def page(self, request: Request, _form: Form) -> Response:
        """Of a look-up that does not say from what its slate is drawn, the address that does."""
        question = Question.of(request.query_params)
        if question.asked and not question.request and not question.draw:
            words = urlencode([*request.query_params.multi_items(), ("draw", uuid.uuid4().hex)])
            return RedirectResponse(f"/?{words}", status_code=303, headers=_HEADERS)
        return self._drawn(question)

    def change(self, _request: Request, form: Form) -> Response:
        """Activates a generation or rolls back; the audit log at the end of the next page says so."""
        reason = form.get("reason", "").strip()
        try:
            if not secrets.compare_digest(form.get("secret", "").encode(), self._secret.encode()):
                raise ValueError("the form is of an earlier console; look at the page again, then send it")
            if not reason:
                raise ValueError("reason: none given; say why, for the audit log")
            if form.get("action") == "rollback":
                self._client.rollback(reason=reason)
            elif form.get("action") == "activate":
                chosen, expected = form.get("generation", ""), form.get("expected", "")
                self._client.activate(chosen, expected=expected, reason=reason)
            else:
                raise ValueError(f"action: {form.get('action')!r} given, allowed: activate, rollback")
        except (CallFailed, ValueError) as error:
            return self._drawn(Question(), refused=_told(error), typed=form, status=409)
        return RedirectResponse("/#generations", status_code=303, headers=_HEADERS)

    def _drawn(
        self, question: Question, *, refused: str = "", typed: Form | None = None, status: int = 200
    ) -> Response:
        """
        Args:
            refused: why a change was not made, and `typed`, what was sent for it.
        """
        settings = self._settings
        serving = is_serving(settings.target, access=self._access)
        managed = bool(settings.admin) and is_serving(settings.admin, _ADMIN, access=self._access)
        text = self._environment.get_template("console/page.html.j2").render(
            settings=settings,
            again_s=None if serving and (managed or not settings.admin) else AGAIN_S,
            serving=serving,
            managed=managed,
            question=question,
            look_up=self._look_up(question) if serving and question.asked else None,
            management=self._management() if managed else None,
            reports=reports(settings.reports),
            refused=refused,
            typed={"action": "", "generation": "", "reason": "", **(typed or {})},
            secret=self._secret,
        )
        return Response(text, status_code=status, media_type="text/html", headers=_HEADERS)

    def _look_up(self, question: Question) -> dict[str, Any]:
        """What the server tells, or why not. What cannot be tried leaves what is served."""
        refused = ""
        try:
            asked = question.request_to(now_ms=now_ms())
            try:
                what_ifs = [question.what_if()] if question.tries else []
                told = self._client.explain(asked, what_ifs=what_ifs, lost=_LOST)
            except (CallFailed, ValueError) as error:
                if not question.tries:
                    raise
                refused = _told(error)
                told = self._client.explain(asked, lost=_LOST)
        except (CallFailed, ValueError) as error:
            return {"failed": _told(error)}
        logged = told.impression
        return {
            "failed": "",
            "refused": refused,
            "told": told,
            "sides": views.sides(told, logged=bool(question.request)),
            "understood": views.understanding(logged.understood, logged.text) if logged.text else [],
            "found": self._found(question) if question.text else None,
            "knobs": views.knobs(told.settings),
        }

    def _found(self, question: Question) -> ShownSlate | None:
        """How many items match, and of which categories; None where the server does not say."""
        try:
            return self._client.search(
                question.text, user_id=question.user, size=1, facets=("category",), no_log=True, time_ms=now_ms()
            )
        except CallFailed:
            return None

    def _management(self) -> dict[str, Any]:
        try:
            status: GetStatusResponse = self._client.status()
            listed: ListGenerationsResponse = self._client.generations()
            traffic: GetTrafficResponse = self._client.traffic()
        except CallFailed as error:
            return {"failed": _told(error)}
        return {
            "failed": "",
            "status": status,
            "latency": {each.stage: each for each in status.stages},
            "listed": listed,
            "metrics": views.metrics(listed),
            "traffic": traffic,
            "experiments": list(views.experiments(traffic)),
        }


def _environment() -> Environment:
    made = environment()
    made.filters["when"] = views.when
    made.filters["shares"] = views.shares
    return made


def _password(authorization: str) -> str:
    """Of HTTP's basic scheme, whatever the user name; empty where there is none."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        return b64decode(encoded, validate=True).decode().partition(":")[2] if scheme.lower() == "basic" else ""
    except ValueError:
        return ""


def _plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=status, headers={**_HEADERS, **(headers or {})})


def _told(error: Exception) -> str:
    """An error as a person reads it."""
    if not isinstance(error, CallFailed):
        return str(error)
    if error.code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return f"The server refuses: {error.message}. See token_file of the console."
    return error.message or str(error)
