"""Protects reading and writing of tensor files: places, streams, shards, checksums, what is damaged or dangerous."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from videopanda.checkpoints import checksums
from videopanda.checkpoints.shards import Outgoing, write_shards
from videopanda.checkpoints.tensors import CheckpointError, find_tensors, read_bin_header, read_safetensors_header


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    return {
        "plain": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).to(torch.bfloat16),
        "counter": torch.tensor(5),
        "empty": torch.zeros(0, 4),
        "base": base,
        "alias": base,
        "row": base[2],
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "flags": torch.tensor([True, False]),
    }


@pytest.fixture(params=["zip", "old", "safetensors"])
def folder(request, tmp_path):
    tensors = some_tensors()
    if request.param == "safetensors":
        alone = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(alone, tmp_path / "model.safetensors")
    else:
        file = tmp_path / "pytorch_model.bin"
        torch.save(tensors, file, _use_new_zipfile_serialization=request.param == "zip")
    return tmp_path


def test_every_tensor_is_found_and_read_whole(folder):
    places, tensors = find_tensors(folder), some_tensors()
    assert places.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert places[name].shape == tuple(tensor.shape)
        assert places[name].dtype == tensor.dtype
        assert torch.equal(places[name].read(), tensor), name
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        assert b"".join(places[name].chunks()) == raw, name


def test_streams_are_cut_in_chunks(folder, monkeypatch):
    monkeypatch.setattr("videopanda.checkpoints.tensors.CHUNK_BYTES", 16)
    for name, place in find_tensors(folder).items():
        chunks = list(place.chunks())
        assert all(len(chunk) <= 16 for chunk in chunks), name
        assert sum(map(len, chunks)) == place.num_bytes


def test_two_names_of_one_storage_are_one_place(tmp_path):
    torch.save(some_tensors(), tmp_path / "pytorch_model.bin")
    places = find_tensors(tmp_path)
    assert places["base"].same_bytes == places["alias"].same_bytes != places["transposed"].same_bytes


def test_shards_are_those_of_safetensors(folder, tmp_path):
    places = find_tensors(folder)
    out = tmp_path / "out"
    out.mkdir()
    outgoing = [Outgoing(name, place.dtype, place.shape, place.chunks) for name, place in places.items()]
    written = write_shards(out, outgoing, shard_bytes=200)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map.values()) == set(files)
    for file in files:
        for name, tensor in load_file(out / file).items():
            assert weight_map[name] == file
            assert torch.equal(tensor, some_tensors()[name])
    assert written == {name: checksums.checksum(place) for name, place in find_tensors(out).items()}
    assert written == {name: checksums.checksum(place) for name, place in places.items()}


def test_wide_types_start_at_multiples_of_their_size(tmp_path):
    tensors = {"odd": torch.ones(3, dtype=torch.bfloat16), "wide": torch.ones(2, dtype=torch.float64)}
    outgoing = [
        Outgoing(name, t.dtype, tuple(t.shape), lambda t=t: iter([t.view(torch.uint8).numpy().tobytes()]))
        for name, t in tensors.items()
    ]
    write_shards(tmp_path, outgoing)
    place = find_tensors(tmp_path)["wide"]
    assert place.offset % 8 == 0


def test_a_checksum_covers_value_type_and_shape():
    def of(tensor):
        digest = checksums.start(tensor.dtype, tensor.shape)
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    zeros = torch.zeros(2, 3)
    flipped = zeros.clone()
    flipped.view(torch.int32)[1, 1] ^= 1
    others = [flipped, zeros.view(3, 2), zeros.to(torch.bfloat16), zeros.view(torch.int32), torch.zeros(6)]
    assert len({of(tensor) for tensor in [zeros, *others]}) == 6
    assert of(zeros) == of(torch.zeros(2, 3))


def test_record_and_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert checksums.read(tmp_path) is None
    path = checksums.record(tmp_path)
    assert checksums.read(tmp_path) == {"a": checksums.checksum(find_tensors(tmp_path)["a"])}
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        checksums.read(tmp_path)


# -- damaged and dangerous files ---------------------------------------------------------------------------------------
class Command:
    """What a malicious file would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_code_in_a_pickle_never_runs(kind, tmp_path):
    file, proof = tmp_path / "pytorch_model.bin", tmp_path / "it_ran"
    content = {"evil": Command(proof), "weight": torch.ones(2)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin was not opened, because it could run code") as error:
        find_tensors(tmp_path)
    assert "\n" not in str(error.value)
    assert "system" in str(error.value)
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_every_cut_of_a_file_is_noticed(kind, tmp_path):
    tensors = {f"weight {number}": torch.randn(40) for number in range(4)}
    whole = tmp_path / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    if kind == "safetensors":
        save_file(tensors, whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 40)):
        whole.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=whole.name):
            find_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("pytorch_model.bin", b"hello, this is no model", "damaged or incomplete"),
        ("pytorch_model.bin", b"", "is empty"),
        ("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("model.safetensors", b"\xff" * 400, "not a safetensors file"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "not a safetensors file"),
        ("model.safetensors", b'\x0a\0\0\0\0\0\0\0{"a": "b"}', "not a safetensors file"),
        ("model.safetensors.index.json", b"[1]", "not an index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../a.safetensors"}}', "outside its folder"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "a.safetensors"}}', "a.safetensors is missing"),
        ("model-00001-of-00002.safetensors", b"", "but no model.safetensors.index.json"),
        ("readme.txt", b"", "contains no weights"),
    ],
)
def test_other_files_are_refused(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as error:
        find_tensors(tmp_path)
    assert "\n" not in str(error.value)


def test_headers_that_lie_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    for entry, reason in [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}, "does not match its size"),
        ({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, "does not match its size"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}, "unknown type F4"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "incomplete"),
    ]:
        header = json.dumps({"a": entry}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(CheckpointError, match=reason):
            read_safetensors_header(file)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": {"b": torch.ones(1)}}, {1: torch.ones(1)}, {"a": 1}])
def test_other_things_than_tensors_by_name_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="dictionary of named tensors"):
        read_bin_header(tmp_path / "x.bin")


def test_an_index_that_promises_more_is_noticed(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lack b, which its index names"):
        find_tensors(tmp_path)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    index["weight_map"]["b"] = "two.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="both contain a"):
        find_tensors(tmp_path)


def test_the_old_format_keeps_one_file_in_memory(tmp_path):
    for number in (1, 2):
        torch.save({f"w{number}": torch.ones(3)}, tmp_path / f"{number}.bin", _use_new_zipfile_serialization=False)
    index = {"weight_map": {"w1": "1.bin", "w2": "2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    from videopanda.checkpoints import tensors

    for place in find_tensors(tmp_path).values():
        place.read()
        assert list(tensors._old_format_file) == [place.path]
