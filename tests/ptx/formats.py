"""The types of PTX: how many bits they have, what stores a register of them, and as what NumPy views it."""

import numpy as np

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64

WIDTH = {
    "pred": 1,
    **dict.fromkeys(("b8", "s8", "u8"), 8),
    **dict.fromkeys(("b16", "s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("b32", "s32", "u32", "f32", "f16x2", "s16x2"), 32),
    **dict.fromkeys(("b64", "s64", "u64", "f64", "f32x2"), 64),
}
STORAGE = {1: "bool", 8: "u16", 16: "u16", 32: "u32", 64: "u64"}
VIEW = {
    "pred": "bool", "s8": "i8", "u8": "u8", "b8": "u8", "s16": "i16", "u16": "u16", "b16": "u16", "f16": "f16", "s32": "i32",
    "u32": "u32", "b32": "u32", "f32": "f32", "s64": "i64", "u64": "u64", "b64": "u64", "f64": "f64",
}  # fmt: skip
NUMPY = dict(
    bool=np.bool_, i8=i8, u8=u8, i16=i16, u16=u16, i32=i32, u32=u32, i64=i64, u64=u64, f16=f16, f32=f32, f64=f64
)
