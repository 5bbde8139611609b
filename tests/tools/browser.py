"""Opens a page in a real browser: is there something to see, and does it ask for nothing else?

Uses the Chromium that EVENKEEL_CHROMIUM names, or one on the path: run.sh sees to it that there is one. What the page
is called or says is the business of others.
"""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import zlib

NAMES = ("chromium", "chromium-browser", "google-chrome")
DEADLINE = 120
# No first run, no updates, no phoning home: what is asked for then comes from the page.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def program():
    """Returns the browser's path, or None."""
    return shutil.which(os.environ.get("EVENKEEL_CHROMIUM") or "") or next(filter(None, map(shutil.which, NAMES)), None)


def look(address):
    """Opens `address`, wide and narrow, in light and dark; returns a remark, and fails by AssertionError."""
    assert program(), f"there is no browser: EVENKEEL_CHROMIUM names none, and none of {NAMES} is on the path"
    for width, height, dark in ((1200, 4000, False), (1200, 4000, True), (500, 6000, False)):
        with tempfile.TemporaryDirectory(prefix="evenkeel-browser-") as name:
            picture, asked = view(address, pathlib.Path(name), (width, height), dark)
        colours = shades(picture)
        assert colours > 50, f"{width} pixels wide, the page looks blank: {colours} different bytes"
        # The browser asks for things of its own too, of which the log says that no page began them.
        strangers = sorted(url for url, by in asked if by.startswith("http") and url != address)
        assert not strangers, f"the page asks for {strangers}"
        assert address in {url for url, _ in asked}, "the log of requests does not even hold the page"
    return "looked at in a browser"


def view(address, folder, size, dark):
    """Returns a picture of the page and all addresses that were asked for."""
    picture, log = folder / "page.png", folder / "requests.json"
    command = [program(), *QUIET, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]
    command += [f"--screenshot={picture}", f"--log-net-log={log}"]
    if dark:
        command.append("--blink-settings=preferredColorScheme=0")
    done = subprocess.run([*command, address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE)
    assert done.returncode == 0 and picture.exists(), done.stdout
    return picture.read_bytes(), requests(log)


def requests(log):
    """Addresses of all requests in a log of Chromium's network, each with the origin of the page that began it."""
    text = log.read_text()
    start = json.loads(text[text.index("{") : text.index("\n\"events\"")].rstrip().rstrip(",") + "}")
    kind = start["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    lines = (line.rstrip().rstrip(",") for line in text[text.index("\"events\"") :].splitlines()[1:])
    asked = set()
    for line in lines:
        if f'"type":{kind}}}' in line and (found := re.search(r'"url":"([^"]*)"', line)):
            by = re.search(r'"initiator":"([^"]*)"', line)
            asked.add((found[1], by[1] if by else ""))
    return asked


def shades(picture):
    """How many different bytes a PNG holds, filters and all: a page without anything on it has hardly any."""
    place, packed = 8, b""
    while place < len(picture):
        length, kind = struct.unpack(">I4s", picture[place : place + 8])
        if kind == b"IDAT":
            packed += picture[place + 8 : place + 8 + length]
        place += length + 12
    return len(set(zlib.decompress(packed)))
