"""The shop's jobs. A worker is told to use them with ``--app shop.jobs:registry``.

A job may be delivered more than once, so each of them can be done twice without harm.
"""

from __future__ import annotations

import json
import mailbox
import urllib.error
import urllib.request
from email.message import EmailMessage
from typing import Any

from kestrel_stack.consumer import Context, Registry
from kestrel_stack.queue.once import Once, SqliteStore
from shop import config, files, ledger

registry = Registry()

PARTNER_TIMEOUT = 10.0
"""Seconds for the partner's answer; well below the queue's job_timeout."""
LEASE = 30.0
"""Seconds that a worker may be at a post: the queue's job_timeout."""
REMEMBERED = 7 * 86400.0
"""Seconds that a post is remembered."""


@registry.job("HelloWorld")
def hello_world(data: dict[str, Any], context: Context) -> None:
    """Greet someone in the log."""
    context.log.info(f"Hello, {data.get('name', 'World')}!")
    _note(context)


@registry.job("SendMail")
def send_mail(data: dict[str, Any], context: Context) -> None:
    """Put a mail to ``data["to"]`` with ``subject`` and ``text`` into the maildir ``var/mail``."""
    if ledger.is_done(context.id):
        _note(context)
        return
    mail = EmailMessage()
    mail["Message-ID"] = f"<{context.id}@{context.tenant}.shop.invalid>"
    mail["From"] = f"{context.tenant} shop <noreply@shop.invalid>"
    mail["To"] = data["to"]
    mail["Subject"] = data["subject"]
    mail.set_content(data["text"])
    _maildir().add(mail)
    context.log.info("mail written", to=data["to"])
    _note(context)


@registry.job("PostToPartner")
def post_to_partner(data: dict[str, Any], context: Context) -> None:
    """POST the data to the partner's API, once, also when the job comes twice.

    Where a worker dies between the post and its mark, the job's id lets the partner see the repetition.
    """
    context.log.debug("telling the partner", order=data.get("order"))
    url = config.partner_url()
    files.shared_folder(files.var())
    once = Once(SqliteStore(files.shared_file(files.var() / "once.sqlite")), LEASE)
    if not once.run(f"partner-{context.id}", REMEMBERED, lambda: _post(url, data, context)):
        context.log.info("partner was told before")
    _note(context)


def _post(url: str, data: dict[str, Any], context: Context) -> None:
    request = urllib.request.Request(  # noqa: S310 - config.partner_url() lets only http and https pass
        url,
        data=json.dumps({"tenant": context.tenant, "data": data}).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": context.id},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=PARTNER_TIMEOUT) as answer:  # noqa: S310
            status = answer.status
    except urllib.error.HTTPError as exc:
        raise PartnerRefused(f"the partner answered {exc.code} {exc.reason}") from None
    context.log.info("partner told", status=status)


class PartnerRefused(Exception):  # noqa: N818 - it says what happened
    """The partner's API answered with an error."""


def _note(context: Context) -> None:
    if not ledger.record(context.id, context.tenant, context.job, context.release):
        context.log.warning("this job was delivered again")


def _maildir() -> mailbox.Maildir:
    # Made here, since mailbox makes folders that only their owner may enter.
    folder = files.shared_folder(files.var() / "mail")
    for part in ("tmp", "new", "cur"):
        files.shared_folder(folder / part)
    return mailbox.Maildir(folder, create=False)
