"""boto3 and moto: objects in parts, with odd keys, in ranges, and by presigned addresses, and every signature is checked (servers/s3.py).

usage: test_s3.py BINARY
"""

import concurrent.futures
import hashlib
import io
import os
import ssl
import sys
import urllib.error
import urllib.request

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.client import Config
from botocore.exceptions import ClientError

from harness import Isobar, Work, check, done, free_port

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = Work()
LARGE = os.urandom(24_000_000)
SMALL = os.urandom(100_000)
KEYS = [
    "plain.txt",
    "with space.txt",
    "with  two spaces",
    "plus+plus",
    "a/b/c",
    "a//b",
    "//begins",
    "ends/",
    "ends//",
    "percent%41",
    "percent%2Fslash",
    "%",
    "50%/of it",
    "ümläut/日本語/😀",
    "cafe\u0301",
    "amp&and=equals",
    "semi;colon",
    "question?mark",
    "hash#mark",
    "quote'\"quote",
    "star*(star)!",
    "at@colon:comma,",
    "tilde~",
    "angle<>",
    "pipe|caret^grave`",
    "brace{}bracket[]",
    "dollar$",
    ".hidden",
    "a.b/..c/d..",
    "back~slash",
    "x-id=GetObject",
    "a" * 1000,
]
TRUST = ssl.create_default_context(cafile=WORK.certificate)


def moto():
    """Where moto is, with a check of signatures in front, and the keys that it knows."""
    port = free_port()
    user = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "a/secret+key"}
    WORK.start("s3", [sys.executable, os.path.join(HERE, "servers", "s3.py"), str(port), *user.values()], port)
    return port, user


def refused(call, **arguments):
    try:
        call(**arguments)
        return None
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


def fetch(url, data=None, **headers):
    """An address alone, without any client of S3."""
    request = urllib.request.Request(url, data=data, method="GET" if data is None else "PUT", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30, context=TRUST if url.startswith("https") else None) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def way(name, site):
    config = Config(s3={"addressing_style": "path"}, signature_version="s3v4", retries={"total_max_attempts": 1}, read_timeout=30)
    client = boto3.client("s3", endpoint_url=site, region_name="us-east-1", verify=WORK.certificate, config=config, **USER)
    stranger = boto3.client(
        "s3",
        endpoint_url=site,
        region_name="us-east-1",
        verify=WORK.certificate,
        config=config,
        aws_access_key_id=USER["aws_access_key_id"],
        aws_secret_access_key="wrong",
    )
    bucket = f"bucket-{name}"
    client.create_bucket(Bucket=bucket)
    client.create_bucket(Bucket="kept")
    check(f"{name}: a wrong signature is refused", refused(stranger.put_object, Bucket=bucket, Key="k", Body=b"x") == 403)

    # Parts of 5 MiB, four at a time, and a plain one of the whole.
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=4)
    client.upload_fileobj(io.BytesIO(LARGE), bucket, "in parts", Config=parts)
    head = client.head_object(Bucket=bucket, Key="in parts")
    check(f"{name}: 24 MB in five parts", head["ContentLength"] == len(LARGE) and head["ETag"].endswith('-5"'), head)
    got = io.BytesIO()
    client.download_fileobj(bucket, "in parts", got, Config=parts)
    check(f"{name}: they come back in ranges, and the same", got.getvalue() == LARGE, len(got.getvalue()))
    put = client.put_object(Bucket=bucket, Key="whole", Body=LARGE, ContentType="application/x-test", Metadata={"a-key": "a value"})
    check(f"{name}: 24 MB in one piece", put["ETag"] == f'"{hashlib.md5(LARGE).hexdigest()}"', put)
    whole = client.get_object(Bucket=bucket, Key="whole")
    check(
        f"{name}: they come back with what is said of them",
        whole["Body"].read() == LARGE and whole["Metadata"] == {"a-key": "a value"} and whole["ContentType"] == "application/x-test",
        whole["ResponseMetadata"],
    )

    wrong = []
    for key in KEYS:
        body = SMALL[:100] + key.encode()
        try:
            client.put_object(Bucket=bucket, Key=key, Body=body)
            if client.get_object(Bucket=bucket, Key=key)["Body"].read() != body:
                wrong.append((key, "other bytes"))
            url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
            if fetch(url) != (200, body):
                wrong.append((key, "presigned"))
        except ClientError as error:
            wrong.append((key, str(error)))
    check(f"{name}: {len(KEYS)} odd keys", wrong == [], wrong)
    listed = [
        entry["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 7})
        for entry in page.get("Contents", [])
    ]
    check(f"{name}: all are listed, in pages", sorted(listed) == sorted([*KEYS, "in parts", "whole"]), listed)
    check(
        f"{name}: none was taken for another",
        len(set(listed)) == len(listed) and client.list_objects_v2(Bucket=bucket, Prefix="a//")["KeyCount"] == 1,
        listed,
    )

    ranges = {
        "bytes=0-9": LARGE[:10],
        "bytes=5000000-15000000": LARGE[5_000_000:15_000_001],
        "bytes=-7": LARGE[-7:],
        "bytes=23999990-": LARGE[23_999_990:],
    }
    got = {which: client.get_object(Bucket=bucket, Key="whole", Range=which) for which in ranges}
    statuses = {answer["ResponseMetadata"]["HTTPStatusCode"] for answer in got.values()}
    check(f"{name}: ranges", statuses == {206} and all(answer["Body"].read() == ranges[which] for which, answer in got.items()), statuses)
    status = refused(client.get_object, Bucket=bucket, Key="whole", Range="bytes=99999999-")
    check(f"{name}: a range behind the end is refused", status == 416, status)

    key = "presigned ü+ //up"
    url = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key})
    check(
        f"{name}: an upload by a presigned address",
        fetch(url, SMALL, **{"content-type": ""})[0] == 200 and client.get_object(Bucket=bucket, Key=key)["Body"].read() == SMALL,
    )
    check(
        f"{name}: one that was changed is refused",
        fetch(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}).replace("X-Amz-Expires=3600", "X-Amz-Expires=3601"))[
            0
        ]
        == 403,
    )
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        same = list(
            pool.map(
                lambda n: fetch(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "in parts"})) == (200, LARGE), range(8)
            )
        )
    check(f"{name}: eight downloads of 24 MB at a time", all(same), same)
    client.copy_object(Bucket=bucket, Key="copy/of it", CopySource={"Bucket": bucket, "Key": key})
    check(f"{name}: a copy of an odd key", client.get_object(Bucket=bucket, Key="copy/of it")["Body"].read() == SMALL)
    upload = client.create_multipart_upload(Bucket=bucket, Key="given up")
    client.upload_part(Bucket=bucket, Key="given up", UploadId=upload["UploadId"], PartNumber=1, Body=SMALL)
    client.abort_multipart_upload(Bucket=bucket, Key="given up", UploadId=upload["UploadId"])
    status = refused(client.get_object, Bucket=bucket, Key="given up")
    check(f"{name}: an upload that is given up is not there", status == 404, status)
    for key in ("back\\slash", "dots/./in"):
        body = SMALL[:50] + key.encode()
        status = refused(client.put_object, Bucket=bucket, Key=key, Body=body)
        check(f"{name}: the key {key} is refused as isobar comes", status == 400, status)
        status = refused(client.put_object, Bucket="kept", Key=key, Body=body)
        check(
            f"{name}: and kept where the route says so", status is None and client.get_object(Bucket="kept", Key=key)["Body"].read() == body, status
        )
    gone = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in KEYS]})
    check(f"{name}: all odd keys are deleted in one request", len(gone.get("Deleted", [])) == len(KEYS) and not gone.get("Errors"), gone)


PORT, USER = moto()
# One bucket may have keys that are refused as a rule.
KEPT = 'paths = { dot_segments = "keep", backslashes = "keep" }'
ISOBAR = Isobar(
    WORK,
    f'[[route]]\nupstream = "s3"\n[[route]]\npath_prefix = "/kept"\nupstream = "s3"\n{KEPT}\n' f'[upstream.s3]\nbackends = ["127.0.0.1:{PORT}"]\n',
)
way("h1", ISOBAR.http)
way("tls", ISOBAR.https)
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(44)
