"""Sits at the terminal of exec.sh's shell: Ctrl-C ends the program and not the shell, Ctrl-Z stops it, fg goes on. Then at
that of a shell outside: a program enclosed that suspends itself, or its group, is a stopped job there.

    terminal.py TIDEGATE    exits 0 if all is as at any terminal, and with the words that were awaited if not
"""
import os
import pty
import select
import signal
import sys
import time

SHELL = ["bash", "--norc", "--noprofile", "-i"]


def sit_at(command):
    global pid, terminal, seen
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PS1"] = "prompt> "
        # What was started in the background has it ignored, and would hand that down.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execvp(command[0], command)
    seen = ""


def left_with(expected):
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != expected:
        sys.exit(f"the shell ended with {status}")


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


sit_at([sys.argv[1], "exec", "--quiet", "--", *SHELL])
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
left_with(5)

sit_at(SHELL)
for suspend in ("kill -STOP $$", "kill -TSTP 0"):
    await_words("prompt> ")
    send(f"{sys.argv[1]} exec --quiet -- sh -c '{suspend}; echo went o\"\"n; exit 7'\n")
    await_words("Stopped")
    await_words("prompt> ")
    send("fg\n")
    await_words("went on")
    await_words("prompt> ")
    send("echo sta''tus=$?\n")
    await_words("status=7")
await_words("prompt> ")
send("exit 5\n")
left_with(5)
