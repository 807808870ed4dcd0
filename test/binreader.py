"""The model file read in Python, for tests and golden makers: independent of export.py, which
writes it, and of file.c, which reads it for the program. Layout: scb.h."""
import struct

import numpy as np
import xxhash

F32, BF16, Q8, U8, I32 = range(5)


def read_bin(path):
    """-> params, tensors, dtypes: bf16 and q8 as f32 arrays, the others as they are"""
    with open(path, "rb") as f:
        data = f.read()
    magic, version, n_params, n_tensors, start, size, check = struct.unpack_from("<4sIIIQQQ", data)
    end = 64 + 64 * n_params + 128 * n_tensors
    assert (magic, version) == (b"SCBM", 1) and not any(data[40:64]), "prologue"
    assert start % 64 == 0 and end <= start and start + size == len(data), "sizes"
    assert check == xxhash.xxh64(data[64:end]).intdigest(), "hash of the records"
    params, tensors, dtypes = {}, {}, {}
    for at in range(64, 64 + 64 * n_params, 64):
        key, kind, pad, value = struct.unpack_from("<40sII16s", data, at)
        key = key.rstrip(b"\0").decode()
        assert key not in params and pad == 0, key
        params[key] = (None, lambda: struct.unpack_from("<q", value)[0],
                       lambda: struct.unpack_from("<d", value)[0],
                       lambda: value.rstrip(b"\0").decode())[kind]()
    last = start
    for at in range(64 + 64 * n_params, end, 128):
        name, dtype, ndim, *rest = struct.unpack_from("<56sII4QQQQQ", data, at)
        name, shape, (offset, n, xxh, pad) = name.rstrip(b"\0").decode(), rest[:ndim], rest[4:]
        assert name not in tensors and rest[ndim:4] == [1] * (4 - ndim) and pad == 0, name
        assert offset % 64 == 0 and offset >= last and offset + n <= len(data), name
        assert xxhash.xxh64(data[offset:offset + n]).intdigest() == xxh, name
        last = offset + n
        raw, dtypes[name] = np.frombuffer(data, np.uint8, n, offset), dtype
        if dtype == BF16:
            x = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif dtype == Q8:
            blocks = raw.reshape(shape[0], -1, 34)
            scale = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16).astype(np.float32)
            x = (scale * blocks[:, :, 2:].view(np.int8)).reshape(shape[0], -1)[:, :shape[1]]
        else:
            x = raw.view({F32: np.float32, U8: np.uint8, I32: np.int32}[dtype])
        tensors[name] = x.reshape(shape)
    return params, tensors, dtypes
