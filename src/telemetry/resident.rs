/// Resident memory of this process, now and at most, in bytes (proc(5), `VmRSS` and
/// `VmHWM`); 0 where the system does not tell.
#[must_use]
pub fn resident_bytes() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    let bytes = |name: &str| field(name).map_or(0, |kib| kib << 10);
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_some_memory_and_had_no_less() {
        let (now, most) = resident_bytes();
        assert!(now > 1 << 20 && most >= now, "{now} {most}");
    }
}
