#!/usr/bin/env python3
"""make_lingua_vectors.py DIR: the vectors of test_lingua.c in data/lingua.

Needs torch, transformers, tokenizers, tiktoken's cl100k_base in its cache (the package asks for it
before it can be replaced) and llmlingua 0.2.2. Trains two small tokenizers of the encoders' kinds
and one byte-level BPE that weighs words, makes random encoders of the two architectures, exports
them with export.py, and lets the package compress texts with them.
"""
import json
import os
import random
import subprocess
import sys

import llmlingua
import torch
from tokenizers import (Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)
from transformers import (BertConfig, BertForTokenClassification, PreTrainedTokenizerFast,
                          XLMRobertaConfig, XLMRobertaForTokenClassification)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "data", "lingua")
WORDS = ("the a of to in and is was with for on that by it as at from key value cache token model "
         "river bridge harbour lantern winter summer meeting budget road school 12 407 2024 3.5 "
         "opened closed repaired carried found lost reads writes keeps drops compress "
         "attention").split()
MARKS = [".", ",", "?", "!", ":", ";", "()", "=>", "-", "\n", "\n\n", "\u3002", "\uff0c", "%", "#"]
CHINESE = "河流桥梁会议预算学校缓存模型压缩"


def sentence(r, n):
    out = []
    for _ in range(n):
        w = r.choice(WORDS)
        if r.random() < 0.15:
            w = "".join(r.sample(CHINESE, 3))
        if r.random() < 0.1:
            w = w.capitalize()
        if r.random() < 0.05:
            w = f"{r.getrandbits(32):08x}"
        out.append(w + (r.choice(MARKS) if r.random() < 0.25 else ""))
    return " ".join(out)


def texts(seed, n, most):
    r = random.Random(seed)
    return [sentence(r, r.randrange(1, most)) for _ in range(n)]


def train(kind):
    corpus = texts(1, 400, 120)
    if kind == "weights":
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r" ?[^\s]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(corpus, trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    elif kind == "xlm":
        t = Tokenizer(models.Unigram())
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                                   pre_tokenizers.Metaspace()])
        t.decoder = decoders.Metaspace()
        t.train_from_iterator(corpus, trainers.UnigramTrainer(
            vocab_size=260, unk_token="<unk>",
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"]))
        t.add_special_tokens(["<mask>"])
        t.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    else:
        t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        t.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        t.decoder = decoders.WordPiece()
        t.train_from_iterator(corpus, trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
        t.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return t


def encoder(kind, at, tokenizer, seed):
    torch.manual_seed(seed)
    n = tokenizer.get_vocab_size() + 100
    size = dict(vocab_size=n, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
                intermediate_size=80, num_labels=2)
    if kind == "xlm":
        special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
                       mask_token="<mask>")
        model = XLMRobertaForTokenClassification(XLMRobertaConfig(
            **size, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
            pad_token_id=1, bos_token_id=0, eos_token_id=2))
    else:
        special = dict(cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]",
                       mask_token="[MASK]")
        model = BertForTokenClassification(BertConfig(
            **size, max_position_embeddings=512, type_vocab_size=2, pad_token_id=0))
    with torch.no_grad():           # probabilities that differ, nothing at its default
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
            else:
                p.mul_(4.0)
        model.classifier.weight.mul_(10.0)
    os.makedirs(at, exist_ok=True)
    model.save_pretrained(at)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(at)


class Weigher:
    def __init__(self, t):
        self.t = t

    def encode(self, text):
        return self.t.encode(text, add_special_tokens=False).ids


OPTIONS = [
    {"rate": 1 / 3, "force_tokens": ["\n", "?"]},
    {"rate": 0.33, "force_tokens": ["\n", "?", "!", "."]},
    {"rate": 0.5, "force_tokens": []},
    {"rate": 0.5, "force_tokens": ["\n", ".", "key"], "drop_consecutive": True},
    {"rate": 0.25, "force_tokens": ["\n", "?"], "force_reserve_digit": True},
    {"rate": 0.7, "force_tokens": ["\n", "the cache"], "token_to_word": "first"},
    {"target_token": 20, "force_tokens": ["\n", "?"]},
]


def rows(kind, at, weigher):
    c = llmlingua.PromptCompressor(at, device_map="cpu", use_llmlingua2=True)
    c.oai_tokenizer = Weigher(weigher)
    for i, text in enumerate(texts(7, 240, 60) + texts(8, 20, 900)):
        o = dict(OPTIONS[i % len(OPTIONS)])
        c.max_seq_len = 32 if i % 3 == 1 else 512
        context = [text]
        if i % 11 == 5:
            context += texts(100 + i, 2, 40)
        try:
            r = c.compress_prompt(context, use_context_level_filter=True, return_word_label=True,
                                  **o)
        except IndexError:          # a sequence of nothing but specials
            continue
        labels = [x.rsplit(" ", 1) for x in r["fn_labeled_original_prompt"].split("\t\t|\t\t")]
        yield {"context": context, "options": o, "sequence": c.max_seq_len,
               "text": r["compressed_prompt"], "before": r["origin_tokens"],
               "after": r["compressed_tokens"], "kept": "".join(x[-1] for x in labels)}
    tok = c.tokenizer
    for text in texts(9, 3, 300):
        unk = tok.unk_token_id if kind == "xlm" else tok.cls_token_id
        end = tok.unk_token_id if kind == "xlm" else tok.sep_token_id
        ids = [unk] + tok.encode(text, add_special_tokens=False)[:510] + [end]
        with torch.no_grad():
            p = c.model(torch.tensor([ids])).logits.softmax(-1)[0, :, 1]
        yield {"ids": ids, "p": [round(float(x), 7) for x in p]}


def main():
    work = sys.argv[1]
    os.makedirs(OUT, exist_ok=True)
    weigher = train("weights")
    os.makedirs(f"{work}/weights", exist_ok=True)
    weigher.save(f"{work}/weights/tokenizer.json")
    for kind, name in (("xlm", "xlm-roberta-large"), ("bert", "bert-base-multilingual-cased")):
        at = f"{work}/tiny-{name}"
        encoder(kind, at, train(kind), 3)
        subprocess.run([sys.executable, f"{ROOT}/export.py", at, f"{OUT}/{kind}.bin",
                        "--weights-bpe", f"{work}/weights"], check=True)
        with open(f"{OUT}/{kind}.jsonl", "w") as f:
            for row in rows(kind, at, weigher):
                f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
