#!/usr/bin/env python3
"""Makes the vectors of data/tokenizer for the other kinds of tokenizer: small vocabularies with the
settings of the families, trained here, and the ids that the reference implementations give.

    llama2     SentencePiece BPE with byte fallback; tokenizer.json: a space in front of every stretch
    mistral    the same, tokenizer.json with Metaspace: a space in front of the text alone
    llama2-sp, mistral-sp, jamba-sp    the SentencePiece models themselves, by sentencepiece; jamba has
               no space in front and a user-defined comma
    glm4       tiktoken ranks, by tiktoken
    xlm-r      Unigram with a charsmap (NFKC of a part of Unicode), white space lost
    xlm-r-2    the same model as newer conversions write it
    mbert      WordPiece, cased

For each: the source that export.py reads, vocab.bin (export.py --vocab-only) and vectors.jsonl, as
make_tokenizer_vectors.py describes it, with "back" where decoding gives another text and "spans", two
byte positions per id, for Unigram and WordPiece.

    python test/make_tokenizer_kinds.py [--full]      needs tokenizers, sentencepiece and tiktoken

--full takes SentencePiece's own NFKC rules instead of the part: a charsmap of 240 KB."""
import argparse
import base64
import inspect
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import unicodedata

import sentencepiece
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from make_tokenizer_vectors import (FRAMES, LANGUAGES, ODD, PROSE, ROOT, SPECIALS, texts)

MARK = "\u2581"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS |= {
    "llama2": ["<s>", "</s>", "<unk>", "<pad>", "[INST]", "<0x41>", "<s", " <s> "],
    "mistral": ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "[INST", "<0x0A>", "[TOOL]"],
    "jamba": ["<|startoftext|>", "<|pad|>", "<|bom|>", "<|user|>", ",", ",,", "<|eom|>", MARK, MARK * 3],
    "glm4": ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|user", "[MASK]"],
    "xlm-r": ["<s>", "</s>", "<mask>", "<unk>", "<pad>", "<mask", MARK, "\ufb01\u2460\u00bd", "e\u0301\u0323"],
    "mbert": ["[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]", "[NEW0]", "[CLS", "##s", "#"],
}


# ---------------------------------------------------------------------------
# Training

def train_spm(text, **kw):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=out, minloglevel=2, num_threads=1,
        max_sentence_length=1 << 20, **kw)
    return out.getvalue()


def bpe_spm(text, size, **kw):
    """Llama-2's trainer settings"""
    return train_spm(text, **{**dict(
        model_type="bpe", vocab_size=size, byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.995), **kw})


def nfkc_rules(path):
    """NFKC of Latin, Greek, compatibility and Hangul letters; white space to spaces; no controls"""
    source = [chr(c) for a, b in ((0xa0, 0x250), (0x300, 0x370), (0x1e00, 0x1f00), (0x2000, 0x2190),
                                  (0x2460, 0x24ff), (0x3000, 0x3100), (0x3300, 0x3400), (0xac00, 0xac40),
                                  (0xf900, 0xfa00), (0xfb00, 0xfb20), (0xff00, 0xffa0)) for c in range(a, b)]
    source += [a + b for a in "AEIOUaeiouncyN" for b in "\u0300\u0301\u0302\u0303\u0308\u0323\u0327"]
    source += ["\u1100\u1161", "\u1112\u1161\u11ab", "\u1100\u1161\u11a8"]
    rules = {c: unicodedata.normalize("NFKC", c) for c in source if unicodedata.category(c[0]) != "Cn"}
    rules |= {c: " " for c in "\t\n\r\u00a0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeff"}
    rules |= {chr(c): "" for c in (*range(1, 9), 11, 12, *range(14, 32), 127, 0xad)}
    with open(path, "w", encoding="utf-8") as f:
        for a, b in sorted(rules.items()):
            if a != b:
                f.write(" ".join(f"{ord(c):X}" for c in a) + "\t"
                        + " ".join(f"{ord(c):X}" for c in b) + "\n")


def load(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def spm_pieces(model):
    sp = load(model)
    return [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.get_piece_size())]


def spm_merges(pieces):
    """the merge list that conversions make of scores"""
    ids, out = {p: i for i, (p, _) in enumerate(pieces)}, []
    for piece, score in pieces:
        parts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        parts = [(a, b) for a, b in parts if a in ids and b in ids]
        out += [(score, a, b) for a, b in sorted(parts, key=lambda p: (ids[p[0]], ids[p[1]]))]
    return [(a, b) for _, a, b in sorted(out, key=lambda m: -m[0])]


def control(content, **kw):
    return AddedToken(content, special=True, normalized=False, **kw)


def char_bpe(model, legacy, extra=()):
    """a Llama tokenizer.json of a SentencePiece model"""
    pieces = spm_pieces(model)
    tok = Tokenizer(models.BPE(vocab={p: i for i, (p, _) in enumerate(pieces)}, merges=spm_merges(pieces),
                               unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens([control(s) for s in ("<unk>", "<s>", "</s>", *extra)])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))])
    return tok


def xlmr(model, charsmap, newer):
    pieces = spm_pieces(model)
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:], ("<mask>", 0.0)]
    tok = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    meta = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always")
    if newer:
        tok.normalizer = normalizers.Sequence([
            normalizers.Precompiled(charsmap), normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), MARK)])
        tok.pre_tokenizer = meta
    else:
        tok.normalizer = normalizers.Precompiled(charsmap)
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), meta])
    tok.decoder = decoders.Metaspace(replacement=MARK, prepend_scheme="always")
    tok.add_special_tokens([control(s) for s in ("<s>", "<pad>", "</s>", "<unk>")]
                           + [control("<mask>", lstrip=True)])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tok


def mbert(text, size):
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tok.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True,
                                                strip_accents=None, lowercase=False)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tok.train_from_iterator(text, trainers.WordPieceTrainer(
        vocab_size=size, show_progress=False, continuing_subword_prefix="##",
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    tok.add_special_tokens([control("[NEW0]")])
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(s, tok.token_to_id(s)) for s in ("[CLS]", "[SEP]")])
    return tok


def ranks(text, size):
    """GLM-4's form: token bytes -> rank"""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    plain = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    byte = {chr(b): b for b in plain}
    byte |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in set(plain))}
    by_id = {i: bytes(byte[c] for c in s) for s, i in tok.get_vocab().items()}
    out = {bytes([b]): b for b in range(256)}
    for i in sorted(by_id):
        out.setdefault(by_id[i], len(out))
    out.setdefault(b" together", len(out))          # no merges lead there: found whole or not at all
    return out


# ---------------------------------------------------------------------------
# References: encode(text, special, bos) -> (ids, spans in characters or None), decode(ids)

class Json:
    def __init__(self, tok, spans=False):
        self.tok, self.spans = tok, spans

    def encode(self, text, special, bos):
        self.tok.encode_special_tokens = not special
        e = self.tok.encode(text, add_special_tokens=bos)
        return e.ids, e.offsets if self.spans else None

    def decode(self, ids):
        return self.tok.decode(ids, skip_special_tokens=False)


class Spm:
    def __init__(self, model):
        self.sp = load(model)

    def encode(self, text, special, bos):
        return self.sp.encode(text), None

    def decode(self, ids):
        return self.sp.decode(ids)


class Ranks:
    def __init__(self, ranks, special):
        self.enc = tiktoken.Encoding("glm4", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
        self.special = special

    def encode(self, text, special, bos):
        ids = self.enc.encode(text, allowed_special="all") if special else \
            self.enc.encode(text, disallowed_special=())
        return [self.special["[gMASK]"], self.special["<sop>"]] * bos + ids, None

    def decode(self, ids):
        return self.enc.decode(ids)


# ---------------------------------------------------------------------------
# Files

def byte_at(text):
    """character position -> byte position"""
    out = [0]
    for c in text:
        out.append(out[-1] + len(c.encode()))
    return out


def rows(name, ref, rng, n):
    family = name.removesuffix("-sp").removesuffix("-2")
    raw = isinstance(ref, Spm)
    for i, text in enumerate(texts(family, rng, n)):
        there = any(s in text for s in SPECIALS[family])
        special = not raw and not (there and i % 3 == 0 and family not in ("xlm-r", "mbert"))
        bos = not raw and family not in ("xlm-r", "mbert") and i % 7 == 0
        ids, spans = ref.encode(text, special, bos)
        row = {"text": text, "ids": ids}
        if not special:
            row["special"] = False
        if bos:
            row["bos"] = True
        back = ref.decode(ids)
        if back != text:
            row["back"] = back
        removed = text.lstrip(" ")[:1]      # the reference's spans are shifted behind one of these
        if spans and unicodedata.category(removed or "a") != "Cc":
            at = byte_at(text)
            row["spans"] = [at[x] for s in spans for x in s]
        yield row


def write(out, name, files, size, ref, n):
    path = os.path.join(out, name)
    os.makedirs(path, exist_ok=True)
    for file, data in files.items():
        with open(os.path.join(path, file), "wb") as f:
            f.write(data if isinstance(data, bytes) else
                    json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())
    with open(os.path.join(path, "vectors.jsonl"), "w", encoding="utf-8") as f:
        for row in rows(name, ref, random.Random(2), n):
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    with tempfile.TemporaryDirectory() as tmp:
        for file in files:
            os.symlink(os.path.abspath(os.path.join(path, file)), os.path.join(tmp, file))
        with open(os.path.join(tmp, "config.json"), "w", encoding="utf-8") as f:    # any model will do
            json.dump({"model_type": "llama", "vocab_size": size, "hidden_size": 64,
                       "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
                       "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
                       "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu"}, f)
        subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), tmp,
                        os.path.join(path, "vocab.bin"), "--vocab-only"], check=True)


def json_files(tok, **settings):
    return {"tokenizer.json": json.loads(tok.to_str()), "tokenizer_config.json": settings}


def bpe_families(out, text, n):
    size = 900
    llama = bpe_spm(text, size)
    tok = char_bpe(llama, legacy=True)
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    write(out, "llama2", json_files(tok, **marks), size + 3, Json(tok), n)
    write(out, "llama2-sp", {"tokenizer.model": llama, "tokenizer_config.json": marks}, size + 3,
          Spm(llama), n)
    mistral = bpe_spm(text, size, control_symbols=["[INST]", "[/INST]"], user_defined_symbols=["[TOOL]"])
    tok = char_bpe(mistral, legacy=False, extra=["[INST]", "[/INST]", "[TOOL]"])
    write(out, "mistral", json_files(tok, **marks), size + 3, Json(tok), n)
    write(out, "mistral-sp", {"tokenizer.model": mistral, "tokenizer_config.json": marks}, size + 3,
          Spm(mistral), n)
    jamba = bpe_spm(text, size, add_dummy_prefix=False, user_defined_symbols=[","],
                    control_symbols=["<|bom|>", "<|eom|>", "<|user|>"], unk_id=3, pad_id=0,
                    bos_piece="<|startoftext|>", eos_piece="<|endoftext|>", pad_piece="<|pad|>",
                    unk_piece="<|unk|>")
    write(out, "jamba-sp", {"tokenizer.model": jamba, "tokenizer_config.json": {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}}, size + 3, Spm(jamba), n)


def glm_family(out, text, n):
    glm = ranks(text, 700)
    special = {s: len(glm) + i for i, s in enumerate((
        "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
        "<|assistant|>", "<|observation|>"))}
    lines = b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in glm.items())
    write(out, "glm4", {"tokenizer.model": lines, "tokenizer_config.json": {
        "tokenizer_class": "ChatGLM4Tokenizer", "eos_token": "<|endoftext|>",
        "added_tokens_decoder": {str(i): {"content": s, "special": True} for s, i in special.items()}}},
        len(glm) + len(special) + 3, Ranks(glm, special), n)


def encoder_families(out, text, n, full):
    with tempfile.TemporaryDirectory() as tmp:
        rule_file = os.path.join(tmp, "rules.tsv")
        nfkc_rules(rule_file)
        rules = {"normalization_rule_name": "nmt_nfkc"} if full else \
            {"normalization_rule_tsv": rule_file}
        model = train_spm(text, model_type="unigram", vocab_size=700, character_coverage=0.995, **rules)
    sys.path.insert(0, ROOT)
    from export_tok import SentencePiece        # the reference's bindings do not show the charsmap
    with tempfile.NamedTemporaryFile() as f:
        f.write(model)
        f.flush()
        charsmap = SentencePiece(f.name).charsmap
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    for newer in (False, True):
        tok = xlmr(model, charsmap, newer)
        files = json_files(tok, **settings) if newer else {
            "sentencepiece.bpe.model": model, "tokenizer_config.json": settings}
        write(out, "xlm-r-2" if newer else "xlm-r", files, tok.get_vocab_size() + 3, Json(tok, True), n)
    tok = mbert(text, 900)
    write(out, "mbert", json_files(tok), tok.get_vocab_size() + 3, Json(tok, True), n)


def main():
    p = argparse.ArgumentParser(description="make the other kinds of data/tokenizer")
    p.add_argument("--out", default=os.path.join(ROOT, "data", "tokenizer"))
    p.add_argument("--n", type=int, default=320, help="texts per tokenizer")
    p.add_argument("--full", action="store_true", help="all of NFKC")
    o = p.parse_args()
    source = [inspect.getsource(m) for m in (argparse, textwrap, random, json)]
    text = [line for s in source for line in s.split("\n") if line] + (PROSE + LANGUAGES) * 10
    bpe_families(o.out, text, o.n)
    glm_family(o.out, text, o.n)
    encoder_families(o.out, text, o.n, o.full)


if __name__ == "__main__":
    main()
