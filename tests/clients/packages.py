"""What exec.sh installs: a package `one` as a folder of files has it, for pip, cargo, npm and apt.

    packages.py FOLDER
"""
import hashlib
import io
import json
import pathlib
import sys
import tarfile
import zipfile

root = pathlib.Path(sys.argv[1])


def put(path, content):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def archive(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(text)
            tar.addfile(about, io.BytesIO(text.encode()))
    return packed.getvalue()


wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w") as files:
    files.writestr("one.py", "from a package")
    files.writestr("one-1.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1.0.0\n")
    files.writestr("one-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    files.writestr("one-1.0.0.dist-info/RECORD", "one.py,,\n")
put("simple/one/one-1.0.0-py3-none-any.whl", wheel.getvalue())
put("simple/one/index.html", '<a href="one-1.0.0-py3-none-any.whl">one-1.0.0-py3-none-any.whl</a>')

manifest = '[package]\nname = "one"\nversion = "1.0.0"\n'
crate = archive({"one-1.0.0/Cargo.toml": manifest, "one-1.0.0/src/lib.rs": ""})
entry = {"name": "one", "vers": "1.0.0", "deps": [], "cksum": hashlib.sha256(crate).hexdigest(), "features": {}}
put("crates/one/1.0.0/download", crate)
put("index/config.json", json.dumps({"dl": "http://allowed.example/crates"}))
put("index/3/o/one", json.dumps({**entry, "yanked": False}) + "\n")

about = {"name": "one", "version": "1.0.0"}
put("npm/one.tgz", archive({"package/package.json": json.dumps(about)}))
versions = {"1.0.0": {**about, "dist": {"tarball": "http://allowed.example/npm/one.tgz"}}}
put("npm/one", json.dumps({"name": "one", "dist-tags": {"latest": "1.0.0"}, "versions": versions}))

put("apt/Packages", "Package: one\nVersion: 1.0.0\nArchitecture: all\nMaintainer: x <x@x>\nFilename: ./one.deb\nSize: 1\n"
    "SHA256: " + "0" * 64 + "\nDescription: one\n")
