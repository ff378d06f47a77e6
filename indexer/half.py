"""What numba lacks: float16, carried as uint16 and widened bit for bit, dot products of it, and prefetching."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
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


@intrinsic
def as_bits(_context: Any, _value: Any) -> Any:
    """The bits of a float32, as a uint32."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def prefetch(_context: Any, _address: Any) -> Any:
    """Ask for the cache line at an address, without waiting."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.inttoptr(arguments[0], byte)
        builder.call(function, [address, flag(0), flag(2), flag(1)])
        return _target.get_dummy_value()

    return types.void(types.intp), generate


_LANES = 16
"""Numbers that :func:`dots` takes at once: what the widest registers hold; where they are narrower LLVM parts them."""


@intrinsic
def dots(_context: Any, _rows: Any, _query: Any, _chunks: Any) -> Any:
    """Dot products of four float16 rows with a float32 query, of 16 times ``chunks`` (a literal) dimensions.

    ``rows`` are four addresses, ``query`` is one. LLVM would not use the widest registers by itself, and would add up
    the lanes of each of the four sums for itself, which takes longer than multiplying.
    """
    if not isinstance(_chunks, types.Literal):
        raise errors.RequireLiteralValue("chunks")
    chunks = _chunks.literal_value

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        halves, floats = ir.VectorType(ir.HalfType(), _LANES), ir.VectorType(ir.FloatType(), _LANES)
        kind = ir.FunctionType(floats, [floats] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{_LANES}f32")

        def part(address: Any, of: Any, at: int, width: int) -> Any:
            moved = builder.add(address, address.type(at * width * _LANES))
            return builder.load(builder.inttoptr(moved, of.as_pointer()), align=width, typ=of)

        asked = [part(arguments[1], floats, at, 4) for at in range(chunks)]
        sums = []
        for row in cgutils.unpack_tuple(builder, arguments[0], 4):
            total = ir.Constant(floats, [0.0] * _LANES)
            for at in range(chunks):
                wide = builder.fpext(part(row, halves, at, 2), floats)
                total = builder.call(fma, [wide, asked[at], total])
            sums.append(total)

        def mixed(one: Any, other: Any, *lanes: int) -> Any:
            """Of each four lanes of both, one sum of the first half of ``lanes`` and the second."""
            parts = []
            for half in (lanes[:4], lanes[4:]):
                mask = [quad + lane % 4 + lane // 4 * _LANES for quad in range(0, _LANES, 4) for lane in half]
                parts.append(
                    builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), mask))
                )
            return builder.fadd(*parts)

        a_b = mixed(sums[0], sums[1], 0, 4, 1, 5, 2, 6, 3, 7)
        c_d = mixed(sums[2], sums[3], 0, 4, 1, 5, 2, 6, 3, 7)
        left = mixed(a_b, c_d, 0, 1, 4, 5, 2, 3, 6, 7)
        for width in (_LANES // 2, _LANES // 4):
            masks = (
                ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(at, at + width))) for at in (0, width)
            )
            left = builder.fadd(*(builder.shuffle_vector(left, left, mask) for mask in masks))
        four = [builder.extract_element(left, ir.IntType(32)(at)) for at in range(4)]
        return target.make_tuple(builder, signature.return_type, four)

    return types.UniTuple(types.float32, 4)(types.UniTuple(types.int64, 4), types.int64, _chunks), generate
