#!/usr/bin/env python3
"""export.py's readers of tokenizers: the sources in data/tokenizer give their vocab.bin again; what
cannot be read is refused in a sentence that names it, and leaves no file."""
import base64
import contextlib
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import unittest

import gguf

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import export                                       # noqa: E402
from binreader import read_bin                      # noqa: E402

DATA = os.path.join(ROOT, "data", "tokenizer")
CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64,
          "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "vocab_size": 2000}


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def proto(*fields):
    """(number, int, float or bytes) ... -> a protocol buffer"""
    out = b""
    for number, v in fields:
        if isinstance(v, int):
            out += varint(number << 3) + varint(v)
        elif isinstance(v, float):
            out += varint(number << 3 | 5) + struct.pack("<f", v)
        else:
            out += varint(number << 3 | 2) + varint(len(v)) + v
    return out


def spm(pieces, kind=2, **norm):
    """[(string, score, type)] -> a SentencePiece model"""
    norm = {"dummy": 1, "squeeze": 0, "charsmap": b"", **norm}
    return (b"".join(proto((1, proto((1, s.encode()), (2, float(score)), (3, t))))
                     for s, score, t in pieces)
            + proto((2, proto((3, kind))), (3, proto((2, norm["charsmap"]), (3, norm["dummy"]),
                                                     (4, norm["squeeze"])))))


PIECES = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("<0x41>", 0, 6), (",", 0, 4),
          ("\u2581\u2581", 0, 4), ("\u2581a", -1, 1), ("\u2581", -2, 1), ("a", -3, 1)]


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="scb_tok.")
        self.out = os.path.join(self.dir, "out.bin")

    def tearDown(self):
        shutil.rmtree(self.dir)

    def source(self, files, family=None, **config):
        """a directory of data/tokenizer with some files (bytes, or what JSON they hold) replaced"""
        path = os.path.join(self.dir, "hf")
        shutil.rmtree(path, ignore_errors=True)
        if family:
            shutil.copytree(os.path.join(DATA, family), path)
        os.makedirs(path, exist_ok=True)
        for name, data in {"config.json": {**CONFIG, **config}, **files}.items():
            with open(os.path.join(path, name), "wb") as f:
                f.write(data if isinstance(data, bytes) else json.dumps(data).encode())
        return path

    def run_export(self, path):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            rc = export.main([path, self.out, "--vocab-only"])
        return rc, err.getvalue()

    def good(self, path):
        rc, said = self.run_export(path)
        self.assertEqual((rc, said), (0, ""))
        return read_bin(self.out)[:2]

    def bad(self, pattern, path):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.out)
        rc, said = self.run_export(path)
        self.assertEqual(rc, 1, said)
        self.assertRegex(said, pattern)
        self.assertEqual(said.count("\n"), 1, said)
        self.assertFalse(os.path.exists(self.out) or os.path.exists(self.out + ".tmp"))


class Sources(Case):
    def test_committed(self):
        """what is in data/tokenizer, byte for byte; vocab_size is the file's"""
        for family in sorted(os.listdir(DATA)):
            have = os.path.join(DATA, family, "vocab.bin")
            size = len(read_bin(have)[1]["tok.types"])
            self.good(self.source({}, family, vocab_size=size))
            with open(have, "rb") as a, open(self.out, "rb") as b:
                self.assertEqual(a.read(), b.read(), family)

    def test_spm(self):
        params, t = self.good(self.source({"tokenizer.model": spm(PIECES)}))
        at, raw = t["tok.offsets"], t["tok.bytes"].tobytes()
        self.assertEqual([raw[at[i]:at[i + 1]] for i in range(9)],
                         [b"<unk>", b"<s>", b"</s>", b"A", b",", b"  ", b" a", b" ", b"a"])
        self.assertEqual(t["tok.types"][:10].tolist(), [1, 1, 1, 4, 2, 2, 0, 0, 0, 3])
        self.assertEqual(t["tok.added"].tolist(), [[0, 0], [1, 0], [2, 0], [4, 16], [5, 16]])
        self.assertEqual(t["tok.scores"].view("<f8")[:9, 0].tolist(), [0, 0, 0, 0, 0, 0, -1, -2, -3])
        self.assertEqual({k: params[k] for k in ("tok_kind", "tok_prefix", "tok_strip", "unk_id")},
                         {"tok_kind": 2, "tok_prefix": 1, "tok_strip": 1, "unk_id": 0})
        files = {"tokenizer.model": spm(PIECES), "tokenizer_config.json": {
            "legacy": False, "bos_token": "<s>", "eos_token": {"content": "</s>"},
            "added_tokens_decoder": {"9": {"content": "[X]", "special": True, "lstrip": True},
                                     "4": {"content": ",", "special": False}}}}
        params, t = self.good(self.source(files))
        self.assertEqual((params["tok_prefix"], params["bos_id"], params["tok_add_bos"]), (3, 1, 1))
        self.assertEqual((t["tok.added"].tolist()[-1], t["tok.eos"].tolist()), ([9, 1], [2]))
        params, _ = self.good(self.source({"tokenizer.model.v3": spm(PIECES, dummy=0)}))
        self.assertEqual((params["tok_prefix"], params["tok_strip"]), (0, 0))

    def test_vocab_txt(self):
        lines = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n\u4e16\n".encode()
        cased = {"do_lower_case": False}
        params, t = self.good(self.source({"vocab.txt": lines, "tokenizer_config.json": cased}))
        self.assertEqual((params["tok_kind"], params["unk_id"], params["bos_id"], params["tok_word_max"]),
                         (4, 1, 2, 100))
        self.assertEqual(t["tok.types"][:9].tolist(), [1, 1, 1, 1, 1, 0, 0, 0, 3])
        self.bad("do_lower_case", self.source({"vocab.txt": lines}))
        self.bad(r"\[UNK\]", self.source({"vocab.txt": b"a\nb\n", "tokenizer_config.json": cased}))

    def test_glm(self):
        params, t = self.good(self.source({}, "glm4"))
        with open(os.path.join(DATA, "glm4", "tokenizer_config.json")) as f:
            added = json.load(f)["added_tokens_decoder"]
        names = {a["content"]: int(i) for i, a in added.items()}
        self.assertEqual(t["tok.bos"].tolist(), [names["[gMASK]"], names["<sop>"]])
        self.assertEqual((params["tok_add_bos"], params["tok_ignore_merges"]), (1, 1))

    def test_gguf(self):
        w = gguf.GGUFWriter(os.path.join(self.dir, "m.gguf"), "llama")
        for key, v in {"context_length": 64, "embedding_length": 64, "block_count": 1,
                       "feed_forward_length": 64, "attention.head_count": 1}.items():
            w.add_uint32(f"llama.{key}", v)
        w.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        w.add_string("tokenizer.ggml.model", "llama")
        w.add_token_list([s for s, _, _ in PIECES])
        w.add_token_scores([float(s) for _, s, _ in PIECES])
        w.add_token_types([t for _, _, t in PIECES])
        w.add_uint32("tokenizer.ggml.bos_token_id", 1)
        w.add_uint32("tokenizer.ggml.eos_token_id", 2)
        w.add_uint32("tokenizer.ggml.unknown_token_id", 0)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.close()
        params, t = self.good(os.path.join(self.dir, "m.gguf"))
        params2, t2 = self.good(self.source({"tokenizer.model": spm(PIECES), "tokenizer_config.json": {
            "bos_token": "<s>", "eos_token": "</s>"}}, vocab_size=9))
        self.assertEqual(params, params2)
        self.assertEqual({k: v.tolist() for k, v in t.items()}, {k: v.tolist() for k, v in t2.items()})


class Refused(Case):
    def test_nothing(self):
        self.bad("there is no tokenizer .*vocab.txt", self.source({}))

    def test_json(self):
        def change(family, **change):
            with open(os.path.join(DATA, family, "tokenizer.json"), encoding="utf-8") as f:
                j = json.load(f)
            for key, v in change.items():
                if key in j["model"]:
                    j["model"][key] = v
                else:
                    j[key] = v
            return self.source({"tokenizer.json": j}, family)
        metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"}
        for pattern, family, changes in (
                ("model type 'Words'", "llama2", dict(type="Words")),
                ("normalizer .*Lowercase", "llama2", dict(normalizer={"type": "Lowercase"})),
                ("split.*false", "mistral", dict(pre_tokenizer={**metaspace, "split": True})),
                ("replacement", "mistral", dict(pre_tokenizer={**metaspace, "replacement": "_"})),
                ("decoder .*WordPiece", "llama2", dict(decoder={"type": "WordPiece"})),
                ("merge 0", "llama2", dict(merges=[["q", "\u4e16\u4e17"]])),
                ("end_of_word_suffix", "llama2", dict(end_of_word_suffix="</w>")),
                ("byte_fallback", "xlm-r-2", dict(byte_fallback=True)),
                ("unk_id is 9999", "xlm-r-2", dict(unk_id=9999)),
                ("base64", "xlm-r-2", dict(normalizer={"type": "Precompiled",
                                                         "precompiled_charsmap": "*"})),
                ("normalizer .*NFKC", "xlm-r-2", dict(normalizer={"type": "NFKC"})),
                ("pre_tokenizer .*Whitespace\"", "xlm-r-2", dict(pre_tokenizer={"type": "Whitespace"})),
                ("normalizer .*lowercase", "mbert", dict(normalizer={
                    "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                    "lowercase": True})),
                ("pre_tokenizer .*Digits", "mbert", dict(pre_tokenizer={"type": "Digits"})),
                ("unknown token '.NO.'", "mbert", dict(unk_token="[NO]")),
                ("model.vocab", "mbert", dict(vocab=[]))):
            self.bad("tokenizer.json: .*" + pattern, change(family, **changes))

    def test_spm(self):
        whole = spm(PIECES)
        for pattern, data in (
                ("breaks off at byte", whole[:-3]), ("it has no pieces", b""),
                ("breaks off", b"\xff" * 40), ("normalises text", spm(PIECES, charsmap=b"12345678")),
                ("remove_extra_whitespaces", spm(PIECES, squeeze=1)),
                ("kind Unigram", spm(PIECES, kind=1)),
                ("piece 9 is damaged: b'b'", spm([*PIECES, ("b", -4, 6)])),
                ("piece 9 'b' has the type 5", spm([*PIECES, ("b", -4, 5)])),
                ("2001 tokens", spm(PIECES + [(f"a{i}", -i, 1) for i in range(1992)]))):
            self.bad("tokenizer.model: .*" + pattern, self.source({"tokenizer.model": data}))
        self.bad("sentencepiece.bpe.model: .*kind BPE",
                 self.source({"sentencepiece.bpe.model": whole}))

    def test_ranks(self):
        good = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))
        glm = {"tokenizer_class": "ChatGLM4Tokenizer"}
        added = {**glm, "added_tokens_decoder": {"256": {"content": "[gMASK]"}}}
        for pattern, data, settings in (
                ("GLM-4 alone", good, {}), ("added_tokens_decoder", good, glm),
                ("line 257 ", good + b"YQ== x\n", added), ("line 257 ", good + b"YQ== 2000\n", added),
                ("line 257 ", good + b"Y*Q= 7\n", added),
                ("token 2000 is outside", good, {**glm, "added_tokens_decoder": {
                    "2000": {"content": "x"}}})):
            self.bad("tokenizer.model: .*" + pattern, self.source({
                "tokenizer.model": data, "tokenizer_config.json": settings}))

    def test_any_bytes(self):
        """any bytes in place of a model: a sentence, or a vocabulary"""
        whole = spm(PIECES)
        for i in range(0, len(whole), 3):
            data = whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1:]
            rc, said = self.run_export(self.source({"tokenizer.model": data}))
            self.assertTrue(rc == 0 or "tokenizer.model: " in said, said)


if __name__ == "__main__":
    unittest.main()
