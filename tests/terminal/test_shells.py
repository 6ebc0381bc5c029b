"""Completion scripts and manual pages, as shells and troff read them; questions through pipes."""
import shutil
import subprocess

import pytest
from conftest import BINARY, DEMO

COMMANDS = ["run", "serve", "quantize", "inspect", "diff", "eval", "export", "bench", "synth", "completion", "man",
            "help", "version"]


def run(*words, **more):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120, **more)


def printed(*words):
    ran = run(BINARY, *words)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    return ran.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_reads_its_completion(shell, tmp_path):
    script = tmp_path / "script"
    script.write_text(printed("completion", shell))
    ran = run(shell, "-n", script)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr


def completed_by_bash(*words):
    """What bash offers for the last word."""
    script = f"""source <({BINARY} completion bash)
    COMP_WORDS=({" ".join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}
    _gemma4; printf '%s\\n' "${{COMPREPLY[@]}}" """
    return run("bash", "-c", script).stdout.split("\n")[:-1]


def test_bash_completes(tmp_path):
    assert completed_by_bash("gemma4", "qu") == ["quantize"]
    assert completed_by_bash("gemma4", "run", "--repe") == ["--repetition-penalty"]
    assert completed_by_bash("gemma4", "run", "--backend", "c") == ["cuda", "cpu"]
    assert completed_by_bash("gemma4", "run", "--backend", "=", "r") == ["ref"]
    (tmp_path / "a b.png").touch()
    assert completed_by_bash("gemma4", "run", "-i", f"{tmp_path}/a") == [f"{tmp_path}/a b.png"]
    assert completed_by_bash("gemma4", "run", f"{tmp_path}/a") == [f"{tmp_path}/a b.png"]
    assert completed_by_bash("gemma4", "completion", "z") == ["zsh"]
    assert completed_by_bash("gemma4", "man", "be") == ["bench"]
    assert completed_by_bash("gemma4", "he") == ["help"]
    assert completed_by_bash("gemma4", "quantize", "--recipe", "bal") == ["balanced"]
    assert completed_by_bash("gemma4", "quantize", "--recipe", f"{tmp_path}/a") == [f"{tmp_path}/a b.png"]


def test_fish_completes(tmp_path):
    script = tmp_path / "gemma4.fish"
    script.write_text(printed("completion", "fish"))
    link = tmp_path / "gemma4"
    link.symlink_to(BINARY)

    def completed(line):
        ran = run("fish", "--no-config", "-c", f"source {script}; complete -C {line!r}")
        return [one.split("\t")[0] for one in ran.stdout.splitlines()]

    assert completed("gemma4 qu") == ["quantize"]
    assert completed("gemma4 run --repe") == ["--repetition-penalty"]
    assert sorted(completed("gemma4 run --backend ")) == ["auto", "cpu", "cuda", "ref"]
    assert completed("gemma4 quantize --quant-recipe bal") == ["balanced"]
    (tmp_path / "mine.json").touch()
    assert completed(f"gemma4 quantize --quant-recipe {tmp_path}/mi") == [f"{tmp_path}/mine.json"]
    assert completed("gemma4 help quan") == ["quantize"]


def test_zsh_completes(terminal, tmp_path):
    (tmp_path / "_gemma4").write_text(printed("completion", "zsh"))
    link = tmp_path / "gemma4"
    link.symlink_to(BINARY)
    one = terminal("zsh", "-f", "-i", environment={"PS1": "shell> "})
    one.wait("shell>")
    one.type(f"fpath=({tmp_path} $fpath); path=({tmp_path} $path); autoload -U compinit; compinit -u -D; echo rea''dy")
    one.keys("Enter")
    one.wait("\nready")
    one.type("gemma4 run --repe")
    one.keys("Tab")
    one.wait("gemma4 run --repetition-penalty")
    one.keys("C-u")
    one.type("gemma4 run --backend=re")
    one.keys("Tab")
    one.wait("--backend=ref")
    one.keys("C-u")
    one.type("gemma4 quantize --quant-recipe bal")
    one.keys("Tab")
    one.wait("--quant-recipe balanced")
    one.keys("C-u")
    one.type(f"gemma4 quantize --quant-recipe {tmp_path}/_gem")
    one.keys("Tab")
    one.wait(f"--quant-recipe {tmp_path}/_gemma4")
    one.keys("C-u")
    one.type("gemma4 man quan")
    one.keys("Tab")
    one.wait("gemma4 man quantize")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_troff_has_no_warning(command):
    page = printed("man", *([command] if command else []))
    ran = subprocess.run(["groff", "-ww", "-man", "-Tutf8"], input=page, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    read = subprocess.run(["man", "-l", "-"], input=page, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "MANPAGER": "cat"})
    assert read.returncode == 0 and "NAME" in read.stdout, read.stderr


def test_every_command_has_a_page():
    assert shutil.which("groff") and shutil.which("man"), "tools/setup.sh terminal installs them"
    page = printed("man")
    for command in COMMANDS:
        assert (f"gemma4\\-{command}" in page) == (command not in ("help", "version"))
        assert f"gemma4 {command}" in page


def test_pipes():
    demo = ["run", DEMO, "--temperature", "0", "--backend", "cpu"]
    for shell in (f"echo 'What is 16 + 3?' | {BINARY} run {DEMO} --temperature 0",
                  f"{BINARY} run -m {DEMO} -p 'What is 16 + 3?' --temperature 0 </dev/null",
                  f"{BINARY} run {DEMO} 'What is 16 + 3?' --temperature 0 </dev/null"):
        assert run("bash", "-c", shell).stdout == "16 + 3 = 19.\n"
    slow = run("bash", "-c", f"(sleep 6; echo) | {BINARY} {' '.join(map(str, demo))} -p 'What is 16 + 3?'")
    assert slow.stdout == "16 + 3 = 19.\n"
    assert "waiting for standard input" in slow.stderr
