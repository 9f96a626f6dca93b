//! POSIX access control lists as extended attributes hold them.
//!
//! Bytes: the kernel's `linux/posix_acl_xattr.h` (version 2, little-endian); rules:
//! acl(5), after POSIX 1003.1e draft 17, section 23.

/// The list that grants access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that what is made in a directory starts with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
const USER_OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OWNER: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const ANYBODY: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    /// Read 4, write 2, execute 1.
    perm: u16,
    id: u32,
}

/// A valid list, in the order of acl(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Reads an attribute's value; `None` when it is no valid list. An empty
    /// list, which removes, is `Some` of one without entries.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*head) != VERSION || rest.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let entries = rest.chunks_exact(ENTRY_BYTES).map(|bytes| {
            let [t0, t1, p0, p1, id @ ..] = bytes else { return None };
            let entry = Entry {
                tag: u16::from_le_bytes([*t0, *t1]),
                perm: u16::from_le_bytes([*p0, *p1]),
                id: u32::from_le_bytes(id.try_into().ok()?),
            };
            Some(entry)
        });
        let acl = Self(entries.collect::<Option<_>>()?);
        (acl.is_empty() || acl.is_valid()).then_some(acl)
    }

    /// An attribute's value.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.perm.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    /// Whether it has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Owner, users, owning group, groups, mask, others: each of the three
    /// fixed ones once, a mask if anybody is named, ids rising.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let known = USER_OWNER | USER | GROUP_OWNER | GROUP | MASK | OTHER;
        let sorted = self.0.is_sorted_by(|a, b| {
            a.tag < b.tag || (a.tag == b.tag && matches!(a.tag, USER | GROUP) && a.id < b.id)
        });
        let named = count(USER) + count(GROUP) > 0;
        sorted
            && self.0.iter().all(|e| e.tag.is_power_of_two() && e.tag & known != 0 && e.perm <= 7)
            && [USER_OWNER, GROUP_OWNER, OTHER].into_iter().all(|tag| count(tag) == 1)
            && (!named || count(MASK) == 1)
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.perm))
    }

    /// The permission bits (0777) that stand for this list: those of the group
    /// are the mask's, where there is one.
    #[must_use]
    pub fn mode(&self) -> u32 {
        let group = self.perm(MASK).or_else(|| self.perm(GROUP_OWNER)).unwrap_or(0);
        self.perm(USER_OWNER).unwrap_or(0) << 6 | group << 3 | self.perm(OTHER).unwrap_or(0)
    }

    /// Whether the permission bits say all that it says.
    #[must_use]
    pub fn is_minimal(&self) -> bool {
        self.0.len() <= 3
    }

    /// Takes the permission bits of a chmod.
    pub fn set_mode(&mut self, mode: u32) {
        let group = if self.perm(MASK).is_some() { MASK } else { GROUP_OWNER };
        for entry in &mut self.0 {
            // Three bits fit.
            let bits = |shift: u32| (mode >> shift & 7) as u16;
            match entry.tag {
                USER_OWNER => entry.perm = bits(6),
                OTHER => entry.perm = bits(0),
                tag if tag == group => entry.perm = bits(3),
                _ => {}
            }
        }
    }

    /// What something made with `mode` has of this default list: its access
    /// list, no wider than the mode (which is the list's then; the umask has no
    /// part, acl(5) "Object creation and default ACLs").
    #[must_use]
    pub fn inherited(&self, mode: u32) -> Self {
        let mut access = self.clone();
        access.set_mode(self.mode() & mode);
        access
    }

    /// A list of named users besides the bits of `mode`; for tests.
    #[must_use]
    pub fn of_users(mode: u32, users: &[(u32, u16)], mask: u16) -> Self {
        let mut entries =
            vec![Entry { tag: USER_OWNER, perm: (mode >> 6 & 7) as u16, id: ANYBODY }];
        entries.extend(users.iter().map(|(id, perm)| Entry { tag: USER, perm: *perm, id: *id }));
        entries.push(Entry { tag: GROUP_OWNER, perm: (mode >> 3 & 7) as u16, id: ANYBODY });
        if !users.is_empty() {
            entries.push(Entry { tag: MASK, perm: mask, id: ANYBODY });
        }
        entries.push(Entry { tag: OTHER, perm: (mode & 7) as u16, id: ANYBODY });
        Self(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_bytes_are_read_and_written() {
        // setfacl -m u:1000:rw, on a file of mode 0640 (getfattr -e hex).
        let hex = "0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000000ffffffff";
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let acl = Acl::parse(&bytes).unwrap();
        assert_eq!(acl.to_bytes(), bytes);
        assert_eq!(acl, Acl::of_users(0o640, &[(1000, 6)], 6));
        assert_eq!((acl.mode(), acl.is_minimal()), (0o660, false));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let good = Acl::of_users(0o750, &[(1, 7), (2, 5)], 7);
        assert!(Acl::parse(&good.to_bytes()).is_some());
        assert!(Acl::parse(&VERSION.to_le_bytes()).unwrap().is_empty());
        let broken = |change: &dyn Fn(&mut Vec<Entry>)| {
            let mut entries = good.0.clone();
            change(&mut entries);
            Acl::parse(&Acl(entries).to_bytes())
        };
        assert_eq!(broken(&|e| e.swap(1, 2)), None, "unsorted");
        assert_eq!(broken(&|e| e.retain(|entry| entry.tag != MASK)), None, "users without a mask");
        assert_eq!(broken(&|e| e.retain(|entry| entry.tag != USER_OWNER)), None, "no owner");
        assert_eq!(broken(&|e| e[1].perm = 8), None, "a permission that is none");
        assert_eq!(broken(&|e| e[1].id = e[2].id), None, "a user twice");
        assert_eq!(broken(&|e| e[1].tag = 3), None, "a tag that is none");
        for value in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0\x01"] {
            assert_eq!(Acl::parse(value), None);
        }
    }

    #[test]
    fn a_chmod_moves_the_mask_and_a_default_narrows_what_is_made() {
        let mut acl = Acl::of_users(0o770, &[(5, 7)], 7);
        acl.set_mode(0o640);
        assert_eq!((acl.mode(), acl.perm(GROUP_OWNER), acl.perm(MASK)), (0o640, Some(7), Some(4)));
        let made = Acl::of_users(0o775, &[(5, 7)], 7).inherited(0o644);
        assert_eq!((made.mode(), made.perm(MASK), made.perm(USER)), (0o644, Some(4), Some(7)));
        let minimal = Acl::of_users(0o750, &[], 0);
        assert!(minimal.is_minimal() && minimal.inherited(0o666).mode() == 0o640);
    }
}
