#!/usr/bin/env python3
"""Plants faults in the replication core, one at a time, and lets the simulation find them.

Each is one replacement in a copy of the sources; the simulation must fail within SEEDS
seeds. Exits with 1 when one is not found, or when its text is not in the code any more.
Usage: mutants.py [SEEDS] [NAME...]
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[2]
CORE = "src/replication/machine/"

# What is planted, where, the text, and what stands there instead.
MUTANTS = [
    ("a copy counts for ever while its place is away", CORE + "health.rs",
     "        self.given_up = true;\n", "        self.given_up = false;\n"),
    ("a place that returns is trusted with what it had", CORE + "places.rs",
     "copy.at < place.trusted_since", "copy.at < Timestamp::default()"),
    ("any copy is a proof that lets others go", CORE + "planner.rs",
     "        copy.state == CopyState::Verified && fresh && place.readable",
     "        let _ = (copy, fresh);\n        place.readable"),
    ("one proven copy lets all others go", CORE + "planner.rs",
     "        usize::from(self.policy.target).min(sorted.held.len())\n",
     "        1.min(sorted.held.len())\n"),
    ("nobody is asked before a copy goes", CORE + "planner.rs",
     "                !confirmed.contains(id) || jobs.contains(&(id.clone(), Job::Release))",
     "                let _ = confirmed;\n                jobs.contains(&(id.clone(), Job::Release))"),
    ("what was given up is deleted without another look", CORE + "planner.rs",
     "        complete && self.proven(&sorted, &gone, moment).len() >= must_stay",
     "        let _ = (complete, gone, must_stay);\n        true"),
    ("a copy that was given up counts", CORE + "places.rs",
     "            CopyState::Released => Standing::Released,",
     "            CopyState::Released => Standing::Good,"),
    ("a copy that is known to be bad counts", CORE + "places.rs",
     "            CopyState::Corrupt | CopyState::Lost => Standing::Bad,",
     "            CopyState::Corrupt | CopyState::Lost => Standing::Good,"),
    ("a quorum is one less", "src/replication/policy.rs",
     "            Level::Quorum => usize::from(self.min.max(self.target / 2 + 1)),",
     "            Level::Quorum => usize::from(self.min.max(self.target / 2 + 1)) - 1,"),
    ("copies above max stay", CORE + "planner.rs",
     "        let mut excess = sorted.kept.len().saturating_sub(max);",
     "        let mut excess = sorted.kept.len().saturating_sub(max + 1);"),
    ("a round that failed is forgotten", CORE + "rows.rs",
     "        let stuck = match verdict.plan {\n            Plan::Satisfied => {",
     "        let stuck = match verdict.plan {\n            Plan::Act(_) if error.is_some() => {\n"
     "                *row = None;\n                return;\n            }\n            Plan::Satisfied => {"),
    ("nothing is read back after it was sent", CORE + "rows.rs",
     "                proofs.add(id, root);\n", "                let _ = (&mut proofs, id, root);\n"),
    ("a pause never ends", CORE + "mod.rs",
     "        let bound = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest);",
     "        let bound = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).max(longest * 9999);"),
    ("two copies in one domain count twice", CORE + "places.rs",
     "                held.insert(self.domain(place, kind));",
     "                let _ = kind;\n                held.insert(place + 64);"),
]


def plant(work, mutant):
    """Puts one into the copy; its former text."""
    name, file, old, new = mutant
    path = work / file
    text = path.read_text()
    if text.count(old) != 1:
        sys.exit(f"{name}: its text is {text.count(old)} times in {file}")
    path.write_text(text.replace(old, new))
    return path, text


def find(work, seeds, environment):
    """The seed that found it, or None; a text when it does not build."""
    built = subprocess.run(
        ["cargo", "test", "-q", "--no-run", "--test", "simulation"],
        cwd=work, env=environment, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        return "does not build: " + built.stderr[-800:]
    run = subprocess.run(
        ["cargo", "test", "-q", "--test", "simulation", "no_acknowledged"],
        cwd=work, env=environment | {"CAIRN_SEEDS": str(seeds)},
        capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return None
    found = re.search(r"seed (\d+): (.*?)(?:, after|\n)", run.stdout + run.stderr)
    return (int(found[1]), found[2]) if found else (0, "it panicked")


def main():
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    wanted = sys.argv[2:]
    environment = dict(os.environ)
    environment.setdefault("CARGO_TARGET_DIR", str(TOP / "target" / "mutants"))
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder) / "mutants"
        shutil.copytree(TOP, work, ignore=shutil.ignore_patterns("target", ".git"))
        for mutant in MUTANTS:
            if wanted and not any(word in mutant[0] for word in wanted):
                continue
            path, text = plant(work, mutant)
            found = find(work, seeds, environment)
            path.write_text(text)
            if isinstance(found, tuple):
                print(f"found by seed {found[0]}: {mutant[0]}: {found[1]}", flush=True)
            else:
                missed += 1
                print(f"MISSED in {seeds} seeds: {mutant[0]}{': ' + found if found else ''}", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
