//! The `cairn` binary; also installed as `mount.cairn`.

fn main() -> std::process::ExitCode {
    cairnfs::cli::main()
}
