"""What Python and the native library both lay out in memory: the structures of `cpp/model.h`, field by field."""

from __future__ import annotations

import ctypes

PRODUCTS = ("qkv", "out", "gate_up", "down")
"""Of a layer."""

NORMS = ("input_norm", "q_norm", "k_norm", "post_norm")
VECTORS = ("input_norm", "qkv_bias", "q_norm", "k_norm", "out_bias", "post_norm", "gate_up_bias", "down_bias")
SIZES = (
    *("width", "layers", "heads", "kv_heads", "head_dim", "inner", "vocab", "context"),
    *("threads", "tiles", "turned", "bits"),
)


class Matrix(ctypes.Structure):
    """`Matrix` of the source."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("whole", "codes", "scales")]


class Layer(ctypes.Structure):
    """`Layer` of the source."""

    _fields_ = [*((name, Matrix) for name in PRODUCTS), *((name, ctypes.c_void_p) for name in VECTORS)]


class Model(ctypes.Structure):
    """`Model` of the source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        ("eps", ctypes.c_double),
        ("head", Matrix),
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "head_bias", "table", "cos", "sin")),
        ("layer", ctypes.POINTER(Layer)),
    ]


class Block(ctypes.Structure):
    """`Block` of the source."""

    _fields_ = [
        *(("most", ctypes.c_int64), ("coins", ctypes.c_void_p), ("scale", ctypes.c_double), ("vocab", ctypes.c_int64)),
        *(("ends", ctypes.c_void_p), ("end_count", ctypes.c_int64), ("by_value", ctypes.c_int64)),
        *((name, ctypes.c_double) for name in ("mean", "token_ms", "draft_ms")),
        *(("edges", ctypes.c_void_p), ("survival", ctypes.c_void_p), ("edge_count", ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("rows", "tokens", "seconds")),
    ]


class Judged(ctypes.Structure):
    """`Judged` of the source."""

    _fields_ = [
        *(("scale", ctypes.c_double), ("vocab", ctypes.c_int64), ("block_wise", ctypes.c_int64)),
        *(("count", ctypes.c_int64), ("draft", ctypes.c_void_p), ("q", ctypes.c_void_p), ("coins", ctypes.c_void_p)),
        *(("rows", ctypes.c_void_p), ("best", ctypes.c_void_p), ("token", ctypes.c_int64)),
        ("seconds", ctypes.c_double),
    ]


class Rung(ctypes.Structure):
    """`Rung` of the source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("models", "scratch", "cache", "rows")),
        *((name, ctypes.c_int64) for name in ("length", "threshold", "held", "proposed", "accepted", "passes")),
        ("log", ctypes.c_void_p),
    ]


class Round(ctypes.Structure):
    """`Round` of the source."""

    _fields_ = [
        *(("rungs", ctypes.POINTER(Rung)), ("top", ctypes.c_int64), ("draft", Block), ("block_wise", ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("tokens", "origins")),
        *((name, ctypes.c_int64) for name in ("base", "start", "prompt", "limit")),
        *(("coins", ctypes.c_void_p), ("tossed", ctypes.c_int64), ("logits", ctypes.c_void_p)),
        ("best", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("end", "proposed", "accepted")),
    ]


LAYOUT = (Matrix, Layer, Model, Block, Judged, Rung, Round)
"""What must be as large here as there, in this order."""
