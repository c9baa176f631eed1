"""Stand-ins for W&B's server, each with what is wrong with it, and a session of the real package against it.

As a program: `wandb_server.py SERVER LOG_WANDB FOLDER` starts a session, logs, ends it, and prints what it said.
"""

import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

KEY = "0123456789abcdef0123456789abcdef01234567"
RUN = {
    "id": "x", "name": "r", "displayName": "x", "description": "", "config": "{}", "sweepName": None,
    "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}, "historyLineCount": 0,
}  # fmt: skip
VIEWER = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
SERVERS = ("closed", "silent", "refusing", "leaving", "nonsense")


def open_server(kind: str) -> tuple[str, Callable[[], None]]:
    """Address of a server of this kind, and what ends it."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    if kind != "silent":
        listening.close()
    if kind in ("closed", "silent"):
        return f"http://127.0.0.1:{port}", listening.close
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Refusing if kind == "refusing" else Taking)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def leave() -> None:
        server.shutdown()
        server.server_close()

    return f"http://127.0.0.1:{port}", leave


class Taking(http.server.BaseHTTPRequestHandler):
    """Takes a run, and answers nothing of use to the rest."""

    status = 200

    def answer(self, asked: str) -> object:
        if "upsertBucket" in asked:
            return {"data": {"upsertBucket": {"bucket": RUN, "inserted": True}}}
        return {"data": {"viewer": VIEWER}} if "viewer" in asked else {"data": {}}

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
        content = json.dumps(self.answer(asked)).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *words: object) -> None:
        pass


class Refusing(Taking):
    """Knows no key."""

    status = 401

    def answer(self, asked: str) -> object:
        return {"data": None, "errors": [{"message": "user is not logged in"}]}


def main(kind: str, log_wandb: str, folder: str) -> None:
    address, leave = open_server(kind)
    os.environ.update({"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"})
    import wandb

    from nld_train.train import patches, wandb_session

    wandb_session.ANSWER_SECONDS = wandb_session.END_SECONDS = 3
    run = SimpleNamespace(output=folder, log=SimpleNamespace(wandb=log_wandb))
    session = wandb_session.WandbSession(run, lambda line: print("SAID", line))
    patches.hold_wandb_session(session.start, session.keep_on)
    began = time.monotonic()
    started = wandb.init(dir=folder, name="x", project="p", config={"a": 1})
    print("offline" if started.offline else "online")
    for step in range(5):
        wandb.log({"loss": step}, step)
        if kind == "leaving" and step == 2:
            time.sleep(1)
            leave()
    wandb.finish()
    print("seconds", time.monotonic() - began, flush=True)
    os._exit(0)  # the server's threads are in no state to be ended in order


if __name__ == "__main__":
    main(*sys.argv[1:])
