//! Every command of the README's walk-through works as it is printed.

use std::process::Command;

use crate::harness::{Place, can_mount, text};

#[test]
fn the_readmes_commands_work() {
    if !can_mount("the_readmes_commands_work") {
        return;
    }
    let readme = include_str!("../../README.md");
    let block =
        readme.split("<!-- tested -->").nth(1).and_then(|rest| rest.split("```sh\n").nth(1));
    let block =
        block.and_then(|rest| rest.split("```").next()).expect("a tested block of commands");
    let place = Place::new();
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_cairn")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euxc", block])
        .env("HOME", place.dir.path())
        .env("PATH", path)
        .current_dir(place.dir.path())
        .output()
        .unwrap();
    if !output.status.success() {
        for mount in ["data", "data2"] {
            drop(Command::new("umount").arg("-l").arg(place.path(mount)).output());
        }
    }
    assert!(output.status.success(), "{}", text(&output));
}
