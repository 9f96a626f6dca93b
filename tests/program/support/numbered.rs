//! Files whose content is known by their number, and how far a volume is with them.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::Volume;

/// A name and its bytes; each eighth has more than one block.
pub fn content(n: usize) -> Vec<u8> {
    let len: u32 = if n % 8 == 7 { 700_000 } else { 500 };
    (0..len).flat_map(|i| (i * 31 + n as u32).to_le_bytes()).collect()
}

/// Written, and durable on as many places as the policy asks for or can have.
pub fn write_files(at: &Path, files: Range<usize>) {
    for n in files {
        let mut file = fs::File::create(at.join(format!("f{n}"))).unwrap();
        std::io::Write::write_all(&mut file, &content(n)).unwrap();
        file.sync_all().unwrap();
    }
}

/// The first `count` of them are as they were written.
pub fn all_read(at: &Path, count: usize) {
    for n in 0..count {
        assert!(fs::read(at.join(format!("f{n}"))).unwrap() == content(n), "f{n}");
    }
}

impl Volume<'_> {
    /// Contents that a backend has.
    pub fn copies_at(&self, id: &str) -> u64 {
        let status = self.status();
        let all = status["backends"].as_array().unwrap();
        all.iter().find(|one| one["id"] == id).and_then(|one| one["copies"].as_u64()).unwrap_or(0)
    }

    /// Whether nothing is queued and every copy is proven.
    pub fn is_settled(&self) -> bool {
        let status = self.status();
        status["queue"]["pending"] == 0 && status["pins"]["unverified"] == 0
    }
}
