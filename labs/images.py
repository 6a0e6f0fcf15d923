"""Container images made on the spot: busybox-static and some files. Nothing is pulled."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

from labs.errors import LabError
from labs.schema import Image

BUSYBOX = Path("/bin/busybox")
DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var")
FIRST = "/bin/first"
FILES = {FIRST: "#!/bin/sh\n# The first process of a container does not get signals that it does not ask for.\n"
         "trap 'kill $child; exit 143' TERM INT\n\"$@\" <&0 &\nchild=$!\nwait $child\n",
         "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
         "/etc/group": "root:x:0:\nnogroup:x:65534:\n"}


def pack(image: Image, target: Path) -> None:
    """Write the image's file system as a tar file, for `docker import` and `podman import`.

    Raises:
        LabError: there is no busybox, or one that needs libraries.
    """
    with tarfile.open(target, "w") as tar:
        _add_directories(tar, image)
        tar.add(BUSYBOX, "bin/busybox", filter=_roots)
        for applet in _applets():
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for path, text in (FILES | image.files).items():
            content = text.encode()
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755 if text.startswith("#!") else 0o644
            tar.addfile(entry, io.BytesIO(content))


def _add_directories(tar: tarfile.TarFile, image: Image) -> None:
    parents = {str(parent) for path in image.files for parent in Path(path.lstrip("/")).parents}
    for name in sorted((parents | set(DIRECTORIES)) - {"."}):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        tar.addfile(entry)


def _roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


@cache
def _applets() -> tuple[str, ...]:
    if shutil.which(BUSYBOX) is None or b"/ld-linux" in BUSYBOX.read_bytes():
        raise LabError(f"images need {BUSYBOX}, linked statically; `apt-get install busybox-static`")
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    return tuple(applet for applet in listed if applet != "busybox")
