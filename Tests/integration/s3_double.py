"""An S3-compatible object store in memory, on loopback: PUT, GET, DELETE and ListObjectsV2 of one bucket.
Every request must carry a right AWS Signature Version 4."""

import hashlib
import hmac
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

REGION = "us-east-1"
PAGE = 2  # Keys of one listing: small, so that tests turn pages.


class S3Double:
    def __init__(self, bucket="backups", access="AKEXAMPLE", secret="wJalr/secret+key"):
        self.bucket, self.access, self.secret = bucket, access, secret
        self.objects, self.lock = {}, threading.Lock()
        self.refused, self.is_down = [], False
        self.held, self.let_go = None, threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def place(self, prefix="prod"):
        return f"s3://{self.bucket}/{prefix}?endpoint={self.endpoint}&region={REGION}"

    @property
    def environment(self):
        return {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret}

    @contextmanager
    def holding(self, method, kind):
        """No such request for an object of this kind is answered meanwhile."""
        self.let_go.clear()
        self.held = (method, kind)
        try:
            yield
        finally:
            self.held = None
            self.let_go.set()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def _signature_problem(self, method, path, query, headers):
        """What is wrong with the signature; None when it is right."""
        value = headers.get("Authorization", "")
        if not value.startswith("AWS4-HMAC-SHA256 "):
            return "AccessDenied"
        parts = dict(part.strip().split("=", 1) for part in value.split(" ", 1)[1].split(","))
        access, *scope = parts["Credential"].split("/")
        if access != self.access:
            return "InvalidAccessKeyId"
        names = parts["SignedHeaders"].split(";")
        if not {"host", "x-amz-date"} <= set(names) or any(headers[n] is None for n in names):
            return "AccessDenied"
        pairs = sorted((quote(key, safe="-_.~"), quote(text, safe="-_.~"))
                       for key, text in parse_qsl(query, keep_blank_values=True))
        canonical = "\n".join([
            method, path, "&".join(f"{key}={text}" for key, text in pairs),
            *(f"{name}:{headers[name].strip()}" for name in names), "", ";".join(names),
            headers["x-amz-content-sha256"]])
        to_sign = "\n".join([
            "AWS4-HMAC-SHA256", headers["x-amz-date"], "/".join(scope),
            hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self.secret}".encode()
        for part in scope:
            key = hmac.digest(key, part.encode(), "sha256")
        right = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
        return None if hmac.compare_digest(right, parts["Signature"]) else "SignatureDoesNotMatch"

    def _handler(double):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, body=b""):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def serve(self):
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if double.is_down:
                    return self.answer(503, b"<Error><Code>SlowDown</Code></Error>")
                problem = double._signature_problem(
                    self.command, url.path, url.query, self.headers)
                if problem:
                    double.refused.append(f"{problem}: {self.command} {self.path}")
                    return self.answer(403, f"<Error><Code>{problem}</Code></Error>".encode())
                bucket, _, key = unquote(url.path).lstrip("/").partition("/")
                if bucket != double.bucket:
                    return self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
                held = double.held
                if held and self.command == held[0] and held[1] in key:
                    double.let_go.wait()
                with double.lock:
                    if self.command == "PUT":
                        double.objects[key] = body
                        return self.answer(200)
                    if self.command == "DELETE":
                        double.objects.pop(key, None)
                        return self.answer(204)
                    if key:
                        found = double.objects.get(key)
                        return self.answer(200, found) if found is not None else self.answer(
                            404, b"<Error><Code>NoSuchKey</Code></Error>")
                    return self.answer(200, self.listing(dict(parse_qsl(url.query))))

            def listing(self, query):
                keys = sorted(key for key in double.objects if key.startswith(query["prefix"])
                              and key > query.get("continuation-token", ""))
                page = keys[:PAGE]
                text = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in page)
                if len(keys) > PAGE:
                    text += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
                return f"<ListBucketResult>{text}</ListBucketResult>".encode()

            do_GET = do_PUT = do_DELETE = serve

        return Handler
