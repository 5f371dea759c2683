"""What a lane-wise instruction computes, as C: the arithmetic half of the machine.

PTX ISA, section 9.7. Names are PTX's without the modifiers in ``NEUTRAL``, bits (.b32) taken as
unsigned. ``a``, ``b``, ``c`` are the operands in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

NEUTRAL = {"rn", "lo", "approx", "full", "sync", "aligned", "uni", "to"}
"""Modifiers without a bearing on what the host computes; it divides and rounds exactly."""
C_TYPES = {
    "u8": "uint8_t", "s8": "int8_t", "u16": "uint16_t", "s16": "int16_t", "u32": "uint32_t",
    "s32": "int32_t", "u64": "uint64_t", "s64": "int64_t", "f32": "float", "f64": "double",
    "pred": "uint32_t",
}  # fmt: skip
ARGUMENTS = "char *registers, const int32_t *at, uint32_t m"
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_COMPARISONS = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


class Operation(NamedTuple):
    """``result`` and ``operands`` are types of ``C_TYPES``, ``expression`` is C."""

    result: str
    operands: tuple[str, ...]
    expression: str


def normal(name: str) -> str:
    """PTX's name of an instruction as the tables here have it."""
    parts = [part for part in name.split(".") if part not in NEUTRAL]
    return ".".join(f"u{p[1:]}" if p in ("b8", "b16", "b32", "b64") else p for p in parts)


def _integers(bits: int) -> Iterator[tuple[str, Operation]]:
    u, s = f"u{bits}", f"s{bits}"
    for t in (u, s):
        for name, expression in {
            "add": "a + b", "sub": "a - b", "mul": "a * b", "and": "a & b", "or": "a | b",
            "xor": "a ^ b",
        }.items():  # fmt: skip
            yield f"{name}.{t}", Operation(u, (u, u), expression)
        yield f"mad.{t}", Operation(u, (u, u, u), "a * b + c")
        yield f"not.{t}", Operation(u, (u,), "~a")
        yield f"neg.{t}", Operation(u, (u,), "-a")
        yield f"mov.{t}", Operation(u, (u,), "a")
        yield f"selp.{t}", Operation(u, (u, u, "pred"), "c ? a : b")
        yield f"shl.{t}", Operation(u, (u, "u32"), f"b < {bits} ? ({C_TYPES[u]})(a << b) : 0")
        yield f"shr.{t}", Operation(t, (t, "u32"), f"a >> (b < {bits} ? b : {bits - 1})")
        yield f"min.{t}", Operation(t, (t, t), "a < b ? a : b")
        yield f"max.{t}", Operation(t, (t, t), "a > b ? a : b")
        yield f"div.{t}", Operation(t, (t, t), "b ? a / b : 0")
        yield f"rem.{t}", Operation(t, (t, t), "b ? a % b : 0")
        for name, sign in COMPARISONS.items():
            yield f"setp.{name}.{t}", Operation("pred", (t, t), f"a {sign} b")
    yield f"shr.{u}", Operation(u, (u, "u32"), f"b < {bits} ? a >> b : 0")
    yield f"abs.{s}", Operation(s, (s,), "a < 0 ? -a : a")
    for name, sign in UNSIGNED_COMPARISONS.items():
        yield f"setp.{name}.{u}", Operation("pred", (u, u), f"a {sign} b")


def _products() -> Iterator[tuple[str, Operation]]:
    for sign in "us":
        for bits in (16, 32):
            t, wide = f"{sign}{bits}", f"{sign}{2 * bits}"
            product = f"({C_TYPES[wide]})a * ({C_TYPES[wide]})b"
            yield f"mul.wide.{t}", Operation(wide, (t, t), product)
            yield f"mad.wide.{t}", Operation(wide, (t, t, wide), f"{product} + c")
            yield f"mul.hi.{t}", Operation(t, (t, t), f"({product}) >> {bits}")
        t, wide = f"{sign}64", "unsigned __int128" if sign == "u" else "__int128"
        yield f"mul.hi.{t}", Operation(t, (t, t), f"(({wide})a * ({wide})b) >> 64")
        t = f"{sign}32"
        yield f"bfe.{t}", Operation(t, (t, "u32", "u32"), f"{sign}_field(a, b, c)")
    yield "prmt.u32", Operation("u32", ("u32", "u32", "u32"), "permuted(a, b, c)")
    for bits in (32, 64):
        yield f"popc.u{bits}", Operation("u32", (f"u{bits}",), "__builtin_popcountll(a)")
        count = f"a ? __builtin_clzll(a) - {64 - bits} : {bits}"
        yield f"clz.u{bits}", Operation("u32", (f"u{bits}",), count)


def _floats(t: str, suffix: str) -> Iterator[tuple[str, Operation]]:
    """.ftz: subnormal operands and results are zeros."""
    table = {
        "add": (2, "{a} + {b}"), "sub": (2, "{a} - {b}"), "mul": (2, "{a} * {b}"),
        "fma": (3, f"__builtin_fma{suffix}({{a}}, {{b}}, {{c}})"), "div": (2, "{a} / {b}"),
        "neg": (1, "-{a}"), "abs": (1, f"__builtin_fabs{suffix}({{a}})"),
        "min": (2, "{b} != {b} || {a} < {b} ? {a} : {b}"),
        "max": (2, "{b} != {b} || {a} > {b} ? {a} : {b}"),
        "sqrt": (1, f"sqrt{suffix}({{a}})"), "rsqrt": (1, f"1 / sqrt{suffix}({{a}})"),
        "ex2": (1, f"exp2{suffix}({{a}})"), "lg2": (1, f"log2{suffix}({{a}})"),
        "rcp": (1, "1 / {a}"),
    }  # fmt: skip
    for name, (count, form) in table.items():
        yield f"{name}.{t}", Operation(t, (t,) * count, form.format(a="a", b="b", c="c"))
        flushed = form.format(a="flushed(a)", b="flushed(b)", c="flushed(c)")
        yield f"{name}.ftz.{t}", Operation(t, (t,) * count, f"flushed({flushed})")
    yield f"mov.{t}", Operation(t, (t,), "a")
    yield f"selp.{t}", Operation(t, (t, t, "pred"), "c ? a : b")
    for name, sign in COMPARISONS.items():
        ordered = f"a == a && b == b && a {sign} b" if name == "ne" else f"a {sign} b"
        yield f"setp.{name}.{t}", Operation("pred", (t, t), ordered)
        yield f"setp.{name}u.{t}", Operation("pred", (t, t), f"a != a || b != b || a {sign} b")
    yield f"setp.nan.{t}", Operation("pred", (t, t), "a != a || b != b")
    yield f"setp.num.{t}", Operation("pred", (t, t), "a == a && b == b")


def _halves() -> Iterator[tuple[str, Operation]]:
    """Computed in fp32 and rounded, one and two to a register."""
    table = {
        "add": (2, "{0} + {1}"), "sub": (2, "{0} - {1}"), "mul": (2, "{0} * {1}"),
        "fma": (3, "__builtin_fmaf({0}, {1}, {2})"), "neg": (1, "-{0}"),
        "min": (2, "fminf({0}, {1})"), "max": (2, "fmaxf({0}, {1})"),
    }  # fmt: skip
    for h in ("f16", "bf16"):
        for name, (count, form) in table.items():
            low, high = (
                f"to_{h}({form.format(*(f'from_{h}({x}{s})' for x in 'abc'[:count]))})"
                for s in ("", " >> 16")
            )
            yield f"{name}.{h}", Operation("u16", ("u16",) * count, low)
            both = f"{low} | (uint32_t){high} << 16"
            yield f"{name}.{h}x2", Operation("u32", ("u32",) * count, both)
        yield f"cvt.f32.{h}", Operation("f32", ("u16",), f"from_{h}(a)")
        yield f"cvt.{h}.f32", Operation("u16", ("f32",), f"to_{h}(a)")
        both = f"to_{h}(b) | (uint32_t)to_{h}(a) << 16"
        yield f"cvt.{h}x2.f32", Operation("u32", ("f32", "f32"), both)


def _conversions() -> Iterator[tuple[str, Operation]]:
    integers = [t for t in C_TYPES if t[0] in "us"]
    for source in integers:
        for target in integers:
            yield f"cvt.{target}.{source}", Operation(target, (source,), "a")
        for target in ("f32", "f64"):
            yield f"cvt.{target}.{source}", Operation(target, (source,), "a")
            for name, function in {"rni": "rint", "rzi": "trunc", "rmi": "floor"}.items():
                expression = f"{function}(a)"
                yield f"cvt.{name}.{source}.{target}", Operation(source, (target,), expression)
    yield "cvt.f32.f64", Operation("f32", ("f64",), "a")
    yield "cvt.f64.f32", Operation("f64", ("f32",), "a")


def _predicates() -> Iterator[tuple[str, Operation]]:
    for name, sign in {"and": "&", "or": "|", "xor": "^"}.items():
        yield f"{name}.pred", Operation("pred", ("pred", "pred"), f"a {sign} b")
    yield "not.pred", Operation("pred", ("pred",), "!a")
    yield "mov.pred", Operation("pred", ("pred",), "a != 0")


def _table() -> dict[str, Operation]:
    parts = [*(_integers(bits) for bits in (16, 32, 64)), _products(), _floats("f32", "f"),
             _floats("f64", ""), _halves(), _conversions(), _predicates()]  # fmt: skip
    return {name: operation for part in parts for name, operation in part}


OPERATIONS = _table()


def wide(kind: str) -> bool:
    """Whether a lane of this type takes 8 bytes of a register and not 4."""
    return kind.endswith("64")


def _storage(kind: str) -> str:
    return C_TYPES[kind] if kind[0] == "f" else "uint64_t" if wide(kind) else "uint32_t"


def c_functions() -> str:
    """A function of ``machine.c`` for every operation, and ``ARITHMETIC``, the list of them."""
    functions = [_c_function(i, operation) for i, operation in enumerate(OPERATIONS.values())]
    names = ", ".join(f"operation_{i}" for i in range(len(OPERATIONS)))
    functions.append(f"static void (*const ARITHMETIC[])({ARGUMENTS}) = {{{names}}};")
    return "\n".join(functions)


def _c_function(number: int, operation: Operation) -> str:
    operands = list(zip("abc", operation.operands, strict=False))
    result = _storage(operation.result)
    lines = [f"{result} *d = REGISTER(0);"]
    lines += [
        f"const {_storage(k)} *p_{x} = REGISTER({i + 1});" for i, (x, k) in enumerate(operands)
    ]
    lane = [f"const {C_TYPES[k]} {x} = ({C_TYPES[k]})p_{x}[l];" for x, k in operands]
    lane.append(f"d[l] = ({result})({C_TYPES[operation.result]})({operation.expression});")
    body = "\n    ".join([*lines, f"LANES({' '.join(lane)})"])
    return f"static void operation_{number}({ARGUMENTS}) {{\n    {body}\n}}"
