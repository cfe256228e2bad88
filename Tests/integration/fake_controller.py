"""A controller that answers operators' requests as a test tells it to, for tests of kvctl alone."""

import asyncio
import json
import threading

from fake_cluster import HELLO, frame, hello, read_frame

ADMIN_REQUEST, ADMIN_RESPONSE = 14, 15


class Refusal(Exception):
    """The answer of a verb that refuses."""

    def __init__(self, message, code="refused"):
        super().__init__(message)
        self.code = code


class FakeController:
    """`answers`: for each verb its result, or a function of the arguments that returns it."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        #: What was asked, in order: (verb, arguments).
        self.asked = []
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def flags(self):
        """Of kvctl, to ask this controller."""
        return ("--controllers", f"127.0.0.1:{self.port}")

    def verbs(self):
        return [verb for verb, _ in self.asked]

    def _run(self, ready):
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader, writer):
        try:
            await read_frame(reader)
            writer.write(frame(HELLO, hello(3, 0, "controller-1")))
            while True:
                kind, body = await read_frame(reader)
                assert kind == ADMIN_REQUEST, kind
                request = json.loads(body[4:])
                answer = json.dumps(self._answer(request["verb"], request["arguments"]))
                writer.write(frame(ADMIN_RESPONSE, body[:4] + answer.encode()))
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, verb, arguments):
        self.asked.append((verb, arguments))
        try:
            answer = self.answers.get(verb)
            if answer is None:
                raise Refusal(f"no verb {verb}", "invalidRequest")
            return {"ok": True, "result": answer(arguments) if callable(answer) else answer}
        except Refusal as refusal:
            return {"ok": False, "code": refusal.code, "message": str(refusal)}
