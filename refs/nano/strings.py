"""Strings that are hard on a tokenizer, from a seed. Only `random.Random` decides, so
they don't depend on the machine; code points are drawn from fixed ranges, not from the
interpreter's tables."""

import random

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an
they which one you were her all she there would their we him been has when who will more no if out so said what up its
about into than them can only other new some could time these two may then do first any my now such like our over man
me even most made after also did many before must through back years where much your way well down should because each
just those people how too little state good very make world still own see men work long get here between both life being
under never day same another know while last might us great old year off come since against go came right used take three
tokenizer antidisestablishmentarianism supercalifragilistic GitHub README JSON HTTP iPhone naïve café über résumé
Lorem ipsum dolor SolidGoldMagikarp petertodd cloneembedreportprint""".split()

CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'VE", "'M", "'LL", "'D", "’s", "’t",
                "’re", "’ll", "'sx", "'tis", "'tll", "n't", "N'T", "'", "''", "´s", "`s", "ʼs", "'ſ", " 's", " 've"]

CODE = ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}", "fn main() -> Result<(), E> {",
        "println!(\"{:?}\", v.iter().map(|x| x * 2).collect::<Vec<_>>());", "SELECT * FROM t WHERE a <> 'b';",
        "<div class=\"x\">&nbsp;&amp;</div>", "{\"key\": [1, 2.5e-3, null, true]}", "#include <stdio.h>\r\n", "if __name__ == '__main__':",
        "λ x → x", "x = 0xDEADBEEF;", "// TODO: don't", "/* ... */", "git commit -m \"it's\"", "a[i] = b[j] ^ c[k] | ~d;",
        "https://example.org/a?b=c&d=%20e#f", "user@example.com", "C:\\Users\\x\\n", "$PATH:/usr/bin", "1 << 31", "!=", "===", "=>",
        "    ", "\t\t", "        return", "\\u0041\\x00", "```rust\n```", "| a | b |\n|---|---|", "- [ ] item", "assert!(a != b);"]

# Lowest and highest code point of ranges that differ in class, length in UTF-8, or direction.
RANGES = [(0x00, 0x1F), (0x20, 0x7E), (0x7F, 0x9F), (0xA0, 0xFF), (0x100, 0x17F), (0x180, 0x24F), (0x250, 0x2AF),
          (0x2B0, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF),
          (0x700, 0x74F), (0x780, 0x7BF), (0x7C0, 0x7FF), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xA80, 0xAFF),
          (0xB80, 0xBFF), (0xC00, 0xC7F), (0xD00, 0xD7F), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F),
          (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1400, 0x167F), (0x1680, 0x169F),
          (0x16A0, 0x16FF), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1AB0, 0x1AFF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF),
          (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x20D0, 0x20FF), (0x2100, 0x214F), (0x2150, 0x218F),
          (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2300, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x257F), (0x2600, 0x26FF),
          (0x2700, 0x27BF), (0x2800, 0x28FF), (0x2C00, 0x2C5F), (0x2E00, 0x2E7F), (0x2E80, 0x2EFF), (0x3000, 0x303F),
          (0x3040, 0x309F), (0x30A0, 0x30FF), (0x3100, 0x312F), (0x3130, 0x318F), (0x3200, 0x32FF), (0x3400, 0x4DBF),
          (0x4E00, 0x9FFF), (0xA000, 0xA48F), (0xA640, 0xA69F), (0xA720, 0xA7FF), (0xAC00, 0xD7A3), (0xD7B0, 0xD7FF),
          (0xE000, 0xF8FF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFB50, 0xFDFF), (0xFE00, 0xFE0F), (0xFE20, 0xFE2F),
          (0xFE70, 0xFEFF), (0xFF00, 0xFFEF), (0xFFF0, 0xFFFF), (0x10000, 0x1007F), (0x10300, 0x1032F), (0x10400, 0x1044F),
          (0x10800, 0x1083F), (0x10900, 0x1091F), (0x10A00, 0x10A5F), (0x11000, 0x1107F), (0x12000, 0x123FF),
          (0x13000, 0x1342F), (0x16800, 0x16A3F), (0x1B000, 0x1B0FF), (0x1D100, 0x1D1FF), (0x1D400, 0x1D7FF),
          (0x1E900, 0x1E95F), (0x1EE00, 0x1EEFF), (0x1F000, 0x1F0FF), (0x1F100, 0x1F1FF), (0x1F300, 0x1F5FF),
          (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0xE0000, 0xE007F),
          (0xE0100, 0xE01EF), (0xF0000, 0xFFFFD), (0x10FFF0, 0x10FFFF)]

SPACES = [" ", " ", " ", "\n", "\n", "\t", "\r", "\r\n", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2000", "\u2003", "\u2009",
          "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u180e", "\x1c", "\x1f"]

ODD = ["\0", "\x01", "\x1b[0m", "\x7f", "\x80", "\ufeff", "\ufffe", "\uffff", "\ufffd", "\ud7ff", "\ue000", "\uf8ff", "\U00010000",
       "\U0001fffe", "\U0010ffff", "\u200d", "\u200c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069", "\u00ad", "\u034f",
       "\u061c", "\u2060", "\ufe0f", "\ufe0e", "\U000e0001", "\U000e0041", "\ufdd0", "\x9f"]

EMOJI = ["😀", "👍", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🏴‍☠️", "🇩🇪", "🇯🇵🇺🇸", "1️⃣", "#️⃣", "❤️", "❤", "☎︎", "🧑🏿‍🚀", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🫠", "🦀",
         "👁️‍🗨️", "🙋🏻‍♀️", "©️", "™", "🀄", "🃏", "✈️", "🫱🏼‍🫲🏿", "⁉️", "🔟", "👯‍♂️"]

DIGITS = ["0", "7", "42", "1234567890", "٣٤٥", "۴۵۶", "१२३", "৪৫", "๑๒๓", "༡༢", "᠑᠒", "１２３", "𝟘𝟙", "𝟏𝟐", "²³", "₁₂", "½", "¾", "⅓", "Ⅳ", "ⅻ", "①②",
          "㊿", "零一二三", "௧௨", "𐒠𐒡", "፩፪", "৴", "〇", "π≈3.14159", "1,000,000.00", "1e-5", "0x1F", "-273.15", "12:34:56", "2026-11-21"]

MARKS = ["\u0300", "\u0301", "\u0302", "\u0303", "\u0308", "\u030a", "\u0327", "\u0323", "\u0336", "\u0489", "\u05b8", "\u064e", "\u0651",
         "\u093c", "\u094d", "\u0e31", "\u3099", "\u20dd", "\ufe20", "\u1ab0", "\u0345"]
BASES = list("aeioucnsEAOZ") + ["ש", "ل", "क", "ก", "か", "ö", "o\u0308", "é", "e\u0301", "Å", "A\u030a", "ﬁ", "ß", "İ", "ı", "Å", "q", "1", " ", "-"]

SENTENCES = ["مرحبا بالعالم، كيف حالك؟", "שלום עולם! מה שלומך?", "Привет, мир! Как дела?", "Γειά σου Κόσμε", "你好，世界！", "こんにちは世界。",
             "안녕하세요 세계", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Xin chào thế giới", "Zażółć gęślą jaźń", "Příliš žluťoučký kůň", "Ça va bien, merci.",
             "¿Dónde está la biblioteca?", "Größe und Straße", "Ђура и Љиља", "გამარჯობა მსოფლიო", "Բարեւ աշխարհ", "ሰላም ልዑል", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
             "ہیلو دنیا", "வணக்கம் உலகம்", "ওহে বিশ্ব", "བཀྲ་ཤིས་བདེ་ལེགས།", "မင်္ဂလာပါ", "ភាសាខ្មែរ", "Hawaiʻi", "İstanbul'da", "Dž dž Dž", "ſpeciﬁc ﬂow"]

FIXED = ["", " ", "  ", "\n", "\n\n", "\t", "\0", "\ufeff", "Hello.", "Hello, world!", " Hello", "  Hello", "Hello ", "Hello  ", "\nHello\n",
         "I'm", "don't", "DON'T", "we'll've", "y'all'd've", "it’s", "IT’S", "O'Reilly", "'sup", "s's's", "'s't're've'm'll'd",
         "<|endoftext|>", "<|endoftext|><|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|", "|endoftext|>", "<|ENDOFTEXT|>",
         "< |endoftext|>", "<|endoftext|>\n\nHello", "<|im_start|>", "<s></s>", "[CLS][SEP]", "Ġ", "ĠHello", "Ċ", "č", "Â", "Ã©", "\u0120\u010a"]


def one_of_range(rng):
    low, high = rng.choice(RANGES)
    return chr(rng.randint(low, high))


def anywhere(rng):
    """Any scalar value: no surrogates."""
    while True:
        code = rng.choice([rng.randint(0, 0x7FF), rng.randint(0x800, 0xFFFF), rng.randint(0x10000, 0x10FFFF)])
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)


def english(rng):
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 14))]
    words = [rng.choice([str, str, str, str.upper, str.title])(w) for w in words]
    words = [w + rng.choice(CONTRACTIONS) if rng.random() < 0.15 else w for w in words]
    text = words[0]
    for word in words[1:]:
        text += rng.choice([" ", " ", " ", " ", ", ", ". ", "; ", "—", " - ", "-", "/", "  ", "\n", "... ", "? ", "! "]) + word
    return rng.choice(["", "", "", " ", '"', "(", "“"]) + text + rng.choice(["", ".", "!", "?!", '"', ")", "”", " ", "\n", ":"])


def contractions(rng):
    return "".join(rng.choice([rng.choice(WORDS), rng.choice(CONTRACTIONS), rng.choice(CONTRACTIONS), " "])
                   for _ in range(rng.randint(2, 7)))


def code(rng):
    return rng.choice(["", " ", "\n", "    "]).join(rng.choice(CODE) for _ in range(rng.randint(1, 3)))


def one_script(rng):
    low, high = rng.choice(RANGES)
    letters = [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 9))]
    return rng.choice(["", "", "", " "]).join(letters)


def mixed_scripts(rng):
    parts = [rng.choice([rng.choice(SENTENCES), rng.choice(WORDS), one_of_range(rng), rng.choice(DIGITS)])
             for _ in range(rng.randint(2, 4))]
    return rng.choice(["", " ", "  ", "\n"]).join(parts)


def emoji(rng):
    return "".join(rng.choice([rng.choice(EMOJI), rng.choice(EMOJI), rng.choice(WORDS), " ", "\u200d", "\ufe0f", "\U0001f3fd"])
                   for _ in range(rng.randint(1, 6)))


def marks(rng):
    return "".join(rng.choice(BASES) + "".join(rng.choice(MARKS) for _ in range(rng.choice([0, 1, 1, 2, 6])))
                   for _ in range(rng.randint(1, 6)))


def spaces(rng):
    def run():
        if rng.random() < 0.4:
            return rng.choice(SPACES) * rng.randint(1, 9)
        return "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 5)))

    words = [rng.choice([rng.choice(WORDS), rng.choice(DIGITS), "!", "'s", ""]) for _ in range(rng.randint(1, 4))]
    return run().join(words) + rng.choice(["", run()]) if rng.random() < 0.7 else run() + words[0] + run()


def odd(rng):
    return "".join(rng.choice([rng.choice(ODD), rng.choice(ODD), rng.choice(WORDS), " ", one_of_range(rng)])
                   for _ in range(rng.randint(1, 6)))


def digits(rng):
    return "".join(rng.choice([rng.choice(DIGITS), rng.choice(DIGITS), " ", ".", ",", "-", "%", "$", "x", "'s"])
                   for _ in range(rng.randint(1, 6)))


def single(rng):
    return rng.choice(["", " ", "a"]) + rng.choice([one_of_range, anywhere])(rng)


def long_run(rng):
    unit = rng.choice(["a", "A", "ab", " ", "\n", "\t", "0", "9", "!", "-", "=", "é", "あ", "字", "👍", "\u0301", "\0", " a", "a ", "\xa0", "\u3000",
                       "'s", "ha", "\r\n", "Ã", "٣", "\u200d", "http", ".", "_", "ÃÂ", "~"])
    return rng.choice(["", "x", " "]) + unit * rng.choice([17, 33, 64, 127, 128, 255, 400]) + rng.choice(["", "x", " ", "\n"])


def end_of_text(rng):
    return "".join(rng.choice(["<|endoftext|>", rng.choice(WORDS), " ", "\n", "<|", "|>", "<|endoftext", rng.choice(EMOJI)])
                   for _ in range(rng.randint(2, 6))) + rng.choice(["", "<|endoftext|>"])


def noise(rng):
    return "".join(rng.choice([one_of_range, anywhere, one_of_range])(rng) for _ in range(rng.randint(2, 10)))


# How many of a thousand come from each; the rest is noise.
KINDS = [(english, 190), (contractions, 70), (code, 80), (one_script, 160), (mixed_scripts, 90), (emoji, 60), (marks, 60),
         (spaces, 90), (odd, 50), (digits, 50), (single, 50), (long_run, 9), (end_of_text, 6)]


def strings(count, seed):
    """`count` different strings, the fixed ones first."""
    rng = random.Random(seed)
    kinds = [kind for kind, weight in KINDS for _ in range(weight)]
    kinds += [noise] * (1000 - len(kinds))
    every = dict.fromkeys(FIXED + SENTENCES + EMOJI + DIGITS + ODD + CODE)
    while len(every) < count:
        every.setdefault(rng.choice(kinds)(rng))
    return list(every)[:count]
