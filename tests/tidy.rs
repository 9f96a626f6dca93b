//! Holds the source tree to its own rules: the direction of imports, the length
//! of files, what may stand in the root, no panics in production code, golden
//! files that stay. Each rule is shown to find a planted violation.
//!
//! It reads text and knows Rust only as far as comments, literals and braces.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its input fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cairnfs::types::cid::sha256;

/// The layers from the top down. Those of one line are siblings: a layer may
/// import only layers of lines below its own.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["daemon"],
    &["config"],
    &["fuse", "api"],
    &["vfs", "archive"],
    &["replication", "node"],
    &["metadata", "store", "backends"],
    &["content"],
    &["runtime", "telemetry"],
    &["types"],
];

/// The longest file, in lines, tests included.
const LINES_MAX: usize = 800;

/// What stands in the root; everything that begins with a dot may, too.
const ROOT: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "examples",
    "scripts",
    "src",
    "tests",
];

/// Files that may use `unsafe`, each with its reason.
const UNSAFE: &[&str] = &[];

/// The folder of on-disk formats as older versions wrote them.
const GOLDEN: &str = "tests/fixtures/golden/";

/// Files by their path in the repository.
type Tree = BTreeMap<String, Vec<u8>>;

fn repository() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
    let paths: Vec<String> = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect(),
        // A source archive without a repository.
        _ => {
            let mut paths = Vec::new();
            walk(root, &PathBuf::new(), &mut paths);
            paths
        }
    };
    // A file may be listed and removed, or a link to nothing.
    paths
        .into_iter()
        .filter_map(|path| Some((fs::read(root.join(&path)).ok()?, path)))
        .map(|(bytes, path)| (path, bytes))
        .collect()
}

fn walk(root: &Path, folder: &Path, paths: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        let name = path.to_str().unwrap().to_owned();
        if matches!(name.as_str(), "target" | ".git") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            walk(root, &path, paths);
        } else {
            paths.push(name);
        }
    }
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "rs")
}

/// Rust files below `src/`, with comments and the insides of literals blanked.
fn sources(tree: &Tree) -> impl Iterator<Item = (&str, String)> {
    tree.iter()
        .filter(|(path, _)| path.starts_with("src/") && is_rust(path))
        .map(|(path, bytes)| (path.as_str(), code(&String::from_utf8_lossy(bytes))))
}

/// Replaces comments and the insides of string and character literals by
/// spaces; lines and quotes stay where they are.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        let mut end = i;
        let mut keep_ends = false;
        if at(i) == '/' && at(i + 1) == '/' {
            while end < chars.len() && at(end) != '\n' {
                end += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            while end < chars.len() {
                match (at(end), at(end + 1)) {
                    ('/', '*') => (depth, end) = (depth + 1, end + 2),
                    ('*', '/') => (depth, end) = (depth - 1, end + 2),
                    _ => end += 1,
                }
                if depth == 0 {
                    break;
                }
            }
        } else if at(i) == 'r'
            && matches!(at(i + 1), '"' | '#')
            && (!word_before || at(i - 1) == 'b')
        {
            let hashes = (i + 1..chars.len()).take_while(|j| at(*j) == '#').count();
            if at(i + 1 + hashes) == '"' {
                end = i + 2 + hashes;
                while end < chars.len()
                    && !(at(end) == '"' && (1..=hashes).all(|j| at(end + j) == '#'))
                {
                    end += 1;
                }
                end += 1 + hashes;
            }
        } else if at(i) == '"' {
            end = i + 1;
            while end < chars.len() && at(end) != '"' {
                end += if at(end) == '\\' { 2 } else { 1 };
            }
            end += 1;
            keep_ends = true;
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            // Not a lifetime.
            end = i + if at(i + 1) == '\\' { 3 } else { 2 };
            while end < chars.len() && at(end) != '\'' {
                end += 1;
            }
            end += 1;
            keep_ends = true;
        }
        let end = end.min(chars.len());
        if end == i {
            out.push(at(i));
            i += 1;
            continue;
        }
        for j in i..end {
            let is_end = j == i || j + 1 == end;
            out.push(if keep_ends && is_end { at(j) } else { blank(at(j)) });
        }
        i = end;
    }
    out
}

/// Blanks each item that stands under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(test)]") {
        let start = from + found;
        let mut end = start + "#[cfg(test)]".len();
        let (mut depth, mut parens) = (0usize, 0usize);
        for (offset, c) in out[end..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                '(' | '[' => parens += 1,
                ')' | ']' => parens = parens.saturating_sub(1),
                _ => {}
            }
            let ends_item = matches!(c, '}' | ';') && depth == 0 && parens == 0;
            if ends_item {
                end += offset + 1;
                break;
            }
        }
        let blanked: String =
            out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        // Blanking keeps characters, not bytes: code has few that are longer.
        let length = blanked.len();
        out.replace_range(start..end, &blanked);
        from = start + length;
    }
    out
}

/// Files that are modules under `#[cfg(test)]`, and what lies below them.
fn test_files(tree: &Tree) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for (path, code) in sources(tree) {
        let folder = match path.rsplit_once('/') {
            Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder.to_owned(),
            _ => path.trim_end_matches(".rs").to_owned(),
        };
        let mut lines = code.lines().map(str::trim).peekable();
        while let Some(line) = lines.next() {
            if line != "#[cfg(test)]" {
                continue;
            }
            let item = lines.peek().map(|item| item.trim_start_matches("pub(crate) "));
            let name = item.and_then(|item| item.strip_prefix("mod ")?.strip_suffix(';'));
            files.extend(name.map(|name| format!("{folder}/{name}")));
        }
    }
    let below = |path: &String| {
        files.iter().any(|test| {
            path.strip_prefix(test.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    };
    tree.keys().filter(|path| below(path)).cloned().collect()
}

/// Production code: no tests in it.
fn production(tree: &Tree) -> Vec<(&str, String)> {
    let tests = test_files(tree);
    sources(tree)
        .filter(|(path, _)| !tests.contains(*path))
        .map(|(path, code)| (path, without_tests(&code)))
        .collect()
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|line| line.contains(&layer))
}

fn layer_of(path: &str) -> Option<&str> {
    path.strip_prefix("src/")?.split(['/', '.']).next().filter(|layer| rank(layer).is_some())
}

/// The first names of a path's continuation: `a::b` gives `a`, and
/// `{a::b, c::{d, e}}` gives `a` and `c`.
fn first_names(rest: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(word(&group[start..i]));
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

/// Layers that a file names by `crate::`, `cairnfs::` or enough `super::`.
fn imports(path: &str, code: &str) -> BTreeSet<String> {
    let compact: String =
        code.split_whitespace().collect::<Vec<_>>().join(" ").replace(":: ", "::");
    let mut names = BTreeSet::new();
    for root in ["crate::", "cairnfs::"] {
        for (i, _) in compact.match_indices(root) {
            let inside_word =
                compact[..i].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
            if !inside_word {
                names.extend(first_names(&compact[i + root.len()..]));
            }
        }
    }
    // `src/a/b.rs` is `crate::a::b`: two `super::` lead to the root.
    let depth = path.split('/').count() - 1 - usize::from(path.ends_with("/mod.rs"));
    let chain = "super::".repeat(depth.max(1));
    for (i, _) in compact.match_indices(&chain) {
        names.extend(first_names(&compact[i + chain.len()..]));
    }
    names.retain(|name| rank(name).is_some());
    names
}

fn upward_imports(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, code) in sources(tree) {
        let Some(own) = layer_of(path) else { continue };
        for other in imports(path, &code) {
            if other != own && rank(&other) <= rank(own) {
                found.push(format!("{path}: `{own}` imports `{other}`, which is not below it"));
            }
        }
    }
    found
}

fn layers_without_a_place(tree: &Tree) -> Vec<String> {
    let exempt = ["lib", "main", "docs"];
    sources(tree)
        .filter_map(|(path, _)| {
            let first = path.strip_prefix("src/")?.split(['/', '.']).next()?;
            let known = rank(first).is_some() || exempt.contains(&first);
            (!known).then(|| format!("{path}: `{first}` is not a layer (LAYERS in tests/tidy.rs)"))
        })
        .collect()
}

fn long_files(tree: &Tree) -> Vec<String> {
    let counted = tree.iter().filter(|(path, _)| is_rust(path) || path.starts_with("scripts/"));
    counted
        .map(|(path, bytes)| (path, String::from_utf8_lossy(bytes).lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines, at most {LINES_MAX}: split it"))
        .collect()
}

fn lines_with(tree: &Tree, words: &[&str], why: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (path, code) in production(tree) {
        for (number, line) in code.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{path}:{}: `{word}` {why}", number + 1));
            }
        }
    }
    found
}

fn panics(tree: &Tree) -> Vec<String> {
    lines_with(tree, &[".unwrap()", ".expect(\"", "dbg!("], "outside of tests: return an error")
}

fn unfinished(tree: &Tree) -> Vec<String> {
    lines_with(tree, &["todo!(", "unimplemented!("], "is not finished")
}

fn strange_root_entries(tree: &Tree) -> Vec<String> {
    let entries: BTreeSet<&str> = tree.keys().filter_map(|path| path.split('/').next()).collect();
    entries
        .into_iter()
        .filter(|entry| !entry.starts_with('.') && !ROOT.contains(entry))
        .map(|entry| format!("{entry}: does not belong into the root"))
        .collect()
}

fn machine_paths(tree: &Tree) -> Vec<String> {
    // Written so that this file does not find itself.
    let folders = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut found = Vec::new();
    for (path, bytes) in tree {
        let Ok(text) = std::str::from_utf8(bytes) else { continue };
        for (number, line) in text.lines().enumerate() {
            let absolute = |folder: &&str| {
                line.match_indices(*folder).any(|(i, _)| {
                    let before = line[..i].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || "._-*}>)".contains(c))
                })
            };
            if folders.iter().any(absolute) {
                found.push(format!("{path}:{}: a path of one machine", number + 1));
            }
        }
    }
    found
}

fn unsafe_code(tree: &Tree) -> Vec<String> {
    let is_word = |code: &str, i: usize| {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        let before = code[..i].chars().next_back().is_some_and(part);
        let after = code[i + "unsafe".len()..].chars().next().is_some_and(part);
        !before && !after
    };
    sources(tree)
        .filter(|(path, _)| !UNSAFE.contains(path))
        .filter(|(_, code)| code.match_indices("unsafe").any(|(i, _)| is_word(code, i)))
        .map(|(path, _)| format!("{path}: `unsafe` in a file that is not listed in tests/tidy.rs"))
        .collect()
}

fn undocumented_modules(tree: &Tree) -> Vec<String> {
    tree.iter()
        .filter(|(path, _)| path.ends_with("/mod.rs") || path.as_str() == "src/lib.rs")
        .filter(|(path, bytes)| path.starts_with("src/") && !bytes.starts_with(b"//! "))
        .map(|(path, _)| format!("{path}: does not open with `//!` and what the module owns"))
        .collect()
}

fn hex(digest: [u8; 32]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn changed_golden_files(tree: &Tree) -> Vec<String> {
    let list = format!("{GOLDEN}SHA256SUMS");
    let text = String::from_utf8_lossy(tree.get(&list).map_or(b"".as_slice(), Vec::as_slice));
    let mut listed: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, name)| (name, sum))
        .collect();
    let mut found = Vec::new();
    for (path, bytes) in tree {
        let Some(name) = path.strip_prefix(GOLDEN).filter(|name| *name != "SHA256SUMS") else {
            continue;
        };
        let sum = hex(sha256(bytes));
        match listed.remove(name) {
            Some(wanted) if wanted == sum => {}
            Some(_) => found.push(format!("{path}: a golden file is never edited: add a new one")),
            None => found.push(format!("{list}: add the line `{sum}  {name}`")),
        }
    }
    found.extend(
        listed.keys().map(|name| format!("{GOLDEN}{name}: a golden file is never removed")),
    );
    found
}

/// Names of tests in brackets that no source file has.
fn tests_that_are_not_there(tree: &Tree) -> Vec<String> {
    let mut known = BTreeSet::new();
    for (_, bytes) in tree.iter().filter(|(path, _)| is_rust(path)) {
        let text = String::from_utf8_lossy(bytes);
        let names = text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
        known.extend(names.map(str::to_owned));
    }
    let mut found = Vec::new();
    for (path, bytes) in tree.iter().filter(|(path, _)| path.starts_with("src/docs/")) {
        let text = String::from_utf8_lossy(bytes);
        for part in text.split("[`").skip(1).filter_map(|rest| rest.split_once("`]")) {
            let names = part.0.split('`').map(|name| name.trim_matches([',', ' ', '\n']));
            for name in names.filter(|name| !name.is_empty() && !known.contains(*name)) {
                found.push(format!("{path}: there is no test `{name}`"));
            }
        }
    }
    found
}

/// Fails with all violations.
fn none(found: &[String]) {
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

#[test]
fn layers_import_only_what_is_below_them() {
    none(&upward_imports(&repository()));
}

#[test]
fn every_folder_of_the_sources_is_a_layer() {
    none(&layers_without_a_place(&repository()));
}

#[test]
fn no_file_is_too_long() {
    none(&long_files(&repository()));
}

#[test]
fn production_code_does_not_panic() {
    none(&panics(&repository()));
}

#[test]
fn nothing_is_left_unfinished() {
    none(&unfinished(&repository()));
}

#[test]
fn the_root_holds_only_what_belongs_there() {
    none(&strange_root_entries(&repository()));
}

#[test]
fn no_path_of_one_machine_is_in_the_repository() {
    none(&machine_paths(&repository()));
}

#[test]
fn unsafe_code_is_only_in_listed_files() {
    none(&unsafe_code(&repository()));
}

#[test]
fn every_module_opens_with_what_it_owns() {
    none(&undocumented_modules(&repository()));
}

#[test]
fn every_test_that_a_document_names_is_there() {
    none(&tests_that_are_not_there(&repository()));
    let planted = |text: &str| {
        let code = ("src/a.rs".to_owned(), b"#[test]\nfn it_holds() {}".to_vec());
        let document = ("src/docs/a.md".to_owned(), text.as_bytes().to_vec());
        tests_that_are_not_there(&[code, document].into()).len()
    };
    assert_eq!(planted("- A line. [`it_holds`]"), 0);
    assert_eq!(planted("- A line. [`it_holds`,\n  `it_does_not`]"), 1);
}

#[test]
fn golden_files_stay_as_they_were_written() {
    none(&changed_golden_files(&repository()));
}

/// The rules themselves: each finds what was planted, and only that.
mod rules {
    use super::*;

    fn plant(files: &[(&str, &str)]) -> Tree {
        files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
    }

    fn finds(rule: impl Fn(&Tree) -> Vec<String>, files: &[(&str, &str)], wanted: &[&str]) {
        let found = rule(&plant(files));
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.contains(wanted), "{found} does not tell of {wanted}");
        }
    }

    #[test]
    fn an_upward_import_is_found_however_it_is_written() {
        finds(
            upward_imports,
            &[
                ("src/api/mod.rs", "use crate::vfs::Vfs; use crate::fuse;"),
                ("src/archive/car.rs", "use crate::{types::{Cid, store}, cli::main as m};"),
                ("src/backends/dir/mod.rs", "fn f() { let x = crate::store::open(); }"),
                ("src/backends/mod.rs", "use super::metadata::Engine; use super::types;"),
                ("src/content/dag.rs", "use super::super::store::X; use super::store;"),
                ("src/fuse/mod.rs", "use\n    crate::\n    daemon::Daemon;"),
                ("src/store/pack.rs", "// use crate::vfs;\nconst S: &str = \"crate::vfs\";"),
                ("src/types/mod.rs", "use crate::types::cid; use mycrate::vfs;"),
                ("src/vfs/mod.rs", "use crate::{content, replication::Queue, runtime};"),
            ],
            &[
                "`api` imports `fuse`",
                "`archive` imports `cli`",
                "`backends` imports `store`",
                "`backends` imports `metadata`",
                "`content` imports `store`",
                "`fuse` imports `daemon`",
            ],
        );
    }

    #[test]
    fn a_folder_that_is_no_layer_is_found() {
        let files = [("src/lib.rs", ""), ("src/types/mod.rs", ""), ("src/utils/mod.rs", "")];
        finds(layers_without_a_place, &files, &["utils"]);
    }

    #[test]
    fn a_long_file_is_found() {
        let (fits, long) = ("\n".repeat(LINES_MAX), "\n".repeat(LINES_MAX + 1));
        let files =
            [("src/a.rs", fits.as_str()), ("src/b.rs", long.as_str()), ("src/c.md", long.as_str())];
        finds(long_files, &files, &["src/b.rs"]);
    }

    #[test]
    fn a_panic_is_found_in_production_code_only() {
        let production = "fn f() { a.unwrap() }\nfn g() { b\n.expect(\"text\"); }\n\
                          // c.unwrap()\nconst S: &str = \".unwrap()\"; fn h() { d.expect(e) }";
        let inline = "#[cfg(test)]\nmod tests {\n fn f() { a.unwrap(); }\n}\n\
                      #[cfg(test)]\nfn g(x: [u8; 2]) { b.unwrap() }\nfn h() { c.unwrap() }";
        finds(
            panics,
            &[
                ("src/store/a.rs", production),
                ("src/store/b.rs", inline),
                ("src/store/mod.rs", "#[cfg(test)]\nmod model;\n#[cfg(test)]\nmod tests;"),
                ("src/store/model.rs", "fn f() { a.unwrap() }"),
                ("src/store/model/deep.rs", "fn f() { a.unwrap() }"),
                ("src/store/tests.rs", "fn f() { a.unwrap() }"),
            ],
            &["src/store/a.rs:1:", "src/store/a.rs:3:", "src/store/b.rs:7:"],
        );
    }

    #[test]
    fn unfinished_code_is_found() {
        let text = "fn f() {\n todo!()\n}\nfn g() { unimplemented!(\"x\") } // todo!()";
        finds(unfinished, &[("src/vfs/a.rs", text)], &["a.rs:2:", "a.rs:4:"]);
    }

    #[test]
    fn a_strange_root_entry_is_found() {
        let files = [(".ci/run", ""), ("Cargo.toml", ""), ("notes.txt", ""), ("vendor/a/b", "")];
        finds(strange_root_entries, &files, &["notes.txt", "vendor"]);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let text = format!("a\nsee {}x\nhttps://host/a{0}\n~{0}", concat!("/wo", "rk/"));
        finds(machine_paths, &[("README.md", &text)], &["README.md:2:", "README.md:4:"]);
    }

    #[test]
    fn unsafe_code_is_found() {
        let files = [
            ("src/store/a.rs", "#![deny(unsafe_code)] // unsafe\nfn f() { \"unsafe\"; }"),
            ("src/store/b.rs", "fn f() { unsafe { g() } }"),
        ];
        finds(unsafe_code, &files, &["src/store/b.rs"]);
    }

    #[test]
    fn a_module_without_words_is_found() {
        let files = [("src/a/mod.rs", "//! Owns a.\n"), ("src/b/mod.rs", "mod c;")];
        finds(undocumented_modules, &files, &["src/b/mod.rs"]);
    }

    #[test]
    fn a_changed_a_removed_and_an_unlisted_golden_file_are_found() {
        let sum = hex(sha256(b"same"));
        let list = format!("{sum}  same\n{sum}  changed\n{sum}  removed\n");
        finds(
            changed_golden_files,
            &[
                ("tests/fixtures/golden/SHA256SUMS", &list),
                ("tests/fixtures/golden/changed", "other"),
                ("tests/fixtures/golden/new/one", "same"),
                ("tests/fixtures/golden/same", "same"),
            ],
            &["changed: a golden file is never edited", "  new/one`", "removed: a golden"],
        );
    }

    #[test]
    fn comments_and_literals_are_told_from_code() {
        for (text, wanted) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y", z)"#, r#"f("    ", z)"#),
            ("r#\"a\"b\"# c", "         c"),
            ("'a' 'b '\"' b'\\'' c", "' ' 'b ' ' b'  ' c"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
        ] {
            assert_eq!(code(text), wanted, "{text}");
        }
    }
}
