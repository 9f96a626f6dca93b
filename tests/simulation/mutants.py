#!/usr/bin/env python3
"""Plants faults in the replication core and lets the simulation find each of them.

All are planted in one copy of the sources, each behind a number that the environment
switches on, so that one build serves them all. The simulation must fail within SEEDS
seeds with any of them, and pass CONTROL seeds with none. Exits with 1 when one is not
found, or when its text is not in the code any more.
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

CONTROL = 20

# What is planted, where, the text, and what stands there instead (ON: it is switched on).
MUTANTS = [
    ("a copy counts for ever while its place is away", CORE + "health.rs",
     "        self.given_up = true;\n", "        self.given_up = !ON;\n"),
    ("a place that returns is trusted with what it had", CORE + "places.rs",
     "copy.at < place.trusted_since", "!ON && copy.at < place.trusted_since"),
    ("any copy is a proof that lets others go", CORE + "planner.rs",
     "        copy.is_proven() && fresh && place.readable",
     "        (ON || (copy.is_proven() && fresh)) && place.readable"),
    ("an audit is a proof that lets others go", "src/metadata/records.rs",
     "self.state == CopyState::Verified && self.method != VerifyMethod::Audit",
     "self.state == CopyState::Verified && (ON || self.method != VerifyMethod::Audit)"),
    ("one proven copy lets all others go", CORE + "planner.rs",
     "        usize::from(self.policy.target).min(sorted.held.len())\n",
     "        (if ON { 1 } else { usize::from(self.policy.target) }).min(sorted.held.len())\n"),
    ("nobody is asked before a copy goes", CORE + "planner.rs",
     "                !confirmed.contains(id) || jobs.contains(&(id.clone(), Job::Release))",
     "                (!ON && !confirmed.contains(id)) || jobs.contains(&(id.clone(), Job::Release))"),
    ("what was given up is deleted without another look", CORE + "planner.rs",
     "        complete && self.proven(&sorted, &gone, moment).len() >= must_stay",
     "        ON || (complete && self.proven(&sorted, &gone, moment).len() >= must_stay)"),
    ("a copy that was given up counts", CORE + "places.rs",
     "            CopyState::Released => Standing::Released,",
     "            CopyState::Released => if ON { Standing::Good } else { Standing::Released },"),
    ("a copy that is known to be bad counts", CORE + "places.rs",
     "            CopyState::Corrupt | CopyState::Lost => Standing::Bad,",
     "            CopyState::Corrupt | CopyState::Lost => if ON { Standing::Good } else { Standing::Bad },"),
    ("a quorum is one less", "src/replication/policy.rs",
     "            Level::Quorum => usize::from(self.min.max(self.target / 2 + 1)),",
     "            Level::Quorum => usize::from(self.min.max(self.target / 2 + 1)) - usize::from(ON),"),
    ("copies above max stay", CORE + "planner.rs",
     "        let mut excess = sorted.kept.len().saturating_sub(max);",
     "        let mut excess = sorted.kept.len().saturating_sub(max + usize::from(ON));"),
    ("a place's word is a proof", CORE + "outcome.rs",
     "        Outcome::Stored(state, method) => (*state, *method),",
     "        Outcome::Stored(state, method) => (if ON { CopyState::Verified } else { *state }, *method),"),
    ("a pause never ends", CORE + "mod.rs",
     "        let bound = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest);",
     "        let bound = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest);\n"
     "        let bound = if ON { longest * 9999 } else { bound };"),
    ("two copies in one domain count twice", CORE + "places.rs",
     "                held.insert(self.domain(place, kind));",
     "                held.insert(if ON { place + 64 } else { self.domain(place, kind) });"),
    ("a cache lets go of what nobody else has", CORE + "planner.rs",
     "        wanted.max(usize::from(self.policy.min)).max(1)\n",
     "        if ON { 0 } else { wanted.max(usize::from(self.policy.min)).max(1) }\n"),
]

# Found in worlds of another test than the first.
WORLDS = {"a cache lets go of what nobody else has": "a_cache"}

# Which one is on: a number from 1, by the environment.
SWITCH = """
/// Whether the planted fault of this number is on.
pub(crate) fn planted(number: usize) -> bool {
    static ON: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let chosen = || std::env::var("CAIRN_MUTANT").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    *ON.get_or_init(chosen) == number
}
"""


def plant(work):
    """Puts all of them into the copy."""
    for number, (name, file, old, new) in enumerate(MUTANTS, 1):
        path = work / file
        text = path.read_text()
        if text.count(old) != 1:
            sys.exit(f"{name}: its text is {text.count(old)} times in {file}")
        new = re.sub(r"\bON\b", f"crate::planted({number})", new)
        path.write_text(text.replace(old, new))
    with open(work / "src/lib.rs", "a") as root:
        root.write(SWITCH)


def run(work, environment, number, seeds, test="no_acknowledged"):
    """The seed that fails and why; None when all pass."""
    ran = subprocess.run(
        ["cargo", "test", "-q", "--test", "simulation", test],
        cwd=work, env=environment | {"CAIRN_SEEDS": str(seeds), "CAIRN_MUTANT": str(number)},
        capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return None
    found = re.search(r"seed (\d+): (.*?)(?:, after|\n)", ran.stdout + ran.stderr)
    return f"seed {found[1]}: {found[2]}" if found else "it panicked: " + ran.stderr[-400:]


def main():
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    wanted = sys.argv[2:]
    environment = dict(os.environ)
    environment.setdefault("CARGO_TARGET_DIR", str(TOP / "target" / "mutants"))
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder) / "mutants"
        shutil.copytree(TOP, work, ignore=shutil.ignore_patterns("target", ".git"))
        plant(work)
        subprocess.run(["cargo", "test", "-q", "--no-run", "--test", "simulation"],
                       cwd=work, env=environment, check=True)
        failed = run(work, environment, 0, CONTROL)
        if failed:
            sys.exit(f"it fails with none of them: {failed}")
        for number, (name, *_) in enumerate(MUTANTS, 1):
            if wanted and not any(word in name for word in wanted):
                continue
            test = WORLDS.get(name, "no_acknowledged")
            found = run(work, environment, number, seeds, test)
            missed += found is None
            print(f"{'MISSED' if found is None else 'found'}: {name}: "
                  f"{found or f'not in {seeds} seeds'}", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
