"""A file of a package on PyPI, pinned by version and SHA-256."""

import hashlib
import subprocess
import sys
from pathlib import Path


def download(package: str, sha256: str, folder: Path) -> Path:
    """The file of a pinned package, fetched by pip, which checks its hash; `folder` is empty."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--dest", str(folder), "-r", str(wanted)], check=True)
    wanted.unlink()
    (file,) = folder.iterdir()
    return file


def check(path: Path, sha256: str) -> Path:
    """`path`, if it is that file.

    Raises:
      SystemExit: it is missing, or another file.
    """
    if not path.is_file():
        raise SystemExit(f"error: {path}: no such file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"error: {path} has SHA-256 {found}, not {sha256}")
    return path
