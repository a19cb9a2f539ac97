"""What is read off HLO, and what fresh tables are held to; nothing is compiled for a device."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerators, hlo

F = 4  # bytes of a number

FUSIONS = """\
HloModule m, entry_computation_layout={(f32[8,4]{1,0}, f32[100]{0})->f32[8]{0}}

%fused (param_0: f32[8,4], param_1: f32[100]) -> f32[8] {
  %param_1 = f32[100]{0} parameter(1)
  %slice.1 = f32[8]{0} slice(%param_1), slice={[4:12]}
  %param_0 = f32[8,4]{1,0} parameter(0)
  %constant.1 = f32[] constant(0)
  %reduce.1 = f32[8]{0} reduce(%param_0, %constant.1), dimensions={1}, to_apply=%sum
  ROOT %add.1 = f32[8]{0} add(%reduce.1, %slice.1)
}

ENTRY %main (x: f32[8,4], y: f32[100]) -> (f32[8], f32[8]) {
  %x = f32[8,4]{1,0} parameter(0), metadata={op_name="x"}
  %y = f32[100]{0} parameter(1), metadata={op_name="y"}
  %fusion = f32[8]{0} fusion(%x, %y), kind=kLoop, calls=%fused, metadata={op_name="f(a)"}
  %call.1 = f32[8]{0} custom-call(%fusion), custom_call_target="library"
  ROOT %tuple = (f32[8]{0}, f32[8]{0}) tuple(%fusion, %call.1)
}
"""

LOOP = """\
HloModule m

%body (state: (s32[], f32[16], f32[5,16])) -> (s32[], f32[16], f32[5,16]) {
  %state = (s32[], f32[16]{0}, f32[5,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %carry = f32[16]{0} get-tuple-element(%state), index=1
  %rows = f32[5,16]{1,0} get-tuple-element(%state), index=2
  %next = s32[] fusion(%i), kind=kLoop, calls=%one
  %row = f32[1,16]{1,0} dynamic-slice(%rows, %i, %i), dynamic_slice_sizes={1,16}
  %update = f32[5,16]{1,0} dynamic-update-slice(%rows, %row, %i, %i)
  ROOT %tuple = (s32[], f32[16]{0}, f32[5,16]{1,0}) tuple(%next, %carry, %update)
}

%one (param_0: s32[]) -> s32[] {
  %param_0 = s32[] parameter(0)
  ROOT %add = s32[] add(%param_0, %param_0)
}

ENTRY %main (rows: f32[5,16]) -> f32[5,16] {
  %rows = f32[5,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = f32[16]{0} broadcast(%zero), dimensions={}
  %tuple.1 = (s32[], f32[16]{0}, f32[5,16]{1,0}) tuple(%zero, %start, %rows)
  %while = (s32[], f32[16]{0}, f32[5,16]{1,0}) while(%tuple.1), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[5,16]{1,0} get-tuple-element(%while), index=2
}
"""

TILES = """\
HloModule m

ENTRY %main (x: f32[10,4]) -> f32[10,4] {
  %x = f32[10,4]{1,0:T(8,128)} parameter(0)
  %near = f32[10,4]{0,1:T(4,128)S(1)} copy(%x)
  %start = (f32[10,4]{0,1:T(4,128)}, f32[10,4]{0,1:T(4,128)S(1)}, u32[]{:S(2)}) copy-start(%near)
  %done = f32[10,4]{0,1:T(4,128)} copy-done(%start)
  ROOT %out = f32[10,4]{0,1:T(4,128)} negate(%near)
}
"""


def test_fusions_and_calls_are_kernels_and_slices_are_what_is_read():
    work = hlo.work(FUSIONS)
    fusion, call = 32 + 8 + 8, 8 + 8
    assert work == hlo.Work(2, 2, F * (fusion + call), F * (fusion + call), F * (140 + 16))


def test_a_loop_is_launched_as_often_as_it_runs():
    work = hlo.work(LOOP)
    # One broadcast; in the body a fusion of scalars, a row read and written, a row read and put.
    rows = 2 * (16 * F) + 2 * 4
    assert (work.kernels, work.launches) == (1 + 3, 1 + 5 * 3)
    assert work.moved == (4 + 16 * F) + 5 * (2 * 4 + rows + 2 * 16 * F + 2 * 4)
    once = LOOP.replace('{"known_trip_count":{"n":"5"}}', "{}")
    assert hlo.work(once).launches == 1 + 3


def test_a_tpu_has_tiles_and_a_memory_beside_its_cores():
    work = hlo.work(TILES)
    given, transposed = 16 * 128 * F, 4 * 128 * F
    assert work.kernels == 3
    assert work.moved == (given + transposed) + 2 * transposed + 2 * transposed
    assert work.far == given + transposed + transposed


def test_what_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.work("")


def test_a_program_of_this_machine_is_read():
    def f(x):
        return jax.lax.scan(lambda c, y: (c + y, jnp.tanh(c * y)), x[0], x)

    text = jax.jit(f).lower(jnp.zeros((7, 300))).compile().as_text()
    assert text is not None
    work = hlo.work(text)
    assert work.launches > work.kernels
    assert work.moved >= 2 * 7 * 300 * 8


def row(side="jaxsoft", **figures):
    given = {"kernels": 5, "launches": 5, "moved_bytes": 10**7, "temporary_bytes": 10**7}
    return (
        {"part": "losses", "loss": "soft_q", "side": side, "compile_seconds": 1.0} | given | figures
    )


HAND = row("jax by hand", compile_seconds=0.5)


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [
        ([row(), HAND], []),
        ([row(kernels=6, moved_bytes=10**7 + 10**5), HAND], []),
        ([row(moved_bytes=1_200_000_000), HAND], ["moved_bytes"]),
        ([row(kernels=9), HAND], ["kernels"]),
        ([row(temporary_bytes=2 * 10**7), HAND], ["temporary_bytes"]),
        # A slow machine is slow with both.
        ([row(compile_seconds=9.0), row("jax by hand", compile_seconds=5.0)], []),
        ([row(compile_seconds=1.6), HAND], ["compiles"]),
        ([HAND], ["not there"]),
        ([row() | {"error": "Boom: no"}, HAND], ["Boom"]),
    ],
)
def test_what_is_worse_than_committed(fresh, expected):
    found = accelerators.worse(fresh, [row(), HAND])
    assert len(found) == len(expected)
    for text, word in zip(found, expected, strict=True):
        assert text.startswith("losses, soft_q, jaxsoft: ")
        assert word in text


def test_updates_are_compared_with_their_networks():
    before = row("x") | {"to_network": 2.0}
    assert accelerators.worse([row("x") | {"to_network": 2.9}], [before]) == []
    assert len(accelerators.worse([row("x") | {"to_network": 3.1}], [before])) == 1
    assert accelerators.worse([], [before | {"error": "as before"}]) == []


def test_the_committed_tables_are_whole():
    """No row fails, and no two have one name."""
    for platform in ("gpu", "tpu"):
        path = Path(accelerators.__file__).parent / "results" / f"accelerators_{platform}.json"
        rows = json.loads(path.read_text())["rows"]
        assert {x["part"] for x in rows} >= {"losses", "recurrence", "agents", "natural"}
        names = [accelerators.name_of(x) for x in rows]
        assert len(set(names)) == len(names)
        assert [x for x in rows if "error" in x] == []
