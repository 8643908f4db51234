"""Runs a program on a pseudo-terminal and writes what it shows.

    python3 look.py COLUMNS FOLDER COMMAND [ARGUMENT ...]

The program's stderr is a terminal of COLUMNS by 24; its stdout is a pipe. FOLDER gets `raw`, everything
that came to the terminal; `stdout`; and `screens.json`: the screen each time that something came, as a list of
lines, and last the screen as it is left. `--interrupt TEXT` in front of COMMAND sends Ctrl-C once TEXT is
on the screen. The exit code is the program's.
"""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROWS = 24
# Whoever is silent for so long hangs.
SILENCE = 120
SEQUENCE = re.compile(rb"\x1b\[([?\d;]*)([A-Za-z])")


class Screen:
    """As much of a terminal as progress bars use; anything else is an error."""

    def __init__(self, columns):
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self.cursor_shown = True
        self.rest = b""

    def feed(self, data):
        data, self.rest = self.rest + data, b""
        at = 0
        while at < len(data):
            byte = data[at:at + 1]
            if byte == b"\x1b":
                found = SEQUENCE.match(data, at)
                if not found:
                    if len(data) - at > 16:
                        raise ValueError(f"unknown sequence {data[at:at + 16]!r}")
                    self.rest = data[at:]
                    return
                self.control(found[1].decode(), found[2].decode())
                at = found.end()
                continue
            at += self.character(data, at)
            if self.rest:
                return

    def character(self, data, at):
        byte = data[at]
        if byte == 13:
            self.column = 0
        elif byte == 10:
            self.down(1)
        elif byte == 8:
            self.column = max(0, self.column - 1)
        else:
            width = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            if at + width > len(data):
                self.rest = data[at:]
                return width
            self.put(data[at:at + width].decode())
            return width
        return 1

    def put(self, character):
        # A terminal wraps when the next character comes, not when the line is full.
        if self.column == self.columns:
            self.column = 0
            self.down(1)
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[:self.column] + character + line[self.column + 1:]
        self.column += 1

    def down(self, n):
        self.row += n
        while self.row >= len(self.lines):
            self.lines.append("")

    def control(self, numbers, letter):
        if letter == "m":
            return
        if numbers == "?25":
            self.cursor_shown = letter == "h"
            return
        n = int(numbers or (0 if letter in "JK" else 1))
        self.column = min(self.column, self.columns - 1)
        if letter == "A":
            self.row = max(0, self.row - n)
        elif letter == "B":
            self.down(n)
        elif letter == "C":
            self.column = min(self.columns - 1, self.column + n)
        elif letter == "D":
            self.column = max(0, self.column - n)
        elif letter == "K" and n in (0, 2):
            self.lines[self.row] = "" if n == 2 else self.lines[self.row][:self.column]
        else:
            raise ValueError(f"unknown sequence {numbers}{letter}")

    def shown(self):
        return [line.rstrip() for line in self.lines]


def main():
    columns, folder, words = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    interrupt = None
    if words[0] == "--interrupt":
        interrupt, words = words[1], words[2:]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))

    def take_terminal():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    stdout = (folder / "stdout").open("wb")
    program = subprocess.Popen(words, stdin=theirs, stdout=stdout, stderr=theirs, preexec_fn=take_terminal)
    os.close(theirs)
    screen, screens, raw = Screen(columns), [], b""
    while True:
        if not select.select([ours], [], [], SILENCE)[0]:
            program.kill()
            print(f"nothing came for {SILENCE} s; the screen: {screen.shown()}", file=sys.stderr)
            sys.exit(124)
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # the program has closed its end
            break
        if not data:
            break
        raw += data
        screen.feed(data)
        screens.append(screen.shown())
        if interrupt is not None and any(interrupt in line for line in screen.shown()):
            os.write(ours, b"\x03")
            interrupt = None
    code = program.wait()
    screens.append(screen.shown())
    (folder / "raw").write_bytes(raw)
    report = {"screens": screens, "cursor_shown": screen.cursor_shown, "column": screen.column}
    (folder / "screens.json").write_text(json.dumps(report))
    sys.exit(code if code >= 0 else 128 - code)


main()
