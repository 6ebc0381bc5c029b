"""Pictures by https address: from a host that was named and proves who it is, and from no other."""
import http.server
import ssl
import subprocess
import threading

import openai
import pytest
from conftest import IMAGES, Served


@pytest.fixture(scope="module")
def picture_host(tmp_path_factory):
    """A TLS host of demo_eval's pictures on 127.0.0.1: (port, file of its certificate)."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-keyout", folder / "key", "-out", folder / "certificate", "-subj", "/CN=pictures",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)

    class Pictures(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=IMAGES)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], folder / "certificate"
    server.shutdown()


def ask(served, port, name="000.png"):
    client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
    return client.chat.completions.create(model="demo", temperature=0, messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"https://127.0.0.1:{port}/{name}"}},
        {"type": "text", "text": "What number is written in the image?"}]}]).choices[0].message.content


def test_https_picture(picture_host):
    port, certificate = picture_host
    served = Served("--allow-image-host", f"127.0.0.1:{port}", env={"SSL_CERT_FILE": str(certificate)})
    try:
        assert ask(served, port) == "6542"
        with pytest.raises(openai.BadRequestError, match="status 404"):
            ask(served, port, "none.png")
    finally:
        assert served.stop() == 0


def test_https_picture_of_a_host_that_proves_nothing(picture_host):
    port, _ = picture_host
    served = Served("--allow-image-host", f"127.0.0.1:{port}")
    try:
        with pytest.raises(openai.BadRequestError, match="did not answer"):
            ask(served, port)
    finally:
        assert served.stop() == 0
