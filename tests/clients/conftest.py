"""A `gemma4 serve` of the demo model for the tests of real clients: one process for all of them, on the loopback interface."""
import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import variants  # noqa: E402
from proxy import Proxy  # noqa: E402

# A folder: what clients send is written there, a file for each test (tests/golden/clients came so).
RECORD = os.environ.get("CLIENT_RECORD")

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("GEMMA4_BINARY", str(ROOT / "build/dev/gemma4"))
IMAGES = ROOT / "tests/golden/demo_eval/images"


class Served:
    def __init__(self, *options, env=None, model=ROOT / "models/demo", context=("--max-seq-len", "2048")):
        command = [BINARY, "serve", "--model", str(model), "--model-name", "demo", "--port", "0", *context,
                   "--threads", "2", *options]
        self.model = model
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+:(\d+)/", line)
        assert found, f"no address in {line!r}"
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        if RECORD:
            self.proxy = Proxy(self.port)
            self.port, self.url = self.proxy.port, self.proxy.url

    def post(self, path, body):
        """For what the clients' APIs do not have."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture(scope="session")
def server():
    served = Served()
    yield served
    assert served.stop() == 0


@pytest.fixture(scope="session")
def locked_server():
    served = Served(env={"GEMMA4_API_KEY": "sesame"})
    yield served
    assert served.stop() == 0


def shortened(value):
    """Long texts say nothing about a request's form."""
    if isinstance(value, str) and len(value) > 200:
        return value[:40] + "..." if not value.startswith("data:") and " " in value[:200] else value
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return {key: shortened(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.fixture(autouse=RECORD is not None)
def recorded(request):
    yield
    for name in ("server", "long_server"):
        served = request.node.funcargs.get(name)
        if served is None:
            continue
        lines = [json.dumps({"path": path.split("?")[0], "body": shortened(body)}) for path, body in served.proxy.requests]
        served.proxy.requests.clear()
        file = re.sub(r"[^A-Za-z0-9]+", "_", request.node.nodeid.split("/")[-1].replace("test_", "")).strip("_") + ".jsonl"
        if lines:
            pathlib.Path(RECORD, file).write_text("\n".join(dict.fromkeys(lines)) + "\n")


# Variants of the demo model (variants.py), whose context is the default: what fits in memory.
@pytest.fixture(scope="session")
def long_server(tmp_path_factory):
    model = variants.make(tmp_path_factory.mktemp("long") / "demo", positions=131072)
    served = Served(model=model, context=())
    yield served
    assert served.stop() == 0


@pytest.fixture(scope="session")
def wide_server(tmp_path_factory):
    model = variants.make(tmp_path_factory.mktemp("wide") / "demo", positions=131072, words=262144)
    served = Served(model=model, context=())
    yield served
    assert served.stop() == 0


def picture(name):
    return base64.b64encode((IMAGES / name).read_bytes()).decode()


def data_url(name):
    return "data:image/png;base64," + picture(name)
