"""Checkpoints: what is read is what was saved, whatever happens in between."""

import errno
import json
import logging
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoft.training import _checksums
from jaxsoft.training.checkpoints import Checkpoints, read_config, saved_steps
from jaxsoft.training.lock import InUseError
from tests.support import checkpoint_writer
from tests.support.trees import structure

CONFIG = {"env": "Pong-v5", "rate": 2.5e-4, "net": {"width": 64, "sizes": [32, 32]}, "seed": None}


class State(NamedTuple):
    params: Any
    extra: Any


def open_(directory, **settings):
    return Checkpoints(directory, **{"config": CONFIG, **settings})


def ramp(step):
    return {"x": jnp.arange(5) + step}


def bits(x):
    return np.asarray(x).tobytes()


def assert_same(restored, expected):
    """The same kinds, dtypes and bits."""
    assert structure(restored) == structure(expected)
    for new, old in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        if not hasattr(old, "dtype"):
            assert type(new) is type(old)
            assert new == old
            continue
        assert isinstance(new, type(old))
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(new) == jax.random.key_impl(old)
            assert bits(jax.random.key_data(new)) == bits(jax.random.key_data(old))
        else:
            assert bits(new) == bits(old)


DTYPES = "bool int4 int8 int16 int32 int64 uint8 uint16 uint32 uint64 float8_e4m3fn bfloat16 "
DTYPES += "float16 float32 float64 complex64 complex128"


@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 3), (2, 3, 4)])
def test_arrays_come_back(tmp_path, shape):
    numbers = np.random.default_rng(0).normal(size=shape) * 3
    state = {x: jnp.asarray(np.abs(numbers).astype(jnp.dtype(x))) for x in DTYPES.split()}
    state["nan"] = jnp.asarray([np.nan, -np.nan, np.inf, -0.0, 5e-324])
    with open_(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        step, restored = checkpoints.restore(state)
        assert step == 3
        assert_same(restored, state)
        step, restored = checkpoints.restore(jax.eval_shape(lambda: state))
        assert_same(restored, state)


def test_trees_come_back(tmp_path):
    params = {"a/b": jnp.ones((2, 3), jnp.bfloat16), "c.d": [jnp.zeros(2)], "['e']": {}}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = State(
        params=(params, optimiser.init(params)),
        extra=[
            None,
            (),
            optax.EmptyState(),
            jax.random.key(3),
            jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
            jax.random.split(jax.random.key(1), 2)[:0],
            *(True, 7, 0.1, 1j, np.float32(0.1), np.bool_(True)),
            np.arange(3, dtype=np.int16),
            jnp.asarray(0.1),
            jnp.asarray(7),
        ],
    )
    with open_(tmp_path) as checkpoints:
        checkpoints.save(0, state)
    with open_(tmp_path) as checkpoints:
        _, restored = checkpoints.restore(state)
    assert_same(restored, state)
    np.testing.assert_array_equal(
        jax.random.normal(restored.extra[3], (3,)), jax.random.normal(state.extra[3], (3,))
    )
    # A number that adapts to other dtypes keeps doing so.
    assert (jnp.ones(2, jnp.bfloat16) * restored.extra[-2]).dtype == jnp.bfloat16


@pytest.mark.parametrize("state", [{}, None, optax.EmptyState(), [jnp.zeros(0)], jnp.ones(2), 3])
def test_the_least_states_come_back(tmp_path, state):
    with open_(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        _, restored = checkpoints.restore(state)
    assert_same(restored, state)


def test_keys_come_back_from_their_shapes(tmp_path):
    state = {"k": jax.random.split(jax.random.key(1, impl="rbg"), 3), "none": jax.random.key(0)}
    state["none"] = state["none"][None][:0]
    with open_(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        _, restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert_same(restored, state)


def test_an_array_of_several_chunks_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsoft.training.checkpoints._CHUNK", 1000)
    state = {"x": jnp.asarray(np.random.default_rng(0).integers(0, 256, (3_011, 3), np.uint8))}
    with open_(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        assert_same(checkpoints.restore(state)[1], state)


def test_arrays_go_where_like_was_put(tmp_path):
    placed = jax.device_put(jnp.ones(3), jax.devices()[0])
    like = {"placed": placed, "anywhere": jnp.ones(3), "key": jax.random.key(0)}
    assert placed.committed
    with open_(tmp_path) as checkpoints:
        checkpoints.save(0, like)
        _, restored = checkpoints.restore(like)
        assert restored["placed"].committed
        assert not restored["anywhere"].committed
        _, restored = checkpoints.restore(jax.eval_shape(lambda: like))
        assert not restored["placed"].committed


def test_a_checkpoint_outlives_its_devices(tmp_path):
    """As one written on a GPU does on a CPU."""
    code = f"""
import jax, jax.numpy as jnp
from jaxsoft.training.checkpoints import Checkpoints
assert jax.device_count() == 2
mesh = jax.sharding.Mesh(jax.devices(), "d")
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
state = {{
    "split": jax.device_put(jnp.arange(8.0), split),
    "other": jax.device_put(jnp.arange(3.0), jax.devices()[1]),
    "keys": jax.device_put(jax.random.split(jax.random.key(0), 4), split),
}}
with Checkpoints({str(tmp_path)!r}, config={{}}) as checkpoints:
    checkpoints.save(1, state)
    restored = checkpoints.restore(state)[1]
    assert all(restored[x].sharding == state[x].sharding for x in state)
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)
    expected = {
        "split": jnp.arange(8.0),
        "other": jnp.arange(3.0),
        "keys": jax.random.split(jax.random.key(0), 4),
    }
    with Checkpoints(tmp_path, config={}) as checkpoints:
        assert_same(checkpoints.restore(expected)[1], expected)


def test_saved_buffers_may_be_donated(tmp_path):
    """On the CPU, a view of a buffer would show what overwrote it."""
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    frames = jnp.zeros((16, 1 << 20), jnp.uint8) + jnp.arange(16, dtype=jnp.uint8)[:, None]
    key = jnp.zeros((1 << 18, 2), jnp.uint32)
    host = np.zeros(1 << 18)
    with open_(tmp_path) as checkpoints:
        for step in range(3):
            expected = np.asarray(frames[:, 0])
            checkpoints.save(step, (frames, jax.random.wrap_key_data(key), host))
            saved = frames
            for _ in range(5):
                frames, key = update(frames), update(key)
            host += 1
            assert saved.is_deleted()
            jax.block_until_ready((frames, key))
            like = (frames, jax.random.wrap_key_data(key), host)
            _, (restored, keys, numbers) = checkpoints.restore(like, step)
            assert np.array_equal(restored, np.broadcast_to(expected[:, None], frames.shape))
            assert (jax.random.key_data(keys) == 5 * step).all()
            assert (numbers == step).all()


def test_the_last_k_are_kept(tmp_path):
    with open_(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in range(0, 50, 10):
            checkpoints.save(step, ramp(step))
            checkpoints.wait()
            assert checkpoints.latest() == step
            assert saved_steps(tmp_path) == [x for x in (step - 10, step) if x >= 0]
        assert_same(checkpoints.restore(ramp(0), 30), (30, ramp(30)))
        assert_same(checkpoints.restore(ramp(0)), (40, ramp(40)))
    open_(tmp_path, keep=1).close()
    assert [path.name for path in tmp_path.iterdir()] == ["40"]


def test_a_step_is_saved_once(tmp_path):
    with open_(tmp_path) as checkpoints:
        checkpoints.save(5, ramp(5))
        checkpoints.save(5, ramp(6))
        checkpoints.wait()
        checkpoints.save(5, ramp(7))
    with open_(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(ramp(0)), (5, ramp(5)))
        checkpoints.save(5, ramp(8))
        assert_same(checkpoints.restore(ramp(0)), (5, ramp(5)))


def test_going_on_from_an_earlier_step_abandons_the_later_ones(tmp_path):
    with open_(tmp_path) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, ramp(step))
    with open_(tmp_path) as checkpoints:
        assert checkpoints.restore(ramp(0), 10)[0] == 10
        assert checkpoints.latest() == 30
        checkpoints.save(20, ramp(99))
        checkpoints.wait()
        assert checkpoints.latest() == 20
        assert_same(checkpoints.restore(ramp(0)), (20, ramp(99)))
        assert_same(checkpoints.restore(ramp(0), 10), (10, ramp(10)))


def test_another_run_is_not_overwritten(tmp_path):
    with open_(tmp_path) as checkpoints:
        checkpoints.save(10, ramp(10))
        with pytest.raises(ValueError, match=r"step 9, having last .* step 10.*Restore the step"):
            checkpoints.save(9, ramp(9))
    with open_(tmp_path) as checkpoints:
        for step in (5, 10, 15):
            with pytest.raises(ValueError, match="last saved or restored nothing"):
                checkpoints.save(step, ramp(step))
    with pytest.raises(ValueError, match="open for writing: False"):
        checkpoints.save(15, ramp(15))
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_what_a_kill_left_is_not_read_and_cleaned_away(tmp_path):
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, ramp(1))
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-17", "0.removed"):
        (tmp_path / name / "state").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("not ours")
    with open_(tmp_path, write=False) as checkpoints:
        assert checkpoints.restore(ramp(0))[0] == 1
        assert len(list(tmp_path.iterdir())) == 5
    with open_(tmp_path) as checkpoints:
        assert {path.name for path in tmp_path.iterdir()} == {"1", "notes.txt", "lock"}
        assert checkpoints.restore(ramp(0))[0] == 1
        checkpoints.save(2, ramp(2))
    assert checkpoints.latest() == 2


def test_one_writes_and_others_read(tmp_path):
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, ramp(1))
        checkpoints.wait()
        with pytest.raises(InUseError, match=f"process {os.getpid()} on .* is writing"):
            open_(tmp_path)
        with open_(tmp_path, write=False) as other:
            assert_same(other.restore(ramp(0)), (1, ramp(1)))
    # Whatever refused the directory does not hold it.
    with pytest.raises(ValueError, match="differ"):
        open_(tmp_path, version=2)
    open_(tmp_path).close()


def test_settings_that_differ_are_named(tmp_path):
    with open_(tmp_path, version=3) as checkpoints:
        checkpoints.save(1, ramp(1))
    assert read_config(tmp_path) == (CONFIG, 3)
    same = json.loads(json.dumps(CONFIG)) | {"net": {"sizes": (32, 32), "width": 64}}
    open_(tmp_path, version=3, config=same).close()
    other = {"env": "Pong-v5", "net": {"width": 32, "sizes": [32, 32]}, "seed": None, "new": "a"}
    with pytest.raises(ValueError, match="differ") as caught:
        open_(tmp_path, version=3, config=other)
    message = str(caught.value)
    assert 'config.new: given "a", the checkpoint\'s is nothing' in message
    assert "config.net.width: given 32, the checkpoint's is 64" in message
    assert "config.rate: given nothing, the checkpoint's is 0.00025" in message
    assert "config.env" not in message
    assert "sizes" not in message
    assert "--out" in message
    with pytest.raises(ValueError, match=r"version: given 4, the checkpoint's is 3[^-]*--out"):
        open_(tmp_path, version=4)
    # Opened before there was any, it is refused by what it is asked to read.
    with open_(tmp_path / "newer", version=5) as checkpoints:
        checkpoints.save(2, ramp(2))
    with open_(tmp_path, version=3) as checkpoints:
        (tmp_path / "newer" / "2").rename(tmp_path / "2")
        with pytest.raises(ValueError, match="version: given 3, the checkpoint's is 5"):
            checkpoints.restore(ramp(0))


def test_a_structure_that_differs_is_named(tmp_path):
    state = {"p": State(jnp.zeros((2, 3)), [jnp.zeros(2), 1]), "k": jax.random.key(0), "n": None}
    like = {
        "p": State(jnp.zeros((2, 4)), [jnp.zeros(2, jnp.float32), 1]),
        "k": jax.random.key(0, impl="rbg"),
        "n": jnp.zeros(()),
    }
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        with pytest.raises(ValueError, match="differs") as caught:
            checkpoints.restore(like)
        with pytest.raises(ValueError, match="and 28 more"):
            checkpoints.restore([np.zeros(i) for i in range(36)])
        # Refusing changes nothing.
        checkpoints.save(2, state)
    message = str(caught.value)
    assert "state['p'].params: given float64[2, 4], the checkpoint's is float64[2, 3]" in message
    assert "state['p'].extra[0]: given float32[2], the checkpoint's is float64[2]" in message
    assert "state['k']: given key<rbg>[], the checkpoint's is key<fry>[]" in message
    assert "state['n']: given float64[], the checkpoint's is nothing" in message
    assert "extra[1]" not in message
    assert "--out" in message


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="keep >= 1"):
        open_(tmp_path, keep=0)
    with pytest.raises(TypeError, match="`config` that JSON cannot hold"):
        open_(tmp_path, config={"f": open_})
    with open_(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match=r"state\['name'\] of type str"):
            checkpoints.save(1, {"name": "Pong"})
        with pytest.raises(ValueError, match="step -1"):
            checkpoints.save(-1, ramp(0))
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
            checkpoints.restore(ramp(0))
        checkpoints.save(1, ramp(1))
        with pytest.raises(FileNotFoundError, match=r"step 2 .* steps there: \[1\]"):
            checkpoints.restore(ramp(0), 2)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_config(tmp_path / "absent")
    with open_(tmp_path / "absent", write=False) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(ValueError, match="open for writing: False"):
            checkpoints.save(1, ramp(1))
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("directory", ["file", "file/below"])
def test_a_file_in_the_place_of_the_directory(tmp_path, directory):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"expected a directory to write to.*--out") as caught:
        open_(tmp_path / directory)
    assert caught.value.errno in (errno.EEXIST, errno.ENOTDIR)


def several():
    """Small, and of what damage could tell apart: dtypes, shapes, keys, zeros, nothing."""
    # Large enough for a file without the checksums that OCDBT has of its own.
    noise = jnp.asarray(np.random.default_rng(0).integers(0, 256, 1500, np.uint8))
    arrays = {"noise": noise, "zeros": jnp.zeros(5), "bytes": jnp.arange(6, dtype="i1")}
    return arrays | {"key": jax.random.key(3), "n": 7, "none": jnp.zeros((0, 3))}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory with the checkpoints 1 and 2 of `several`."""
    directory = tmp_path_factory.mktemp("two")
    with open_(directory) as checkpoints:
        checkpoints.save(1, several())
        checkpoints.save(2, several())
    return directory


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def check_damaged(directory, spoil):
    """Whatever has become of a file: what is read is what was saved, or the checkpoint is named."""
    for path in files_of(directory / "2"):
        whole = path.read_bytes()
        # Orbax's notes on when it wrote are for people.
        read = path.parent != directory / "2"
        for spoilt in spoil(whole):
            path.write_bytes(spoilt)
            with open_(directory, write=False) as checkpoints:
                if not read:
                    assert_same(checkpoints.restore(several()), (2, several()))
                    continue
                with pytest.raises(
                    OSError,
                    match=r"/2, which cannot be read \(.*by --step 1 ",
                ):
                    checkpoints.restore(several())
        path.write_bytes(whole)
    with open_(directory, write=False) as checkpoints:
        assert_same(checkpoints.restore(several()), (2, several()))


def flipped(whole, places, rng):
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << rng.randrange(8)
        yield bytes(spoilt)


def test_a_flipped_bit_is_noticed(two):
    rng = random.Random(0)
    check_damaged(two, lambda whole: flipped(whole, rng.sample(range(len(whole)), 5), rng))


@pytest.mark.slow
def test_every_flipped_byte_is_noticed(two):
    rng = random.Random(1)
    check_damaged(two, lambda whole: flipped(whole, range(len(whole)), rng))


@pytest.mark.parametrize("kept", [0, 0.5, 2])
def test_files_of_another_length_are_noticed(two, kept):
    check_damaged(two, lambda whole: [(2 * whole)[: int(kept * len(whole))]])


def test_a_file_that_is_missing_is_noticed(two, tmp_path):
    for path in files_of(two / "2"):
        directory = shutil.copytree(two, tmp_path / "copy")
        (directory / path.relative_to(two)).unlink()
        with open_(directory, write=False) as checkpoints:
            if path.parent == two / "2":
                assert_same(checkpoints.restore(several()), (2, several()))
            else:
                with pytest.raises(
                    OSError,
                    match=r"/2, which cannot be read \(.*by --step 1 ",
                ):
                    checkpoints.restore(several())
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"leaves": None},
        {"leaves": {}},
        {"keys": {"state['key']": "rbg"}},
        {"keys": None},
        {"config": None},
        {"version": 2},
        {"more": 1},
    ],
)
def test_notes_that_were_changed_are_noticed(change, two, tmp_path):
    directory = shutil.copytree(two, tmp_path / "copy")
    about = directory / "2" / "about" / "metadata"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    for write in (True, False):
        with pytest.raises(OSError, match=r"/2, which cannot be read \(about/metadata is not as"):
            open_(directory, write=write).restore(several())


def test_the_one_before_a_damaged_checkpoint_is_offered(two, tmp_path):
    directory = shutil.copytree(two, tmp_path / "copy")
    data = max((directory / "2" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[::-1])
    with open_(directory) as checkpoints:
        with pytest.raises(OSError, match=r"Delete it and run again.* from step 1") as caught:
            checkpoints.restore(several())
        assert data.name in str(caught.value)
        assert_same(checkpoints.restore(several(), 1), (1, several()))
    with open_(directory, write=False) as checkpoints:
        assert_same(checkpoints.restore(several(), 1), (1, several()))
    shutil.rmtree(directory / "2")
    with open_(directory) as checkpoints:
        assert_same(checkpoints.restore(several()), (1, several()))
    (directory / "1" / "about" / "metadata").write_text("{")
    for write in (True, False):
        with pytest.raises(OSError, match="there is none before it"):
            open_(directory, write=write).restore(several())


def test_a_checkpoint_without_checksums_is_refused(two, tmp_path):
    """As an earlier version wrote them."""
    directory = shutil.copytree(two, tmp_path / "copy")
    (directory / "2" / "about" / "checksums").unlink()
    with (
        open_(directory) as checkpoints,
        pytest.raises(OSError, match=r"/2, which .*checksums is missing, or .* earlier version"),
    ):
        checkpoints.restore(several())
    with pytest.raises(ValueError, match="version: given 2, the checkpoint's is 1"):
        open_(directory, version=2)


def test_a_checkpoint_that_is_deleted_while_it_is_read(two, tmp_path):
    directory = shutil.copytree(two, tmp_path / "copy")
    with open_(directory, write=False) as checkpoints:
        check = _checksums.check

        def deleting(path):
            shutil.rmtree(path)
            check(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_checksums, "check", deleting)
            with pytest.raises(OSError, match="has deleted it meanwhile: try again"):
                checkpoints.restore(several())


def random_bytes(megabytes, step):
    rng = np.random.default_rng(step)
    return {"x": jnp.asarray(rng.integers(0, 256, size=megabytes << 20, dtype=np.uint8))}


def save_and(report, checkpoints, step, state):
    """A failure may show at once, or has to be reported later."""
    checkpoints.save(step, state)
    report()


def full_then_freed(directory, fill, free, number):
    """A save fails in the background, is reported once, harms nothing, and the next succeeds."""
    with open_(directory, keep=2) as checkpoints:
        checkpoints.save(1, random_bytes(2, 1))
        checkpoints.wait()
        fill()
        try:
            for report in (checkpoints.wait, lambda: checkpoints.save(3, random_bytes(2, 3))):
                with pytest.raises(OSError, match=r"step 2 .*as they were") as caught:
                    save_and(report, checkpoints, 2, random_bytes(2, 2))
                assert caught.value.errno == number
                assert os.strerror(number) in str(caught.value)
                assert checkpoints.latest() == 1
                assert [path.name for path in directory.glob("*[0-9]")] == ["1"]
        finally:
            free()
        assert_same(checkpoints.restore(random_bytes(2, 0)), (1, random_bytes(2, 1)))
        checkpoints.save(2, random_bytes(2, 2))
        checkpoints.wait()
        assert saved_steps(directory) == [1, 2]
        assert_same(checkpoints.restore(random_bytes(2, 0)), (2, random_bytes(2, 2)))


def test_too_large_a_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full_then_freed(
        tmp_path,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
        errno.EFBIG,
    )


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_full_disk(disk, room):
    def fill():
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(b"\0" * (free.f_bavail * free.f_bsize - room))

    full_then_freed(disk, fill, (disk / "filler").unlink, errno.ENOSPC)


def test_a_disk_that_cannot_be_written_to(disk):
    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    with open_(disk) as checkpoints:
        checkpoints.save(1, ramp(1))
        checkpoints.wait()
        # A failing disk asks no one; here, a file that is open for writing would be in the way.
        assert checkpoints._lock is not None
        checkpoints._lock.release()
        remount("ro")
        with pytest.raises(OSError, match="Read-only") as caught:
            save_and(checkpoints.wait, checkpoints, 2, ramp(2))
        assert caught.value.errno == errno.EROFS
        assert_same(checkpoints.restore(ramp(0)), (1, ramp(1)))
    with pytest.raises(PermissionError, match="expected a directory to write to"):
        open_(disk)
    with open_(disk, write=False) as checkpoints:
        assert_same(checkpoints.restore(ramp(0)), (1, ramp(1)))


def test_an_unwritable_directory(tmp_path, monkeypatch):
    """Root may write everywhere, so that its answer is forged here."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"Permission denied\); expected a directory"):
        open_(tmp_path)


def test_the_log_is_quiet(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("absl").setLevel(logging.DEBUG)
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, ramp(1))
        checkpoints.restore(ramp(0))
    logging.getLogger("absl").warning("from elsewhere")
    assert [x.message for x in caplog.records if x.name == "absl"] == ["from elsewhere"]


def kill(directory, moment):
    """Kills a writer `moment` seconds after its first report; the last step that it reported."""
    writer = subprocess.Popen(
        [sys.executable, "-W", "error", checkpoint_writer.__file__, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(moment)
        writer.kill()
        lines = [first, *writer.stdout.readlines()]
    return int([line for line in lines if line.endswith("\n")][-1])


def check_kills(directory, kills):
    """How many of the kills left something unfinished behind."""
    directory /= "run"
    unfinished = 0
    moments = random.Random(kills)
    for _ in range(kills):
        reported = kill(directory, moments.uniform(0, 0.2))
        names = {path.name for path in directory.iterdir()}
        unfinished += any("." in name for name in names)
        with Checkpoints(directory, config=checkpoint_writer.CONFIG, write=False) as reader:
            for step in sorted(int(name) for name in names if name.isdigit()):
                like = checkpoint_writer.state(0)
                read, state = reader.restore(like, step)
                assert read == checkpoint_writer.step_of(state) == step
            assert step == reader.latest() >= reported
    return unfinished


def test_no_kill_spoils_a_checkpoint(tmp_path):
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_no_kill_of_many_spoils_a_checkpoint(tmp_path):
    assert check_kills(tmp_path, 50) > 10
