#!/usr/bin/env python3
"""Makes data/tokenizer: small byte-level BPE vocabularies with the settings of three model families,
trained here, and the ids that the reference implementation (Hugging Face tokenizers) gives to texts
that were written for it. For each family:

    tokenizer.json, tokenizer_config.json    what export.py reads
    vocab.bin                                export.py --vocab-only of it
    vectors.jsonl                            {"text", "ids"}, "special": false where special strings
                                             are plain text, "bos": true where BOS is asked for,
                                             "back" where decoding gives another text
                                             (null: one that is not UTF-8)

    python test/make_tokenizer_vectors.py         needs tokenizers, and what export.py needs

Training text is the source of a few modules of the Python standard library and the texts below, so
another Python version makes other vocabularies, with vectors that fit them."""
import argparse
import inspect
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
N_VECTORS = 380

PROSE = [
    "The cache keeps what the next question will need, or so we hope.",
    "It's late; they're tired, we've won, I'm sure he'll say she'd rather not. DON'T! WE'LL SEE, I'M HERE.",
    "In 1984, 12345 people paid $3.14 (or 2,718.28 euros) for 7 apples at 10:45.",
    "    four spaces in front, two  between,   three   more, and some behind   ",
    "Tabs\there\t\tand\tthere,\nnew lines\n\n\nthree of them\r\nand Windows ones\r\n\r\n  indented\n",
    "def area(r):\n    \"\"\"of a circle\"\"\"\n    return 3.14159 * r ** 2  # close enough\n\n\nprint(area(10))\n",
    "for (int i = 0; i < n; i++) {\n\tif (!x[i]) continue;\n\tsum += x[i] * 0x1F;\n}\n",
    "{\"name\": \"value\", \"list\": [1, 2, 3.5e-7], \"nested\": {\"t\": true, \"n\": null}}\n",
    "<html><body class='main'>&nbsp;&lt;tag&gt;</body></html>",
    "SELECT id, COUNT(*) FROM t WHERE a >= 10 AND b != 'x' GROUP BY id;",
    "https://example.org/path/to?query=1&other=%20two#part user@example.org C:\\Temp\\file.txt",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n- [ ] item\n- [x] other **bold** _it_ `code`\n",
]
LANGUAGES = [
    "Fran\u00e7ais: o\u00f9 est le caf\u00e9, d\u00e9j\u00e0 vu, na\u00efve fa\u00e7ade, l'\u00e9t\u00e9",
    "Deutsch: Stra\u00dfe, \u00dcbergr\u00f6\u00dfe, M\u00e4dchen, \u201eZitat\u201c",
    "Espa\u00f1ol: \u00bfd\u00f3nde est\u00e1 el ni\u00f1o? \u00a1aqu\u00ed!",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442 \u043d\u0430 \u043f\u0440\u043e\u0431\u0443, \u0441\u044a\u0435\u0448\u044c \u0435\u0449\u0451.",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac: \u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u7684\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u8d70\u8d70\u3002",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002\u30ab\u30bf\u30ab\u30ca\u3082\u3042\u308a\u307e\u3059\uff01",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4. \uc548\ub155\ud558\uc138\uc694",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0645\u064f\u0634\u064e\u0643\u0651\u064e\u0644\u0629 \u0661\u0662\u0663",
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u0932\u093f\u0916\u093e \u0967\u0968\u0969 \u0958\u093c",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e44\u0e21\u0e48\u0e21\u0e35\u0e27\u0e23\u0e23\u0e04",
    "Ti\u1ebfng Vi\u1ec7t c\u00f3 d\u1ea5u, Tie\u0302\u0301ng Vie\u0323\u0302t",
]
ODD = [
    "", " ", "  ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "a", "\x00", "a\x00b", " \x00 a\x00\x00", "\u00a0", "\ufeffa",
    "\u200b", "a\u2028b\r\nc", "a\u2029 b", "\x85x\x85", "\x1c\x1d\x1e\x1fa", "\x0b\x0c a", "\u180e \u180ea\u180e!",
    "\u3000\u3000x", "\u2003\u2009a \u202f1", "x" * 100, " " * 60 + "x", " " * 61, "\n" * 30, "\r\n" * 9 + "x",
    " \n" * 8, "\t" * 12 + "}", "=" * 80, "-" * 33 + "\n", "ab" * 40, "a " * 30, "0" * 21, "1 2  3   4    5",
    "  7", "a  7", "a7b77c777d7777", "\u00bd\u2167\u0663\uff19 \u00b2x\u00b2 \u2460", "3\u00bd 4\u2082",
    "'s 's'S 'T 'Ll 'lL 'vE'D 'm'M 're'RE it'sn't", "x'\u017f 'x \u0130'S 'd'", "'", "''s", "'sabc 'tabc", "can't've",
    "caf\u00e9 cafe\u0301 caf\u00e9\u0301", "\u212b A\u030a \u00c5 \u2126 \u212a", "\u1100\u1161\u11a8 \uac00\u11a8 \u1112\u1161\u11ab",
    "q\u0307\u0323 q\u0323\u0307 e\u0323\u0301 e\u0301\u0323", "\u0344\u0343 \u0374 \u037e", "\u0301\u0301 start", "\u0958\u0929\u0931 \u09cb \u09c7\u09be",
    "\ufb01 \ufb06 \u2460 \u33a1 \uff21", "\u0dd9\u0dcf\u0dca \u0dd9\u0dca\u0dcf", "\U0001d15e \U0001d158\U0001d165", "\u2adc \u2add\u0338",
    "\U0001f600", "hi \U0001f600\U0001f603 there", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 x", "\U0001f44d\U0001f3fd!", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
    "\u2764\ufe0f 1\ufe0f\u20e3", "\u202eabc\u202c \u200fx", "\U00020000\U0002a6d6", "\ue000\uf8ff \U000f0000 \uffff\ufffe\ufdd0", "\U0010ffff",
    "\u0e01\u0e33 \u0e40\u0e02\u0e49\u0e32", "_a__b _", "snake_case camelCase PascalCase SCREAMING_CASE", "a.b,c;d:e!f?g",
    "...", "!!!\n\n", "?!\r\n x", "a!\n\n\nb", "(a)[b]{c}<d>", "\"quoted\" 'single' `tick`", "\u201cq\u201d \u2018s\u2019s", "$5 \u20ac6 \u00a37",
    "x = y\n\n    z = 1\n\treturn\n  \n   \nend", "a \n\n b  \n  c", "  \n\n  x", "1\n2\n", "a\n1", "a \n 1 ",
    "<right>" + " " * 9 + "x", "<|both|> \u3000 <|im_start|>", "<|pad|> \n <|pad|>",
]
SPECIALS = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_1|>",
               "<|reserved_special_token_10|>", "<|pad|>", "<|eot_id", "<|x|>", "<note>"],
    "qwen2.5": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "cafe\u0301",
                "caf\u00e9", "NASA", "<|im_end", "<|both|>", "\u212bngstrom", "\u00c5ngstrom", "A\u030angstrom"],
    "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<left>", "<right>", "<file>", "<file>x",
                "      ", "END"],
}
FRAMES = ["{}", "a{}b", " {} ", "a  {}  b", "{}{}", "\n\n {} \t\u3000{}\n", "x_{}", "{}-{}.", "\u00e9{}\u00e9", "<{}>", "7{}7", "{} {}\u0301"]


def bpe(**kw):
    return Tokenizer(models.BPE(dropout=None, unk_token=None, fuse_unk=False, byte_fallback=False, **kw))


def split(numbers):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])


def train(tok, text, size, alphabet):
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))


def control(content, **kw):
    return AddedToken(content, special=True, normalized=False, **kw)


def extra_words(tok, words):
    """words that are in the vocabulary although no merge makes them: only a whole look-up finds them"""
    j = json.loads(tok.to_str())
    for word in words:
        text = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[0][0]
        j["model"]["vocab"].setdefault(text, len(j["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(j))


def llama3(text):
    tok = bpe(ignore_merges=True)
    tok.pre_tokenizer = split(r"\p{N}{1,3}")
    train(tok, text, 540, pre_tokenizers.ByteLevel.alphabet())
    tok = extra_words(tok, [" question", "apples", "zzz", "\u4e16\u754c", "xxxx", " 'x", "\n\n\n", "123", "\u00e9"])
    tok.add_special_tokens([control(f"<|{s}|>") for s in (
        "begin_of_text", "end_of_text", "eot_id", *[f"reserved_special_token_{i}" for i in range(12)])])
    tok.add_special_tokens([control("<|pad|>", lstrip=True, rstrip=True)])
    tok.add_tokens([AddedToken("<note>", normalized=True)])
    tok.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[("<|begin_of_text|>", tok.token_to_id("<|begin_of_text|>"))])
    return tok, "<|begin_of_text|>", "<|end_of_text|>"


def qwen25(text):
    tok = bpe()
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = split(r"\p{N}")
    train(tok, text, 560, pre_tokenizers.ByteLevel.alphabet())
    tok.add_special_tokens([control("<|endoftext|>"), control("<|im_start|>"), control("<|im_end|>"),
                            control("<|both|>", lstrip=True, rstrip=True, single_word=True)])
    tok.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False),
                    AddedToken("cafe\u0301", normalized=True), AddedToken("NASA", single_word=True, normalized=True),
                    AddedToken("\u212bngstrom", normalized=True, lstrip=True)])
    return tok, None, "<|im_end|>"


def smollm2(text):
    tok = bpe()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    train(tok, text, 560, [])           # bytes that the text lacks have no token
    tok.add_special_tokens([control("<|endoftext|>"), control("<|im_start|>"), control("<|im_end|>"),
                            control("<left>", lstrip=True), control("<right>", rstrip=True), control("<file>")])
    tok.add_tokens([AddedToken("<file>x", normalized=False), AddedToken("      ", normalized=False),
                    AddedToken("END", single_word=True, normalized=False)])
    return tok, "<|im_start|>", "<|im_end|>"


def characters():
    """assigned in Unicode 14"""
    return [chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


def texts(name, rng, n=N_VECTORS):
    chars, specials = characters(), SPECIALS[name]
    out = PROSE + LANGUAGES + ODD
    for s in specials:
        for frame in rng.sample(FRAMES, 5):
            out.append(frame.format(s, rng.choice(specials)))
    while len(out) < n:
        kind = rng.randrange(5)
        if kind == 0:
            out.append("".join(rng.choice(chars) for _ in range(rng.randrange(1, 24))))
        elif kind == 1:
            out.append("".join(rng.choice(" \n\r\ta1'.,s!\u00e9\u3000") for _ in range(rng.randrange(1, 40))))
        elif kind == 2:
            out.append("".join(rng.choice("abc\u0301\u0323\u0327\u1100\u1161\u11a8\u0958\u00e9 e") for _ in range(24)))
        else:
            pool = rng.choice([PROSE, LANGUAGES, ODD, specials])
            parts = [rng.choice(rng.choice([pool, ODD, specials])) for _ in range(rng.randrange(2, 5))]
            out.append(rng.choice(["", " ", "\n", "  "]).join(p[:rng.randrange(1, 90)] for p in parts))
    return out


def vectors(name, tok, rng):
    for i, text in enumerate(texts(name, rng)):
        row = {"text": text}
        tok.encode_special_tokens = any(s in text for s in SPECIALS[name]) and i % 3 == 0
        if tok.encode_special_tokens:
            row["special"] = False
        if name == "llama3" and i % 5 == 0:
            row["bos"] = True
        row["ids"] = tok.encode(text, add_special_tokens=bool(row.get("bos"))).ids
        back = tok.decode(row["ids"], skip_special_tokens=False)
        if back != text:        # bytes that are no text are bytes here, U+FFFD in the reference
            row["back"] = back if back.count("\ufffd") == text.count("\ufffd") else None
        yield row


def write(name, tok, bos, eos, out):
    path = os.path.join(out, name)
    os.makedirs(path, exist_ok=True)
    tok.encode_special_tokens = False
    with open(os.path.join(path, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(json.loads(tok.to_str()), f, ensure_ascii=False, separators=(",", ":"))
    config = {"bos_token": bos, "eos_token": eos}
    with open(os.path.join(path, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    with open(os.path.join(path, "vectors.jsonl"), "w", encoding="utf-8") as f:
        for row in vectors(name, tok, random.Random(1)):
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    with tempfile.TemporaryDirectory() as tmp:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            os.symlink(os.path.abspath(os.path.join(path, file)), os.path.join(tmp, file))
        with open(os.path.join(tmp, "config.json"), "w", encoding="utf-8") as f:    # any model will do
            json.dump({"model_type": "llama", "vocab_size": tok.get_vocab_size() + 3, "hidden_size": 64,
                       "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
                       "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
                       "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu"}, f)
        subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), tmp,
                        os.path.join(path, "vocab.bin"), "--vocab-only"], check=True)


def main():
    p = argparse.ArgumentParser(description="make data/tokenizer")
    p.add_argument("--out", default=os.path.join(ROOT, "data", "tokenizer"))
    o = p.parse_args()
    text = [inspect.getsource(m) for m in (argparse, textwrap, random, json)] + (PROSE + LANGUAGES) * 20
    for name, make in (("llama3", llama3), ("qwen2.5", qwen25), ("smollm2", smollm2)):
        write(name, *make(text), o.out)


if __name__ == "__main__":
    main()
