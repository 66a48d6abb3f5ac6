"""What is read out of compiled kernels: loops and their turns, widths by argument, rounding, matrix instructions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from kernels import aot, cubin, listing, ptx
from kernels.aot import code_key, compile_launch, is_matrix
from kernels.op import operations
from kernels.trips import Loop, loops
from kernels.tuning import Kernel, Launch, recorded

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)

SASS = """
        /*1000*/                   MOV R1, c[0x0][0x28] ;
        /*1010*/              @!P0 LDG.E.64 R2, desc[UR4][R2.64] ;
        /*1020*/                   FFMA R4, R2, R3, R4 ;
        /*1030*/                   NOP ;
        /*1040*/               @P1 BRA 0x1020          &req={3}         ?trans6;
        /*1050*/          @!UP0 BRA.U UP0, 0x1010 ;
        /*1060*/               @P2 BRA 0x1080 ;
        /*1070*/                   STG.E.128 desc[UR4][R6.64], R8 ;
        /*1080*/                   EXIT ;
        /*1090*/                   BRA 0x1090;
"""
GCN = """
\ts_load_dwordx2 s[0:1], s[4:5], 0x0
\ts_branch .LBB0_2
.LBB0_1:                                ;   in Loop: Header=BB0_2 Depth=1
\tv_add_u32_e32 v1, 1, v1
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
\tglobal_load_dwordx4 v[4:7], v[2:3], off
\ts_nop 0
\ts_cbranch_scc0 .LBB0_1
\tbuffer_store_short v1, v2, s[0:3], 0 offen
\ts_endpgm
"""
TTIR = """
  tt.func public @_kernel(%x_ptr: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("x_ptr"(#loc)), %k: i32 loc("k")) {
    %c0_i32 = arith.constant 0 : i32 loc(#loc)
    %c64_i32 = arith.constant 64 : i32 loc(#loc)
    %split = tt.get_program_id x : i32 loc(#loc)
    %count = tt.get_num_programs x : i32 loc(#loc)
    %share = arith.divsi %k, %count : i32 loc(#loc)
    %first = arith.muli %split, %share : i32 loc(#loc)
    %last = arith.addi %first, %share : i32 loc(#loc)
    %seen = tt.load %x_ptr : !tt.ptr<i32> loc(#loc)
    %acc = scf.for %start = %first to %last step %c64_i32 iter_args(%a = %cst) -> (tensor<16xf32>)  : i32 {
      %s = "tt.reduce"(%a) <{axis = 0 : i32}> ({
      ^bb0(%p: f32 loc(#loc), %q: f32 loc(#loc)):
        tt.reduce.return %p : f32 loc(#loc)
      }) : (tensor<16xf32>) -> f32 loc(#loc)
      %inner = scf.for %j = %start to %c64_i32 step %c16_i32  : i32 {
      } loc(#loc)
    } loc(#loc)
    %data = scf.for %i = %c0_i32 to %seen step %c64_i32 -> (i32)  : i32 {
    } loc(#loc)
  } loc(#loc)
"""
PTX = """
	.param .u64 .ptr .global .align 1 _kernel_param_0,
	ld.param.b64 	%rd1, [_kernel_param_0];
	ld.param.b64 	%rd2, [_kernel_param_1];
	ld.param.b64 	%rd3, [_kernel_param_2];
	mul.lo.s64 	%rd4, %rd2, 8;
	add.s64 	%rd5, %rd1, %rd4;
	@%p1 ld.global.L1::evict_first.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd5 + 0 ];
	@%p1 ld.global.b32 { %r5 }, [ %rd5 + 16 ];
$L1:
	cp.async.cg.shared.global [ %r6 + 0 ], [ %rd8 + 0 ], 0x8, %r7;
	@%p2 st.global.v2.b16 [ %rd6 + 0 ], { %rs1, %rs2 };
	add.s64 	%rd6, %rd3, 64;
	mov.b64 	%rd8, %rd7;
	add.s64 	%rd7, %rd5, 128;
	div.full.f32 	%f1, %f2, %f3;
	div.rn.f32 	%f1, %f2, %f3;
	fma.rn.f32 	%f1, %f2, %f3, %f4;
"""


def test_instructions_in_loops_run_as_often_as_the_loops_turn() -> None:
    code = listing.nvidia(SASS)
    assert code.opcodes == ("MOV", "LDG.E.64", "FFMA", "BRA", "BRA.U", "BRA", "STG.E.128", "EXIT", "BRA")
    assert code.loops == ((1, 4), (2, 3))
    ran = listing.executed(code, [Loop(10, (Loop(4),))])
    assert ran == {"MOV": 1, "LDG.E.64": 10, "FFMA": 40, "BRA": 42, "BRA.U": 10, "STG.E.128": 1, "EXIT": 1}
    assert listing.executed(code, [Loop(10)])["FFMA"] == 10  # a loop that the source does not have turns once


def test_of_two_loops_the_longer_is_that_of_the_source() -> None:
    wait = " /*0fe0*/ SYNCS R1 ;\n /*0ff0*/ @P1 BRA 0xfe0 ;\n"
    ran = listing.executed(listing.nvidia(wait + SASS), [Loop(10)])
    assert ran["SYNCS"] == 1
    assert ran["LDG.E.64"] == 10


def test_loops_that_overlap_are_one() -> None:
    moved = listing.Listing(("A", "B", "C", "D", "E", "F"), ((0, 5), (1, 3), (2, 4)))
    ran = listing.executed(moved, [Loop(10, (Loop(3),))])
    assert ran == {"A": 10, "B": 30, "C": 30, "D": 30, "E": 30, "F": 10}


def test_amd_loops_and_widths() -> None:
    code = listing.amd(GCN)
    assert listing.executed(code, [Loop(7)])["global_load_dwordx4"] == 7
    assert listing.executed(code, [Loop(7)])["s_branch"] == 1
    assert listing.amd_widths(code) == {"load": 128, "store": 16}


ROUNDING = """
\tv_rcp_f32_e32 v1, v1
\tv_mul_f32_e32 v1, 0x4f7ffffe, v1
\tv_div_scale_f32 v9, vcc, 1.0, v8, 1.0
\tv_rcp_f32_e32 v23, v13
\tv_fma_f32 v24, -v13, v12, v9
\tv_fmac_f32_e32 v12, v24, v23
\tv_fma_f32 v9, -v13, v12, v9
\tv_fmac_f32_e32 v12, v24, v23
\tv_fma_f32 v9, -v13, v12, v9
\tv_div_fmas_f32 v9, v9, v23, v12
\tv_div_fixup_f32 v12, v12, v7, 1.0
\tv_mad_u64_u32 v[0:1], s[0:1], v2, v3, v[4:5]
"""


def test_amd_divisions_of_integers_and_exact_ones_are_no_fault() -> None:
    assert listing.amd_rounding(ROUNDING) == (0, 0)
    loose = "\tv_rcp_f32_e32 v2, v3\n\tv_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[6:7]\n"
    assert listing.amd_rounding(ROUNDING + loose) == (1, 1)


def test_turns_follow_from_arguments_and_programs() -> None:
    assert loops(TTIR, [None, 4096], (4,)) == (Loop(16, (Loop(1, known=False),)), Loop(1, known=False))
    assert loops(TTIR, [None, 4100], (1,))[0].trips == 65
    assert not loops(TTIR, [None, 4096], (4,))[0].all_known


def test_a_load_is_known_by_its_argument() -> None:
    found = ptx.widths(PTX, {0: "codes_ptr", 2: "out_ptr"})
    assert found == {"load codes_ptr": 128, "store out_ptr": 32}
    assert ptx.widths(PTX.replace("v4.b32", "b32"), {0: "codes_ptr", 2: "out_ptr"})["load codes_ptr"] == 64  # copied
    assert (ptx.inexact_divisions(PTX), ptx.fused(PTX)) == (1, 1)


@triton.jit
def _divide(x_ptr, y_ptr, out_ptr, size, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < size, other=1.0)
    y = tl.load(y_ptr + at, mask=at < size, other=1.0)
    if EXACT:
        q = tl.math.div_rn(x, y)
    else:
        q = x / y
    tl.store(out_ptr + at, q * x + y, mask=at < size)


def division(*, exact: bool, fuse: bool, extra: int = 0) -> Launch:
    config = triton.Config({"BLOCK": 1024, "enable_fp_fusion": fuse}, num_warps=4)
    kernel = Kernel(_divide, (config,), config, ())
    x = torch.empty(4096)
    arguments: dict[str, Any] = {"x_ptr": x, "y_ptr": x, "out_ptr": x, "size": 4096 + extra, "EXACT": exact}
    return Launch(kernel, lambda meta: (4,), arguments)


@pytest.mark.parametrize("target", ["sm_80", "sm_120", "gfx942"])
def test_inexact_divisions_and_contractions_are_counted(target: str) -> None:
    exact = compile_launch(division(exact=True, fuse=False), target)
    assert (exact.inexact_divisions, exact.fused) == (0, 0)
    loose = compile_launch(division(exact=False, fuse=True), target)
    assert loose.fused > 0
    if target != "gfx942":  # there `/` is IEEE's for float32 as well
        assert loose.inexact_divisions > 0


def test_a_kernel_without_a_loop_runs_each_instruction_once() -> None:
    built = compile_launch(division(exact=True, fuse=False), "sm_80")
    assert built.loops_known
    assert built.programs == 4
    assert built.thread_instructions == built.size * 4 * 32 * 4  # warps, lanes, programs


def test_kernels_that_are_disassembled_together_are_what_they_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = [division(exact=exact, fuse=False) for exact in (True, False)]
    cubins = [aot._compiled(one, "sm_90", one.kernel.configs[0])[0].asm["cubin"] for one in launches]

    def listings(place: str, chosen: list[bytes]) -> list[listing.Listing]:
        monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / place))
        return [listing.nvidia(text) for text in cubin.disassembled("SM90a", chosen)]

    together = listings("together", cubins)
    assert together == listings("alone", cubins[:1]) + listings("alone", cubins[1:])
    assert together == listings("together", cubins)  # from the files
    assert together[0] != together[1]
    assert all("EXIT" in each.opcodes for each in together)


def test_spills_of_amd_are_those_to_memory() -> None:
    text = ".private_segment_fixed_size: {}\n.sgpr_spill_count: 11\n.vgpr_spill_count: {}\n"
    assert aot._amd_spills(text.format(0, 0)) == 0  # lanes of vector registers keep them
    assert aot._amd_spills(text.format(64, 3)) == 14


def test_launches_share_code_unless_what_the_compiler_sees_differs() -> None:
    def key(launch: Launch) -> object:
        return code_key(launch, launch.kernel.configs[0])

    assert key(division(exact=True, fuse=False)) == key(division(exact=True, fuse=False, extra=16))
    assert key(division(exact=True, fuse=False)) != key(division(exact=True, fuse=False, extra=1))
    assert key(division(exact=True, fuse=False)) != key(division(exact=False, fuse=False))
    assert key(division(exact=True, fuse=False)) != key(division(exact=True, fuse=True))


@pytest.mark.parametrize("m", [16, 64])
def test_matrix_instructions_times_turns_are_the_product(m: int) -> None:
    op = operations()["affine_matmul"]
    launch = recorded(op.triton, op.sized(m, 512, 2048, torch.bfloat16, "cpu").arguments)[1][0]
    config = triton.Config({"BLOCK_N": 64}, num_warps=4, num_stages=3)
    built = compile_launch(launch, "sm_80", config)
    steps = sum(n for opcode, n in built.executed.items() if is_matrix(opcode)) * built.warps * built.programs
    assert all("16816" in opcode for opcode in built.executed if is_matrix(opcode))
    assert built.loops_known
    assert steps * 2 * 16 * 8 * 16 == 2 * m * 512 * 2048
    assert math.isclose(built.thread_instructions / sum(built.executed.values()), built.warps * 32 * built.programs)
