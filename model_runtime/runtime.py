"""A frozen model: content in, facet vectors and codes out, the same bits whatever the batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model_runtime import artifact as artifacts
from model_runtime.codebook import Codebook, raw_indices
from model_runtime.encoder import FrozenEncoder
from model_runtime.features import check_embedding, extract
from model_runtime.prior import Prior
from model_runtime.untrained import untrained_artifact
from schemas.artifact import ArtifactManifest, FeatureSpec
from schemas.errors import ArtifactError
from schemas.events import ItemCreated, ItemUpdated

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from schemas.events import ItemContent


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of encoded items.

    Attributes:
        vectors: (n, F, d) float16, each facet at unit length.
        codes: (n, F, L) int32, assigned from these very float16 vectors.
        raw: (n, F) uint32, the codes as mixed-radix integers, first layer most significant.
    """

    vectors: npt.NDArray[np.float16]
    codes: npt.NDArray[np.int32]
    raw: npt.NDArray[np.uint32]


class FrozenModel:
    """Encoder and codebook of one artifact on one device. Use from one thread at a time.

    Args:
        artifact: manifest and arrays.
        device: ``cpu`` or a CUDA device.
        threads: torch threads of this *process*; 0 leaves them as they are. Results do not depend on it.

    Raises:
        ArtifactError: the device is not there.
    """

    def __init__(self, artifact: artifacts.Artifact, device: str = "cpu", threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._artifact = artifact
        self._spec = artifact.manifest.features
        target = torch_device(device)
        shape = artifacts.shape_of(artifact.manifest)
        self._encoder = FrozenEncoder(shape, artifact.encoder, target, artifact.id_keys)
        self._codebook = Codebook(artifact.codewords, target)
        spec = artifact.manifest.prior
        self._prior = None if spec is None else Prior(artifacts.prior_shape_of(spec), artifact.prior, spec.temperature)

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu", threads: int = 0) -> FrozenModel:
        """Read an artifact directory.

        Raises:
            ArtifactError: what is missing, altered or does not fit; or the device is not there.
        """
        return cls(artifacts.load(Path(path)), device, threads)

    @classmethod
    def untrained(
        cls,
        facets: int = 3,
        layers: int = 2,
        codewords: int = 256,
        dim: int = 64,
        seed: int = 0,
        features: FeatureSpec | None = None,
        *,
        token_dim: int = 64,
        hidden: tuple[int, ...] = (128,),
        half_lives_s: tuple[int, ...] = (),
        device: str = "cpu",
        threads: int = 0,
    ) -> FrozenModel:
        """A model with random weights and a codebook fitted to made-up items, for tests and benchmarks.

        Items that share features get similar vectors and codes are spread, but nothing was learned. The same
        arguments give the same model in every process. Given half-lives, it has a prior that reads such counts.
        """
        spec = features if features is not None else FeatureSpec()
        made = untrained_artifact(facets, layers, codewords, dim, seed, spec, token_dim, hidden, half_lives_s)
        return cls(made, device, threads)

    @property
    def manifest(self) -> ArtifactManifest:
        """What the artifact says of itself."""
        return self._artifact.manifest

    @property
    def codewords(self) -> npt.NDArray[np.float32]:
        """(F, L, M, d) float32."""
        return self._artifact.codewords

    @property
    def prior(self) -> Prior | None:
        """The learned prior g; None where the artifact has none."""
        return self._prior

    def check(self, content: ItemContent) -> None:
        """Refuse content that this model cannot encode.

        Raises:
            RecordError: reason ``wrong_dimension``, the dense vector does not fit.
        """
        check_embedding(content, self._spec)

    def encode(self, contents: Sequence[ItemContent], item_ids: Sequence[str | None] | None = None) -> Encoded:
        """Encode and assign a batch of any size, also an empty one.

        Args:
            contents: item events bring their identifier along.
            item_ids: for contents that are no events: whose they are. One that training saw adds what was learned
                of that very item.

        Raises:
            RecordError: a dense vector does not fit; :meth:`check` items before.
        """
        if not self.manifest.ids:
            item_ids = None
        elif item_ids is None:
            item_ids = [each.item_id if isinstance(each, ItemCreated | ItemUpdated) else None for each in contents]
        return self.assign(self._encoder.encode(extract(contents, self._spec, item_ids)))

    def assign(self, vectors: npt.NDArray[np.float16]) -> Encoded:
        """Codes of vectors (n, F, d) float16 that are there already."""
        codes = self._codebook.assign(vectors)
        return Encoded(vectors, codes, raw_indices(codes, self.manifest.codewords))

    def save(self, directory: Path | str) -> None:
        """Write the artifact; atomic, replaces an older artifact of that name.

        Raises:
            ArtifactError: it cannot be written there.
        """
        artifacts.save(self._artifact, Path(directory))


def torch_device(name: str) -> torch.device:
    """The CPU or a CUDA device that is there.

    Raises:
        ArtifactError: it is something else, or not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArtifactError(f"device {name!r} is no torch device; use cpu or cuda") from error
    if device.type not in {"cpu", "cuda"}:
        raise ArtifactError(f"device {name!r} is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArtifactError(f"device is {name!r} but this machine offers torch no CUDA device; use cpu")
    return device
