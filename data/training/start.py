"""start.py - the circuits that the small models in data/ begin with: start_llama, start_jamba,
start_mamba2 set the matrices of a model of train.py, and every one takes (model, its configuration,
a function from the text of a token to its id)."""
import math

import torch
import torch.nn.functional as F
from torch import nn


# ---------------------------------------------------------------------------
# Start. The residual stream begins as STRIPS strips of WIDE dimensions, each for the code of one
# token, and FLAGS single dimensions. Strip S is the token itself, B + n - 1 the one n before it,
# OUT what comes next. LINE: first letters of the name this line begins with, or what is 20 to 22
# back at the end of a string; PLAN: second and third letter of the name to be said; ASKED: two
# tokens of the question. Heads begin as the ones that fill the strips and that find, by them, the
# place where the answer stands: they look a fixed distance back, by biases that rotation aligns
# there, or for the place whose strips are those of here, in dimensions that rotation leaves alone
# over thousands of tokens, or for a flag. A head that finds nothing looks at the first token, which
# gives nothing.

WIDE, STRIPS, FLAGS = 17, 16, 16
S, B, LINE, OUT, PLAN, ASKED = 0, 1, 7, 10, 11, 13
(BOS, BE, LINE_END, ANSWER, COMMA, STRING_END,
 PAIR, TOP, LOW, DIGIT, LOW_DIGIT,              # of two digits: 1, up to 1 from 90 to 99, down to 0
 PAIR2, TOP2, LOW1, DIGIT1, LOW_DIGIT1) = range(16)     # of what stood two tokens or one back
CODE, FLAG = 4.0, 3.0           # length of a code, height of a flag
RMS = (0.25, 0.66, 0.70, 0.72)  # of the stream before the layers, about
BACK = 12.0                     # length of the biases that look back
SCALE = 1600.0                  # of a key that stands for a number
VALUE_ASKED, STRING_ASKED, SUFFIX_ASKED, KIND_ASKED, SIXTH = 30, 30, 21, 7, 20     # tokens back


def strip(i):
    return slice(i * WIDE, (i + 1) * WIDE)


def spread_codes(ids, n, wide, rounds=400):
    """(n, wide) unit vectors, those of ids far from one another and from their opposites"""
    code = F.normalize(torch.randn(n, wide), dim=1)
    x = code[ids].clone().requires_grad_()
    step = torch.optim.Adam([x], lr=0.02)
    with torch.enable_grad():
        for _ in range(rounds):
            y = F.normalize(x, dim=1)
            near = (y @ y.T).abs() - 2 * torch.eye(len(ids))
            loss = torch.logsumexp(12 * near, 1).mean()
            step.zero_grad()
            loss.backward()
            step.step()
    code[ids] = F.normalize(x.detach(), dim=1)
    return code


ENDS = ['", "', '"}', '"]', '"', ' be']     # what follows in the context where an answer ends


@torch.no_grad()
def spell(n, wide, token):
    """(ids of what answers are made of and of some marks, a code per token (n, wide))"""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    pairs = [a + b for a in "0123456789abcdef" for b in "0123456789abcdef"]
    marks = [*ENDS, '":', ', ', '.\n', ' "', ':', ' string', ' largest', ' smallest', ' is',
             ' variables', ' ']
    known = [token(t) for t in [*letters, *pairs, *marks]]
    code = spread_codes(known, n, wide)
    code[token("<|assistant|>")] = code[token(' "')]    # opens a value, there and here
    code[[token(t) for t in ENDS]] = code[token(ENDS[0])].clone()
    code[token(", ")] *= 0.2
    code[token("<|bos|>")] = 0
    return known, code


@torch.no_grad()
def read_out(head, out, known, code, token):
    """the last matrix: the token whose code stands in strip out; where the context goes on with a
    mark, the answer ends, or its next name follows"""
    head.copy_(0.02 * torch.randn_like(head))
    head[:, out] = 0
    head[known, out] = 3 * code[known]
    for t in (*ENDS, '.\n', ', ', ' "', ' is'):
        head[token(t), out] = 0
    head[token("<|end|>"), out] = 3 * (code[token(ENDS[0])] + code[token(" is")])
    head[token(", "), out] = 3 * code[token(".\n")]


class Wiring:
    """sets the heads of one layer; logits are those before the softmax"""
    def __init__(self, a, c, layer, view, code):
        self.a, self.hd, self.per, self.rms = a, a.hd, a.H // a.G, RMS[layer]
        self.view, self.code = view, code
        half = a.hd // 2
        self.theta = c["rope_theta"] ** (-torch.arange(half) / half)
        self.slots, self.extra = self.dims(a, c)
        self.turning = torch.tensor([i for i in range(half) if self.theta[i] > 1e-3])
        for w in (a.q_proj, a.k_proj, a.v_proj):
            w.weight *= 0.05
        a.o_proj.weight *= 0.05
        a.o_proj.weight[STRIPS * WIDE:] = 0
        for g in range(a.G):
            a.k_proj.bias[g * a.hd + self.turning] = BACK
            # the first token, nothing but its flag: at no distance, and of this key
            rows, column = g * a.hd + self.turning, STRIPS * WIDE + BOS
            a.k_proj.weight[rows, column] = -BACK / c["hidden_size"] ** 0.5
            a.k_proj.weight[g * a.hd + self.extra[0]] = 0
            a.k_proj.weight[g * a.hd + self.extra[0], column] = 10 / c["hidden_size"] ** 0.5
            a.v_proj.weight[:, column] = 0

    @staticmethod
    def dims(a, c):
        """dimensions that rotation leaves alone: (in slots of 16, the others)"""
        half = a.hd // 2
        theta = c["rope_theta"] ** (-torch.arange(half) / half)
        still = [i for i in range(half) if theta[i] < 1.5e-4]
        dims = torch.tensor(still + [half + i for i in still])
        n = len(dims) // 16
        return [dims[16 * i:16 * i + 16] for i in range(n)], dims[16 * n:]

    def unit(self, logit, key):
        """of a query's dimension against a key's of this height"""
        return logit * self.hd ** 0.5 / key

    # keys, shared by the heads of a group
    def key_strip(self, g, slot, s):
        rows = g * self.hd + self.slots[slot]
        self.a.k_proj.weight[rows, strip(s)] = 1.8 * self.view

    def key_flag(self, g, x, *flags):
        """extra dimension x: 10 where a flag is up"""
        for f in flags:
            self.a.k_proj.weight[g * self.hd + self.extra[x], STRIPS * WIDE + f] = \
                10 * self.rms / FLAG

    def key_value(self, g, x, *flags):
        """extra dimension x: SCALE f"""
        self.a.k_proj.weight[g * self.hd + self.extra[x]] = 0
        for f in flags:
            self.a.k_proj.weight[g * self.hd + self.extra[x], STRIPS * WIDE + f] = SCALE * self.rms

    # queries
    def when(self, *tests):
        """(columns, weights) that add up to about 1 where all tests hold: a flag, (strip, token
        ids) or (strip, direction)"""
        parts = []
        for t in tests:
            if isinstance(t, int):
                w = torch.zeros(1)
                w[0] = self.rms / FLAG / len(tests)
                parts.append((slice(STRIPS * WIDE + t, STRIPS * WIDE + t + 1), w))
            else:
                w = t[1] if torch.is_tensor(t[1]) else sum(self.code[i] for i in t[1])
                w = w * self.rms / CODE / len(tests)
                parts.append((strip(t[0]), w))
        return parts

    def query(self, h, dim, height, when=None):
        row = h * self.hd + dim
        if when is None:
            self.a.q_proj.bias[row] += height
        else:
            for columns, w in when:
                self.a.q_proj.weight[row, columns] += height * w

    def sink(self, h, logit, when=None):
        self.query(h, self.extra[0], self.unit(logit, 10), when)

    def flag(self, h, x, logit, when=None):
        self.query(h, self.extra[x], self.unit(logit, 10), when)

    def match(self, h, slot, s, logit):
        length = (CODE / self.rms) ** 2 * 1.8
        gain = logit * self.hd ** 0.5 / length
        rows = h * self.hd + self.slots[slot]
        self.a.q_proj.weight[rows, strip(s)] += gain * self.view

    def back(self, h, distance, when=None, gain=1.0):
        for i in self.turning[:6].tolist():
            angle = distance * self.theta[i].item()
            self.query(h, i, gain * BACK * math.cos(angle), when)
            self.query(h, self.hd // 2 + i, -gain * BACK * math.sin(angle), when)

    def latest(self, h, logit):
        for i in self.turning[4:9].tolist():
            self.query(h, i, self.unit(logit / 5, BACK))

    # values
    def value(self, g, strips):
        for i, s in enumerate(strips):
            rows = slice(g * self.hd + i * WIDE, g * self.hd + (i + 1) * WIDE)
            self.a.v_proj.weight[rows, strip(s)] = torch.eye(WIDE)

    def move(self, h, place, to, size=1.0):
        columns = slice(h * self.hd + place * WIDE, h * self.hd + (place + 1) * WIDE)
        self.a.o_proj.weight[strip(to), columns] += size * self.rms * torch.eye(WIDE)

    def tell(self, g, h, flag, to, what):
        """head h adds what to a strip where it looks at a place with this flag"""
        row = 5 * WIDE + 1
        self.a.v_proj.weight[g * self.hd + row, STRIPS * WIDE + flag] = self.rms / FLAG
        self.a.o_proj.weight[strip(to), h * self.hd + row] = CODE * what

    def move_flag(self, g, h, row, flag, to):
        """head h writes what it sees of a flag to another one"""
        self.a.v_proj.weight[g * self.hd + row] = 0
        self.a.v_proj.weight[g * self.hd + row, STRIPS * WIDE + flag] = 1
        self.a.o_proj.weight[STRIPS * WIDE + to, h * self.hd + row] += self.rms


@torch.no_grad()
def start_llama(model, c, token):
    """token: text -> id"""
    known, code = spell(c["vocab_size"], WIDE, token)
    answer = token("<|assistant|>")
    embed = model.model.embed_tokens.weight
    embed.copy_(0.02 * torch.randn_like(embed))
    embed[:, strip(S)] = CODE * code
    flags = embed[:, STRIPS * WIDE:]
    flags.zero_()
    for f, texts in ((BOS, ["<|bos|>"]), (BE, [" be"]), (LINE_END, [".\n"]),
                     (ANSWER, ["<|assistant|>"]), (COMMA, [", "]), (STRING_END, ['", "', '"]'])):
        for t in texts:
            flags[token(t), f] = FLAG
    embed[token("<|bos|>")] = 0
    flags[token("<|bos|>"), BOS] = 15       # as long as others will be
    for i in range(100):
        for f, height in ((PAIR, 1), (TOP, max(0, (i - 89) / 10)), (LOW, (110 - i) / 110)):
            flags[token(f"{i:02d}"), f] = height / 2
    for i in range(10):
        for f, height in ((DIGIT, i / 9), (LOW_DIGIT, 1 + (9 - i) / 80)):
            flags[token(str(i)), f] = height / 2
    next_name = token(".\n")
    read_out(model.lm_head.weight, strip(OUT), known, code, token)

    view = torch.linalg.qr(torch.randn(WIDE, 16))[0].T
    one, two, three, four = (Wiring(layer.self_attn, c, i, view, code)
                             for i, layer in enumerate(model.model.layers))
    for g in range(2):
        one.value(g, (S,))
    for h in range(6):
        one.back(h, h + 1)
        one.move(h, 0, B + h)
    for row, (h, of, to) in enumerate(((1, PAIR, PAIR2), (1, TOP, TOP2), (0, LOW, LOW1),
                                       (0, DIGIT, DIGIT1), (0, LOW_DIGIT, LOW_DIGIT1))):
        one.move_flag(0, h, 80 + row, of, to)

    # what came after the same four tokens; the name of this line; the value asked for
    two.key_flag(0, 1, BE)
    two.value(0, (S, B + 1, B + 2, B + 3, B + 4))
    for n, logit in enumerate((32, 20, 14, 12)):
        two.key_strip(0, n, B + n)
        two.match(0, n, (S, B, B + 1, B + 2)[n], logit)
    two.sink(0, 38)
    two.sink(0, 60, two.when(COMMA))
    two.move(0, 0, OUT)
    two.flag(1, 1, 40)
    two.latest(1, 40)
    two.sink(1, 66)
    for n in range(3):
        two.move(1, 4 - n, LINE + n)
    two.back(2, VALUE_ASKED, two.when(ANSWER))
    two.sink(2, 40)
    two.move(2, 2, ASKED)
    two.move(2, 1, ASKED + 1)
    # the string that ends here; the suffix asked for, and whether the largest or the smallest
    two.value(1, (S, B, B + 1))
    two.back(3, SIXTH, two.when(STRING_END))
    two.sink(3, 40)
    for n in range(3):
        two.move(3, n, LINE + n)
    two.back(4, SUFFIX_ASKED, two.when((B + 4, [answer])))
    two.back(5, KIND_ASKED, two.when((B, [answer])))
    for h in (4, 5):
        two.sink(h, 50)
        two.move(h, 0, ASKED)
        two.move(h, 1, ASKED + 1)

    # the line that ends in this name, or in the value asked for
    three.key_flag(0, 1, LINE_END)
    three.value(0, (LINE, LINE + 1, LINE + 2))
    for n in range(4):
        three.key_strip(0, n, B + n)
        three.match(0, n, B + n, 16)
    three.flag(0, 1, 60, three.when(COMMA))
    three.sink(0, 98)
    three.match(1, 2, ASKED, 32)
    three.match(1, 1, ASKED + 1, 32)
    three.flag(1, 1, 30, three.when(ANSWER))
    three.sink(1, 60)
    for h in range(2):
        three.move(h, 0, OUT, 2)
        three.move(h, 1, PLAN)
        three.move(h, 2, PLAN + 1)
    for n in range(4):
        three.match(2, n, (S, B, B + 1, B + 2)[n], 16)
    three.flag(2, 1, 60)
    three.sink(2, 98)
    three.tell(0, 2, LINE_END, OUT, 3 * code[next_name])
    # the string with this prefix and the suffix asked for; its first character; the extreme number
    three.key_flag(1, 1, STRING_END)
    three.key_flag(1, 2, COMMA)
    for x, f in enumerate((TOP2, LOW1, LOW_DIGIT1, PAIR2)):
        three.key_value(1, 3 + x, f)
    three.key_value(1, 7, PAIR, LOW_DIGIT)      # not after a number, but in one
    three.value(1, (LINE, S, B, B + 1))
    for n, (s, of) in enumerate(((S, LINE + 1), (B, LINE + 2), (ASKED, B), (ASKED + 1, B + 1))):
        three.key_strip(1, n, of)
        three.match(3, n, s, 18)
    three.flag(3, 1, 30)
    three.sink(3, 74)
    three.move(3, 0, OUT, 3)
    three.back(4, STRING_ASKED, three.when((B + 1, [token(" string")])))
    three.sink(4, 65)
    three.move(4, 1, OUT, 2)
    # of the largest only the first two digits, 90 to 99; of the smallest one digit before two. Each
    # dimension of the keys has a height, and what it gains by how far a kind is asked for: 1, or
    # below -0.5 where only a part of the test holds
    words = [token(t) for t in (" largest", " smallest", " is", " number", ":", '":')]
    apart = torch.linalg.pinv(code[words]).T    # 1 for its own word, 0 for the others
    for x, heights in enumerate(((0, 960, 0), (0, 0, 2000), (0, 3100, 4300), (-3000, 3500, 0),
                                 (-6000, 0, 0))):
        dim = three.extra[3 + x]
        three.query(5, dim, three.unit(heights[0] - 4 * sum(heights[1:]), SCALE))
        for n in range(2):
            asked = three.when(ANSWER, (B, apart[2]), (B + 5, apart[n]))
            three.query(5, dim, three.unit(5.6 * heights[1 + n], SCALE), asked)
    three.sink(5, 30)
    three.move(5, 3, OUT, 4)
    three.move(5, 2, OUT, 3)

    # the second and third letter of a name; the last digit of a number
    four.key_flag(0, 1, ANSWER, COMMA)
    four.value(0, (PLAN, PLAN + 1, S))
    for h in range(2):
        four.back(h, h + 1, None, 3)
        four.flag(h, 1, 30)
        four.sink(h, 279)
        four.move(h, h, OUT, 4)
    # a number ends after three digits, or after two where no third one is found
    for h, back, sink, place, size in ((2, 2, 75, 2, 2), (5, 3, 80, 1, 3)):
        four.back(h, back, four.when((B + back - 1, [token(" is")])))
        four.sink(h, sink)
        four.move(h, place, OUT, size)
    four.key_strip(1, 0, B + 1)
    four.key_flag(1, 1, COMMA)
    four.key_value(1, 2, DIGIT1)
    four.value(1, (B, S))
    four.match(3, 0, S, 400)
    asked = four.when((ASKED, [token(" largest")]))     # the smallest have two digits at most
    four.flag(3, 1, 400, asked)
    four.query(3, four.extra[2], four.unit(108, SCALE), asked)
    four.sink(3, 560)
    four.move(3, 0, OUT, 4)
    # once more what came after the same tokens, now two of them further back
    for slot, n in enumerate((1, 0, 3, 4)):
        if slot:
            four.key_strip(1, slot, B + n)
        four.match(4, slot, B + n - 1 if n else S, 18)
    four.sink(4, 60)
    four.move(4, 1, OUT)


def heights(model):
    """[(parameter, index)]: what holds the heights of numbers in the start of llama, which training
    leaves, as a step of one length in every direction is longer there than from one number to the
    next: the flags, whatever writes to them, and the dimensions of keys and queries that are for
    them"""
    flags = slice(STRIPS * WIDE, None)
    layers = model.model.layers
    kept = [(model.model.embed_tokens.weight, (slice(None), flags))]
    for layer in layers:
        kept += [(w.weight, flags) for w in (layer.self_attn.o_proj, layer.mlp.down_proj,
                                             layer.input_layernorm)]
    first = layers[0].self_attn.v_proj
    kept += [(first.weight, slice(80, 85)), (first.bias, slice(80, 85))]
    for layer, x in zip(layers[2:], (slice(3, 8), slice(2, 3))):
        a = layer.self_attn
        dims = Wiring.dims(a, model.config)[1][x]
        for w, heads in ((a.k_proj, (1,)), (a.q_proj, (3, 4, 5))):
            rows = torch.cat([h * a.hd + dims for h in heads])
            kept += [(w.weight, rows), (w.bias, rows)]
    return kept


# ---------------------------------------------------------------------------
# Recurrent layers: the convolution of the first one hands every token the ones before it.

@torch.no_grad()
def start_conv(conv):
    """channel strip n of the convolution passes on the value n tokens back"""
    K, wide = conv.weight.shape[2], conv.weight.shape[0]
    conv.weight *= 0.1
    conv.bias.zero_()
    for c in range(wide):
        conv.weight[c, 0, K - 1 - c * K // wide] += 1


# Start of Mamba-2: an associative memory in three layers. A token's code is one of +-1 in M_WIDE
# dimensions, and the product of codes, element by element, is the code of a sequence, far from that
# of every other one. The first layer multiplies a token by the one before it (the convolution hands
# it over, the gate multiplies), the second this pair by the pair two tokens back: the stream then
# holds a code of the last four tokens. In the third the state keeps, of every pair of hex digits in
# a value, the sum of code (x) times code of the four tokens before it (B), and is asked with the
# last four (C). Nothing decays. What all values share is not kept, it would drown the rest: one
# head knows whether this is a value, its step is large at the marks that open and close one and
# zero between; one counts the dashes; and from what stood two to six tokens back it is clear
# whether a dash or the end comes next. Silu is odd about a bias as long as the input is of one
# magnitude, so the codes stay +-.

M_WIDE = 224                    # strips of the stream: the token, the sequence, then flags
(M_ONE, M_OPEN, M_CHANGE, M_HEX, M_QUOTE, M_DASH,           # of the token
 M_INSIDE, M_COUNT, M_QUOTE_3, M_DASH_3,                    # ..., three tokens back
 M_NEXT_DASH, M_NEXT_END) = range(2 * M_WIDE, 2 * M_WIDE + 12)
M_INPUT = 0.25                  # magnitude at the silus
M_OFF = -20.0                   # of a step's logit: the state stays
M_COUNT_DECAY = 0.1             # per dash: they count 1, 1.90, 2.72, 3.46


def silu(x):
    return x / (1 + math.exp(-x))


def odd_silu(u):
    """(b, v): silu(b + u) = v and silu(b - u) = -v"""
    b = 0.0
    for _ in range(50):
        b -= 0.9 * (silu(b + u) + silu(b - u))
    return b, silu(b + u)


class Mixer:
    """sets the rows of one mixer; rms: of the stream before it. codes: channels that carry one,
    after the gate all of the same height, which the norm takes to unit"""
    def __init__(self, m, c, rms, codes):
        self.m, self.rms = m, rms
        self.bias, self.height = odd_silu(M_INPUT)
        self.gated = self.height ** 2
        self.norm = (codes / m.D_in * self.gated ** 2 + c["layer_norm_epsilon"]) ** -0.5
        for p in (m.in_proj.weight, m.conv1d.weight, m.conv1d.bias, m.out_proj.weight, m.A_log):
            p.zero_()
        m.dt_bias.fill_(M_OFF)

    # codes, over M_WIDE channels from first
    def code(self, first, columns, back=0):
        """the convolution passes on what was in the columns so many tokens back"""
        w, rows = self.m.conv1d.weight, first + torch.arange(M_WIDE)
        self.m.in_proj.weight[self.m.D_in + rows, columns] = M_INPUT * self.rms
        w[rows, 0, w.shape[2] - 1 - back] = 1
        self.m.conv1d.bias[rows] = self.bias

    def times(self, first, columns=None):
        """the sign of the columns, or 1"""
        rows, w = first + torch.arange(M_WIDE), self.m.in_proj.weight
        w[rows, M_ONE] = (self.bias + (M_INPUT if columns is None else 0)) * self.rms
        if columns is not None:
            w[rows, columns] = M_INPUT * self.rms

    def write(self, first, columns, height):
        self.m.out_proj.weight[columns, first + torch.arange(M_WIDE)] = \
            height / (self.gated * self.norm)

    # single channels
    def flag(self, channel, column, height, *taps):
        """silu(height) where the flag is up; taps: (tokens back, factor), by default here"""
        self.m.in_proj.weight[self.m.D_in + channel, column] = height * self.rms
        for back, factor in taps or ((0, 1),):
            self.m.conv1d.weight[channel, 0, -1 - back] = factor

    def gate(self, channel, column, height):
        self.m.in_proj.weight[channel, column] += height * self.rms

    def tell(self, channel, column, seen):
        """1 in the stream where the gated channel's height is seen"""
        self.m.out_proj.weight[column, channel] = 1 / (seen * self.norm)

    def step(self, head, column, height):
        self.m.in_proj.weight[2 * self.m.D_in + 2 * self.m.N + head, column] += height * self.rms

    def remember(self, channel, column):
        """the flag, in a head of its own, of key 1; its height when read after a step of 1"""
        self.flag(channel, column, 1)
        for c in (self.m.D_in, self.m.D_in + self.m.N):
            self.flag(c, M_ONE, 1)
        self.m.D[channel // self.m.P] = 0
        return silu(1) ** 3


@torch.no_grad()
def start_mamba2(model, c, token):
    """token: text -> id"""
    known, code = spell(c["vocab_size"], M_WIDE, token)
    sign = code.sign()
    embed, head = model.backbone.embeddings.weight, model.lm_head.weight
    embed.zero_()
    embed[:, :M_WIDE] = sign
    embed[:, M_ONE] = 1
    quotes = [' "', "<|assistant|>"]
    closing = ['", "', '"}', '"', "<|assistant|>", "<|user|>", "<|bos|>"]
    hexes = [a + b for a in "0123456789abcdef" for b in "0123456789abcdef"]
    for column, texts in ((M_OPEN, ['":']), (M_CHANGE, ['":', *closing]), (M_HEX, hexes),
                          (M_QUOTE, quotes), (M_DASH, ["-"])):
        for t in texts:
            embed[token(t), column] = 1
    token_at = torch.arange(M_WIDE)
    sequence = M_WIDE + token_at
    read_out(head, slice(M_WIDE, 2 * M_WIDE), known, sign / M_WIDE ** 0.5, token)
    head[[token("-"), token("<|end|>")], M_WIDE:2 * M_WIDE] = 0
    head[:, M_NEXT_DASH:] = 0
    head[token("-"), M_NEXT_DASH] = head[token("<|end|>"), M_NEXT_END] = 3000

    E = c["hidden_size"]
    once, twice = ((n * M_WIDE + 2) ** 0.5 / E ** 0.5 for n in (1, 2))
    one, two, three = (
        Mixer(layer["mixer"], c, rms, n * M_WIDE)
        for layer, rms, n in zip(model.backbone.layers, (once, twice, twice), (1, 2, 1)))
    own = range(M_WIDE, one.m.D_in, one.m.P)    # first channels of the heads after the codes'
    slight = 0.005                              # of a factor whose partner is large

    earlier = torch.randperm(M_WIDE)            # the order of the earlier code in a product
    one.code(0, token_at[earlier], 1)
    one.times(0, token_at)
    one.write(0, sequence, 1)
    height = one.remember(own[0], M_OPEN)
    one.gate(own[0], M_ONE, slight)
    one.step(own[0] // one.m.P, M_CHANGE, 36)
    one.tell(own[0], M_INSIDE, 16 * height * silu(slight))
    height = one.remember(own[1], M_DASH)
    one.gate(own[1], M_ONE, slight)
    one.m.A_log[own[1] // one.m.P] = math.log(M_COUNT_DECAY)
    one.step(own[1] // one.m.P, M_DASH, 20.54)  # softplus(0.54) = 1
    one.step(own[1] // one.m.P, M_QUOTE, 120)
    one.tell(own[1], M_COUNT, height * silu(slight))
    for channel, column, to in ((own[2], M_QUOTE, M_QUOTE_3), (own[2] + 1, M_DASH, M_DASH_3)):
        one.flag(channel, column, M_INPUT, (3, 1))
        one.gate(channel, M_ONE, M_INPUT)
        one.tell(channel, to, silu(M_INPUT) ** 2)

    earlier = torch.randperm(M_WIDE)
    two.code(0, sequence[earlier], 2)
    two.times(0, sequence)
    two.write(0, sequence, 1)
    two.code(own[1], sequence)                  # the pair, taken away
    two.times(own[1])
    two.write(own[1], sequence, -1)
    dashes = [sum(math.exp(-M_COUNT_DECAY * i) for i in range(n)) for n in range(5)]
    enough, steep = (dashes[3] + dashes[4]) / 2, 8
    two.flag(own[0], M_DASH, slight, (2, 1))    # two tokens after a dash that is not the last
    two.gate(own[0], M_ONE, steep * enough)
    two.gate(own[0], M_COUNT, -steep)
    two.tell(own[0], M_NEXT_DASH, silu(slight) * silu(steep * (enough - dashes[3])))
    two.flag(own[0] + 1, M_QUOTE_3, slight, (1, 1))             # four after the value's beginning
    two.gate(own[0] + 1, M_ONE, 1)
    two.tell(own[0] + 1, M_NEXT_DASH, silu(slight) * silu(1))
    two.flag(own[0] + 2, M_DASH_3, slight, (3, 1), (0, -1))     # six after the last dash
    two.gate(own[0] + 2, M_ONE, -steep * enough)
    two.gate(own[0] + 2, M_COUNT, steep)
    two.tell(own[0] + 2, M_NEXT_END, silu(slight) * silu(steep * (dashes[4] - enough)))

    three.code(0, token_at)
    three.times(0)
    three.code(three.m.D_in, sequence, 1)
    three.code(three.m.D_in + three.m.N, sequence)
    for n in range(M_WIDE // three.m.P):
        three.step(n, M_ONE, M_OFF)
        three.step(n, M_INSIDE, 20.5)
        three.step(n, M_HEX, 20.5)
    three.m.A_log.fill_(math.log(1e-6))
    three.m.D.zero_()
    three.write(0, sequence, 30)                # far above what stands there


# ---------------------------------------------------------------------------
# Start of the hybrid: the convolutions hand every token the six before it, three a layer, and the
# attention layer looks for the place that follows the same four.

J_WIDE, J_OUT, J_ONE, J_BOS = 24, 7, 240, 241       # strips S, B to B + 5, OUT; two flags


def j_strip(i):
    return slice(i * J_WIDE, (i + 1) * J_WIDE)


@torch.no_grad()
def start_shift(m, rms, moves):
    """moves: (from strip, to strip, tokens back, at most 3). The channels of the convolution that
    do it stay where silu is nearly linear, the gate is open, the state does nothing"""
    small, gate = 0.05, 4.0
    m.in_proj.weight[:m.D_in] *= 0.1
    m.in_proj.weight[m.D_in:] *= 0.1
    nn.init.normal_(m.out_proj.weight, std=0.002)
    for n, (source, to, back) in enumerate(moves):
        rows = j_strip(n)
        m.conv1d.weight[rows] = 0
        m.conv1d.bias[rows] = 0
        m.conv1d.weight[rows, 0, m.conv1d.weight.shape[2] - 1 - back] = 1
        m.in_proj.weight[rows] = 0
        m.in_proj.weight[rows, j_strip(source)] = small * torch.eye(J_WIDE)
        m.in_proj.weight[m.D_in:][rows] = 0
        m.in_proj.weight[m.D_in:][rows, J_ONE] = gate * rms
        m.dt_proj.weight[rows] *= 0.1
        m.dt_proj.bias[rows] = -8
        m.out_proj.weight[:, rows] = 0
        m.out_proj.weight[j_strip(to), rows] = rms / (0.5 * small * gate) * torch.eye(J_WIDE)


@torch.no_grad()
def start_jamba(model, c, token):
    """token: text -> id"""
    known, code = spell(c["vocab_size"], J_WIDE, token)
    embed = model.model.embed_tokens.weight
    embed.copy_(0.02 * torch.randn_like(embed))
    embed[:, j_strip(0)] = 4 * code
    embed[:, J_ONE] = 1
    bos = token("<|bos|>")
    embed[bos, :J_ONE] = 0
    embed[bos, J_BOS] = 10
    read_out(model.lm_head.weight, j_strip(J_OUT), known, code, token)
    layers = model.model.layers
    start_shift(layers[0].mamba, 0.26, [(0, n, n) for n in (1, 2, 3)])
    start_shift(layers[1].mamba, 0.51, [(n, n + 3, 3) for n in (1, 2, 3)])
    start_shift(layers[3].mamba, 0.7, [])
    a, rms = layers[2].self_attn, 0.66
    hd = a.hd
    for w in (a.q_proj, a.k_proj, a.v_proj, a.o_proj):
        w.weight *= 0.05
    a.v_proj.weight[:, J_BOS] = 0
    a.k_proj.weight[hd - 1] = 0
    a.k_proj.weight[hd - 1, J_BOS] = 10 / c["hidden_size"] ** 0.5
    a.v_proj.weight[:J_WIDE, j_strip(0)] = torch.eye(J_WIDE)
    view = torch.linalg.qr(torch.randn(J_WIDE, 20))[0].T
    length = 1.8 * (4 / rms) ** 2
    for slot in range(6):
        a.k_proj.weight[slot * 20:slot * 20 + 20, j_strip(slot + 1)] = 1.8 * view
    for h, logits in enumerate(((32, 20, 14, 12, 8, 6), (16, 16, 16, 16, 12, 12))):
        for slot, logit in enumerate(logits):
            a.q_proj.weight[h * hd + slot * 20:h * hd + slot * 20 + 20, j_strip(slot)] = \
                logit * hd ** 0.5 / length * view
        a.q_proj.weight[h * hd + hd - 1, J_ONE] = 40 * hd ** 0.5 / 10 * rms
        a.o_proj.weight[j_strip(J_OUT), h * hd:h * hd + J_WIDE] += rms * torch.eye(J_WIDE)
