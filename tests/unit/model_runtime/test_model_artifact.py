"""Artifacts on disk: whole or refused, with the difference named."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model_runtime import artifact as artifacts
from model_runtime import prior
from model_runtime.runtime import FrozenModel
from schemas.artifact import FeatureSpec, PriorSpec
from schemas.errors import ArtifactError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "model"
    model = FrozenModel.untrained(
        facets=2, codewords=4, dim=8, token_dim=8, hidden=(8,), features=FeatureSpec(buckets=1 << 8)
    )
    model.save(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    (path / "manifest.json").write_text(json.dumps(manifest))


def replace_tensors(path, file, change):
    """Rewrite a tensor file and make the manifest's hash agree, so that only the content is wrong."""
    tensors = load_file(path / file)
    change(tensors)
    save_file(tensors, path / file)
    files = json.loads((path / "manifest.json").read_text())["files"]
    files[file] = hashlib.sha256((path / file).read_bytes()).hexdigest()
    edit_manifest(path, files=files)


def refused(path, match):
    with pytest.raises(ArtifactError, match=match):
        artifacts.load(path)


def test_hashes_in_the_manifest_are_those_of_the_files(saved):
    manifest = artifacts.load(saved).manifest
    for file, expected in manifest.files.items():
        assert hashlib.sha256((saved / file).read_bytes()).hexdigest() == expected


@pytest.mark.parametrize("file", ["manifest.json", "encoder.safetensors", "codebook.safetensors"])
def test_a_missing_file_is_named(copy, file):
    (copy / file).unlink()
    refused(copy, rf"{file} is missing")


def test_a_missing_directory_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere/manifest.json is missing")


@pytest.mark.parametrize("file", ["encoder.safetensors", "codebook.safetensors"])
def test_a_single_changed_byte_is_noticed(copy, file):
    content = bytearray((copy / file).read_bytes())
    content[-1] ^= 1
    (copy / file).write_bytes(content)
    refused(copy, rf"{file} has SHA-256 .* the manifest says")


def test_a_truncated_file_is_noticed(copy):
    content = (copy / "codebook.safetensors").read_bytes()
    (copy / "codebook.safetensors").write_bytes(content[: len(content) // 2])
    refused(copy, "SHA-256")


def test_bytes_that_are_no_safetensors_are_refused_even_with_the_right_hash(copy):
    (copy / "codebook.safetensors").write_bytes(b"nonsense")
    files = json.loads((copy / "manifest.json").read_text())["files"]
    files["codebook.safetensors"] = hashlib.sha256(b"nonsense").hexdigest()
    edit_manifest(copy, files=files)
    refused(copy, "no readable safetensors")


def test_a_manifest_that_is_no_json_is_refused(copy):
    (copy / "manifest.json").write_text("{")
    refused(copy, "is no JSON")
    (copy / "manifest.json").write_text("[]")
    refused(copy, "format_version None")


def test_another_format_version_is_named(copy):
    edit_manifest(copy, format_version=2)
    refused(copy, "format_version 2, this program reads 1")


def test_an_unknown_or_wrong_manifest_field_is_named(copy):
    edit_manifest(copy, colour="red")
    refused(copy, "colour")


def test_a_manifest_without_a_hash_is_refused(copy):
    edit_manifest(copy, files={})
    refused(copy, "names no hash for encoder.safetensors")


def test_a_shape_other_than_the_manifest_implies_is_named(copy):
    edit_manifest(copy, dim=16)
    refused(copy, r"has shape .* the manifest implies")


def test_a_missing_tensor_is_named(copy):
    replace_tensors(copy, "encoder.safetensors", lambda tensors: tensors.pop("gains"))
    refused(copy, "holds tensors .* implies .*gains")


def test_another_dtype_is_named(copy):
    def halve(tensors):
        tensors["codewords"] = tensors["codewords"].astype(np.float16)

    replace_tensors(copy, "codebook.safetensors", halve)
    refused(copy, "codewords is float16, expected float32")


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN"), (1e9, "or more"), (1e-9, "no multiple")], ids=["nan", "huge", "off grid"]
)
@pytest.mark.parametrize(
    ("file", "name"), [("encoder.safetensors", "layer0.weight"), ("codebook.safetensors", "codewords")]
)
def test_values_that_cannot_be_computed_with_are_refused(copy, file, name, value, message):
    def spoil(tensors):
        tensors[name].flat[3] = value

    replace_tensors(copy, file, spoil)
    refused(copy, rf"{name} .*{message}")


def test_codewords_too_long_to_compare_exactly_are_refused(tmp_path):
    model = FrozenModel.untrained(
        facets=1, layers=8, codewords=2, dim=1024, token_dim=8, features=FeatureSpec(buckets=1 << 8)
    )
    model.save(tmp_path / "model")
    replace_tensors(tmp_path / "model", "codebook.safetensors", lambda tensors: tensors["codewords"].fill(1.5))
    refused(tmp_path / "model", "too long")


def test_a_width_beyond_exact_sums_is_refused(copy):
    edit_manifest(copy, hidden=[4096])
    refused(copy, "width 4096")


def test_saving_replaces_an_older_artifact_and_leaves_nothing_else_behind(copy):
    newer = FrozenModel.untrained(codewords=4, dim=8, token_dim=8, features=FeatureSpec(buckets=1 << 8), seed=9)
    newer.save(copy)
    assert FrozenModel.load(copy).manifest == newer.manifest
    assert [path.name for path in copy.parent.iterdir()] == ["model"]
    assert sorted(path.name for path in copy.iterdir()) == sorted([*newer.manifest.files, "manifest.json"])


def test_saving_never_replaces_something_that_is_no_artifact(saved, tmp_path):
    artifact = artifacts.load(saved)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(ArtifactError, match="is no model artifact"):
        artifacts.save(artifact, tmp_path / "photos")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is no model artifact"):
        artifacts.save(artifact, tmp_path / "file")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


def test_a_place_that_cannot_be_written_is_named(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifacts.save(artifacts.load(saved), tmp_path / "file" / "model")


def test_further_metrics_leave_the_identity_alone(saved):
    artifact = artifacts.load(saved)
    told = artifacts.with_metrics(artifact, {"recall": 0.5})
    assert told.manifest.metrics["recall"] == 0.5
    assert told.manifest.model_hash == artifact.manifest.model_hash


def with_ids_and_prior():
    """The untrained model with two id rows and a prior."""
    spec = PriorSpec(half_lives_s=(60, 3_600), hidden=(4,), temperature=0.2)
    rng = np.random.default_rng(0)
    bare = FrozenModel.untrained(
        facets=2, codewords=4, dim=8, token_dim=8, hidden=(8,), features=FeatureSpec(buckets=1 << 8)
    )._artifact
    shape = replace(artifacts.shape_of(bare.manifest), ids=2)
    return artifacts.assemble(
        name="m",
        version="1",
        shape=shape,
        encoder={**bare.encoder, "ids": np.ones((2, 8), np.float32)},
        codewords=bare.codewords,
        labels=bare.manifest.labels,
        window=bare.manifest.window,
        metrics={},
        id_keys=np.array([3, 2**63], np.uint64),
        prior=(spec, prior.freeze(prior.initial_weights(artifacts.prior_shape_of(spec), rng))),
    )


def test_ids_and_prior_survive_saving(tmp_path):
    artifact = with_ids_and_prior()
    artifacts.save(artifact, tmp_path / "m")
    loaded = artifacts.load(tmp_path / "m")
    assert loaded.manifest == artifact.manifest
    assert loaded.id_keys.tolist() == artifact.id_keys.tolist()
    assert loaded.prior.keys() == artifact.prior.keys()
    assert FrozenModel(loaded).prior.temperature == 0.2
    assert loaded.manifest.prior_hash == loaded.manifest.files["prior.safetensors"][:16]


def test_a_prior_that_is_altered_missing_or_off_its_grid_is_refused(tmp_path):
    artifacts.save(with_ids_and_prior(), tmp_path / "m")
    replace_tensors(tmp_path / "m", "prior.safetensors", lambda tensors: tensors["layer0.weight"].fill(1e-9))
    refused(tmp_path / "m", "no multiple")
    (tmp_path / "m" / "prior.safetensors").unlink()
    refused(tmp_path / "m", "prior.safetensors is missing")


def test_id_keys_out_of_order_or_of_another_kind_are_refused(tmp_path):
    artifacts.save(with_ids_and_prior(), tmp_path / "m")

    def swap(tensors):
        tensors["id_keys"] = tensors["id_keys"][::-1].copy()

    replace_tensors(tmp_path / "m", "encoder.safetensors", swap)
    refused(tmp_path / "m", "do not ascend")

    def narrow(tensors):
        tensors["id_keys"] = np.arange(2, dtype=np.int32)

    replace_tensors(tmp_path / "m", "encoder.safetensors", narrow)
    refused(tmp_path / "m", "id_keys is int32, expected uint64")


def test_a_manifest_from_before_ids_and_priors_still_loads(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("ids", "table_exponent", "prior"):
        del manifest[name]
    for label in manifest["labels"]:
        del label["field"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    model = FrozenModel.load(copy)
    assert model.prior is None
    assert model.manifest.ids == 0
