"""What a compiled program says of itself is read as often as it happens, and once."""

import pytest

from common.planning import compiled_program, hlo

# As XLA writes programs for TPUs, shortened: cycles are 1 for a glance, 1000 where they must not
# count.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

FileNames
1 "/venv/site-packages/optax/update.py"
2 "/home/me/project/model.py"

FunctionNames
1 "apply"
2 "embed"

FileLocations
1 {file_name_id=2 function_name_id=2 line=31 end_line=31 column=9 end_column=42}
2 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%fused_computation.1 (param_0: bf16[4,8], param_1: bf16[8,16]) -> bf16[4,16] {
  %param_0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[4,16]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), \
dim_labels=bf_io->bf, backend_config={"window_config":{"estimated_cycles":"1000"}}
}

%body.1 (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  ROOT %add_fusion = (s32[]{:T(128)}, f32[8]{0:T(256)}) fusion(%arg), kind=kLoop, \
calls=%fused_computation.1, backend_config={"window_config":{"estimated_cycles":"10"}}
}

%condition.1 (arg.1: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %arg.1 = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%cheap (c: f32[8]) -> f32[8] {
  ROOT %copy.9 = f32[8]{0:T(256)} copy(%c), backend_config={"estimated_cycles":"7"}
}

%dear (d: f32[8]) -> f32[8] {
  ROOT %copy.8 = f32[8]{0:T(256)} copy(%d), backend_config={"estimated_cycles":"9"}
}

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.9 = f32[] add(%x, %y), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main.1 (p0: bf16[4,8], p1: bf16[8,16], p2: f32[8]) -> f32[8] {
  %p0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  %p2 = f32[8]{0:T(256)} parameter(2)
  %fusion.1 = bf16[4,16]{1,0:T(8,128)(2,1)S(1)} fusion(%p0, %p1), kind=kOutput, \
calls=%fused_computation.1, metadata={op_name="jit(step)/dot_general" stack_frame_id=2}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %two = s32[]{:T(128)} constant(2)
  %copy.2 = s32[]{:T(128)} copy(%two)
  %tuple = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(256)}) tuple(%copy.2, /*index=1*/%p2)
  %while.1 = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(256)}) while(%tuple), \
condition=%condition.1, body=%body.1
  %conditional.1 = f32[8]{0:T(256)} conditional(%p2, %p2, %p2), \
branch_computations={%cheap, %dear}
  ROOT %all-reduce.1 = f32[8]{0:T(256)} all-reduce(%conditional.1), channel_id=1, \
to_apply=%sum, metadata={op_name="jit(step)/psum" stack_frame_id=1}
}
"""


def test_cycles_count_as_often_as_they_pass():
    fusion, loop, branch = 100, 5 * 10, 9
    assert hlo.parse(PROGRAM).cycles() == fusion + loop + branch


def test_a_loop_that_does_not_say_how_often_it_runs_counts_once_and_is_told():
    known, unknown = map(hlo.parse, (PROGRAM, PROGRAM.replace("direction=LT", "direction=NE")))
    assert known.loops_of_unknown_length() == 0
    assert unknown.loops_of_unknown_length() == 1
    assert known.cycles() - unknown.cycles() == 4 * 10


def test_large_operations_without_an_estimate_are_told():
    pad = "  %pad.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} pad(%p0, %two), padding=0_1020x0_1016\n"
    gather = "  %all-gather.9 = f32[1024,1024]{1,0:T(8,128)} all-gather(%p2), channel_id=9\n"
    start = "  %two = s32"
    module = hlo.parse(PROGRAM.replace(start, pad + gather + start))
    assert not list(hlo.parse(PROGRAM).silent())
    assert compiled_program.summarise(module).silent == {"pad": 2 * 2**20}


def test_an_operation_is_traced_to_its_line_of_the_project():
    module = hlo.parse(PROGRAM)
    entry = module.computations[module.entry]
    assert entry["fusion.1"].op_name == "jit(step)/dot_general"
    # The innermost frame is optax; the line that a person can change is the one that called it.
    assert module.place(entry["fusion.1"]) == "/home/me/project/model.py:31"
    assert module.place(entry["p0"]) == ""


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[4,16]{1,0:T(8,128)(2,1)S(1)}", 128),
        ("pred[3]{0}", 3),
        ("s4[10]{0}", 5),
        ("f8e4m3fn[7]{0}", 7),
        ("(s32[]{:T(128)}, /*index=1*/f32[8]{0:T(256)})", 36),
        ("(f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)})", 32),
    ],
)
def test_shapes_have_the_size_of_their_values(shape, size):
    assert hlo.shape_bytes(shape) == size


def test_what_an_instruction_reads_is_the_size_of_its_operands():
    module = hlo.parse(PROGRAM)
    sizes = {run.instruction.name: module.operand_bytes(run) for run in module.runs()}
    assert sizes["fusion.1"] == 4 * 8 * 2 + 8 * 16 * 2
    assert sizes["all-reduce.1"] == 32


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="has no entry"):
        hlo.parse("hello")
