"""What a script tells on stderr while it works: what, for how long, how much is left.

On a terminal one line is redrawn, and goes when the work is done; elsewhere a line comes now and then.
"""

import os
import shutil
import sys
import time


def human(seconds):
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds // 60 % 60:02} min"


class Progress:
    """Used in a `with`, so that an interrupted script leaves no half line behind."""

    def __init__(self, what, stream=sys.stderr, clock=time.monotonic):
        self.what, self.stream, self.clock = what, stream, clock
        self.began = self.told = clock()
        self.redraws = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.redraws:
            self.write("\r\x1b[2K")

    def tell(self, fraction, detail=""):
        """`fraction` of the work is done, from 0 to 1."""
        now = self.clock()
        if now - self.told < (0.25 if self.redraws else 15):
            return
        self.told = now
        line = self.line(fraction, detail, now)
        if self.redraws:
            columns = shutil.get_terminal_size().columns
            self.write("\r\x1b[2K" + line[: columns - 1])
        else:
            self.write(line + "\n")

    def line(self, fraction, detail, now):
        elapsed = now - self.began
        left = f", about {human(elapsed / fraction * (1 - fraction))} left" if fraction > 0.01 else ""
        return f"{self.what}: {fraction:.0%}, {human(elapsed)}{left}" + (f" ({detail})" if detail else "")

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            pass  # a reader that has gone is no reason to stop
