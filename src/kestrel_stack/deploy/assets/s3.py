"""Uploads to a bucket of Amazon's or of any service that speaks its protocol."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from ..errors import Failed
from .publish import CACHE_CONTROL, Limits, Upload
from .spec import S3

if TYPE_CHECKING:
    from botocore.client import BaseClient

PARALLEL = 16
CONNECT_SECONDS = 5
READ_SECONDS = 20
ATTEMPTS = 3
"""Each request; so long may Ctrl-C have to wait for a server that says nothing."""


def send(uploads: Sequence[Upload], target: S3, limits: Limits) -> set[str]:
    """Upload what is missing there or has another size; return the names. Raises Failed, Cancelled."""
    # Half a second that only those pay who use it.
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = _client(target)
        there = _sizes(client, target, limits)
        lacking = [upload for upload in uploads if there.get(target.prefix + upload.name) != len(upload.data)]
        _put_all(client, lacking, target, limits)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise Failed(f"assets.cdn: {target}: {_explained(error)}") from None
    return {upload.name for upload in lacking}


def _client(target: S3) -> BaseClient:
    from botocore.config import Config
    from botocore.session import get_session

    session = get_session()
    # Services that copy the protocol mostly ignore regions, but a signature needs one.
    region = target.region or session.get_config_variable("region") or "us-east-1"
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        max_pool_connections=PARALLEL,
        # The checksums that Amazon added last are not known to every other service; Content-MD5 is.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.create_client("s3", endpoint_url=target.endpoint, region_name=region, config=config)


def _sizes(client: BaseClient, target: S3, limits: Limits) -> dict[str, int]:
    """List what is there: one request per 1000 objects, where asking for each would be one per file."""
    sizes: dict[str, int] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=target.prefix):
        limits.check(target)
        sizes.update((item["Key"], item["Size"]) for item in page.get("Contents", ()))
    return sizes


def _put_all(client: BaseClient, uploads: Sequence[Upload], target: S3, limits: Limits) -> None:
    stop = threading.Event()

    def put(upload: Upload) -> None:
        if not stop.is_set():
            limits.check(target)
            _put(client, upload, target)

    with ThreadPoolExecutor(PARALLEL) as pool:
        tasks = [pool.submit(put, upload) for upload in uploads]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            # After a failure, or Ctrl-C, what has not begun does not begin.
            stop.set()
    for task in tasks:
        task.result()


def _put(client: BaseClient, upload: Upload, target: S3) -> None:
    more: dict[str, Any] = {}
    if upload.content_encoding:
        more["ContentEncoding"] = upload.content_encoding
    if target.acl:
        more["ACL"] = target.acl
    digest = hashlib.md5(upload.data, usedforsecurity=False).digest()
    client.put_object(
        Bucket=target.bucket,
        Key=target.prefix + upload.name,
        Body=upload.data,
        ContentType=upload.content_type,
        CacheControl=CACHE_CONTROL,
        ContentMD5=base64.b64encode(digest).decode(),
        **more,
    )


def _explained(error: Exception) -> str:
    """Say in one line what went wrong and what to do."""
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return (
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for one of"
            " ~/.aws/credentials"
        )
    if isinstance(error, exceptions.ClientError):
        told = error.response.get("Error", {})
        code, said = told.get("Code", ""), " ".join(str(told.get("Message", "")).split())[:200]
        hints = {
            "NoSuchBucket": ": make the bucket, or correct assets.cdn.s3.bucket",
            "AccessDenied": ": these credentials need s3:ListBucket and s3:PutObject",
            "InvalidAccessKeyId": ": check AWS_ACCESS_KEY_ID or the profile",
            "SignatureDoesNotMatch": ": check AWS_SECRET_ACCESS_KEY or the profile",
        }
        return f"{error.operation_name} was refused: {code} {said}{hints.get(code, '')}"
    return " ".join(str(error).split())[:300]
