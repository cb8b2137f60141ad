"""Asking the memory for what compiled code will read soon, so that it has come by then."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE_BYTES = 64
_FOR_READING, _TO_KEEP, _DATA = 0, 3, 1
_code: Any = cgutils
_compiles_to: Any = intrinsic
"""Neither is typed as it is used here."""


def _fetched(_typing_context: Any, array: Any, at: Any) -> tuple[Any, Any]:
    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = _code.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(builder.bitcast(held.data, _code.voidptr_t), [arguments[1]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_code.voidptr_t, number, number, number])
        fetch = _code.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [place, number(_FOR_READING), number(_TO_KEEP), number(_DATA)])
        return context.get_dummy_value()

    return types.void(array, at), made


prefetch: Any = _compiles_to(_fetched)
"""In compiled code, `prefetch(array, at)` begins to fetch the cache line of byte `at` of a contiguous array. It reads
nothing itself: a place outside the array is no error, and no value depends on it."""
