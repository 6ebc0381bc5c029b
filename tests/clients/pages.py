"""The pages of docs/clients, run as they stand there: only the server's address is another."""
import os
import re
import subprocess

from conftest import ROOT

ADDRESS = "http://127.0.0.1:8000"


def code(page, language, url=None):
    """All blocks of a language in a page, one after another, as for a server at `url`."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs/clients" / page).read_text(), re.S | re.M)
    assert blocks, f"{page} has no block of {language}"
    text = "\n".join(blocks)
    if url:
        assert ADDRESS in text, f"{page} names no address"
        text = text.replace(ADDRESS, url)
    return text


def run(command, folder, environment=None, timeout=300):
    """What a command prints. It runs in `folder`, where the repository's tests/ are found, and must end with exit code 0."""
    link = folder / "tests"
    if not link.exists():
        link.symlink_to(ROOT / "tests")
    done = subprocess.run(command, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True,
                          timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def shell(script):
    return ["bash", "-euo", "pipefail", "-c", script]
