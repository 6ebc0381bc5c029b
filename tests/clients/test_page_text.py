"""What the model writes: Markdown, formulas and code, and that nothing of it becomes markup."""
import time

import pytest
from browser import ask, browser, page, script  # noqa: F401
from playwright.sync_api import expect


def render(page, text):
    """The nodes of a text, once the libraries that it needs have come."""
    page.evaluate("""async (text) => {
      const {markdown} = await import("./markdown.js");
      const {load} = await import("./rich.js");
      const {libraries} = await import("./libraries.js");
      for (const name of ["katex", "highlight"]) if (libraries[name]) await load(name);
      document.querySelector("#shown")?.remove();
      const place = document.createElement("div");
      place.id = "shown";
      place.className = "body";
      place.append(...markdown(text));
      document.querySelector("#scroll").append(place);  // #log is drawn anew when it pleases
    }""", text)
    return page.locator("#shown")


def html(page, text):
    return render(page, text).inner_html()


@pytest.mark.parametrize("text, expected", [
    ("__init__.py and snake_case_name", "<p>__init__.py and snake_case_name</p>"),
    ("a __bold__ and _it_ and **b** *i* ~~s~~", "<p>a <strong>bold</strong> and <em>it</em> and <strong>b</strong> <em>i</em> <s>s</s></p>"),
    ("***both***", "<p><strong><em>both</em></strong></p>"),
    ("2*3*4 = 24", "<p>2<em>3</em>4 = 24</p>"),
    ("a\\*b\\*", "<p>a*b*</p>"),
    ("one<br>two&nbsp;three &lt;b&gt; &bogus;", "<p>one<br>two&nbsp;three &lt;b&gt; &amp;bogus;</p>"),
    ("H<sub>2</sub>O <div>", "<p>H<sub>2</sub>O &lt;div&gt;</p>"),
    ("# A\n### B\n## C", "<h3>A</h3><h4>B</h4><h4>C</h4>"),
    ("costs $5 and $10", "<p>costs $5 and $10</p>"),
    ("- a\n- b\n\n1. first\n2. second", "<ul><li>a</li><li>b</li></ul><ol><li>first</li><li>second</li></ol>"),
    ("3. c\n4. d", '<ol start="3"><li>c</li><li>d</li></ol>'),
    ("1. one\n   - inner\n     - deep\n2. two",
     "<ol><li>one<ul><li>inner<ul><li>deep</li></ul></li></ul></li><li>two</li></ol>"),
    ("1. one\n\n   more of it\n\n2. two", "<ol><li><p>one</p><p>more of it</p></li><li>two</li></ol>"),
    ("* a\n\t* b", "<ul><li>a<ul><li>b</li></ul></li></ul>"),
    ("- a\n- b\n* c", "<ul><li>a</li><li>b</li></ul><ul><li>c</li></ul>"),
    ("text\n- a\n\nafter", "<p>text</p><ul><li>a</li></ul><p>after</p>"),
    ("---\n\n> quoted\n> - x", "<hr><blockquote><p>quoted</p><ul><li>x</li></ul></blockquote>"),
    ("![a dog](https://example.com/d.png)",
     '<p><a href="https://example.com/d.png" target="_blank" rel="noopener noreferrer nofollow">🖼 a dog</a></p>'),
    ("[b](https://example.com/a_(b)) <https://x.org>",
     '<p><a href="https://example.com/a_(b)" target="_blank" rel="noopener noreferrer nofollow">b</a> '
     '<a href="https://x.org" target="_blank" rel="noopener noreferrer nofollow">https://x.org</a></p>'),
])
def test_markdown(page, text, expected):
    assert html(page, text).replace("https://x.org/", "https://x.org") == expected


def test_task_lists(page):
    shown = render(page, "- [ ] open\n- [x] done")
    boxes = shown.get_by_role("checkbox")
    expect(boxes).to_have_count(2)
    expect(shown.get_by_role("checkbox", name="To do")).not_to_be_checked()
    expect(shown.get_by_role("checkbox", name="Done")).to_be_checked()
    expect(shown).to_have_text("opendone")


def test_tables(page):
    shown = render(page, "| a | b | c |\n|:--|:-:|--:|\n| 1<br>2 | `x|y` | 3 \\| 4 |\n| only |")
    sides = shown.locator("tbody tr").first.locator("td").evaluate_all("(all) => all.map((td) => getComputedStyle(td).textAlign)")
    assert sides == ["left", "center", "right"]
    cells = shown.locator("td").all_inner_texts()
    assert cells == ["1\n2", "x|y", "3 | 4", "only", "", ""]


def test_code_in_a_list_keeps_its_lines(page):
    shown = render(page, "1. run\n   ```make\n   all:\n   \techo\n   ```\n2. done")
    expect(shown.locator("ol > li")).to_have_count(2)
    assert shown.locator("pre").text_content() == "all:\n\techo"


def test_formulas(page):
    shown = render(page, r"The mass $E=mc^2$, \(a*b*c\) and" "\n\n$$\n\\int_0^1 x\\,dx = \\frac12\n$$\n\n\\[ \\sqrt{2} \\]\n\nend")
    expect(shown.locator(".katex")).to_have_count(4)
    expect(shown.locator(".display")).to_have_count(2)
    expect(shown.locator("em")).to_have_count(0)
    assert shown.locator(".katex").first.evaluate("(node) => getComputedStyle(node).fontFamily").startswith("KaTeX_Main")
    shown.locator(".katex .mfrac, .katex .vlist").first.wait_for()
    assert shown.locator(".katex .strut").first.evaluate("(node) => node.style.height")  # styles are kept


def test_a_formula_that_is_none_stays_as_written(page):
    assert html(page, r"$\frac{$ and \(\nosuch\)").count('<code class="formula">') >= 1


def test_code_has_colours(page):
    shown = render(page, '```python\ndef f(x):  # why\n    return "a" + 1\n```')
    assert shown.locator("code").text_content() == 'def f(x):  # why\n    return "a" + 1'
    colours = shown.locator("code span").evaluate_all("(all) => [...new Set(all.map((span) => getComputedStyle(span).color))]")
    assert len(colours) >= 3
    assert render(page, "```nosuchlanguage\nx\n```").locator("code span").count() == 0


def test_without_the_libraries(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/libraries.js", lambda route: route.fulfill(
        body="export const libraries = {katex: false, highlight: false, pdf: false};", content_type="text/javascript"))
    page.goto(server.url)
    shown = render(page, "A \\(a*b*c\\) and $x^2$\n\n```python\ndef f(): pass\n```")
    expect(shown.locator("p")).to_have_text(r"A \(a*b*c\) and $x^2$")
    assert shown.locator("pre").text_content() == "def f(): pass"
    assert page.evaluate("[typeof katex, typeof hljs]") == ["undefined", "undefined"]
    context.close()


HOSTILE = [
    '<img src=x onerror="window.hit=1"> <script>window.hit=1</script>',
    "[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) [c](data:text/html,<script>window.hit=1</script>)",
    "![x](javascript:window.hit=1) ![y](data:image/svg+xml;base64,PHN2Zy8+) ![z](http://evil.example/?q=1)",
    "```js\n</code></pre><script>window.hit=1</script>\n```",
    "```<script>window.hit=1</script>\nx\n```",
    "| <i>1</i> | <script>window.hit=1</script> |\n|---|---|\n| <svg onload=window.hit=1> | 2 |",
    r"$\href{javascript:window.hit=1}{x}$ $\url{javascript:window.hit=1}$ $\includegraphics{http://evil.example/x.png}$",
    r"$\htmlData{x=1}{y} \htmlStyle{background:url(http://evil.example)}{z} \htmlId{model}{w} \htmlClass{composer}{v}$",
    r'$\text{" onmouseover="window.hit=1" style="x:1} \text{<img src=x onerror=window.hit=1>}$',
    r"$\def\a{\a\a}\a$ $\rule{999999em}{999999em}$",
    "&#60;script&#62;window.hit=1&#x3c;/script&#x3e; &#0; &#x110000; &#xd800;",
    "<sub><script>window.hit=1</script></sub> <kbd onclick=window.hit=1>x</kbd>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_becomes_markup(page, text):
    shown = render(page, text)
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    found = shown.evaluate("""(place) => [...place.querySelectorAll("*")].flatMap((node) => [
      ...["SCRIPT", "IFRAME", "OBJECT", "EMBED", "FORM", "STYLE", "LINK", "IMG", "I"].includes(node.tagName) ? [node.tagName] : [],
      ...[...node.attributes].filter(({name, value}) => name.startsWith("on") || name === "id" || name === "src" ||
        (name === "href" && !/^(https?:|mailto:)/.test(value)) || /url\\(|evil/.test(name === "style" ? value : "")).map(({name}) => name)])""")
    assert found == []


def test_an_answer_is_as_safe(page):
    script(page, "\n\n".join(HOSTILE) + "\n\n**end**")
    expect(ask(page, "Be evil.").locator("strong").last).to_have_text("end")
    page.reload()
    expect(page.locator(".message.assistant strong").last).to_have_text("end")
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize("unit", ["**a ", "__a ", "*a **b ", "`", "[", "![a](", "$a ", "\\(", "> ", "- ", "|a", "<sub>", "_a", "~~a ", "$$"])
def test_no_text_takes_long(page, unit):
    began = time.monotonic()
    render(page, unit * (40000 // len(unit)))
    assert time.monotonic() - began < 12


def test_what_is_selected_stays_while_an_answer_grows(page):
    """Parts that did not change keep their nodes."""
    kept = page.evaluate("""async () => {
      const {patch} = await import("./dom.js");
      const {markdown} = await import("./markdown.js");
      const place = document.createElement("div");
      patch(place, markdown("first\\n\\n```js\\nlet a\\n```\\n\\nthi"));
      const [first, block, last] = place.childNodes;
      patch(place, markdown("first\\n\\n```js\\nlet a\\n```\\n\\nthird\\n\\n# four"));
      return [place.childNodes[0] === first, place.childNodes[1] === block, place.childNodes[2] !== last, place.childNodes.length];
    }""")
    assert kept == [True, True, True, 4]
