"""export_tok.py - tokenizers and chat templates: what a model file says about text (tok.*, chat.*).

Used by export.py. A source's tokenizer becomes a Vocab, a Vocab becomes records; tokenizer.c reads
them.
"""
import collections
import datetime
import json
import os
import sys

NORMAL, SPECIAL, ADDED, UNUSED = range(4)               # tok.types
LSTRIP, RSTRIP, SINGLE_WORD, NORMALIZED = 1, 2, 4, 8    # tok.added flags


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
# Tokenizers: byte-level BPE

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
Pre = collections.namedtuple("Pre", "regex digits nfc ignore_merges add_bos")
GGUF_PRE = {        # tokenizer.ggml.pre -> rules; add_bos where the file does not say
    "gpt-2": Pre(GPT2, 0, 0, 0, 0),
    "smollm": Pre(GPT2, 1, 0, 0, 0),
    "llama-bpe": Pre(LLAMA3, 0, 0, 1, 1),
    "qwen2": Pre(LLAMA3.replace("{1,3}", ""), 0, 1, 0, 0),
}

# regex "": none; bos -1: none; added [(id, flags)]; chat None or {piece: text} with "trim"
Vocab = collections.namedtuple(
    "Vocab", "texts types merges added regex digits nfc ignore_merges add_bos bos eos chat")


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


def hf_add_bos(j, bos_text):
    """does the post processor put BOS in front of one text?"""
    for step in parts(j, "processors"):
        if step.get("type") == "TemplateProcessing":
            first = (step.get("single") or [{}])[0].get("SpecialToken", {}).get("id")
            return int(first is not None and first == bos_text)
    return 0


def token_text(v):
    return v.get("content") if isinstance(v, dict) else v


def hf_vocab(path, config, vocab_size):
    where = os.path.join(path, "tokenizer.json")
    if not os.path.exists(where):
        raise UserError(f"{path}: tokenizer.json is missing (SentencePiece tokenizer.model files "
                        "are not read)")
    j = read_json(where)
    model = j.get("model", {})
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{where}: model type {model.get('type')} is not supported (byte-level BPE "
                        "is)")
    for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"{where}: model.{key} is set: only byte-level BPE is supported")
    norms = [n.get("type") for n in parts(j.get("normalizer"), "normalizers")]
    if norms not in ([], ["NFC"]):
        raise UserError(f"{where}: normalizer {norms} is not supported (none and NFC are)")

    ids = model["vocab"]
    added = {a["id"]: a for a in j.get("added_tokens", [])}
    names = [None] * (max([*ids.values(), *added]) + 1)
    for text, i in ids.items():
        names[i] = text
    for i, a in added.items():
        names[i] = a["content"]
    texts, types = token_tables(names, {i: a.get("special") for i, a in added.items()}, vocab_size,
                                where)
    flags = [(i, LSTRIP * bool(a.get("lstrip")) | RSTRIP * bool(a.get("rstrip")) |
              SINGLE_WORD * bool(a.get("single_word")) | NORMALIZED * bool(a.get("normalized")))
             for i, a in sorted(added.items())]

    def optional(name):
        file = os.path.join(path, name)
        return read_json(file) if os.path.exists(file) else {}
    settings, generation = optional("tokenizer_config.json"), optional("generation_config.json")
    by_text = {name: i for i, name in enumerate(names) if name is not None}
    bos_text, eos_text = (token_text(settings.get(k)) for k in ("bos_token", "eos_token"))
    if settings:
        bos = by_text.get(bos_text, -1)
    else:
        bos = config.get("bos_token_id")
        bos = -1 if bos is None else bos
        bos_text = names[bos] if 0 <= bos < len(names) else None
    eos = unique([*as_list(generation.get("eos_token_id")), *as_list(config.get("eos_token_id")),
                  by_text.get(eos_text)])
    regex, digits = hf_pre_tokenizer(j.get("pre_tokenizer"), where)

    template, source = settings.get("chat_template"), os.path.join(path, "tokenizer_config.json")
    if os.path.exists(os.path.join(path, "chat_template.jinja")):
        source = os.path.join(path, "chat_template.jinja")
        with open(source, encoding="utf-8") as f:
            template = f.read()
    if isinstance(template, list):
        template = {t["name"]: t["template"] for t in template}.get("default")
    special = {k: token_text(v) for k, v in settings.items() if k.endswith("_token")}
    special = {k: v for k, v in special.items() if v}
    return Vocab(texts=texts, types=types, merges=merge_table(model.get("merges", []), ids, where),
                 added=flags, regex=regex, digits=digits, nfc=int(norms == ["NFC"]),
                 ignore_merges=int(bool(model.get("ignore_merges"))),
                 add_bos=hf_add_bos(j.get("post_processor"), bos_text), bos=bos, eos=eos,
                 chat=chat_or_none(template, special, source))


def gguf_vocab(g, vocab_size):
    if g.get("tokenizer.ggml.model") != "gpt2":
        raise UserError(f"{g.path}: tokenizer.ggml.model '{g.get('tokenizer.ggml.model')}' is not "
                        "supported (gpt2, that is byte-level BPE, is)")
    name = g.get("tokenizer.ggml.pre")
    if name not in GGUF_PRE:
        raise UserError(f"{g.path}: tokenizer.ggml.pre '{name}' is not known "
                        f"({', '.join(GGUF_PRE)} are)")
    pre, names = GGUF_PRE[name], g.get("tokenizer.ggml.tokens")
    kinds = g.get("tokenizer.ggml.token_type", [1] * len(names))
    control, user, unused = 3, 4, 5         # GGUF's token types; 1 normal
    added = {i: kind == control for i, kind in enumerate(kinds) if kind in (control, user)}
    used = [None if kind == unused else name for name, kind in zip(names, kinds)]
    texts, types = token_tables(used, added, vocab_size, g.path)
    bos = g.int("tokenizer.ggml.bos_token_id", -1)
    eos = [g.int(f"tokenizer.ggml.{key}_token_id", -1) for key in ("eos", "eot")]
    special = {f"{key}_token": names[i] for key, i in (("bos", bos), ("eos", eos[0]))
               if 0 <= i < len(names)}
    chat = chat_or_none(g.get("tokenizer.chat_template", ""), special, g.path)
    if chat:        # the template's end of turn stops an answer, where it is a control token
        eos += [i for i, is_control in added.items()
                if is_control and chat["assistant_close"].startswith(names[i])]
    ids = {text: i for i, text in enumerate(names)}
    return Vocab(texts=texts, types=types, added=[(i, 0) for i in sorted(added)],
                 merges=merge_table(g.get("tokenizer.ggml.merges"), ids, g.path), regex=pre.regex,
                 digits=pre.digits, nfc=pre.nfc, ignore_merges=pre.ignore_merges,
                 add_bos=int(g.get("tokenizer.ggml.add_bos_token", bool(pre.add_bos))), bos=bos,
                 eos=unique(eos), chat=chat)


def random_vocab(vocab_size, where):
    if vocab_size < 256:
        raise UserError(f"{where}: vocab_size is {vocab_size}; a random model needs the 256 bytes")
    special = ["<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"][:vocab_size - 256]
    texts = [bytes([b]) for b in range(256)] + [s.encode() for s in special]
    empty = vocab_size - len(texts)
    chat = None
    if len(special) == 5:
        chat = {"prefix": "<bos>", "user_open": "<|user|>", "user_close": "<|end|>",
                "assistant_open": "<|assistant|>", "assistant_close": "<|end|>", "trim": 0}
    return Vocab(texts=texts + [b""] * empty,
                 types=[NORMAL] * 256 + [SPECIAL] * len(special) + [UNUSED] * empty, merges=[],
                 added=[(256 + i, 0) for i in range(len(special))], regex="", digits=0, nfc=0,
                 ignore_merges=0, add_bos=int(bool(special)), bos=256 if special else -1,
                 eos=([257] if len(special) > 1 else []) + ([260] if chat else []), chat=chat)


# ---------------------------------------------------------------------------
# Chat template -> pieces. The template is a program; conversations with marker words as contents
# are rendered and cut at the markers:
#   prefix user_open M user_close assistant_open M assistant_close user_open M user_close ...
# A template that is not of this form (a longer conversation rendered whole must equal the pieces
# put together) is refused with a warning, and the file has no chat.

ROLES = ("user", "assistant")


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
        who = ROLES[i % 2]
        text += p[who + "_open"] + (c.strip() if p["trim"] else c) + p[who + "_close"]
    return text + (p["assistant_open"] if header else "")


def chat_pieces(template, special):
    render = compile_template(template, special)
    u, a, v = "Qazwsx", "Edcrfv", "Tgbyhn"
    head, user_close = cut(render([u], False), u)
    opened = cut(render([u], True), u)[1]
    if not opened.startswith(user_close):
        raise CannotCut("does not simply append the answer's header")
    assistant_close = cut(render([u, a], False), u, a)[2]
    between = cut(render([u, a, v], False), u, a, v)[2]
    user_open = between[len(assistant_close):]
    if not between.startswith(assistant_close) or not head.endswith(user_open):
        raise CannotCut("opens its first and later turns differently")
    p = {"prefix": head[:len(head) - len(user_open)], "user_open": user_open,
         "user_close": user_close, "assistant_open": opened[len(user_close):],
         "assistant_close": assistant_close}
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

def vocab_records(v, where):
    """Vocab -> (params, [(name, array)]): the tok.* and chat.* records of a model file"""
    np = need("numpy")
    for i in (*v.eos, v.bos):
        if i >= len(v.texts):
            raise UserError(f"{where}: BOS or EOS id {i} is outside the vocabulary of "
                            f"{len(v.texts)}")
    params = {"tok_kind": 1, "tok_nfc": v.nfc, "tok_digits": v.digits,
              "tok_ignore_merges": v.ignore_merges, "tok_add_bos": v.add_bos, "bos_id": v.bos,
              "chat_present": int(v.chat is not None), "chat_trim": v.chat["trim"] if v.chat else 0}

    def text(s):
        return np.frombuffer(s.encode() or b"\0", np.uint8)
    offsets = np.zeros(len(v.texts) + 1, np.int32)
    offsets[1:] = np.cumsum([len(t) for t in v.texts])
    tables = [("tok.bytes", np.frombuffer(b"".join(v.texts), np.uint8)),
              ("tok.offsets", offsets),
              ("tok.types", np.array(v.types, np.uint8)),
              ("tok.merges", np.array(v.merges or [(-1, -1, -1)], np.int32)),
              ("tok.regex", text(v.regex)),
              ("tok.added", np.array(v.added or [(-1, -1)], np.int32)),
              ("tok.eos", np.array(v.eos or [-1], np.int32))]
    for piece in ("prefix", "user_open", "user_close", "assistant_open", "assistant_close"):
        tables.append((f"chat.{piece}", text(v.chat[piece] if v.chat else "")))
    return params, tables
