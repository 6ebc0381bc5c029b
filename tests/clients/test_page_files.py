"""Files for the model: texts, PDF files, pictures; and how they are looked at."""
import io
import re
import struct
import zlib

from browser import ask, browser, drop, drop_files, notice, page, say, settings, visit  # noqa: F401
from conftest import IMAGES
from playwright.sync_api import expect


def pdf(*contents):
    """A PDF file of one page for each content stream."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(contents)))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(contents)}>>",
               "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for i, content in enumerate(contents):
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents {5 + 2 * i} 0 R/Resources<</Font<</F 3 0 R>>>>>>")
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    out, offsets = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, text in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(f"{number} 0 obj{text}endobj\n".encode())
    start = out.tell()
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode() + b"".join(b"%010d 00000 n \n" % o for o in offsets))
    out.write(f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF".encode())
    return out.getvalue()


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes([200, 80, 40]) * width for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sent(page, action):
    with page.expect_request("**/v1/chat/completions") as request:
        action()
    return request.value.post_data_json


def test_a_text_file(page):
    drop_files(page, [("notes.md", "", "Grüße\nCount from 2 to 4.".encode())])
    expect(page.locator("#attached .document")).to_have_text("notes.md")
    page.get_by_role("button", name="Show notes.md").click()
    expect(page.get_by_role("dialog", name="notes.md")).to_contain_text("Grüße")
    page.keyboard.press("Escape")
    body = sent(page, lambda: say(page, "Follow this."))
    assert body["messages"][-1]["content"] == "The file notes.md:\n\nGrüße\nCount from 2 to 4.\n\n(End of notes.md.)\n\nFollow this."
    expect(page.locator(".message.user .document")).to_have_text("notes.md")
    page.reload()
    expect(page.locator(".message.user .document")).to_have_text("notes.md")


def test_the_text_of_a_pdf_file(page):
    drop_files(page, [("two.pdf", "application/pdf", pdf("BT /F 12 Tf 20 50 Td (Hello from a page) Tj ET",
                                                         "BT /F 12 Tf 20 50 Td (and from the next) Tj ET"))])
    expect(page.locator("#attached .document")).to_have_text("two.pdf")
    body = sent(page, lambda: say(page, "What does it say?"))
    assert "Hello from a page\n\nand from the next" in body["messages"][-1]["content"]


def test_a_pdf_file_without_text_becomes_pictures(page):
    drop_files(page, [("scan.pdf", "application/pdf", pdf("1 0 0 rg 20 20 60 60 re f", "0 0 1 rg 20 20 60 60 re f"))])
    expect(notice(page, "scan.pdf has no text, so its pages are sent as pictures")).to_be_visible()
    expect(page.locator("#attached img")).to_have_count(2)
    colour = page.locator("#attached img").first.evaluate("""async (img) => {
      await img.decode();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
      const paper = canvas.getContext("2d");
      paper.drawImage(img, 0, 0);
      return [...paper.getImageData(img.naturalWidth / 4, img.naturalHeight / 2, 1, 1).data];
    }""")
    assert colour[0] > 200 and colour[1] < 60 and colour[2] < 60


def test_a_program_without_pdf(browser, server):
    context = browser.new_context()
    context.route("**/libraries.js", lambda route: route.fulfill(
        body="export const libraries = {katex: false, highlight: false, pdf: false};", content_type="text/javascript"))
    page = visit(context, server.url)
    drop_files(page, [("a.pdf", "application/pdf", pdf("BT ET"))])
    expect(notice(page, "a.pdf was not added: PDF files cannot be read here, because the program was built without it")).to_be_visible()
    context.close()


def test_what_is_attached_can_be_removed(page):
    drop_files(page, [("a.txt", "text/plain", b"a"), ("p.png", "image/png", (IMAGES / "000.png").read_bytes())])
    page.get_by_role("button", name="Remove a.txt").click()
    page.get_by_role("button", name="Remove picture 1").click()
    expect(page.locator("#attached figure")).to_have_count(0)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()


def test_a_portrait_picture_fits_the_viewer(page):
    drop_files(page, [("tall.png", "image/png", png(300, 2000))])
    expect(page.locator("#attached img")).to_have_count(1)
    say(page, "Look")
    page.get_by_role("button", name="Show picture 1 large").click()
    panel, shown = page.locator("#viewer").bounding_box(), page.locator("#viewer img").bounding_box()
    height = page.viewport_size["height"]
    assert shown["height"] <= 0.94 * height and abs(shown["width"] / shown["height"] - 0.15) < 0.01
    left, right = shown["x"] - panel["x"], panel["x"] + panel["width"] - shown["x"] - shown["width"]
    assert abs(left - right) < 2 and panel["width"] - shown["width"] < 40


def test_the_idea_of_a_picture_opens_the_picker(page):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Describe a picture").click()
    chooser.value.set_files(IMAGES / "002.png")
    expect(page.locator("#attached img")).to_have_count(1)
    expect(page.get_by_label("Message", exact=True)).to_have_value("What is in this picture?")


def test_how_much_of_the_context_is_used(page):
    expect(page.locator("#context")).not_to_be_visible()
    answer = ask(page, "Count from 9 to 17.")
    tokens, prompt = (int(re.search(pattern, answer.locator(".stats").inner_text())[1]) for pattern in (r"(\d+) tokens ·", r"prompt (\d+)"))
    expect(page.locator("#context-text")).to_have_text(f"{tokens + prompt} of 2,048 tokens")
    assert page.get_by_role("meter", name="Context in use").evaluate("(meter) => [meter.value, meter.max]") == [tokens + prompt, 2048]
    page.get_by_label("Message", exact=True).fill("word " * 100)
    expect(page.locator("#context-text")).to_contain_text("about")
    drop(page, "000.png")
    assert page.locator("#context-meter").evaluate("(meter) => meter.value") > tokens + prompt + 100 + 60
