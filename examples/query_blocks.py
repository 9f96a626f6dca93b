"""Asks DuckDB about the blocks in a backend of Parquet archives, without Cairn.

usage: query_blocks.py BACKEND

Prints how many blocks of each codec there are, and how much room they take, and hashes
each block: by the CID in its row it is what it should be. Needs duckdb.
"""

import base64
import hashlib
import pathlib
import sys

import duckdb

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def digest_of(cid):
    """The SHA-256 in a CIDv1 (base32) or a CIDv0 (base58)."""
    if cid.startswith("b"):
        return base64.b32decode(cid[1:].upper() + "=" * (-(len(cid) - 1) % 8))[-32:]
    number = 0
    for letter in cid:
        number = number * 58 + BASE58.index(letter)
    return number.to_bytes(34, "big")[-32:]


archives = list((pathlib.Path(sys.argv[1]) / "packs").glob("*.parquet"))
if not archives:
    sys.exit("there are no Parquet archives")
database = duckdb.connect()
database.from_parquet([str(archive) for archive in archives]).create_view("blocks")
summary = """
    select codec, count(*), count(distinct cid), sum(octet_length(bytes))::bigint
    from blocks group by codec order by codec
"""
for codec, rows, distinct, length in database.execute(summary).fetchall():
    print(f"{codec:8} {rows:8} blocks, {distinct} different, {length} bytes")
stored = sum(archive.stat().st_size for archive in archives)
print(f"{stored} bytes in {len(archives)} archives")
hashed = 0
database.execute("select cid, bytes from blocks")
while some := database.fetchmany(64):
    for cid, data in some:
        if digest_of(cid) != hashlib.sha256(data).digest():
            sys.exit(f"{cid} does not match its bytes")
        hashed += 1
one = database.execute("select octet_length(bytes) from blocks where cid = ?", [cid])
if one.fetchall()[0][0] != len(data):
    sys.exit(f"{cid} is not found by itself")
print(f"{hashed} blocks match their CIDs")
