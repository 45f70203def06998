"""Sits at the terminal of exec.sh's shell: Ctrl-C ends the program and not the shell, Ctrl-Z stops it, fg goes on.

    terminal.py TIDEGATE    exits 0 if all is as at any terminal, and with the words that were awaited if not
"""
import os
import pty
import select
import sys
import time

pid, terminal = pty.fork()
if pid == 0:
    os.environ["PS1"] = "prompt> "
    os.execv(sys.argv[1], [sys.argv[1], "exec", "--quiet", "--", "bash", "--norc", "--noprofile", "-i"])

seen = ""


def await_words(words):
    global seen
    end = time.monotonic() + 20
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], end - time.monotonic())
        if not ready:
            sys.exit(f"no `{words}` in:\n{seen}")
        try:
            octets = os.read(terminal, 4096)
        except OSError:
            octets = b""
        if not octets:
            sys.exit(f"it ended before `{words}`:\n{seen}")
        seen += octets.decode(errors="replace")
    seen = seen.split(words, 1)[1]


def send(text):
    os.write(terminal, text.encode())


def start_cat():
    """A program that shows by its answer that it reads from the terminal."""
    await_words("prompt> ")
    send("echo be''gun; cat\n")
    await_words("begun")
    send("ping\n")
    await_words("ping\r\nping")


start_cat()
send("\x03")
await_words("prompt> ")
send("echo first=$?\n")
await_words("first=130")
start_cat()
send("\x1a")
await_words("Stopped")
await_words("prompt> ")
send("fg\n")
await_words("cat")
send("pong\n")
await_words("pong\r\npong")
send("\x03")
await_words("prompt> ")
send("echo second=$?\n")
await_words("second=130")
send("stty size; exit 5\n")
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(0 if status == 5 else f"the shell ended with {status}")
