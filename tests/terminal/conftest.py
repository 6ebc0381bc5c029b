"""A chat of `gemma4 run` in a terminal: tmux is the terminal, send-keys types and capture-pane reads the screen.

GEMMA4_BINARY is the program; run from the repository's root."""
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("GEMMA4_BINARY", "build/release/gemma4")).resolve()
DEMO = ROOT / "models" / "demo"
IMAGES = ROOT / "tests" / "golden" / "demo_eval" / "images"
PATIENCE = 60  # seconds that a slow machine has


class Terminal:
    def __init__(self, folder, command, environment=None, width=100, height=50):
        self.folder = folder
        self.saves = 0
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        self.socket = str(folder / f"tmux{len(list(folder.glob('tmux*')))}")
        variables = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(environment or {})}
        unset = "" if "TERM" in variables else "TERM=$TERM "
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        script = f"env -i {unset}{words} {' '.join(shlex.quote(str(word)) for word in command)}; echo left with $?; cat"
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), script)

    def tmux(self, *words, **more):
        return subprocess.run(["tmux", "-S", self.socket, *words], check=True, capture_output=True, text=True, **more)

    def screen(self, escapes=False):
        return self.tmux("capture-pane", "-p", "-J", "-S", "-1000", *(["-e"] if escapes else [])).stdout

    def wait(self, text, times=1):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.screen().count(text) >= times:
                return
            time.sleep(0.1)
        raise AssertionError(f"{times} times {text!r} did not come:\n{self.screen()}")

    def wait_prompt(self):
        """Until the last line is an empty prompt."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            lines = self.screen().rstrip().splitlines()
            if lines and lines[-1].rstrip() == ">":
                return
            time.sleep(0.1)
        raise AssertionError(f"no prompt came:\n{self.screen()}")

    def keys(self, *names):
        self.tmux("send-keys", *names)

    def type(self, text):
        self.tmux("send-keys", "-l", text)

    def line(self, text, answer=None):
        self.wait_prompt()
        self.type(text)
        self.keys("Enter")
        if answer:
            self.wait(answer)

    def paste(self, text):
        self.tmux("load-buffer", "-", input=text)
        self.tmux("paste-buffer", "-p")  # with the marks of bracketed paste, where the program asked for them

    def saved(self):
        """The conversation, by /save, each time in another file: what an earlier one printed is still on the screen."""
        self.saves += 1
        path = self.folder / f"saved{self.saves}.json"
        self.line(f"/save --force {path}", f"is in {path};")
        return json.loads(path.read_text())["messages"]

    def end(self):
        subprocess.run(["tmux", "-S", self.socket, "kill-server"], capture_output=True)


@pytest.fixture
def terminal(tmp_path):
    """Starts programs in terminals of their own."""
    started = []

    def start(*command, **more):
        started.append(Terminal(tmp_path, command, **more))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def chat(terminal):
    def start(*flags, **more):
        one = terminal(BINARY, "run", DEMO, "--temperature", "0", "--backend", "cpu", *flags, **more)
        one.wait("/help lists the commands")
        one.wait_prompt()
        return one

    return start


@pytest.fixture
def picture(tmp_path):
    """A picture of a pink circle at the left, under a name with spaces."""
    path = tmp_path / "a pink one's.png"
    shutil.copy(IMAGES / "002.png", path)
    return path
