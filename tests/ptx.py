"""PTX, as nvcc makes it of the CUDA kernels, written down again in C++ that calls csrc/cuda/host for what threads do
together: a kernel then runs on a CPU instruction by instruction, under the name that g++ gives the kernel it compiles.

It takes the place of that one in a program: a kernel that g++ makes of a template is a weak symbol.

An instruction that is not known here is an error, and so is anything else that a kernel of this project does not have:
functions that are called, local memory, variables but the dynamic shared memory.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

TYPES = {
    "pred": "uint8_t", "b8": "uint8_t", "u8": "uint8_t", "s8": "int8_t", "b16": "uint16_t", "u16": "uint16_t",
    "s16": "int16_t", "b32": "uint32_t", "u32": "uint32_t", "s32": "int32_t", "f32": "float", "b64": "uint64_t",
    "u64": "uint64_t", "s64": "int64_t", "f64": "double", "b128": "arch::Packet",
}  # fmt: skip
WIDER = {"u16": "uint32_t", "s16": "int32_t", "u32": "uint64_t", "s32": "int64_t"}
SPECIAL = {
    "%tid.x": "threadIdx.x",
    "%ntid.x": "blockDim.x",
    "%ctaid.x": "blockIdx.x",
    "%nctaid.x": "gridDim.x",
    "%cluster_ctarank": "arch::cluster_rank()",
    "%cluster_nctarank": "arch::cluster_size()",
    "%clock64": "arch::cycles()",
}
COMPARED = {
    "eq": "a == b", "lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b", "ne": "a < b || a > b",
    "equ": "!(a < b || a > b)", "ltu": "!(a >= b)", "leu": "!(a > b)", "gtu": "!(a <= b)", "geu": "!(a < b)",
    "neu": "a != b",
}  # fmt: skip

# Instructions whose operands all have the type at their end.
PLAIN = {
    "add": "a + b", "add.rn": "a + b", "sub": "a - b", "sub.rn": "a - b", "mul": "a * b", "mul.rn": "a * b",
    "mul.lo": "a * b", "mad.lo": "a * b + c", "div": "a / b", "rem": "a % b", "and": "a & b", "or": "a | b",
    "xor": "a ^ b", "neg": "-a", "abs": "std::abs(a)", "min": "ptx::min(a, b)", "max": "ptx::max(a, b)", "mov": "a",
    "fma.rn": "std::fma(a, b, c)", "fma.rm": "ptx::fma(a, b, c, FE_DOWNWARD)", "copysign": "std::copysign(b, a)",
    "cvta.to.global": "a", "cvt.sat.f32": "ptx::saturated(a)", "ex2.approx.ftz": "arch::exp2_approx(a)",
    "rcp.approx.ftz": "arch::reciprocal_approx(a)", "tanh.approx": "arch::tanh_approx(a)",
    "mapa.shared::cluster": "arch::map_to_rank(a, b)",
}  # fmt: skip

# Those with a form of their own: what their operands {0}, {1}, ... are, and the statement.
OWN = {
    "bar.sync": "ptx::barrier()",
    "bar.warp.sync": "ptx::warp_barrier()",
    "ret": "return",
    "trap": "arch::trap()",
    "cvt.rna.tf32.f32": "ptx::set({0}, arch::nearest_tf32(ptx::as<float>({1})))",
    "cvt.rn.bf16.f32": "{0} = ptx::bf16_of(ptx::as<float>({1}))",
    "cvt.f32.bf16": "ptx::set({0}, ptx::of_bf16({1}))",
    "cvt.rn.f16.f32": "{0} = ptx::f16_of(ptx::as<float>({1}))",
    "cvt.f32.f16": "ptx::set({0}, ptx::of_f16({1}))",
    "tanh.approx.f16x2": "{0} = arch::tanh_approx_f16x2({1})",
    "tanh.approx.bf16x2": "{0} = arch::tanh_approx_bf16x2({1})",
    "bfi.b32": "{0} = ptx::bfi({1}, {2}, {3}, {4})",
    "prmt.b32": "{0} = ptx::prmt({1}, {2}, {3})",
    "shfl.sync.bfly.b32": "ptx::set({0}, arch::exchange(ptx::as<float>({1}), {2}))",
    "shfl.sync.idx.b32": "{0} = ptx::of_lane_0({1}, {2}, {3}, {4})",
    "cp.async.cg.shared.global": "ptx::copy_async({0}, {1})",
    "cp.async.commit_group": "ptx::commit_copies()",
    "cp.async.wait_all": "ptx::wait_for_copies()",
    "cp.async.wait_group": "ptx::wait_for_copies_but<{0}>()",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16": "ptx::set_four(ptx::load_tiles<false>({1}), {0})",
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16": "ptx::set_four(ptx::load_tiles<true>({1}), {0})",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "ptx::mma<arch::mma_bf16>({0}, {1}, {2}, {3})",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": "ptx::mma<arch::mma_f16>({0}, {1}, {2}, {3})",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": "ptx::mma<arch::mma_tf32>({0}, {1}, {2}, {3})",
    "mbarrier.init.shared::cta.b64": "arch::barrier_init({0}, {1})",
    "mbarrier.arrive.shared::cta.b64": "ptx::arrive({1})",
    "mbarrier.arrive.expect_tx.shared::cta.b64": "ptx::arrive({1}, {2})",
    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64": "{0} = ptx::try_wait({1}, {2})",
    "fence.mbarrier_init.release.cluster": "arch::fence_barrier_init()",
    "barrier.cluster.arrive.release": "ptx::cluster_arrive()",
    "barrier.cluster.wait.acquire": "ptx::cluster_wait()",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32": "ptx::store_async({0}, {1}, {2})",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32": "ptx::store_async({0}, uint2{{{1}}}, {2})",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32": "ptx::store_async({0}, uint4{{{1}}}, {2})",
}  # fmt: skip
# Operands, by their places, that are as the kernels have them.
FIXED = {
    "bar.sync": {0: "0"},
    "bar.warp.sync": {0: "-1"},
    "cp.async.cg.shared.global": {2: "16"},
    "shfl.sync.bfly.b32": {3: "0x1f", 4: "0xffffffff"},
    "mbarrier.arrive.shared::cta.b64": {0: "_"},
    "mbarrier.arrive.expect_tx.shared::cta.b64": {0: "_"},
}

_ENTRY = re.compile(
    r"\.visible \.entry (\w+)\(\s*\.param \.align 8 \.b8 (\w+)\[(\d+)\]\s*\)[^{]*\{(.*?)\n\}\n", re.DOTALL
)
_SHARED = re.compile(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\];")
_COMMENT = re.compile(r"//[^\n]*")
_REGISTERS = re.compile(r"\.reg \.(\w+)\s+(%?)(\w+)(?:<(\d+)>)?")
_PART = re.compile(r"\s*(?:(?P<label>\$\w+):|(?P<brace>[{}])(?=\s)|(?P<statement>[^;]*);)")


class Kernel:
    """One entry of a module."""

    def __init__(self, name: str, argument: str, size: str, body: str, shared: str) -> None:
        self.name, self.argument, self.size, self.body, self.shared = name, argument, size, body, shared

    def operand(self, text: str) -> str:
        """A register, a number, or an address."""
        if text in SPECIAL:
            return SPECIAL[text]
        if text.startswith("{"):
            return ", ".join(self.operand(part.strip()) for part in text[1:-1].split(","))
        if text.startswith("["):
            base, _, offset = text[1:-1].partition("+")
            return f"({self.operand(base)} + ({offset}))" if offset else self.operand(base)
        if found := re.fullmatch(r"%(p|rs|r|rd|f|fd)(\d+)", text):
            return f"{found[1]}[{found[2]}]"
        if found := re.fullmatch(r"0f([0-9A-F]{8})", text):
            return f"0x{found[1]}u"
        if re.fullmatch(r"-?\d+|0x[0-9a-f]+", text):
            return f"{text}ll"
        if text == self.argument:
            return "reinterpret_cast<uint64_t>(&arguments)"
        if text == self.shared:
            return "arch::shared_address(host::self->cta->memory.dynamic())"
        if re.fullmatch(r"[a-z]\w*", text):
            return text  # a register of an asm statement
        raise ValueError(f"operand {text}")

    def statement(self, text: str) -> str:
        """One instruction, or the registers that are declared."""
        if found := _REGISTERS.fullmatch(text):
            of, is_many, name, count = found.groups()
            if not is_many:
                return f"{TYPES[of]} {name};"
            return f"{TYPES[of]} {name}[{count}]; ptx::poison({name});"
        if text.startswith(".pragma"):
            return ""
        guard = ""
        if found := re.match(r"@(!?)%p(\d+)\s+", text):
            guard, text = f"if ({found[1]}p[{found[2]}]) ", text[found.end() :]
        name, _, rest = text.partition(" ") if "\t" not in text else text.partition("\t")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
        return f"{guard}{{ {self.instruction(name.strip(), operands)}; }}"

    def instruction(self, name: str, texts: list[str]) -> str:
        if name in ("bra", "bra.uni"):
            return f"goto {texts[0][1:]}"
        for place, fixed in FIXED.get(name, {}).items():
            if texts[place] != fixed:
                raise ValueError(f"{name} of {texts}")
        operands = ["" if text == "_" else self.operand(text.partition("|")[0]) for text in texts]
        if name in OWN:
            return OWN[name].format(*operands)
        *parts, of = name.split(".")
        plain, kind = ".".join(parts), TYPES.get(of)
        if kind is None:
            raise ValueError(f"{name} is not known")
        if parts[0] in ("ld", "st"):
            return self.access(parts, kind, operands)
        to, *given = operands
        if plain == "mov" and "," in given[0]:
            return f"ptx::pack({to}, {given[0]})"
        if plain == "mov" and "," in to:
            return f"ptx::unpack({given[0]}, {to})"
        values = "".join(f"const auto {v} = ptx::as<{kind}>({x}); " for v, x in zip("abc", given, strict=False))
        if plain in PLAIN:
            return f"{values}ptx::set({to}, static_cast<{kind}>({PLAIN[plain]}))"
        if plain == "not":
            return f"{values}ptx::set({to}, static_cast<{kind}>({'!' if of == 'pred' else '~'}a))"
        if plain in ("shl", "shr"):
            return f"ptx::set({to}, ptx::{plain}(ptx::as<{kind}>({given[0]}), ptx::as<uint32_t>({given[1]})))"
        if plain in ("mul.wide", "mul.hi"):
            wide = WIDER[of]
            product = f"static_cast<{wide}>(static_cast<{wide}>(a) * b)"
            kept = product if plain == "mul.wide" else f"static_cast<{kind}>({product} >> {of[1:]})"
            return f"{values}ptx::set({to}, {kept})"
        if plain == "selp":
            return f"ptx::set({to}, {given[2]} ? ptx::as<{kind}>({given[0]}) : ptx::as<{kind}>({given[1]}))"
        if parts[0] == "setp" and len(parts) == 2 and parts[1] in COMPARED:
            return f"{values}{to} = {COMPARED[parts[1]]}"
        if parts[0] == "cvt" and len(parts) == 2 and "f" not in parts[1] + of:
            return f"{values}ptx::set({to}, static_cast<{TYPES[parts[1]]}>(a))"
        raise ValueError(f"{name} is not known")

    def access(self, parts: list[str], kind: str, operands: list[str]) -> str:
        """A load or a store."""
        how = re.fullmatch(r"(ld|st)(\.relaxed\.gpu)?\.(param|global|shared)(?:\.v([24]))?", ".".join(parts))
        if how is None or bool(how[2]) != (kind == "arch::Packet"):
            raise ValueError(f"{'.'.join(parts)} of {kind}")
        address, value = operands if how[1] == "st" else operands[::-1]
        if how[2] and how[1] == "st":
            return f"ptx::store_packet({address}, {value})"
        if how[2]:
            return f"{value} = ptx::load_packet({address})"
        writes = "true" if how[1] == "st" else "false"
        place = f"ptx::{how[3]}_memory({address}, {how[4] or 1} * sizeof({kind}), {writes})"
        return f"ptx::{'load' if how[1] == 'ld' else 'store'}<{kind}>({place}, {value})"

    def written(self) -> Iterator[str]:
        """In C++."""
        yield f'extern "C" void {self.name}(const ptx::Arguments<{self.size}> arguments) {{'
        yield "ptx::races::enter();"
        at, text = 0, _COMMENT.sub("", self.body).rstrip()
        while at < len(text):
            found = _PART.match(text, at)
            assert found, text[at : at + 80]
            at = found.end()
            if found["label"]:
                yield f"{found['label'][1:]}:;"
            elif found["brace"]:
                yield found["brace"]
            else:
                yield self.statement(found["statement"].strip())
        yield "}"


def entries(module: str) -> dict[str, str]:
    """The kernels of a module, by their names."""
    found = {match[1]: match[0] for match in _ENTRY.finditer(module)}
    assert len(found) == module.count(".entry"), "an entry of another form"
    return found


def head(module: str) -> str:
    """What stands before the kernels."""
    return module[: module.index(".visible")]


def in_cpp(module: str) -> str:
    """All kernels of a module of PTX."""
    (shared,) = _SHARED.findall(module)
    lines = ['#include "ptx.h"', "namespace arch = fusedrnn::arch;", "namespace host = fusedrnn::host;"]
    for entry in entries(module).values():
        lines += Kernel(*_ENTRY.match(entry).groups(), shared).written()
    return "\n".join(lines) + "\n"


_INSTANCE = re.compile(r"\bW void fusedrnn::cuda::layer_kernel<(.*), (true|false)>\(std::conditional")
INSTANCES = """
#include "layer.cuh"

namespace fusedrnn::cuda {

#define KERNEL(plain, ...) \\
  template __global__ void layer_kernel<__VA_ARGS__, plain>(const ArgumentsOf<__VA_ARGS__>)
"""


def said(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def kernels_of(program: Path) -> list[str]:
    """The kernels that g++ made for it, each as it is instantiated."""
    found = _INSTANCE.findall(said("nm", "-C", program))
    return [f"KERNEL({plain}, {plan});\n" for plan, plain in found]


def instances(kernels: list[str], source: Path) -> Path:
    """A file of these kernels, for nvcc."""
    source.write_text(INSTANCES + "".join(kernels) + "}  // namespace fusedrnn::cuda\n")
    return source


def module(source: Path, nvcc: tuple[str, ...], sm: str, out: Path) -> str:
    """What nvcc makes of a file for sm_{sm}, which is kept."""
    said(*nvcc, "-ptx", source, "-o", out, "-gencode", f"arch=compute_{sm},code=compute_{sm}")
    return out.read_text()


def program(objects: list[Path], text: str, gxx: Callable[..., None], out: Path, *flags: str) -> None:
    """One of these objects, with the kernels of a module in place of their own; or what else the flags say."""
    written = out.with_suffix(".cpp")
    written.write_text(in_cpp(text))
    gxx("-w", "-fwrapv", "-frounding-math", *flags, written, *objects, "-o", out)
    strong = re.findall(r" T (\w*layer_kernel\w*)$", said("nm", out), re.MULTILINE)
    assert sorted(strong) == sorted(entries(text))


def parts(text: str, kernels: int) -> Iterator[str]:
    """Modules of so many kernels each."""
    every = list(entries(text).values())
    for first in range(0, len(every), kernels):
        yield head(text) + "".join(every[first : first + kernels])
