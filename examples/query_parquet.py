"""Reads a volume's checkpoints with pyarrow, without Cairn.

usage: query_parquet.py VOLUME/checkpoints
"""

import json
import pathlib
import sys

import pyarrow.parquet as pq

folder = pathlib.Path(sys.argv[1])
manifest = json.loads(sorted(folder.glob("manifest-*.json"))[-1].read_text())
base = folder / f"base-{manifest['base']['sequence']:012d}"
for file in manifest["base"]["files"]:
    table = pq.read_table(base / f"{file['table']}.parquet")
    assert table.num_rows == file["rows"], file
    print(f"{file['table']:9} {table.num_rows:6} rows, {table.num_columns} columns")
rows = 0
for file in manifest["deltas"]:
    delta = pq.read_table(folder / f"delta-{file['sequence']:012d}.parquet")
    assert delta.column_names[:2] == ["table", "op"], delta.column_names
    rows += delta.num_rows
print(f"{len(manifest['deltas'])} deltas with {rows} rows")
inodes = pq.read_table(base / "inodes.parquet").to_pylist()
newest = {row["ino"]: row for row in inodes}
for file in manifest["deltas"]:
    delta = pq.read_table(folder / f"delta-{file['sequence']:012d}.parquet").to_pylist()
    newest.update({row["inodes"]["ino"]: row["inodes"] for row in delta if row["table"] == "inodes"})
files = [row for row in newest.values() if row["kind"] == "file"]
assert len(files) == manifest["files"], (len(files), manifest["files"])
assert sum(row["size"] for row in files) == manifest["bytes"]
events = folder.parent / "events"
if any(events.glob("*.parquet")):
    table = pq.read_table(events)
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]", table.schema
    print(f"{table.num_rows} sealed events")
print(f"{len(files)} files of {manifest['bytes']} bytes, as the manifest says")
