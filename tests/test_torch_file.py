"""PyTorch checkpoints from strangers: read bit for bit where they are sound, else refused, and never obeyed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch_files as make
from torch_files import DEFLATED, Member, call, checkpoint, items, legacy, name, several, state, storage, tensor, text

from mlxldm.errors import UserError
from mlxldm.tensors import Tensor
from mlxldm_convert import torch_file
from mlxldm_convert.read import kind, open_file
from mlxldm_convert.torch_file import TorchFile

MARKER = "somebody was here"  # what the hostile files below would leave, were they obeyed


def asks(module: str, word: str, *arguments: bytes) -> bytes:
    """A checkpoint with a good tensor and one call."""
    return checkpoint(state(a=tensor(), b=call(module, word, *arguments)))


def one(value: bytes) -> bytes:
    return checkpoint(state(a=value))


def lists(count: int) -> bytes:
    return b"]q\0" + b"](h\0h\0eq\0" * count


DAG = b"]q\0" + b"0](h\0h\0eq\0" * 40
OTHER = Member("archive/data/1", b"x" * 64)
INNER = make.archive([Member("archive/data/9", b"evil")])
SHELL = text(f"touch '{MARKER}'")
SYSTEM = call("posix", "system", SHELL)
BOMB = make.zeros(1 << 30)
USUAL = list(make.usual(make.program(state(a=tensor()))).values())
TWO_ENDS = make.archive(USUAL, wide=True)

# name: (file, the cause that has to be named); pk_ is today's container, lg_ the older one
REFUSED = {
    "pk_01_os_system": (asks("posix", "system", SHELL), "asks for posix.system (at byte"),
    "pk_02_eval": (asks("__builtin__", "eval", text("1")), "asks for __builtin__.eval (at byte"),
    "pk_03_getattr_chain": (asks("__builtin__", "getattr", name("os", "x"), text("system")), "__builtin__.getattr"),
    "pk_04_nested_pickle_loads": (asks("pickle", "loads", make.program(SYSTEM)), "asks for pickle.loads"),
    "pk_05_torch_hub": (asks("torch.hub", "load", text("x/y"), text("z")), "asks for torch.hub.load"),
    "pk_06_functools_partial": (asks("functools", "partial", name("builtins", "list")), "asks for functools.partial"),
    "pk_07_storage_shorter": (
        one(tensor(storage(count=1 << 20), (1 << 20,), (1,))),
        "a: storage 0 has 16 bytes, the pickle says 1048576 x F32",
    ),
    "pk_08_negative_offset": (one(tensor(offset=-4)), "a: the offset, a size or a stride is negative"),
    "pk_09_negative_stride": (one(tensor(shape=(4,), stride=(-1,))), "a: the offset, a size or a stride is negative"),
    "pk_10_stride_past_end": (one(tensor(shape=(2, 2), stride=(2000, 1000))), "a: it reaches element 3000 of a"),
    "pk_11_stride0_bomb": (one(tensor(shape=(1 << 19, 1 << 19), stride=(0, 0))), "a: it has 274877906944 elements"),
    "pk_12_shape_2e62": (one(tensor(shape=(1 << 31, 1 << 31), stride=(0, 0))), "a: the shape [2147483648, 2147483648]"),
    "pk_13_duplicate_key": (checkpoint(items([(text("a"), tensor())] * 2)), "duplicate key 'a' (at byte"),
    "pk_14_storage_key_traversal": (one(tensor(storage("../../etc/passwd"))), "the storage key '../../etc/passwd'"),
    "pk_15_zip_bomb_storage": (
        checkpoint(data_0={"method": DEFLATED, "packed": BOMB, "size": 1 << 30}),
        "archive/data/0 is compressed (1",
    ),
    "pk_16_zip_bomb_data_pkl": (
        checkpoint(data_pkl={"method": DEFLATED, "packed": make.zeros(32 << 20), "size": 32 << 20}),
        "archive/data.pkl inflates 1",
    ),
    "pk_17_two_data_pkl": (checkpoint(more=(Member("archive/b/data.pkl", b"."),)), "exactly one data.pkl"),
    "pk_18_member_traversal": (checkpoint(more=(Member("../../../evil"),)), "the bad name '../../../evil'"),
    "pk_19_bytes_after_stop": (checkpoint(after=make.program(SYSTEM)), "bytes after its pickle's end"),
    "pk_20_recursion": (checkpoint(b"]" * 100_000 + b"a" * 99_999), "holds a list and no state dict"),
    "pk_21_memo_bomb_lists": (checkpoint(lists(20_000)), "more than one object is left"),
    "pk_22_setitems_on_nondict": (checkpoint(b"](" + text("a") + tensor() + b"u"), "put into a list, which is no dict"),
    "pk_23_ext_opcode": (one(b"\x82\x01"), "EXT registry (at byte"),
    "pk_24_unknown_storage": (one(tensor(storage(kind="QInt8Storage"))), "class torch.QInt8Storage is not known"),
    "pk_25_missing_storage_file": (checkpoint(storages={}), "a: storage 0 is not in the file"),
    "pk_26_bad_utf8_key": (checkpoint(items([(text(b"\xff\xfe"), tensor())])), "a text is not UTF-8 (at byte"),
    "pk_27_truncated": (checkpoint()[:-30], "no end record"),
    "pk_28_wrong_magic": (b"MZ" + checkpoint()[2:], "begins with b'MZ\\x03\\x04"),
    "pk_29_prefixed_zip": (b"\x80\x02cos\nsystem\n." + checkpoint(), "asks for os.system (at byte 2"),
    "pk_30_encrypt_flag": (checkpoint(data_pkl={"flags": 1}), "archive/data.pkl is encrypted"),
    "pk_31_local_name_differs": (checkpoint(data_0={"local_name": "archive/data/7"}), "disagrees with the directory"),
    "pk_32_bad_crc": (checkpoint(data_pkl={"crc": 1}), "archive/data.pkl is not what was written (bad CRC)"),
    "pk_33_overlapping_entries": (checkpoint(data_0={"header": 0}), "local header at byte 0 disagrees"),
    "lg_01_truncated": (legacy()[:-3], "cut off at byte"),
    "lg_02_count_2e62": (legacy(counts={"0": 1 << 62}), "has 4611686018427387904 elements, not 4"),
    "lg_03_count_negative": (legacy(counts={"0": -4}), "has -4 elements, not 4"),
    "lg_04_plain_pickle_os": (b"(dp0\nVx\ncos\nsystem\n(Vtouch x\ntRs.", "is a bare pickle"),
    "lg_05_tar": (b"storages" + bytes(504), "tar archive (torch before 0.1.10)"),
    # what else a stranger may do to an archive
    "overlapping_data": (
        checkpoint(more=(Member("archive/data/1", INNER), Member("archive/data/9", b"evil", header=0))),
        "disagrees",
    ),
    "prefix_in_front": (make.archive(list(make.usual(b"").values()), prefix=b"PK\3\4" + bytes(60)), "stands before it"),
    "prefix_not_counted": (b"PK\3\4" + bytes(60) + checkpoint(), "its end record says at"),
    "bytes_behind": (checkpoint() + b"x", "no end record at its end"),
    "duplicate_member": (checkpoint(more=(Member("archive/data/0", DEFLATED * b"x"),)), "archive/data/0 twice"),
    "foreign_member": (checkpoint(more=(Member("other/file"),)), "other/file outside archive/"),
    "absolute_member": (checkpoint(more=(Member("/etc/passwd"),)), "the bad name '/etc/passwd'"),
    "backslash_member": (checkpoint(more=(Member("archive\\x"),)), "the bad name"),
    "escape_code_member": (checkpoint(more=(Member("archive/\x1b[31m"),)), "the bad name 'archive/\\x1b[31m'"),
    "torchscript": (checkpoint(more=(Member("archive/constants.pkl"),)), "is a TorchScript archive"),
    "torchscript_code": (checkpoint(more=(Member("archive/code/a.py"),)), "is a TorchScript archive"),
    "no_data_pkl": (make.archive([Member("archive/data/0", b"x")]), "exactly one data.pkl"),
    "storage_deflated": (checkpoint(data_0={"method": DEFLATED}), "archive/data/0 is compressed"),
    "unknown_method": (checkpoint(data_pkl={"method": 12, "packed": b"x"}), "compression method 12"),
    "lying_size": (checkpoint(data_pkl={"method": DEFLATED, "size": 100}), "does not inflate to 100 bytes"),
    "not_deflate": (checkpoint(data_pkl={"method": DEFLATED, "packed": b"\xff" * 50}), "cannot be inflated"),
    "stored_size_differs": (checkpoint(data_0={"size": 99}), "has 99 and 16 bytes"),
    "size_past_end": (checkpoint(data_0={"size": 1 << 31, "method": DEFLATED, "header": 1 << 30}), "reaches past"),
    "size_wraps": (checkpoint(data_0={"size": 0xFFFFFFFF}), "zip64 numbers of archive/data/0 are not those"),
    "directory_elsewhere": (make.archive([OTHER], begin=0), "its end record says at"),
    "count_too_large": (make.archive([OTHER], count=2), "directory has 60 bytes for 2 members"),
    "count_too_small": (make.archive([OTHER, Member("archive/x")], count=1), "55 bytes too many"),
    "zip64_missing": (make.archive([OTHER], count=0xFFFF), "lacks its zip64 part"),
    "zip64_count": (make.archive([OTHER], wide=True, count=1 << 40), "members, too many"),
    "zip64_elsewhere": (make.archive([OTHER], wide=True, begin=1 << 40), "does not fit the file"),
    "zip64_locator": (TWO_ENDS[:-34] + b"\1" + TWO_ENDS[-33:], "zip64 end record is not at byte"),
    "zip64_disagrees": (TWO_ENDS[:-14] + b"\1" + TWO_ENDS[-13:], "two end records disagree"),
    "big_endian": (checkpoint(byteorder={"data": b"big"}), "big-endian"),
    # to its pickle
    "pickle_5_buffers": (one(b"\x97"), "0x97 has no place in a checkpoint (at byte"),
    "protocol_9": (make.archive(list(make.usual(make.program(b"N", 9)).values())), "protocol is 9"),
    "stack_underflow": (one(b"00000"), "empty stack"),
    "no_mark": (checkpoint(b"t"), "there is no mark"),
    "no_memo": (one(b"h\x07"), "the memo has no 7"),
    "no_stop": (make.archive(list(make.usual(b"\x80\x02N").values())), "ends too early"),
    "huge_text": (one(b"X\xff\xff\xff\x7f"), "of 2147483647 bytes is too long"),
    "huge_number": (one(b"\x8b\xff\xff\xff\x7f"), "of 2147483647 bytes is too long"),
    "long_name": (one(b"c" + b"a" * 2000 + b"\nb\n"), "a name is too long"),
    "dotted_os": (one(text("torch") + text("os.system") + b"\x93)R"), "asks for torch.os.system"),
    "unlisted_rebuild": (asks("torch._utils", "_rebuild_sparse_tensor", b"N"), "_rebuild_sparse_tensor among"),
    "object_for_tensor": (
        checkpoint(state(state_dict=state(a=tensor(), b=call("numpy", "ndarray")))),
        "has an object of numpy.ndarray among its tensors, as b",
    ),
    "a_call_of_a_call": (one(call("a", "b") + b")R"), "an object of a.b is called"),
    "list_as_key": (checkpoint(items([(b"]", tensor())])), "a list is used as a key"),
    "deep_tuple_as_key": (checkpoint(items([(b")" + b"\x85" * 100_000, tensor())])), "instead of a name"),
    "state_for_a_tensor": (one(tensor() + b"}b"), "a tensor is given a state"),
    "true_in_shape": (
        one(call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\0", b"\x88\x85", b"K\1\x85", b"NN")),
        "not whole numbers",
    ),
    "nine_dims": (one(tensor(shape=(1,) * 9, stride=(1,) * 9)), "not of one length, or too long"),
    "no_storage": (one(tensor(b"N")), "arguments that torch does not write"),
    "storage_key_without_end": (  # written out it would have a million million brackets
        one(several(text("storage"), name("torch", "FloatStorage"), DAG, text("cpu"), b"K\4") + b"Q"),
        "the storage key a list is none that torch writes",
    ),
    "legacy_key_too_deep": (
        legacy()[: -len(make.DATA) - 8 - 12] + make.program(b"](" + b"]" * 9999 + b"a" * 9998 + b"e"),
        "the storage key a list was not named",
    ),
    "storage_in_two_ways": (
        checkpoint(state(a=tensor(), b=tensor(storage(kind="IntStorage")))),
        "storage 0 is described in two ways",
    ),
    "offset_of_an_empty_one": (one(tensor(shape=(2,), stride=(1,), offset=3)), "reaches element 4 of a storage of 4"),
    "negated": (
        one(tensor()[:-2] + state(neg=b"\x88") + b"tR"),
        "a: it is marked neg",
    ),
    "unknown_dtype": (
        one(call("torch._utils", "_rebuild_tensor_v3", storage(kind="storage.UntypedStorage"), b"K\0", b"K\4\x85",
                 b"K\1\x85", b"\x89N", name("torch", "float4"))),
        "the dtype torch.float4 is not known",
    ),
    "cycle": (checkpoint(b"}q\0(" + text("a") + tensor() + text("b") + b"h\0u"), "nest deeper than 8"),
    "laughs": (
        checkpoint(b"}q\0(" + text("t") + tensor() + b"u0"
                   + b"".join(b"}(" + b"".join(text(str(i)) + b"h\0" for i in range(100)) + b"uq\0" + b"0" * (n < 5)
                              for n in range(6))),
        "more than 200000 entries",
    ),
    "a_list_of_tensors": (checkpoint(state(a=b"](" + tensor() + b"e", b=tensor())), "has a list of tensors as a"),
    "a_long_name": (checkpoint(items([(text("n" * 1001), tensor())])), "has 1001 letters"),
    "names_that_meet": (
        checkpoint(items([(text("a.b"), tensor()), (text("a"), state(b=tensor()))])),
        "duplicate tensor a.b",
    ),
    "escape_codes": (checkpoint(items([(text("\x1b[31m"), tensor(offset=9))])), "\\x1b[31m: it reaches"),
    "a_module": (checkpoint(state(model=name("mine", "Net") + b")\x81}b")), "has an object of mine.Net as its 'model'"),
    "one_tensor": (checkpoint(tensor()), "holds a tensor and no state dict"),
    "no_tensors": (one(b"N"), "holds no state dict with tensors"),
    # and to the older container
    "legacy_os": (legacy(state(a=SYSTEM)), "asks for posix.system (at byte"),
    "legacy_big_endian": (legacy(order="\x89"), "big-endian"),
    "legacy_version": (legacy(protocol=1002), "the version 1002 is not 1001"),
    "legacy_bytes_behind": (legacy() + b"x", "1 bytes follow the last storage"),
    "legacy_unknown_key": (legacy(storages={"0": make.DATA, "1": b""}), "storage key '1' was not named"),
    "legacy_missing_storage": (legacy(storages={}), "a: storage 0 is not in the file"),
    "legacy_part_of_storage": (legacy(state(a=tensor(storage(view=b"K\1")))), "is a view of another"),
    "legacy_cut_in_the_pickle": (legacy()[:200], "ends too early"),
    "bare": (make.program(state(a=b"N")), "is a bare pickle"),
    "bare_with_storages": (make.program(state(a=tensor())), "is a bare pickle"),
    "bare_os": (make.program(SYSTEM), "asks for posix.system (at byte 2"),
    "empty": (b"", "is empty"),
}  # fmt: skip


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def refused(path) -> str:
    """The one sentence with which the file is refused."""
    with pytest.raises(UserError) as error:
        TorchFile(path)
    said = str(error.value)
    assert str(path) in said and said.endswith(".") and said.isprintable() and len(said) < 1000
    return said


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_its_cause(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{case}.ckpt"
    path.write_bytes(REFUSED[case][0])
    before, begin = open_files(), time.process_time()
    said = refused(path)
    assert REFUSED[case][1] in said, said
    assert time.process_time() - begin < 2
    assert open_files() == before  # nothing stays open
    assert os.listdir(tmp_path) == [path.name]  # and nothing was done


GOOD = {
    "zip": checkpoint(),
    "zip64": TWO_ENDS,
    "zip_wide": make.archive([Member(**{**vars(part), "wide": True}) for part in USUAL], wide=True),
    "zip_deflated_pickle": checkpoint(data_pkl={"method": DEFLATED}),
    "zip_without_sums": make.archive([Member(**{**vars(part), "crc": 0}) for part in USUAL]),
    "legacy": legacy(),
}


@pytest.mark.parametrize("case", GOOD)
def test_every_container_is_told_by_its_bytes_and_read(case, tmp_path):
    path = tmp_path / "model.safetensors"  # names do not count
    path.write_bytes(GOOD[case])
    assert kind(path) == "torch"
    opened = open_file(path)
    assert isinstance(opened, TorchFile) and opened.tensors == {"a": Tensor("F32", (2, 2))}
    assert opened.raw("a").tolist() == [[1, 2], [3, 4]]
    opened.close()
    with pytest.raises(ValueError):
        opened.raw("a")


def test_nothing_in_a_hostile_file_is_imported_or_called(tmp_path):
    """In a fresh interpreter that dies of the first import, call or process that a file brings about.

    On Linux it also gets only 128 MB more than it has, which no file may fill.
    """
    (tmp_path / "0_good").write_bytes(checkpoint())  # first: what reading itself imports
    for case, (data, _) in REFUSED.items():
        (tmp_path / case).write_bytes(data)
    script = """if True:
        import os, sys, numpy
        before = set(sys.modules)
        from mlxldm_convert.torch_file import TorchFile
        from mlxldm.errors import UserError

        def watch(event, arguments):
            if watched and event.startswith(("import", "exec", "compile", "os.", "subprocess.", "pickle.", "socket.")):
                os.write(2, f"{event} {arguments}".encode())
                os._exit(1)

        "\\x1b".encode("unicode_escape")  # which imports its codec when it is first used
        if os.path.exists("/proc/self/statm"):
            import resource
            size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (128 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        watched, refused = False, 0
        sys.addaudithook(watch)
        for name in sorted(os.listdir(sys.argv[1])):
            watched = name != "0_good"
            try:
                TorchFile(os.path.join(sys.argv[1], name))
            except UserError:
                refused += 1
        watched = False
        assert not {"torch", "pickle"} & (set(sys.modules) - before)
        print(refused)
    """
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(REFUSED)
    assert MARKER not in os.listdir(tmp_path)


def test_limits_hold(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    path.write_bytes(checkpoint(state(a=tensor(), b=b"]0" * 1000 + b"N")))
    for limit, value, cause in (
        ("MAX_STEPS", 1000, "more than 1000 instructions"),
        ("MAX_PICKLE", 1000, "archive/data.pkl has 2"),
        ("MAX_ENTRIES", 3, "the archive has 4 members"),
        ("MAX_TENSORS", 0, "it has 1 tensors, too many"),
        ("MAX_TEXT", 4, "is too long"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch_file, limit, value)
            assert cause in refused(path)
    path.write_bytes(legacy(state(a=b"]0" * 1000 + b"N")))
    monkeypatch.setattr(torch_file, "MAX_PICKLE", 1000)
    assert "the pickle is longer than 1000 bytes (at byte" in refused(path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


def test_a_link_that_the_person_names_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("model")
    assert "cannot be read" in refused(tmp_path / "link")
    (tmp_path / "model").write_bytes(checkpoint())
    assert TorchFile(tmp_path / "link").raw("a").tolist() == [[1, 2], [3, 4]]


def test_damaged_numbers_are_found_where_the_writer_left_a_sum(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(checkpoint(state(a=tensor(), b=tensor(shape=(2,), stride=(1,))), data_0={"crc": 7}))
    opened = TorchFile(path)
    assert opened.raw("b").tolist() == [1, 2]  # a part of a storage cannot be summed up
    with pytest.raises(UserError, match=r"a: the bytes of storage 0 are not those that were written \(bad CRC\)"):
        opened.raw("a")


def test_a_file_that_shrinks_meanwhile_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(checkpoint())
    opened = TorchFile(path)
    os.truncate(path, path.read_bytes().index(make.DATA) + 8)
    with pytest.raises(UserError, match="changed while it was read"):
        opened.raw("a")


def test_only_what_a_tensor_spans_is_read(tmp_path, monkeypatch):
    """Of a storage of 64 GB, most of which is a hole in the file."""
    path = tmp_path / "a.ckpt"
    count = 1 << 34
    views = {
        "near": tensor(storage(count=count), (2,), (1,), count - 2),
        "far": tensor(storage(count=count), (3, 2), (1 << 30, 2), 5),
    }
    with path.open("wb") as file:
        made = legacy(state(**{key: view.replace(b"tQ", b"NtQ") for key, view in views.items()}), counts={"0": count})
        begin = len(made) - len(make.DATA)
        file.write(made[:begin])
        file.truncate(begin + 4 * count)
        for place, value in ((count - 2, 8), (count - 1, 9), (5, 1), (7, 2), ((1 << 30) + 7, 3), ((2 << 30) + 5, 4)):
            file.seek(begin + 4 * place)
            file.write(np.float32(value).tobytes())
    opened = TorchFile(path)
    asked = []
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: asked.append(length) or read(fd, length, at))
    assert opened.raw("near").tolist() == [8, 9]
    assert opened.raw("far").tolist() == [[1, 2], [0, 3], [4, 0]]
    assert sum(asked) < 4 << 20


def test_random_damage_gives_our_own_error_or_a_readable_file(tmp_path):
    path = tmp_path / "mutant.ckpt"
    before, read = open_files(), 0
    for data in make.mutants(0, 1500):
        path.write_bytes(data)
        try:
            opened = TorchFile(path)
            for tensor_name in opened.tensors:
                opened.raw(tensor_name)
            opened.close()
            read += 1
        except UserError as error:
            assert str(error).isprintable() and str(error).endswith(".")
            opened = None
    assert open_files() == before
    assert 10 < read < 1000  # both happen


# With torch as the writer


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch writes these checkpoints")


CONTAINERS = {
    "zip": {},
    "zip_protocol_4": {"pickle_protocol": 4},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy_protocol_4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


def bits(value) -> bytes:
    """A torch tensor's elements in row-major order, as bytes."""
    import torch

    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def same(path, wanted: dict, dtypes: dict[str, str] | None = None) -> TorchFile:
    """The file, after its tensors are found to be those that are wanted, bit for bit."""
    opened = TorchFile(path)
    assert opened.tensors.keys() == wanted.keys()
    for key, value in wanted.items():
        array = opened.raw(key)
        assert opened.tensors[key].shape == tuple(value.shape) == array.shape, key
        assert array.tobytes() == bits(value), key
        assert dtypes is None or opened.tensors[key].dtype == dtypes[key]
    return opened


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_dtype_and_layout_that_torch_writes_is_read_bit_for_bit(container, torch, tmp_path):
    base = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1)) * 50
    kinds = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16,
        "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }  # fmt: skip
    values, dtypes = {}, {}
    for dtype, theirs in kinds.items():
        positive = base.abs() if dtype.startswith("U") else base
        whole = (positive > 0) if dtype == "BOOL" else positive.to(theirs)
        forms = {
            "whole": whole, "permuted": whole.permute(2, 0, 1), "transposed": whole[1].T, "sliced": whole[1:3, ::2, 3],
            "scalar": whole[3, 5, 4], "empty": whole[:0], "empty_within": whole[:, 2:2], "row": whole[2:3, 4:5, :],
            "channels_last": whole[None].contiguous(memory_format=torch.channels_last), "again": whole,
        }  # fmt: skip
        values |= {f"{dtype}.{form}": value for form, value in forms.items()}
        dtypes |= {f"{dtype}.{form}": dtype for form in forms}
    values["parameter"] = torch.nn.Parameter(base[1:], requires_grad=True)
    values["buffer"] = torch.nn.Parameter(base[2], requires_grad=False)
    values["parameter_with_state"] = torch.nn.Parameter(base[3].clone())
    values["parameter_with_state"].mark = "x"
    values["subclass"] = base.clone().as_subclass(type("Sub", (torch.Tensor,), {"__module__": "elsewhere"}))
    dtypes |= dict.fromkeys(("parameter", "buffer", "parameter_with_state", "subclass"), "F32")
    path = tmp_path / "a.pt"
    sub = type(values["subclass"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "elsewhere", type(sys)("elsewhere"))
        sys.modules["elsewhere"].Sub = sub
        torch.save(values, path, **CONTAINERS[container])
    same(path, values, dtypes)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_training_checkpoint_is_read_past_everything_that_is_no_model(container, torch, tmp_path):
    import argparse
    import pathlib

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 8, bias=False))
    model.register_buffer("tied", model[0].bias.detach())  # two names, one storage
    optimizer = torch.optim.Adam(model.parameters())
    model[2](model[1](model[0](torch.ones(2, 3, 5, 5))).mean((2, 3))).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 7,
        "global_step": 875000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": model.state_dict(),
        "callbacks": {
            torch.nn.Linear: {"best": torch.tensor(0.5), "folder": pathlib.PurePosixPath("a/b")},
            "x": {1, 2},
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": argparse.Namespace(rate=1e-4, sizes=[1, 2], np=np.float64(3), array=np.arange(3)),
        "kept": (b"bytes", 3 + 4j, frozenset("ab"), 1 << 80, -5, None, slice(1, 2), torch.float16, torch.Size([1])),
    }
    path = tmp_path / "last.ckpt"
    torch.save(saved, path, **CONTAINERS[container])
    opened = same(path, model.state_dict())
    assert opened.tensors["1.num_batches_tracked"] == Tensor("I64", ())
    assert opened.metadata == {"epoch": "7", "global_step": "875000", "pytorch-lightning_version": "1.4.2"}


def test_wrappers_are_looked_through_and_nested_dicts_get_dotted_names(torch, tmp_path):
    weights = {"a.weight": torch.ones(2), "b": torch.zeros(3)}
    path = tmp_path / "a.pt"
    for wrapper in ("state_dict", "model", "module", "params_ema", "params", "model_state_dict"):
        torch.save({"step": 3, wrapper: weights, "optimizer": {"state": {0: torch.ones(9)}}}, path)
        same(path, weights)
    torch.save({"model": {"state_dict": weights, "name": "x"}}, path)
    assert same(path, weights).metadata == {"name": "x"}
    torch.save({**weights, "optimizer": {"state": {0: torch.ones(9)}}, "epoch": 3, "lr": np.float32(3)}, path)
    same(path, weights)
    torch.save({"image_proj": {"w": weights["b"]}, "ip_adapter": {1: {"w": weights["a.weight"]}}}, path)
    same(path, {"image_proj.w": weights["b"], "ip_adapter.1.w": weights["a.weight"]})
    inversion = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "cat", "step": 9}
    torch.save(inversion, path)
    assert same(path, {"string_to_param.*": inversion["string_to_param"]["*"]}).metadata["name"] == "cat"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_torch_writes_otherwise_is_refused(torch, tmp_path):
    path = tmp_path / "a.pt"
    script = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(script, path)
    assert "is a TorchScript archive" in refused(path)
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    assert "has an object of torch.nn.modules.linear.Linear as its 'model'" in refused(path)
    torch.save({"a": torch.ones(2), "b": torch.eye(2).to_sparse()}, path)
    assert "torch._utils._rebuild_sparse_tensor among its tensors" in refused(path)
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj()}, path)
    assert "torch.ComplexFloatStorage is not known" in refused(path)
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj().imag}, path)
    assert "Complex" in refused(path) or "marked neg" in refused(path)
    torch.save({"a": torch.ones(1).expand(1000)}, path)
    assert "an expanded view" in refused(path)


def test_a_checkpoint_without_sums_is_read(torch, tmp_path):
    path = tmp_path / "a.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    same(path, {"a": torch.arange(5.0)})
