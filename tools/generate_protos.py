"""Generates the Python code of ``protos/`` into ``apexrl/transport/_generated``.

The generated modules live below ``apexrl`` so that nothing occupies the top-level import name ``apex``, which another
package of the field uses; imports between generated modules are rewritten accordingly. The output is committed.

    python tools/generate_protos.py           write the files
    python tools/generate_protos.py --check   exit 1 if the committed files differ
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUTPUT = ROOT / "apexrl" / "transport" / "_generated"
PACKAGE = "apexrl.transport._generated"

_INITS = {
    "__init__.py": '"""Generated from `protos/` by `tools/generate_protos.py`. Do not edit."""\n',
    "apex/__init__.py": "",
    "apex/v1/__init__.py": "",
}


def rewrite(source: str) -> str:
    """Make a generated module find its siblings, and its own messages, below :data:`PACKAGE`."""
    source = re.sub(r"^from apex\.", f"from {PACKAGE}.apex.", source, flags=re.MULTILINE)
    # The module name of message classes, for pickling and for their repr.
    return source.replace("DESCRIPTOR, 'apex.v1.", f"DESCRIPTOR, '{PACKAGE}.apex.v1.")


def generate() -> dict[str, str]:
    """All files to be, as path relative to the output folder -> text."""
    files = dict(_INITS)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    # The mypy plugins are console scripts of the environment that runs this script.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
        outputs += [f"--mypy_out=quiet:{folder}", f"--mypy_grpc_out=quiet:{folder}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *sources]
        subprocess.run(command, check=True, env=environment, cwd=PROTOS)
        for path in sorted(Path(folder).rglob("*.py*")):
            files[str(path.relative_to(folder))] = rewrite(path.read_text())
    return files


def differences(files: dict[str, str]) -> list[str]:
    """Readable differences between ``files`` and what is committed; empty = none."""
    found = []
    for name, text in sorted(files.items()):
        path = OUTPUT / name
        if not path.exists():
            found.append(f"{name} is missing")
        elif path.read_text() != text:
            found.append(f"{name} differs")
    committed = (path for path in OUTPUT.rglob("*.py*") if "__pycache__" not in path.parts)
    strangers = {str(path.relative_to(OUTPUT)) for path in committed} - set(files)
    return found + [f"{name} has no source" for name in sorted(strangers)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    files = generate()
    if arguments.check:
        found = differences(files)
        print("\n".join(found) if found else "generated code is up to date")
        return 1 if found else 0
    for name, text in files.items():
        path = OUTPUT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(f"{len(files)} files written to {OUTPUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
