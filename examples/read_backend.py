"""Reads a volume from a directory backend, or one of archives, without Cairn.

usage: read_backend.py BACKEND [--volume UUID] [--into DIRECTORY]

Prints a line for each path (kind, mode, size, CID or target, path), or makes
the tree below DIRECTORY: files, directories, links, modes and times, and user
attributes; owners when run as root. Written from src/docs/format.md alone; needs
pyarrow for Parquet.
"""

import argparse
import base64
import functools
import hashlib
import json
import os
import pathlib
import stat
import sys

import pyarrow as pa
import pyarrow.parquet as pq

KEYS = {
    "inodes": ("ino",),
    "dentries": ("parent", "name"),
    "xattrs": ("ino", "name"),
    "contents": ("cid",),
    "copies": ("cid", "backend"),
    "events": ("number",),
}


class Damaged(Exception):
    """Something is missing or wrong: an older manifest may be whole."""


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    """The fields of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        else:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        yield tag >> 3, value


def text_of(cid):
    """A binary CIDv1 as text."""
    return "b" + base64.b32encode(cid).decode().rstrip("=").lower()


def blocks_of(archive):
    """Where each block is in a CARv2. All that is reached from a name lives: what a
    head says is dead is not looked at."""
    data = archive.read_bytes()
    at = int.from_bytes(data[27:35], "little")
    end = at + int.from_bytes(data[35:43], "little")
    length, at = varint(data, at)
    at += length
    while at < end:
        length, start = varint(data, at)
        at = start + length
        # CIDv1 with SHA-256, or CIDv0.
        size = 36 if data[start] == 1 else 34
        yield text_of(data[start : start + size]), (archive, start + size, length - size)


def rows_of(archive):
    """Which block is in which row of a Parquet archive, the same."""
    cids = pq.read_table(archive, columns=["cid"])["cid"].to_pylist()
    for row, cid in enumerate(cids):
        yield cid, (archive, row, None)


@functools.lru_cache(maxsize=4)
def bytes_of(archive):
    """The blocks of a Parquet archive, some megabytes, in their order."""
    return pq.read_table(archive, columns=["bytes"])["bytes"].combine_chunks()


class Place:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        marker = json.loads((self.path / "cairn-backend.json").read_text())
        if marker["format"] > 1:
            sys.exit(f"{path} has a newer format than this program knows")
        # CID to archive, offset and length; in Parquet a row.
        self.packed = {}
        for archive in sorted(self.path.glob("packs/*-*.*")):
            if archive.suffix == ".car":
                self.packed.update(blocks_of(archive))
            elif archive.suffix == ".parquet":
                try:
                    self.packed.update(rows_of(archive))
                except (OSError, pa.ArrowException) as error:
                    # Cairn finds its blocks by their pages, and brings them elsewhere.
                    print(f"passed over: {archive.name}: {error}", file=sys.stderr)

    def manifests(self, volume):
        """Names of manifests, newest first."""
        volumes = self.path / "names/volumes"
        found = sorted(volumes.iterdir()) if volumes.is_dir() else []
        if volume:
            found = [folder for folder in found if folder.name == volume]
        if len(found) != 1:
            sys.exit(f"choose one with --volume: {[folder.name for folder in found]}")
        return sorted(found[0].glob("manifest-*"), reverse=True)

    def block(self, cid):
        path = self.path / "blocks" / cid[-3:-1].lower() / cid
        try:
            if cid in self.packed:
                archive, offset, length = self.packed[cid]
                if length is None:
                    data = bytes_of(archive)[offset].as_py()
                else:
                    with open(archive, "rb") as file:
                        file.seek(offset)
                        data = file.read(length)
            else:
                data = path.read_bytes()
        except (OSError, pa.ArrowException) as error:
            raise Damaged(f"block {cid}: {error}") from error
        padded = cid[1:].upper() + "=" * (-(len(cid) - 1) % 8)
        # CIDv1: version, codec, hash function, length of the hash, hash.
        if not cid.startswith("b") or base64.b32decode(padded)[4:] != hashlib.sha256(data).digest():
            raise Damaged(f"block {cid} does not match its hash")
        return data

    def leaves(self, cid):
        """The bytes of a UnixFS file, leaf by leaf."""
        data = self.block(cid)
        if cid.startswith("bafkrei"):
            yield data
            return
        inline = b""
        links = []
        for number, value in fields(data):
            if number == 1:
                inline = dict(fields(value)).get(2, b"")
            elif number == 2:
                links.append(text_of(dict(fields(value))[1]))
        if inline:
            yield inline
        for link in links:
            yield from self.leaves(link)

    def table(self, file):
        data = b"".join(self.leaves(file["cid"]))
        if len(data) != file["bytes"]:
            raise Damaged(f"{file['table']} has {len(data)} bytes, not {file['bytes']}")
        table = pq.read_table(pa.BufferReader(data))
        if table.num_rows != file["rows"]:
            raise Damaged(f"{file['table']} has {table.num_rows} rows, not {file['rows']}")
        return table.to_pylist()


def state_of(place, manifest):
    """All rows by table and key: the base, then the deltas in order."""
    state = {table: {} for table in KEYS}

    def key(table, row):
        return tuple(row[column] for column in KEYS[table])

    for file in manifest["base"]["files"]:
        for row in place.table(file):
            state[file["table"]][key(file["table"], row)] = row
    for file in manifest["deltas"]:
        for change in place.table(file):
            table = change["table"]
            row = change[table]
            if table == "contents":
                # The copies that follow are all there are.
                for old in [k for k in state["copies"] if k[0] == row["cid"]]:
                    del state["copies"][old]
            if change["op"] == "put":
                state[table][key(table, row)] = row
            else:
                state[table].pop(key(table, row), None)
    return state


def tree_of(state):
    """Paths and their inodes, parents before children."""
    entries = {}
    for (parent, name), row in sorted(state["dentries"].items()):
        entries.setdefault(parent, []).append((name, row["ino"]))
    paths = []
    stack = [(b"", 1)]
    while stack:
        path, ino = stack.pop()
        inode = state["inodes"].get((ino,))
        if inode is None:
            raise Damaged(f"{path!r} names inode {ino}, which has no row")
        paths.append((path, inode))
        if inode["kind"] == "directory":
            stack += [(path + b"/" + name, child) for name, child in entries.get(ino, [])]
    return sorted(paths, key=lambda entry: entry[0].split(b"/"))


def make(place, state, paths, into):
    made = {}
    top = os.fsencode(into)
    attributes = {}
    for (ino, name), row in state["xattrs"].items():
        attributes.setdefault(ino, []).append((name, row["value"]))
    for path, inode in paths:
        at, kind, ino = top + path, inode["kind"], inode["ino"]
        if ino in made:
            os.link(made[ino], at, follow_symlinks=False)
            continue
        if kind == "directory":
            os.makedirs(at, exist_ok=True)
        elif kind == "symlink":
            os.symlink(inode["target"], at)
        elif kind == "file":
            with open(at, "xb") as out:
                for leaf in place.leaves(inode["content"]) if inode["content"] else ():
                    out.write(leaf)
                if out.tell() != inode["size"]:
                    raise Damaged(f"{path!r} has {out.tell()} bytes, not {inode['size']}")
        elif kind == "fifo":
            os.mkfifo(at)
        else:
            print(f"passed over: {kind} {path!r}", file=sys.stderr)
            continue
        if kind != "directory":
            made[ino] = at
    # Children before parents, so that nothing changes what was set.
    for path, inode in reversed(paths):
        at, link = top + path, inode["kind"] == "symlink"
        if not os.path.lexists(at):
            continue
        if os.geteuid() == 0:
            os.chown(at, inode["uid"], inode["gid"], follow_symlinks=False)
        if not link:
            for name, value in attributes.get(inode["ino"], ()):
                os.setxattr(at, name, value)
            os.chmod(at, inode["mode"])
        times = [inode[f"{t}_s"] * 10**9 + inode[f"{t}_ns"] for t in ("atime", "mtime")]
        os.utime(at, ns=tuple(times), follow_symlinks=False)


def main():
    parser = argparse.ArgumentParser(description="read a volume without Cairn")
    parser.add_argument("backend")
    parser.add_argument("--volume")
    parser.add_argument("--into")
    given = parser.parse_args()
    place = Place(given.backend)
    for name in place.manifests(given.volume):
        try:
            manifest = json.loads(place.block(name.read_text().strip()))
            if manifest["format"] > 1:
                sys.exit(f"{name} has a newer format than this program knows")
            state = state_of(place, manifest)
            paths = tree_of(state)
            break
        except Damaged as error:
            print(f"{name.name}: {error}; an older one is tried", file=sys.stderr)
    else:
        sys.exit("no manifest is whole")
    if given.into:
        return make(place, state, paths, given.into)
    letters = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}
    for path, inode in paths:
        mode = stat.filemode(letters.get(inode["kind"], 0) | inode["mode"])
        what = inode["content"] or os.fsdecode(inode["target"]) or "-"
        shown = path.decode("utf-8", "backslashreplace") or "/"
        print(f"{inode['kind']:12} {mode} {inode['size']:12} {what} {shown}")


main()
