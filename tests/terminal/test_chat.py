"""What a person does in a chat, key by key."""
import json
import re
import stat

from conftest import BINARY, DEMO, ROOT

QUESTION = "What is at the left?"
ANSWER = "A pink circle."
SUM, SUM_ANSWER = "What is 16 + 3?", "16 + 3 = 19."


def content(messages, role="user"):
    return [message["content"] for message in messages if message["role"] == role]


def test_a_line_is_edited(chat):
    one = chat()
    one.type("What is 16 + 4?")
    one.keys("Left", "BSpace")
    one.type("3")
    one.keys("Home")
    one.type("x")
    one.keys("BSpace", "End", "Enter")
    one.wait(SUM_ANSWER)
    assert content(one.saved()) == [SUM]


def test_characters_of_several_bytes_are_edited(chat):
    one = chat()
    one.type("Grüße né日本")
    one.keys("BSpace", "Left", "BSpace")
    one.type("e")
    one.keys("Enter")
    one.wait("[prompt")
    assert content(one.saved()) == ["Grüße ne日"]


def test_history_of_this_chat_and_of_earlier_ones(chat):
    one = chat()
    one.line(SUM, SUM_ANSWER)
    one.wait_prompt()
    one.keys("Up", "Enter")
    one.wait(SUM_ANSWER, times=2)
    one.line("/quit", "left with 0")
    history = one.home / ".local/state/gemma4/history"
    assert history.read_text() == f"{SUM}\n/quit\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    two = chat()
    two.keys("Up", "Up")
    two.wait(SUM)
    two.keys("Enter")
    two.wait(SUM_ANSWER)
    three = chat(environment={"XDG_STATE_HOME": str(one.folder / "state")})
    three.line("/quit", "left with 0")
    assert (one.folder / "state/gemma4/history").read_text() == "/quit\n"
    four = chat("--no-history")
    four.line("/help", "this list")
    four.line("/quit", "left with 0")
    assert "/help" not in history.read_text()


def test_tab_completes_commands_and_files(chat, picture):
    one = chat()
    one.type("/he")
    one.keys("Tab", "Enter")
    one.wait("forget the conversation")
    one.wait_prompt()
    one.type("/s")
    one.keys("Tab")
    one.wait("/system  /set  /save")
    one.keys("C-u")
    one.type(f"/im")
    one.keys("Tab")
    one.type(str(picture)[:-9])
    one.keys("Tab", "Enter")
    one.wait("1 picture goes with your next message")
    one.line(QUESTION, ANSWER)


def test_a_pasted_page_is_one_message(chat):
    one = chat()
    one.paste("one\ntwo\n  three\n")
    one.wait("  three")
    one.keys("Enter")
    one.wait("[prompt")
    assert content(one.saved()) == ["one\ntwo\n  three"]


def test_a_long_paste_is_whole(chat):
    one = chat()
    long_line = " ".join(f"w{i}" for i in range(1500))
    assert len(long_line) > 7000
    one.type("Read: ")
    one.paste(long_line)
    one.wait(f"[pasted text 1: 1 line, {len(long_line)} bytes]")
    one.keys("Enter")
    one.wait_prompt()
    many_lines = "\n".join(f"line {i}" for i in range(40))
    one.paste(many_lines)
    one.wait(f"[pasted text 2: 40 lines, {len(many_lines)} bytes]")
    one.keys("Enter")
    one.wait_prompt()
    # The toy's context may be too short for an answer; what was sent stands in the error or in the conversation.
    if "too long" not in one.screen() and "tokens long" not in one.screen():
        assert content(one.saved()) == ["Read: " + long_line, many_lines]
    else:
        assert content(one.saved()) == [many_lines]


def test_pasted_commands_and_escapes_are_text(chat):
    one = chat()
    one.paste("/quit\nand more\x1b[31m red")
    one.keys("Enter")
    one.wait("[prompt")
    assert content(one.saved()) == ["/quit\nand more[31m red"]


def test_a_line_goes_on(chat):
    one = chat()
    one.type("one\\")
    one.keys("Enter")
    one.type("two")
    one.keys("M-Enter")
    one.type("three")
    one.keys("Enter")
    one.wait("[prompt")
    assert content(one.saved()) == ["one\ntwo\nthree"]


def test_interrupts_at_the_prompt(chat):
    one = chat()
    one.type("half a question")
    one.wait("half a question")  # Ctrl-C takes with it what the program has not read yet
    one.keys("C-c")
    one.wait("Ctrl-C again leaves")
    one.wait_prompt()
    one.line(SUM, SUM_ANSWER)  # the line is gone, the chat is not
    one.wait_prompt()
    one.keys("C-c")
    one.wait("Ctrl-C again leaves", times=2)
    one.wait_prompt()
    one.type("not lost by the second")
    one.wait("not lost by the second")
    one.keys("C-c")
    one.wait("Ctrl-C again leaves", times=3)
    one.wait_prompt()
    one.keys("C-c")
    one.wait("left with 0")


def test_interrupts_of_an_answer(chat):
    one = chat("--ignore-eos")
    one.type(SUM)
    one.keys("Enter")
    one.wait("16 + 3 =")
    one.keys("C-c")
    one.wait("stopped; Ctrl-C again leaves")
    assert len(content(one.saved(), "assistant")) == 1, "what was said is kept"
    said = one.screen().count("16 + 3 =")
    one.line("/retry")
    one.wait("16 + 3 =", times=said + 1)
    one.keys("C-c")
    one.wait("stopped", times=2)
    one.wait_prompt()
    one.keys("C-c")
    one.wait("left with 0")


def test_what_is_typed_during_an_answer_is_the_next_message(chat):
    one = chat("--ignore-eos", "--max-new-tokens", "300")
    one.type("Who are you?")
    one.keys("Enter")
    one.type(SUM)
    one.keys("Enter")
    one.wait("[prompt", times=2)
    assert content(one.saved()) == ["Who are you?", SUM]


def test_end_of_input_leaves(chat):
    one = chat()
    one.keys("C-d")
    one.wait("left with 0")


def test_ctrl_z_gives_the_terminal_back(terminal):
    one = terminal("bash", "--norc", "-i", environment={"PS1": "shell$ "})
    one.wait("shell$")
    one.type(f"{BINARY} run {DEMO} --temperature 0 --backend cpu")
    one.keys("Enter")
    one.wait_prompt()
    one.type("What is 16 ")
    one.wait("What is 16")  # Ctrl-Z, too, takes with it what the program has not read yet
    one.keys("C-z")
    one.wait("Stopped")
    one.type("echo $((40 + 2)) is shown")
    one.keys("Enter")
    one.wait("\n42 is shown")
    one.type("fg")
    one.keys("Enter")
    one.wait("> What is 16", times=2)
    one.type("+ 3?")
    one.keys("Enter")
    one.wait(SUM_ANSWER)


def test_pictures_by_quoted_paths_and_home(chat, picture):
    one = chat()
    (one.home / "p.png").write_bytes(picture.read_bytes())
    paths = (f'"{picture}"', str(picture), str(picture).replace(" ", "\\ ").replace("'", "\\'"), "~/p.png", "'~/p.png'")
    for times, typed in enumerate(paths, 1):
        one.line(f"/image {typed}")
        one.wait("1 picture goes", times)
        one.line(QUESTION)
        one.wait(ANSWER, times)
        one.line("/clear")
        one.wait("forgotten", times)


def test_a_picture_that_is_none_is_said_at_once_and_loses_nothing(chat, picture):
    one = chat()
    one.line(f'/image "{picture}"', "1 picture goes")
    one.line("/image /etc/passwd", "gemma4: /etc/passwd: the image is neither")
    one.line("/image /no/such/file", "/no/such/file")
    (one.folder / "half.png").write_bytes(picture.read_bytes()[:200])
    one.line(f"/image {one.folder}/half.png", "half.png: ")
    one.line("/image", "1 picture goes")
    one.line(QUESTION, ANSWER)


def test_a_message_that_fails_loses_nothing(chat, picture):
    one = chat("--max-seq-len", "256")
    one.line(SUM, SUM_ANSWER)
    one.line(f'/image "{picture}"', "1 picture goes")
    one.wait_prompt()
    one.paste(" ".join(["the"] * 400))
    one.keys("Enter")
    one.wait("context holds 256")
    one.line("/image", "1 picture goes")
    assert content(one.saved()) == [SUM]


def test_unknown_commands_are_named(chat):
    one = chat()
    one.line("/hlep", "gemma4: /hlep is no command; did you mean /help?")
    one.line("/xyzzy", "gemma4: /xyzzy is no command; /help lists them")
    assert "this list" not in one.screen()
    one.line(" /etc is what?")
    one.wait("[prompt")
    assert content(one.saved()) == ["/etc is what?"]


def test_statistics_can_be_hidden(chat):
    one = chat()
    one.line(SUM, "tok/s")
    lines = one.screen().splitlines()
    assert len([line for line in lines if "tok/s" in line or "seed" in line]) == 1, "one line"
    one.line("/set stats off", "stats is off")
    one.line(SUM)
    one.wait(SUM_ANSWER, times=2)
    one.wait_prompt()
    assert one.screen().count("tok/s") == 1
    two = chat("--no-stats")
    two.line(SUM, SUM_ANSWER)
    two.wait_prompt()
    assert "tok/s" not in two.screen()


def test_settings(chat):
    one = chat()
    one.line("/set", "repetition_penalty")
    one.line("/set temperature 5", "temperature is a number from 0 to 2")
    one.line("/set temprature 1", "did you mean temperature?")
    one.line("/set max_new_tokens 2", "max_new_tokens is 2")
    one.line(SUM, "answer 2 tokens")


def test_system_retry_undo_clear(chat):
    one = chat()
    one.line("/system Be brief.", "The system message is: Be brief.")
    one.line(SUM, SUM_ANSWER)
    one.line("/retry")
    one.wait(SUM_ANSWER, times=2)
    one.line("What is 4 + 5?")
    one.wait("[prompt", times=3)
    messages = one.saved()
    assert content(messages, "system") == ["Be brief."]
    assert content(messages) == [SUM, "What is 4 + 5?"] and len(content(messages, "assistant")) == 2
    one.line("/undo", "Forgotten: What is 4 + 5?")
    assert content(one.saved()) == [SUM]
    one.line("/clear", "The conversation is forgotten. What stays: the system message, what /set and /think set.")
    assert [message["role"] for message in one.saved()] == ["system"]
    one.line("/undo", "there is no message to forget")
    one.line("/retry", "there is no message to answer again")
    one.line("/system off", "There is no system message.")


def test_save_and_load(chat, picture):
    one = chat()
    one.line(f'/image "{picture}"', "1 picture goes")
    one.line(QUESTION, ANSWER)
    saved = one.folder / "my chat.json"
    one.line(f"/save {saved}", "The conversation is in")
    one.line(f"/save {saved}", "--force")
    one.line("/quit", "left with 0")
    two = chat()
    two.line(f"/load {saved}", "2 messages, 1 pictures.")
    two.line("Describe this image.")
    two.wait("[prompt")
    messages = two.saved()
    assert content(messages)[0][1]["text"] == QUESTION and content(messages)[1] == "Describe this image."
    two.line("/load /etc/passwd", "gemma4: /etc/passwd is not a saved conversation: it is not the JSON that /save")
    two.line("/load nosuch", "gemma4: cannot open nosuch")
    assert two.screen().count("nosuch") == 2
    assert two.saved() == messages


def test_tools_and_results(chat):
    one = chat()
    tools = one.folder / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": {
        "name": "set_timer", "description": "Set a timer in minutes.", "parameters": {
            "type": "object", "properties": {"minutes": {"type": "integer", "description": "The minutes."}},
            "required": ["minutes"]}}}]))
    one.line("/tools /etc/passwd", "gemma4: /etc/passwd: ")
    one.line(f"/tools {tools}", "Tools: set_timer")
    one.line("/result x", "no call of a tool waits")
    one.line("Set a timer for 6 minutes.", '{"tool_call":{"name":"set_timer","arguments":{"minutes":6}}}')
    one.line('/result {"ok": true}')
    one.wait("[prompt", times=2)
    messages = one.saved()
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[2]["content"] == '{"ok": true}'
    one.line("/tools off", "There are no tools.")


def test_thoughts(chat):
    one = chat()
    one.line("/think on", "thinking is on")
    one.line(SUM, "[thinking]")
    one.wait("[answer]")
    one.line("/think", "thinking is off")


def test_colours_where_the_terminal_has_them(chat):
    def escapes(**more):
        one = chat(**more)
        one.line(SUM, SUM_ANSWER)
        one.wait("tok/s")
        return one.screen(escapes=True)

    before_prompt = re.search(r"((?:\x1b\[[\d;]*m)+)> What", escapes())  # tmux says it in its own words
    assert {"1", "36"} <= set(re.findall(r"\d+", before_prompt[1]))
    assert "\x1b[" not in escapes(environment={"NO_COLOR": "1"})
    assert "\x1b[" not in escapes(environment={"TERM": "dumb"})


def test_a_dumb_terminal_has_plain_lines_and_cuts_none_in_silence(chat):
    one = chat(environment={"TERM": "dumb"})
    assert "Lines are plain" in one.screen()
    one.line(SUM, SUM_ANSWER)
    one.wait_prompt()
    one.paste("x" * 5000)
    one.keys("Enter")
    one.wait("the terminal cut a line at 4,095 bytes, so nothing was sent")
    assert content(one.saved()) == [SUM]
    one.keys("C-c")
    one.wait("Ctrl-C again leaves")
    one.keys("C-c")
    one.wait("left with 0")


def test_the_backend_is_said_in_one_line(terminal):
    one = terminal(BINARY, "run", DEMO)
    one.wait("/help lists the commands")
    lines = [line for line in one.screen().splitlines() if "gemma4: backend" in line]
    assert len(lines) == 1 and ("backend cpu (" in lines[0] or "backend cuda (" in lines[0])
