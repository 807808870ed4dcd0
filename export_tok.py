"""export_tok.py - tokenizers and chat templates: what a model file says about text (tok.*, chat.*).

Used by export.py. Read are tokenizer.json, SentencePiece models, tiktoken ranks (GLM-4), vocab.txt
and GGUF metadata; a source's tokenizer becomes a Vocab, a Vocab becomes records, and tokenizer.c
reads them. A tokenizer that does something no record can say is refused with its name.
"""
import base64
import binascii
import collections
import dataclasses
import datetime
import json
import os
import re
import struct
import sys

NORMAL, SPECIAL, ADDED, UNUSED, BYTE = range(5)         # tok.types
LSTRIP, RSTRIP, SINGLE_WORD, NORMALIZED, AS_IS = 1, 2, 4, 8, 16         # tok.added flags
BYTES, CHARS, UNIGRAM, WORDPIECE = range(1, 5)          # tok_kind
PREFIX_NONE, PREFIX_EVERY, PREFIX_MISSING, PREFIX_FIRST = range(4)      # tok_prefix
MARK = "\u2581"         # SentencePiece's space; the file has spaces
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class UserError(Exception):
    """A sentence for the user: names the file, field or option and what to do."""


def need(module):
    try:
        return __import__(module)
    except ImportError:
        raise UserError(f"the Python package {module} is missing: run 'python3 -m venv .venv && "
                        ".venv/bin/pip install -r requirements.txt' and use .venv/bin/python")


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON ({e})")


# ---------------------------------------------------------------------------
# Vocabularies

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
Pre = collections.namedtuple("Pre", "regex digits nfc ignore_merges add_bos")
GGUF_PRE = {        # tokenizer.ggml.pre -> rules; add_bos where the file does not say
    "gpt-2": Pre(GPT2, 0, 0, 0, 0),
    "smollm": Pre(GPT2, 1, 0, 0, 0),
    "llama-bpe": Pre(LLAMA3, 0, 0, 1, 1),
    "qwen2": Pre(LLAMA3.replace("{1,3}", ""), 0, 1, 0, 0),
    "glm4": Pre(LLAMA3, 0, 0, 1, 1),
    "chatglm-bpe": Pre(LLAMA3, 0, 0, 1, 1),
}


@dataclasses.dataclass
class Vocab:
    kind: int
    texts: list                 # bytes by id
    types: list
    added: list                 # [(id, flags)]
    names: list = None          # the source's strings by id, None: a hole
    add_bos: int = 0
    bos: int = -1               # -1: none
    bos_ids: list = None        # where BOS is more than one id
    eos: list = dataclasses.field(default_factory=list)
    chat: dict = None           # {piece: text} with "trim"
    merges: list = None         # [(left, right, result)] by rank, or
    scores: list = None         # by id
    ignore_merges: int = 0
    regex: str = ""             # BYTES; "": none
    digits: int = 0
    nfc: int = 0
    prefix: int = PREFIX_NONE   # CHARS
    strip: int = 0
    unk: int = -1               # CHARS, UNIGRAM, WORDPIECE
    words: int = 0              # UNIGRAM
    charsmap: bytes = b""
    word_max: int = 0           # WORDPIECE


def byte_alphabet():
    """character -> byte of GPT-2's printable alphabet"""
    plain = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(others)}


def token_tables(names, added, vocab_size, where):
    """names: token strings by id (None: hole), added: id -> special? -> (texts, types) by id"""
    if len(names) > vocab_size:
        raise UserError(f"{where}: {len(names)} tokens, the model has only {vocab_size} rows")
    alphabet = byte_alphabet()
    texts, types = [b""] * vocab_size, [UNUSED] * vocab_size
    for i, name in enumerate(names):
        if name is None:
            continue
        if i in added:
            texts[i], types[i] = name.encode(), SPECIAL if added[i] else ADDED
            continue
        try:
            texts[i], types[i] = bytes(alphabet[ch] for ch in name), NORMAL
        except KeyError:
            raise UserError(f"{where}: token {i} {name!r} is not in the byte alphabet: this is not "
                            "a byte-level BPE vocabulary")
    return texts, types


def merge_table(pairs, ids, where):
    """[(left, right)] strings in rank order -> [(left, right, result)] ids"""
    out = []
    for pair in pairs:
        left, right = pair.split(" ", 1) if isinstance(pair, str) and " " in pair else pair
        try:
            out.append((ids[left], ids[right], ids[left + right]))
        except KeyError as e:
            raise UserError(f"{where}: merge {len(out)} ({left!r}, {right!r}) needs token {e}, "
                            "which is not in the vocabulary")
    return out


def unique(values):
    return list(dict.fromkeys(v for v in values if v is not None and v >= 0))


def as_list(v):
    return v if isinstance(v, list) else [v]


def parts(j, key):
    """the steps of a tokenizer.json stage that may be one object, a Sequence or null"""
    if j is None:
        return []
    return j[key] if j.get("type") == "Sequence" else [j]


def hf_pre_tokenizer(j, where):
    """pre_tokenizer -> (regex, digits)"""
    regex = digits = None
    for step in parts(j, "pretokenizers"):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            if step.get("use_regex", True) and regex is None:
                regex = GPT2
            elif step.get("use_regex", True):
                raise UserError(f"{where}: pre_tokenizer splits by two patterns: not supported")
            continue
        if kind == "Digits" and step.get("individual_digits") and regex is None:
            digits = 1
            continue
        pattern = step.get("pattern", {}).get("Regex")
        keeps_all = [("Isolated", False), ("Removed", True)]
        fine = pattern and (step.get("behavior"), bool(step.get("invert"))) in keeps_all
        if kind != "Split" or not fine or regex is not None or digits:
            raise UserError(f"{where}: pre_tokenizer step {json.dumps(step)} is not supported")
        regex = pattern
    return regex or "", digits or 0


def leading_specials(j):
    """the special tokens that the post processor puts in front of one text"""
    for step in parts(j, "processors"):
        if step.get("type") == "TemplateProcessing":
            single = [p.get("SpecialToken", {}).get("id") for p in step.get("single") or []]
            return single[:single.index(None)] if None in single else []
        if step.get("type") == "BertProcessing" or step.get("type") == "RobertaProcessing":
            return [step["cls"][0]]
    return []


def token_text(v):
    return v.get("content") if isinstance(v, dict) else v


def added_flags(a):
    return (LSTRIP * bool(a.get("lstrip")) | RSTRIP * bool(a.get("rstrip")) |
            SINGLE_WORD * bool(a.get("single_word")) | NORMALIZED * bool(a.get("normalized")))


def marked_tables(pieces, vocab_size, where):
    """pieces: [(string, type)] by id -> (texts, types): marks are spaces, bytes are bytes"""
    if len(pieces) > vocab_size:
        raise UserError(f"{where}: {len(pieces)} tokens, the model has only {vocab_size} rows")
    texts, types = [b""] * vocab_size, [UNUSED] * vocab_size
    for i, (name, kind) in enumerate(pieces):
        types[i] = kind
        if kind == BYTE:
            texts[i] = bytes([int(name[3:5], 16)])
        elif kind != UNUSED:
            texts[i] = (name.replace(MARK, " ") if kind == NORMAL else name).encode()
    return texts, types


def read_optional(path, name):
    file = os.path.join(path, name)
    return read_json(file) if os.path.exists(file) else {}


def finish(v, path, config, leading=()):
    """BOS, EOS and chat of a directory's tokenizer; leading: tokens in front of every text"""
    settings = read_optional(path, "tokenizer_config.json")
    generation = read_optional(path, "generation_config.json")
    ids = {name: i for i, name in enumerate(v.names) if name is not None}
    bos_text, eos_text = (token_text(settings.get(k)) for k in ("bos_token", "eos_token"))
    if settings:
        v.bos = ids.get(bos_text, -1)
    else:
        bos = config.get("bos_token_id")
        v.bos = -1 if bos is None else bos
        bos_text = v.names[v.bos] if 0 <= v.bos < len(v.names) else None
    leading = [name for name in leading if name in ids]
    if leading and (bos_text not in ids or leading[0] == bos_text):
        v.add_bos, v.bos = 1, ids[leading[0]]
        v.bos_ids = [ids[name] for name in leading] if len(leading) > 1 else None
    v.eos = unique([*as_list(generation.get("eos_token_id")), *as_list(config.get("eos_token_id")),
                    ids.get(eos_text)])
    template, source = settings.get("chat_template"), os.path.join(path, "tokenizer_config.json")
    if os.path.exists(os.path.join(path, "chat_template.jinja")):
        source = os.path.join(path, "chat_template.jinja")
        with open(source, encoding="utf-8") as f:
            template = f.read()
    if isinstance(template, list):
        template = {t["name"]: t["template"] for t in template}.get("default")
    special = {k: token_text(x) for k, x in settings.items() if k.endswith("_token")}
    v.chat = chat_or_none(template, {k: x for k, x in special.items() if x}, source)
    return v


def hf_vocab(path, config, vocab_size):
    """the tokenizer of a directory, of the first file of these that is there"""
    readers = {"tokenizer.json": json_vocab, "tokenizer.model": model_vocab,
               "tokenizer.model.v3": model_vocab, "sentencepiece.bpe.model": xlmr_vocab,
               "vocab.txt": txt_vocab}
    for name, read in readers.items():
        file = os.path.join(path, name)
        if os.path.exists(file):
            settings = read_optional(path, "tokenizer_config.json")
            v, leading = read(file, config, settings, vocab_size)
            return finish(v, path, config, leading)
    raise UserError(f"{path}: there is no tokenizer ({', '.join(readers)} are read)")


# ---------------------------------------------------------------------------
# tokenizer.json

def json_vocab(where, config, settings, vocab_size):
    j = read_json(where)
    model = j.get("model", {})
    kind = model.get("type", "BPE")
    steps = [s.get("type") for s in parts(j.get("pre_tokenizer"), "pretokenizers")]
    if kind == "BPE" and "ByteLevel" in steps:
        kind = "byte-level BPE"
    readers = {"byte-level BPE": json_bytes, "BPE": json_chars, "Unigram": json_unigram,
               "WordPiece": json_wordpiece}
    if kind not in readers:
        raise UserError(f"{where}: model type '{kind}' is not supported ({', '.join(readers)} are)")
    vocab = model.get("vocab")
    if not isinstance(vocab, list if kind == "Unigram" else dict):
        raise UserError(f"{where}: model.vocab is missing or of another form")
    ids = {row[0]: i for i, row in enumerate(vocab)} if kind == "Unigram" else vocab
    added = {a["id"]: a for a in j.get("added_tokens", [])}
    names = [None] * (max([*ids.values(), *added]) + 1)
    for text, i in ids.items():
        names[i] = text
    for i, a in added.items():
        names[i] = a["content"]
    v = readers[kind](j, model, ids, names, added, vocab_size, where)
    v.names = names
    v.added = [(i, added_flags(a)) for i, a in sorted(added.items())]
    return v, leading_specials(j.get("post_processor"))


def refuse(where, what, step, fine):
    raise UserError(f"{where}: {what} {json.dumps(step)} is not supported ({fine})")


def json_bytes(j, model, ids, names, added, vocab_size, where):
    for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"{where}: model.{key} is set, which byte-level BPE has not")
    norms = [n.get("type") for n in parts(j.get("normalizer"), "normalizers")]
    if norms not in ([], ["NFC"]):
        raise UserError(f"{where}: normalizer {norms} is not supported (none and NFC are)")
    texts, types = token_tables(names, {i: a.get("special") for i, a in added.items()}, vocab_size,
                                where)
    regex, digits = hf_pre_tokenizer(j.get("pre_tokenizer"), where)
    return Vocab(BYTES, texts, types, None, merges=merge_table(model.get("merges", []), ids, where),
                 regex=regex, digits=digits, nfc=int(norms == ["NFC"]),
                 ignore_merges=int(bool(model.get("ignore_merges"))))


def metaspace(step, where):
    """prepend_scheme of a Metaspace step; older files have add_prefix_space"""
    if step.get("replacement") != MARK:
        refuse(where, "pre_tokenizer", step, f"the replacement {MARK} is")
    return step.get("prepend_scheme") or ("never" if step.get("add_prefix_space") is False else
                                          "always")


def chars_prefix(j, where):
    """normalizer and pre_tokenizer of BPE over characters -> tok_prefix"""
    to_mark = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
    prepend = {"type": "Prepend", "prepend": MARK}
    norms = parts(j.get("normalizer"), "normalizers")
    steps = parts(j.get("pre_tokenizer"), "pretokenizers")
    if norms == [prepend, to_mark] and not steps:
        return PREFIX_EVERY
    if norms == [to_mark] and not steps:
        return PREFIX_NONE
    if not norms and len(steps) == 1 and steps[0].get("type") == "Metaspace":
        if steps[0].get("split", True):
            refuse(where, "pre_tokenizer", steps[0], "BPE over characters wants \"split\": false")
        return {"never": PREFIX_NONE, "always": PREFIX_MISSING,
                "first": PREFIX_FIRST}[metaspace(steps[0], where)]
    raise UserError(f"{where}: normalizer {json.dumps(norms)} with pre_tokenizer "
                    f"{json.dumps(steps)} is not supported for BPE over characters (Prepend and "
                    "Replace, or Metaspace, are)")


def json_chars(j, model, ids, names, added, vocab_size, where):
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"{where}: model.{key} is set: not supported")
    prefix = chars_prefix(j, where)
    decoder = parts(j.get("decoder"), "decoders")
    strip = decoder[3:] == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    kinds = [d.get("type") for d in decoder]
    if kinds != ["Replace", "ByteFallback", "Fuse"] + ["Strip"] * strip:
        refuse(where, "decoder", decoder, "Replace, ByteFallback, Fuse and Strip are")
    pieces = []
    for i, name in enumerate(names):
        is_byte = name and model.get("byte_fallback") and BYTE_PIECE.fullmatch(name)
        pieces.append((name, UNUSED if name is None else
                       (SPECIAL if added[i].get("special") else ADDED) if i in added else
                       BYTE if is_byte else NORMAL))
    texts, types = marked_tables(pieces, vocab_size, where)
    unk = ids.get(model.get("unk_token"), -1)
    if unk >= 0 and not model.get("fuse_unk") and types.count(BYTE) < 256:
        raise UserError(f"{where}: model.fuse_unk is false and not every byte has a token: not "
                        "supported")
    return Vocab(CHARS, texts, types, None, merges=merge_table(model.get("merges", []), ids, where),
                 prefix=prefix, strip=int(strip), unk=unk,
                 ignore_merges=int(bool(model.get("ignore_merges"))))


def unigram_normalizer(j, where):
    """-> (charsmap, does white space stay and runs of spaces become one?)"""
    steps, charsmap = parts(j.get("normalizer"), "normalizers"), b""
    if steps and steps[0].get("type") == "Precompiled":
        try:
            charsmap = base64.b64decode(steps[0].get("precompiled_charsmap") or "", validate=True)
        except (binascii.Error, ValueError) as e:
            raise UserError(f"{where}: normalizer.precompiled_charsmap is not base64 ({e})")
        steps = steps[1:]
    squeeze = [{"type": "Strip", "strip_left": False, "strip_right": True},
               {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": MARK}]
    if steps not in ([], squeeze):
        refuse(where, "normalizer", steps, "Precompiled, Strip and Replace of XLM-R are")
    return charsmap, bool(steps)


def unigram_tables(pieces, added, vocab_size, where):
    """[(piece, score)] and {id: added token} -> (texts, types, scores)"""
    kinds = [(name, (SPECIAL if added[i].get("special") else ADDED) if i in added else NORMAL)
             for i, (name, _) in enumerate(pieces)]
    for i in range(len(pieces), max([*added, -1]) + 1):
        kinds.append((added[i]["content"], SPECIAL if added[i].get("special") else ADDED)
                     if i in added else (None, UNUSED))
    texts, types = marked_tables(kinds, vocab_size, where)
    scores = [float(score) for _, score in pieces]
    return texts, types, scores + [0.0] * (vocab_size - len(scores))


def json_unigram(j, model, ids, names, added, vocab_size, where):
    if model.get("byte_fallback"):
        raise UserError(f"{where}: model.byte_fallback is set: not supported for Unigram")
    charsmap, squeezed = unigram_normalizer(j, where)
    steps = parts(j.get("pre_tokenizer"), "pretokenizers")
    kinds = [s.get("type") for s in steps]
    words = kinds == ["WhitespaceSplit", "Metaspace"]
    if not words and kinds != ["Metaspace"] or words == squeezed:
        refuse(where, "pre_tokenizer", steps, "WhitespaceSplit and Metaspace, or Metaspace behind "
               "Strip and Replace, are")
    if metaspace(steps[-1], where) != "always" or not steps[-1].get("split", True):
        refuse(where, "pre_tokenizer", steps[-1], "prepend_scheme always with split is")
    if (j.get("decoder") or {}).get("type") != "Metaspace":
        refuse(where, "decoder", j.get("decoder"), "Metaspace is")
    unk = model.get("unk_id")
    if not isinstance(unk, int) or not 0 <= unk < len(names):
        raise UserError(f"{where}: model.unk_id is {unk!r}, not a token")
    texts, types, scores = unigram_tables(model["vocab"], added, vocab_size, where)
    return Vocab(UNIGRAM, texts, types, None, scores=scores, unk=unk, words=int(words),
                 charsmap=charsmap)


def wordpiece(names, added, unk, word_max, vocab_size, where):
    pieces = [(name, UNUSED if name is None else
               (SPECIAL if added[i].get("special") else ADDED) if i in added else NORMAL)
              for i, name in enumerate(names)]
    texts, types = marked_tables(pieces, vocab_size, where)
    if unk not in names:
        raise UserError(f"{where}: the unknown token {unk!r} is not in the vocabulary")
    return Vocab(WORDPIECE, texts, types, None, unk=names.index(unk), word_max=word_max)


def json_wordpiece(j, model, ids, names, added, vocab_size, where):
    norm, pre, decoder = (j.get(k) or {} for k in ("normalizer", "pre_tokenizer", "decoder"))
    fine = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "lowercase": False}
    if any(norm.get(k) != x for k, x in fine.items()) or norm.get("strip_accents"):
        refuse(where, "normalizer", norm, "BertNormalizer that cleans, keeping case and accents, is")
    if pre.get("type") != "BertPreTokenizer":
        refuse(where, "pre_tokenizer", pre, "BertPreTokenizer is")
    if model.get("continuing_subword_prefix", "##") != "##":
        raise UserError(f"{where}: model.continuing_subword_prefix is not '##': not supported")
    if decoder.get("type") != "WordPiece" or decoder.get("prefix") != "##" or \
            not decoder.get("cleanup"):
        refuse(where, "decoder", decoder, "WordPiece with '##' and cleanup is")
    word_max = model.get("max_input_chars_per_word", 100)
    return wordpiece(names, added, model.get("unk_token"), word_max, vocab_size, where)


# ---------------------------------------------------------------------------
# vocab.txt, SentencePiece models, tiktoken ranks

def side_tokens(where, settings):
    """{id: added token} of tokenizer_config.json and added_tokens.json beside a vocabulary"""
    out = {i: {"content": text} for text, i in
           read_optional(os.path.dirname(where), "added_tokens.json").items()}
    out |= {int(i): a for i, a in (settings.get("added_tokens_decoder") or {}).items()}
    return out


def add_side_tokens(names, pieces, flags, added):
    """added tokens take their place in names, pieces [(string, type)] and flags {id: flags}"""
    for i in sorted(added):
        while len(names) <= i:
            names.append(None)
            pieces.append((None, UNUSED))
        names[i] = added[i]["content"]
        pieces[i] = names[i], SPECIAL if added[i].get("special", True) else ADDED
        flags[i] = added_flags(added[i])


def txt_vocab(where, config, settings, vocab_size):
    """BERT's vocab.txt: a token per line"""
    if settings.get("do_lower_case", True) or settings.get("strip_accents"):
        raise UserError(f"{where}: tokenizer_config.json does not say \"do_lower_case\": false; "
                        "only cased BERT vocabularies are read")
    with open(where, encoding="utf-8") as f:
        names = f.read().split("\n")
    while names and not names[-1]:
        names.pop()
    added = {names.index(s): {"content": s, "special": True}
             for s in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if s in names}
    added |= side_tokens(where, settings)
    for i in sorted(added):
        names += [None] * (i + 1 - len(names))
        names[i] = added[i]["content"]
    v = wordpiece(names, added, "[UNK]", 100, vocab_size, where)
    v.names, v.added = names, [(i, added_flags(a)) for i, a in sorted(added.items())]
    return v, ["[CLS]"]


def proto_fields(data, where):
    """(field number, value) of a protocol buffer: an int, a float or bytes"""
    at = 0

    def varint():
        nonlocal at
        shift = value = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    try:
        while at < len(data):
            key = varint()
            wire = key & 7
            if wire == 0:
                yield key >> 3, varint()
            elif wire == 2:
                n = varint()
                if at + n > len(data):
                    raise IndexError
                yield key >> 3, data[at:at + n]
                at += n
            elif wire == 5:
                yield key >> 3, struct.unpack_from("<f", data, at)[0]
                at += 4
            elif wire == 1:
                yield key >> 3, struct.unpack_from("<d", data, at)[0]
                at += 8
            else:
                raise IndexError
    except (IndexError, struct.error):
        raise UserError(f"{where}: not a SentencePiece model (the protocol buffer breaks off at "
                        f"byte {at})")


class SentencePiece:
    """sentencepiece_model.proto: pieces 1 {string 1, score 2, type 3}, trainer 2 {model type 3},
    normalizer 3 {name 1, charsmap 2, dummy prefix 3, extra white space 4, escape 5}"""
    NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)

    def __init__(self, where):
        with open(where, "rb") as f:
            data = f.read()
        self.pieces, trainer, norm = [], {}, {}
        for field, value in proto_fields(data, where):
            if field in (1, 2, 3) and not isinstance(value, bytes):
                raise UserError(f"{where}: not a SentencePiece model (field {field} is {value!r})")
            if field == 1:
                self.pieces.append(self.piece(dict(proto_fields(value, where)), where))
            elif field in (2, 3):
                (trainer if field == 2 else norm).update(proto_fields(value, where))
        if not self.pieces:
            raise UserError(f"{where}: not a SentencePiece model (it has no pieces)")
        self.kind = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}.get(trainer.get(3, 1), "?")
        if trainer.get(24):
            raise UserError(f"{where}: white space as a suffix is not supported")
        self.charsmap, self.dummy_prefix = norm.get(2, b""), bool(norm.get(3, 1))
        self.squeeze, self.escape = bool(norm.get(4, 1)), bool(norm.get(5, 1))
        if not isinstance(self.charsmap, bytes):
            raise UserError(f"{where}: not a SentencePiece model (its charsmap is a number)")

    def piece(self, p, where):
        """fields -> (string, score, type)"""
        text, score, kind = p.get(1, b""), p.get(2, 0.0), p.get(3, self.NORMAL)
        try:
            name = text.decode()
            if kind == self.BYTE and not BYTE_PIECE.fullmatch(name) or not isinstance(score, float):
                raise ValueError
        except (AttributeError, ValueError):
            raise UserError(f"{where}: piece {len(self.pieces)} is damaged: {text!r}, score "
                            f"{score!r}, type {kind!r}")
        return name, score, kind


def spm_tables(pieces, vocab_size, where):
    """[(string, score, type)] -> (pieces [(string, tok.types)], tok.added {id: flags}, unk)"""
    sp = SentencePiece
    kinds = {sp.NORMAL: NORMAL, sp.UNKNOWN: SPECIAL, sp.CONTROL: SPECIAL, sp.USER: ADDED,
             sp.BYTE: BYTE}
    out, flags, unk = [], {}, -1
    for i, (name, _, kind) in enumerate(pieces):
        if not isinstance(kind, int) or kind not in kinds:
            raise UserError(f"{where}: piece {i} {name!r} has the type {kind}, which is not "
                            "supported (normal, unknown, control, user-defined and byte are)")
        out.append((name.replace(MARK, " ") if kind == sp.USER else name, kinds[kind]))
        if kinds[kind] in (SPECIAL, ADDED):
            flags[i] = AS_IS * (kind == sp.USER)
        if kind == sp.UNKNOWN:
            unk = i
    return out, flags, unk


def spm_vocab(where, config, settings, vocab_size):
    m = SentencePiece(where)
    if m.kind != "BPE":
        raise UserError(f"{where}: a SentencePiece model of kind {m.kind} is not supported under "
                        "this name (BPE is, and Unigram as XLM-R's sentencepiece.bpe.model)")
    if m.charsmap or m.squeeze or not m.escape:
        raise UserError(f"{where}: a SentencePiece BPE model that normalises text is not supported "
                        "(normalization identity with remove_extra_whitespaces false is)")
    pieces, flags, unk = spm_tables(m.pieces, vocab_size, where)
    names = [name for name, _ in pieces]
    scores = [score for _, score, _ in m.pieces]
    add_side_tokens(names, pieces, flags, {i: a for i, a in side_tokens(where, settings).items()
                                           if i >= len(names)})
    texts, types = marked_tables(pieces, vocab_size, where)
    prefix = PREFIX_NONE if not m.dummy_prefix else \
        PREFIX_FIRST if settings.get("legacy") is False else PREFIX_EVERY
    v = Vocab(CHARS, texts, types, sorted(flags.items()), names=names, prefix=prefix, unk=unk,
              strip=int(m.dummy_prefix), scores=scores + [0.0] * (vocab_size - len(scores)))
    bos = token_text(settings.get("bos_token")) or "<s>"
    return v, [bos] if settings.get("add_bos_token", True) else []


def xlmr_vocab(where, config, settings, vocab_size):
    """XLM-R: <s>, <pad>, </s>, <unk>, the model's pieces from the fourth on, <mask>"""
    m = SentencePiece(where)
    if m.kind != "Unigram":
        raise UserError(f"{where}: a SentencePiece model of kind {m.kind} is not supported under "
                        "this name (Unigram is)")
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(s, 0.0) for s in first] + [(s, score) for s, score, _ in m.pieces[3:]]
    pieces.append(("<mask>", 0.0))
    added = {i: {"content": s, "special": True} for i, s in enumerate(first)}
    added[len(pieces) - 1] = {"content": "<mask>", "special": True, "lstrip": True}
    added |= side_tokens(where, settings)
    texts, types, scores = unigram_tables(pieces, added, vocab_size, where)
    names = [name for name, _ in pieces] + [None] * (max(added) + 1 - len(pieces))
    for i, a in added.items():
        names[i] = a["content"]
    v = Vocab(UNIGRAM, texts, types, [(i, added_flags(a)) for i, a in sorted(added.items())],
              names=names, scores=scores, unk=3, words=1, charsmap=m.charsmap)
    return v, ["<s>"]


def tiktoken_vocab(where, lines, config, settings, vocab_size):
    """GLM-4's ranks: base64 and a number per line; the lowest rank merges first"""
    if config.get("model_type") not in ("chatglm", "glm") and \
            settings.get("tokenizer_class") != "ChatGLM4Tokenizer":
        raise UserError(f"{where}: tiktoken ranks do not say how text is split; they are read for "
                        "GLM-4 alone")
    texts, types = [b""] * vocab_size, [UNUSED] * vocab_size
    for n, line in enumerate(lines):
        try:
            text, rank = line.split()
            texts[int(rank)], types[int(rank)] = base64.b64decode(text, validate=True), NORMAL
        except (ValueError, IndexError, binascii.Error):
            raise UserError(f"{where}: line {n + 1} is not a token in base64 and a rank below "
                            f"{vocab_size}")
    added = side_tokens(where, settings)
    if not added:
        raise UserError(f"{where}: tokenizer_config.json has no added_tokens_decoder, which names "
                        "the special tokens")
    names = [t.decode("latin-1") if k == NORMAL else None for t, k in zip(texts, types)]
    for i, a in added.items():
        if not 0 <= i < vocab_size:
            raise UserError(f"{where}: special token {i} is outside the model's {vocab_size} rows")
        names[i], types[i] = a["content"], SPECIAL if a.get("special", True) else ADDED
        texts[i] = names[i].encode()
    v = Vocab(BYTES, texts, types, [(i, added_flags(a)) for i, a in sorted(added.items())],
              names=names, scores=[-float(i) for i in range(vocab_size)], regex=LLAMA3,
              ignore_merges=1)
    return v, ["[gMASK]", "<sop>"]


def bpe_vocab(path):
    """a byte-level BPE alone: the ranks of cl100k_base, or the directory of a tokenizer.json"""
    if os.path.isdir(path):
        j = read_json(os.path.join(path, "tokenizer.json"))
        vocab = j.get("model", {}).get("vocab")
        if not isinstance(vocab, dict) or not vocab:
            raise UserError(f"{path}: tokenizer.json has no vocabulary of a BPE")
        ids = [*vocab.values(), *(a["id"] for a in j.get("added_tokens", []))]
        return hf_vocab(path, {}, max(ids) + 1)
    ranks = {}
    with open(path, "rb") as f:
        for n, line in enumerate(f):
            try:
                text, rank = line.split()
                ranks[int(rank)] = base64.b64decode(text, validate=True)
            except (ValueError, binascii.Error):
                raise UserError(f"{path}: line {n + 1} is not a token in base64 and a rank")
    if not ranks or min(ranks) < 0 or max(ranks) > 1 << 24:
        raise UserError(f"{path}: holds no ranks of tokens")
    size = max(ranks) + 1
    texts = [ranks.get(i, b"") for i in range(size)]
    return Vocab(BYTES, texts, [NORMAL if t else UNUSED for t in texts], [],
                 scores=[-float(i) for i in range(size)], regex=LLAMA3, ignore_merges=1)


def model_vocab(where, config, settings, vocab_size):
    """tokenizer.model: tiktoken ranks are lines of text, SentencePiece models are not"""
    with open(where, "rb") as f:
        head = f.readline(1000)
        if not re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n", head):
            return spm_vocab(where, config, settings, vocab_size)
        f.seek(0)
        return tiktoken_vocab(where, f.read().split(b"\n")[:-1], config, settings, vocab_size)


# ---------------------------------------------------------------------------
# GGUF, random models

GGUF_NORMAL, GGUF_UNKNOWN, GGUF_CONTROL, GGUF_USER, GGUF_UNUSED, GGUF_BYTE = range(1, 7)


def gguf_spm(g, names, kinds, vocab_size):
    """tokenizer.ggml.model llama: SentencePiece BPE"""
    if g.get("tokenizer.ggml.remove_extra_whitespaces", False):
        raise UserError(f"{g.path}: tokenizer.ggml.remove_extra_whitespaces is set: not supported")
    to = {GGUF_NORMAL: NORMAL, GGUF_UNKNOWN: SPECIAL, GGUF_CONTROL: SPECIAL, GGUF_USER: ADDED,
          GGUF_UNUSED: UNUSED, GGUF_BYTE: BYTE}
    for name, kind in zip(names, kinds):
        if kind == GGUF_BYTE and not BYTE_PIECE.fullmatch(name):
            raise UserError(f"{g.path}: the token {name!r} is marked as a byte, but names none")
    texts, types = marked_tables([(name.replace(MARK, " ") if kind == GGUF_USER else name,
                                   to.get(kind, UNUSED)) for name, kind in zip(names, kinds)],
                                 vocab_size, g.path)
    scores = [float(x) for x in g.get("tokenizer.ggml.scores")]
    prefix = bool(g.get("tokenizer.ggml.add_space_prefix", True))
    unk = g.int("tokenizer.ggml.unknown_token_id", -1)
    added = [(i, AS_IS * (kind == GGUF_USER)) for i, kind in enumerate(kinds)
             if kind in (GGUF_UNKNOWN, GGUF_CONTROL, GGUF_USER)]
    return Vocab(CHARS, texts, types, added, unk=unk, strip=int(prefix),
                 prefix=PREFIX_EVERY if prefix else PREFIX_NONE, scores=scores + [0.0] * (vocab_size - len(scores)),
                 add_bos=int(g.get("tokenizer.ggml.add_bos_token", True)))


def gguf_bytes(g, names, kinds, vocab_size):
    """tokenizer.ggml.model gpt2: byte-level BPE"""
    name = g.get("tokenizer.ggml.pre")
    if name not in GGUF_PRE:
        raise UserError(f"{g.path}: tokenizer.ggml.pre '{name}' is not known "
                        f"({', '.join(GGUF_PRE)} are)")
    pre = GGUF_PRE[name]
    added = {i: kind == GGUF_CONTROL for i, kind in enumerate(kinds)
             if kind in (GGUF_CONTROL, GGUF_USER)}
    used = [None if kind == GGUF_UNUSED else name for name, kind in zip(names, kinds)]
    texts, types = token_tables(used, added, vocab_size, g.path)
    ids = {text: i for i, text in enumerate(names)}
    return Vocab(BYTES, texts, types, [(i, 0) for i in sorted(added)], regex=pre.regex,
                 merges=merge_table(g.get("tokenizer.ggml.merges"), ids, g.path), digits=pre.digits,
                 nfc=pre.nfc, ignore_merges=pre.ignore_merges,
                 add_bos=int(g.get("tokenizer.ggml.add_bos_token", bool(pre.add_bos))))


def gguf_vocab(g, vocab_size):
    readers = {"gpt2": gguf_bytes, "llama": gguf_spm}
    model = g.get("tokenizer.ggml.model")
    if model not in readers:
        raise UserError(f"{g.path}: tokenizer.ggml.model '{model}' is not supported (gpt2, that is "
                        "byte-level BPE, and llama, that is SentencePiece BPE, are)")
    names = g.get("tokenizer.ggml.tokens")
    kinds = g.get("tokenizer.ggml.token_type", [GGUF_NORMAL] * len(names))
    v = readers[model](g, names, kinds, vocab_size)
    v.bos = g.int("tokenizer.ggml.bos_token_id", -1)
    eos = [g.int(f"tokenizer.ggml.{key}_token_id", -1) for key in ("eos", "eot")]
    special = {f"{key}_token": names[i] for key, i in (("bos", v.bos), ("eos", eos[0]))
               if 0 <= i < len(names)}
    if v.bos < 0 and v.add_bos:     # GLM-4: no BOS, but two tokens in front of every text
        lead = [names.index(s) for s in ("[gMASK]", "<sop>") if s in names]
        v.add_bos, v.bos, v.bos_ids = int(len(lead) == 2), (lead or [-1])[0], lead or None
    v.chat = chat_or_none(g.get("tokenizer.chat_template", ""), special, g.path)
    if v.chat:      # the template's end of turn stops an answer, where it is a control token
        eos += [i for i, kind in enumerate(kinds) if kind == GGUF_CONTROL
                and v.chat["assistant_close"].startswith(names[i])]
    v.eos = unique(eos)
    return v


def random_vocab(vocab_size, where):
    if vocab_size < 256:
        raise UserError(f"{where}: vocab_size is {vocab_size}; a random model needs the 256 bytes")
    special = ["<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"][:vocab_size - 256]
    texts = [bytes([b]) for b in range(256)] + [s.encode() for s in special]
    empty = vocab_size - len(texts)
    chat = None
    if len(special) == 5:
        chat = {"prefix": "<bos>", "first_open": "<|user|>", "user_open": "<|user|>",
                "user_close": "<|end|>", "assistant_open": "<|assistant|>", "answer_open": "",
                "assistant_close": "<|end|>", "trim": 0}
    return Vocab(BYTES, texts + [b""] * empty,
                 [NORMAL] * 256 + [SPECIAL] * len(special) + [UNUSED] * empty,
                 [(256 + i, 0) for i in range(len(special))], merges=[],
                 add_bos=int(bool(special)), bos=256 if special else -1,
                 eos=([257] if len(special) > 1 else []) + ([260] if chat else []), chat=chat)


# ---------------------------------------------------------------------------
# Chat template -> pieces. The template is a program; conversations with marker words as contents
# are rendered and cut at the markers:
#   prefix first_open M user_close assistant_open answer_open M assistant_close user_open M ...
# assistant_open is what asks for an answer; answer_open is what a model then writes before it, and
# a template before an answer of the history (a line break, a space). first_open differs from
# user_open where the system text stands inside the first user turn. A template that is not of this
# form (a longer conversation rendered whole must equal the pieces put together) is refused with a
# warning, and the file has no chat.

ROLES = ("user", "assistant")
PIECES = ("prefix", "first_open", "user_open", "user_close", "assistant_open", "answer_open",
          "assistant_close")


class CannotCut(Exception):
    """the reason, to be read after 'the chat template'"""


def compile_template(template, special):
    need("jinja2")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise CannotCut(f"refused a plain conversation ({message})")
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
    env.globals["raise_exception"] = raise_exception
    # templates that print the day get the one Llama 3.1 uses: the file must not depend on today
    env.globals["strftime_now"] = datetime.date(2024, 7, 26).strftime
    compiled = env.from_string(template)

    def render(contents, header):
        """contents: user, assistant, user, ...; header: ask for the answer's opening"""
        messages = [{"role": ROLES[i % 2], "content": c} for i, c in enumerate(contents)]
        return compiled.render(messages=messages, add_generation_prompt=header, tools=None,
                               documents=None, **special)
    return render


def cut(text, *marks):
    """the stretches of text before, between and after the marks"""
    out = []
    for mark in marks:
        if text.count(mark) != 1:
            raise CannotCut(f"puts a message into the text {text.count(mark)} times")
        before, text = text.split(mark)
        out.append(before)
    return [*out, text]


def assemble(p, contents, header):
    text = p["prefix"]
    for i, c in enumerate(contents):
        c = c.strip() if p["trim"] else c
        if i % 2:
            text += p["assistant_open"] + p["answer_open"] + c + p["assistant_close"]
        else:
            text += p["user_open" if i else "first_open"] + c + p["user_close"]
    return text + (p["assistant_open"] if header else "")


def chat_pieces(template, special):
    render = compile_template(template, special)
    u, a, v = "Qazwsx", "Edcrfv", "Tgbyhn"
    head, user_close = cut(render([u], False), u)
    opened = cut(render([u], True), u)[1]
    _, history, assistant_close = cut(render([u, a], False), u, a)
    if not opened.startswith(user_close) or not history.startswith(opened):
        raise CannotCut("opens an answer of the history in another way than the answer it asks for")
    between = cut(render([u, a, v], False), u, a, v)[2]
    if not between.startswith(assistant_close):
        raise CannotCut("closes a last answer in its own way")
    user_open = between[len(assistant_close):]
    same = head.endswith(user_open)
    p = {"prefix": head[:len(head) - len(user_open)] if same else "",
         "first_open": user_open if same else head, "user_open": user_open,
         "user_close": user_close, "assistant_open": opened[len(user_close):],
         "answer_open": history[len(opened):], "assistant_close": assistant_close}
    loose = f" \n {u} \n "
    p["trim"] = int(loose not in render([loose, a, v], False))

    turns = ["What is 2 + 2?\nAnd why?", "4 because\nof counting.", f" {u} ", f"  {a}\n",
             "thanks <3", "x"]
    for n in range(1, len(turns) + 1):
        if render(turns[:n], False) != assemble(p, turns[:n], False):
            raise CannotCut(f"renders a conversation of {n} messages in its own way")
        if n % 2 and render(turns[:n], True) != assemble(p, turns[:n], True):
            raise CannotCut(f"opens the answer after {n} messages in its own way")
    return p


def chat_or_none(template, special, where):
    if not template:
        return None
    try:
        return chat_pieces(template, special)
    except UserError:
        raise
    except Exception as e:      # a template is a program: it may fail in any way
        reason = str(e) if isinstance(e, CannotCut) else f"fails ({e})"
        print(f"export.py: warning: {where}: the chat template {reason}; the file will have no "
              "chat template", file=sys.stderr)
        return None


# ---------------------------------------------------------------------------
# Records

KIND_PARAMS = {BYTES: "nfc digits ignore_merges", CHARS: "prefix strip ignore_merges unk",
               UNIGRAM: "words unk", WORDPIECE: "word_max unk"}


def vocab_records(v, where):
    """Vocab -> (params, [(name, array)]): the tok.* and chat.* records of a model file"""
    np = need("numpy")
    for i in (*v.eos, v.bos):
        if i >= len(v.texts):
            raise UserError(f"{where}: BOS or EOS id {i} is outside the vocabulary of "
                            f"{len(v.texts)}")
    own = {"unk_id" if key == "unk" else f"tok_{key}": getattr(v, key)
           for key in KIND_PARAMS[v.kind].split()}
    params = {"tok_kind": v.kind, **own, "tok_add_bos": v.add_bos, "bos_id": v.bos,
              "chat_present": int(v.chat is not None), "chat_trim": v.chat["trim"] if v.chat else 0}

    def text(s):
        return np.frombuffer(s.encode() or b"\0", np.uint8)
    offsets = np.zeros(len(v.texts) + 1, np.int32)
    offsets[1:] = np.cumsum([len(t) for t in v.texts])
    tables = [("tok.bytes", np.frombuffer(b"".join(v.texts), np.uint8)),
              ("tok.offsets", offsets),
              ("tok.types", np.array(v.types, np.uint8))]
    if v.merges is not None:
        tables.append(("tok.merges", np.array(v.merges or [(-1, -1, -1)], np.int32)))
    if v.scores is not None:        # doubles, each as two halves
        tables.append(("tok.scores", np.array(v.scores, np.float64).view(np.int32).reshape(-1, 2)))
    if v.kind == BYTES:
        tables.append(("tok.regex", text(v.regex)))
    if v.charsmap:
        tables.append(("tok.charsmap", np.frombuffer(v.charsmap, np.uint8)))
    tables += [("tok.added", np.array(v.added or [(-1, -1)], np.int32)),
               ("tok.eos", np.array(v.eos or [-1], np.int32))]
    if v.bos_ids:
        tables.append(("tok.bos", np.array(v.bos_ids, np.int32)))
    for piece in PIECES:
        p = v.chat[piece] if v.chat else ""
        usual = {"first_open": v.chat["user_open"] if v.chat else "", "answer_open": ""}.get(piece)
        if p != usual:
            tables.append((f"chat.{piece}", text(p)))
    return params, tables
