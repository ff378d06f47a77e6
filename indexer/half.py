"""Bits as floats in compiled code: numba has no float16, so it is carried as uint16 and widened bit for bit."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def widen(_context: Any, _bits: Any) -> Any:
    """float32 of the float16 whose bits a uint16 holds: one instruction, which LLVM turns into 16 at a time."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def as_float(_context: Any, _bits: Any) -> Any:
    """The float32 whose bits a uint32 holds."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate
