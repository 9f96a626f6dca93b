#!/usr/bin/env python3
"""A volume over three disks of its own, each a loop device, that are harmed one by one.

A tree is copied in while one disk is unplugged; then one dies, blocks of another rot, one
fills up, one becomes slow, the daemon is killed, half of the files go and are collected,
one gives nothing back of what it takes, and in the end the machine's own disk is lost. After each the mount has what the original
has (`rsync -anc`: no difference). Says how long healing took beside a copy of the same
bytes from disk to disk in the same run.
Needs root, loop devices on ext4, mkfs.ext4, chattr, rsync and bindfs. Nothing outside of DIR is touched.
Usage: run.py CAIRN DIR [MIB]        (MIB of files: 5120; five times as much is needed)
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

NAMES = ["a", "b", "c"]
SEED = int(os.environ.get("CAIRN_SEED", "1"))
# Healing, as a part of the speed at which the same bytes are copied.
BAR = 0.7


def run(*words, check=True, quiet=True):
    done = subprocess.run([str(w) for w in words], capture_output=quiet, text=True, check=False)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def say(text):
    print(text, flush=True)


def until(what, holds, most):
    """Waits for a condition, for so many seconds at most; how long it took."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > most:
            sys.exit(f"in vain for {most} s: {what}")
        time.sleep(0.2)
    return time.monotonic() - start


class World:
    def __init__(self, cairn, work, mib):
        self.cairn, self.work, self.mib = cairn, work, mib
        self.original, self.mount, self.volume = work / "original", work / "mount", work / "volume"
        self.random = random.Random(SEED)
        self.dead = set()
        self.below = []

    def disk(self, name):
        return self.work / f"disk-{name}"

    def plug(self, name):
        self.disk(name).mkdir(exist_ok=True)
        run("mount", "-o", "loop", self.work / f"{name}.img", self.disk(name))

    def unplug(self, name):
        """The folder is empty at once, whatever has files open there."""
        run("umount", "-l", self.disk(name))

    def make(self):
        for place in (self.original, self.mount):
            place.mkdir()
        for name in NAMES:
            image = self.work / f"{name}.img"
            with open(image, "wb") as file:
                file.truncate((self.mib * 2 + 1024) << 20)
            run("mkfs.ext4", "-q", "-m", "0", image)
            self.plug(name)
        # `b` lies under a filesystem that can be made slow.
        (self.work / "b").mkdir()
        self.under = subprocess.Popen(
            ["bindfs", "-f", str(self.disk("b")), str(self.work / "b")], stdin=subprocess.DEVNULL)
        until("bindfs is mounted", lambda: os.path.ismount(self.work / "b"), 20)
        self.fill_original()
        run(self.cairn, "init", "--volume", self.volume, "--policy", "min=2,target=3,max=3")
        self.set("grace_s", 900, 10)
        self.set("retry_interval_s", 5, 1)
        self.set("check_interval_s", 900, 30)
        for name, path in (("a", self.disk("a")), ("b", self.work / "b"), ("c", self.disk("c"))):
            run(self.cairn, "backend", "add", f"file://{path}/cairn?id={name}&domain={name}",
                "--volume", self.volume)

    def fill_original(self):
        """One part small files, four parts large ones."""
        small = self.mib * (1 << 20) // 5
        number = 0
        while small > 0:
            size = self.random.choice([100, 4096, 20_000, 65_536, 300_000])
            folder = self.original / f"d{number // 500:03}"
            folder.mkdir(exist_ok=True)
            (folder / f"f{number}").write_bytes(self.random.randbytes(size))
            small -= size
            number += 1
        for n in range(4):
            with open(self.original / f"large-{n}", "wb") as file:
                for _ in range(self.mib // 5):
                    file.write(os.urandom(1 << 20))
        say(f"original: {number} small files, 4 of {self.mib // 5} MiB")

    def set(self, key, old, new):
        path = self.volume / "cairn.toml"
        text = path.read_text()
        assert f"{key} = {old}\n" in text, key
        path.write_text(text.replace(f"{key} = {old}\n", f"{key} = {new}\n"))

    def start(self):
        run(self.cairn, "mount", self.mount, "--volume", self.volume)

    def json(self, *words, check=True):
        done = run(self.cairn, "--json", *words, "--volume", self.volume, check=check)
        return json.loads(done.stdout)

    def status(self):
        return self.json("status")

    def state(self, name):
        rows = self.status()["backends"]
        return next(row["state"] for row in rows if row["id"] == name)

    def settled(self):
        """Every content has its copies and nothing waits."""
        status = self.status()
        pins = status["pins"]
        short = pins["below_min"] + pins["below_target"]
        up = all(row["state"] == "up" for row in status["backends"] if row["id"] not in self.dead)
        return up and short == 0 and status["queue"]["pending"] == 0

    def same(self, what):
        # New lines only: times of folders follow what was done in them.
        done = run("rsync", "-anc", "--delete", "--omit-dir-times", "--out-format=%i %n",
                   f"{self.original}/", f"{self.mount}/")
        if done.stdout.strip():
            sys.exit(f"{what}: the mount differs from the original:\n{done.stdout[:2000]}")
        say(f"  {what}: rsync -anc finds no difference")

    def verified(self, name):
        """All copies there are read back and hashed; what was found."""
        words = ("--json", "pin", "verify", self.mount, "--backend", name, "--wait")
        return json.loads(run(self.cairn, *words).stdout)

    def stored(self, name):
        done = run("du", "-sk", self.disk(name))
        return int(done.stdout.split()[0]) << 10

    def daemon(self):
        return int((self.volume / "lock").read_text().split()[0])

    def end(self):
        run(self.cairn, "umount", self.mount, "--force", check=False)
        run("umount", "-l", self.mount, check=False)
        if getattr(self, "under", None):
            self.under.send_signal(signal.SIGCONT)
        run("umount", "-l", self.work / "b", check=False)
        for name in NAMES:
            run("umount", "-l", self.disk(name), check=False)
            run("chattr", "-i", self.work / f"{name}.img", check=False)


def unplugged_while_copying(world):
    say("== a disk is unplugged while the tree is copied in")
    start = time.monotonic()
    copy = subprocess.Popen(["cp", "-a", f"{world.original}/.", str(world.mount)])
    third = (world.mib << 20) // 5
    until("some of it is on the disk", lambda: world.stored("c") > third, 1800)
    world.unplug("c")
    say(f"  c is away after {time.monotonic() - start:.1f} s, cp goes on")
    if copy.wait() != 0:
        sys.exit("cp failed")
    run("sync", "-f", world.mount)
    say(f"  cp and sync: {time.monotonic() - start:.1f} s")
    until("c is down", lambda: world.state("c") == "down", 60)
    world.same("with c away")
    world.plug("c")
    took = until("c is back and everything has its copies", world.settled, 1800)
    say(f"  c is back, three copies of everything: {took:.1f} s")
    world.same("with c back")


def a_disk_dies(world):
    say("== a disk dies; what it held is made elsewhere")
    # The yardstick: the same bytes from disk to disk, read cold.
    run("sync")
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
    target = world.disk("b") / "yardstick"
    start = time.monotonic()
    run("cp", "-a", world.original, target)
    run("sync", "-f", target)
    copied = time.monotonic() - start
    shutil.rmtree(target)
    run("sync")
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
    def held():
        return world.stored("b") + world.stored("c")

    before = held()
    # Every call of the disk fails from now on: nothing is there, nothing can be written.
    world.dead.add("a")
    image = world.work / "a.img"
    os.truncate(image, 0)
    run("chattr", "+i", image)
    start = time.monotonic()
    until("a is down", lambda: world.state("a") == "down", 400)
    say(f"  a is dead, and known to be after {time.monotonic() - start:.1f} s")
    start = time.monotonic()
    # Its copies count until the grace period is over.
    until("its copies count no more", lambda: world.status()["pins"]["below_target"] > 0, 120)
    begun = time.monotonic()
    until("everything has its copies", world.settled, 3600)
    took = time.monotonic() - begun
    run("sync")
    moved = held() - before
    ratio = moved / took / ((world.mib << 20) / copied)
    say(f"  healed: {moved >> 20} MiB in {took:.1f} s ({moved / took / 1e6:.0f} MB/s), begun after "
        f"{begun - start:.1f} s (grace 10 s); cp -a and sync of the tree took {copied:.1f} s "
        f"({(world.mib << 20) / copied / 1e6:.0f} MB/s): "
        f"{ratio:.2f} of it")
    if ratio < BAR:
        world.below.append(f"healing at {ratio:.2f} of the disk's speed, not {BAR}")
    world.same("with a dead")


def rot(world):
    say("== blocks rot")
    blocks = [path for path in (world.disk("c") / "cairn").rglob("*")
              if path.is_file() and path.stat().st_size > 4000]
    blocks = [path for path in blocks if "blocks" in str(path)]
    harmed = world.random.sample(blocks, min(200, len(blocks)))
    for path in harmed:
        with open(path, "r+b") as file:
            file.seek(world.random.randrange(path.stat().st_size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    run("sync")
    say(f"  {len(harmed)} blocks of c have a bit flipped; pin verify: {world.verified('c')}")
    until("everything has its copies", world.settled, 600)
    again = world.verified("c")
    if again["repaired"] != 0:
        sys.exit(f"not all was repaired: {again}")
    world.same("after the repair")


def full(world):
    say("== a disk is full")
    filler = world.disk("c") / "filler"
    with open(filler, "wb") as file:
        while True:
            try:
                file.write(bytes(8 << 20))
                file.flush()
            except OSError:
                break
    new = world.original / "when-full"
    new.write_bytes(world.random.randbytes(64 << 20))
    run("cp", "-a", new, world.mount)
    run("sync", "-f", world.mount)
    world.same("with c full")
    pin = json.loads(run(world.cairn, "--json", "pin", "status", world.mount / "when-full").stdout)
    say(f"  a file was written; c is {world.state('c')}; its pin: {json.dumps(pin)[:1500]}")
    # The close of it may fail, too.
    os.unlink(filler)
    took = until("c catches up", world.settled, 600)
    say(f"  room again: all copies after {took:.1f} s")


def slow(world):
    say("== a disk is slow: it stands still nine tenths of the time")
    over = threading.Event()

    def brake():
        while not over.is_set():
            world.under.send_signal(signal.SIGSTOP)
            over.wait(0.45)
            world.under.send_signal(signal.SIGCONT)
            over.wait(0.05)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        start = time.monotonic()
        folder = world.original / "when-slow"
        folder.mkdir()
        for n in range(200):
            (folder / f"s{n}").write_bytes(world.random.randbytes(20_000))
        run("cp", "-a", folder, world.mount)
        listed = time.monotonic()
        run("ls", "-lR", world.mount / "when-slow")
        say(f"  200 files written in {listed - start:.1f} s, listed in {time.monotonic() - listed:.2f} s")
        world.same("with b slow")
    finally:
        over.set()
        thread.join()
    until("b catches up", world.settled, 600)


def killed(world):
    say("== the daemon is killed in the middle of a write")
    new = world.original / "when-killed"
    new.write_bytes(os.urandom(300 << 20))
    copy = subprocess.Popen(["cp", "-a", str(new), str(world.mount)], stderr=subprocess.DEVNULL)
    until("some of it is written", lambda: (world.mount / "when-killed").exists(), 60)
    os.kill(world.daemon(), signal.SIGKILL)
    copy.wait()
    run("umount", "-l", world.mount)
    start = time.monotonic()
    world.start()
    say(f"  mounted again in {time.monotonic() - start:.2f} s")
    run("cp", "-a", new, world.mount)
    run("sync", "-f", world.mount)
    world.same("after the kill")
    until("everything has its copies", world.settled, 600)


def collected(world):
    say("== half of the files go, and are collected")
    files = sorted(path for path in world.original.rglob("f*") if path.is_file())
    for path in files[::2]:
        path.unlink()
        (world.mount / path.relative_to(world.original)).unlink()
    for large in ("large-0", "large-1"):
        (world.original / large).unlink()
        (world.mount / large).unlink()
    run(world.cairn, "sync", world.mount)
    before = world.stored("c")
    for _ in range(2):
        run(world.cairn, "gc", world.mount, "--run", "--no-grace")
    freed = before - world.stored("c")
    say(f"  {freed >> 20} MiB freed on c of {before >> 20} MiB")
    if freed < (world.mib << 20) * 3 // 10:
        sys.exit("too little was freed")
    say(f"  pin verify: {world.verified('b')} at b, {world.verified('c')} at c")
    world.same("after the collection")


def half_broken(world):
    say("== a disk takes writes and gives nothing back")
    pins = world.status()["pins"]["total"]
    os.truncate(world.work / "b.img", 0)
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
    start = time.monotonic()
    run(world.cairn, "pin", "verify", world.mount, "--backend", "b", "--wait", check=False)
    # There is no third place left to go to: what counts is that the copies do not.
    until("its copies count no more",
          lambda: world.status()["pins"]["below_target"] >= pins * 9 // 10, 900)
    say(f"  {pins} pins: nine tenths of them are known to lack a copy after "
        f"{time.monotonic() - start:.1f} s")
    world.same("with b broken")


def recovered(world):
    say("== the machine's own disk is lost")
    run(world.cairn, "sync", world.mount)
    # Two disks are gone: what they lack stays queued.
    run(world.cairn, "umount", world.mount, "--force")
    shutil.rmtree(world.volume)
    start = time.monotonic()
    run(world.cairn, "recover", "--from", f"file://{world.disk('c')}/cairn?domain=c",
        "--volume", world.volume)
    world.start()
    say(f"  recovered and mounted in {time.monotonic() - start:.2f} s")
    world.same("out of c alone")


def main():
    if len(sys.argv) < 3 or os.geteuid() != 0:
        sys.exit(__doc__)
    cairn = pathlib.Path(sys.argv[1]).resolve()
    mib = int(sys.argv[3]) if len(sys.argv) > 3 else 5120
    work = pathlib.Path(sys.argv[2]).resolve() / f"cairn-devices-{os.getpid()}"
    work.mkdir(parents=True)
    if shutil.disk_usage(work).free < (mib * 5 + 2048) << 20:
        sys.exit(f"{work}: {mib * 5 + 2048} MiB are needed")
    world = World(cairn, work, mib)
    say(f"seed {SEED}, {mib} MiB, level QUORUM, three disks")
    whole = False
    try:
        world.make()
        world.start()
        for part in (unplugged_while_copying, a_disk_dies, rot, full, slow, killed, collected,
                     half_broken, recovered):
            part(world)
        whole = True
        say("all of it held" if not world.below else f"all of it held, but {world.below}")
    finally:
        if not whole:
            done = run(cairn, "backend", "list", "--volume", world.volume, check=False)
            say(done.stdout + done.stderr)
            log = world.volume / "daemon.log"
            if log.exists():
                say("daemon.log:\n" + "".join(log.open().readlines()[-15:]))
        world.end()
        shutil.rmtree(work, ignore_errors=True)
    if world.below:
        sys.exit(1)


if __name__ == "__main__":
    main()
