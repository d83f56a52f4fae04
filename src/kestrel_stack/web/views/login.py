"""Logging in and out."""

from __future__ import annotations

from flask import Blueprint, make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from kestrel_stack.web.access.auth import Refusal, role
from kestrel_stack.web.access.security import local_path
from kestrel_stack.web.site import site

blueprint = Blueprint("login", __name__)

DEVICE_S = 180 * 86400


@blueprint.route("/login", methods=["GET", "POST"])
@role(None)
def login() -> Response:
    """Show the form, or look at what was filled in."""
    parts = site()
    home = f"{parts.config.prefix}/"
    back = local_path(request.values.get("next"), parts.config.prefix) or home
    if not parts.config.users:
        return redirect(home, 303)
    if request.method != "POST":
        who = parts.auth.who()
        # Whoever is logged in as a viewer may come here to log in as somebody else.
        if who is not None and who.via != "session":
            return redirect(back, 303)
        return _form(back)
    name = request.form.get("name", "").strip()
    password = request.form.get("password", "")
    if not name or not password:
        return _form(back, name, Refusal("Give a name and a password.", 400))
    cookie = _device_cookie()
    found = parts.auth.log_in(name, password, request.cookies.get(cookie))
    if isinstance(found, Refusal):
        return _form(back, name, found)
    answer = redirect(back, 303)
    # Not who somebody is: only that this browser is one from which they logged in, so that a stranger's
    # attempts do not make them wait.
    answer.set_cookie(
        cookie,
        found,
        max_age=DEVICE_S,
        path=f"{parts.config.prefix}/login",
        secure=request.is_secure,
        httponly=True,
        samesite="Strict",
    )
    return answer


@blueprint.post("/logout")
@role(None)
def logout() -> Response:
    """End the session; the browser forgets the pages that it showed."""
    parts = site()
    parts.auth.log_out()
    answer = redirect(f"{parts.config.prefix}/{'login' if parts.config.users else ''}", 303)
    if request.is_secure:
        answer.headers["Clear-Site-Data"] = '"cache"'
    return answer


def _form(back: str, name: str = "", refusal: Refusal | None = None) -> Response:
    page = render_template("login.html", back=back, name=name[:200], error=refusal.line if refusal else None)
    answer = make_response(page, refusal.status if refusal else 200)
    if refusal and refusal.retry_s:
        answer.headers["Retry-After"] = str(refusal.retry_s)
    return answer


def _device_cookie() -> str:
    name = site().auth.cookies.name(request, "device")
    return f"__Secure-{name}" if request.is_secure else name
