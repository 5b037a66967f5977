"""Compiled code that an image brings along, for pods that cannot write where it lies.

numba keeps compiled functions on disk, and only uses a directory that it can write to; the root file system of a pod
cannot be written to, and its ``/tmp`` is empty at the start. So an image compiles when it is built and names this
locator: what it has is copied to numba's own directory, where everything that must be compiled anew goes as well.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator

#: Environment variable: the directory that was NUMBA_CACHE_DIR when the image was built.
COMPILED = "APEX_COMPILED_KERNELS"


class CopyingCacheLocator(UserProvidedCacheLocator):
    """numba's locator of NUMBA_CACHE_DIR, which is filled from ``APEX_COMPILED_KERNELS`` first.

    Chosen by ``NUMBA_CACHE_LOCATOR_CLASSES=apexrl.runtime.kernel_cache.CopyingCacheLocator``. numba checks what it
    finds as it always does: code for another processor, or of another source text, is left alone and compiled anew.
    """

    def ensure_cache_path(self) -> None:
        """Make this function's directory, with the image's files in it."""
        super().ensure_cache_path()  # type: ignore[no-untyped-call]
        compiled = os.environ.get(COMPILED)
        if compiled:
            own = Path(self.get_cache_path())  # type: ignore[no-untyped-call]
            _copy_missing(Path(compiled) / own.name, own)


def _copy_missing(source: Path, target: Path) -> None:
    """Other processes may do the same at the same time, or have been here before."""
    if not source.is_dir():
        return
    for file in sorted(source.iterdir()):
        if not (target / file.name).exists():
            partial = target / f"{file.name}.{os.getpid()}"
            shutil.copyfile(file, partial)
            partial.replace(target / file.name)
