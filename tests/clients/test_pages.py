"""The pages of docs/clients for curl and for the libraries of this group, run as written."""
import sys

import pytest

import pages
from proxy import Proxy, cold

COUNTED = "9, 10, 11, 12, 13, 14, 15, 16, 17."


@pytest.mark.parametrize("page, expected", [
    ("openai.md", [COUNTED, "A pink circle."]),
    ("anthropic.md", [COUNTED, "A pink circle."]),
    ("ollama.md", ["demo:latest", COUNTED, COUNTED]),
    ("litellm.md", [COUNTED] * 4),
])
def test_python(server, tmp_path, page, expected):
    proxy = Proxy(server.port, cold)
    printed = pages.run([sys.executable, "-c", pages.code(page, "python", proxy.url)], tmp_path)
    for text in expected:
        assert text in printed
        printed = printed.split(text, 1)[1]
    assert not proxy.refused()


def test_curl(locked_server, tmp_path):
    proxy = Proxy(locked_server.port, cold)
    # Its first three commands are for a server without a key; curl reads this one's from a file of options.
    (tmp_path / ".curlrc").write_text('header = "X-API-Key: sesame"\n')
    printed = pages.run(pages.shell(pages.code("curl.md", "sh", proxy.url)), tmp_path,
                        {"HOME": str(tmp_path), "GEMMA4_API_KEY": "sesame"})
    for text in (COUNTED, "A pink circle.", "colour", '"id":"demo"'):
        assert text in printed.replace('": "', '":"')
    assert not proxy.refused()
