use std::sync::Arc;

use super::{Vfs, VfsError};
use crate::metadata::PinState;
use crate::runtime::Step;
use crate::types::{Acl, FileKind, Ino, acl};
use rustix::io::Errno;

const PREFIX: &[u8] = b"user.cairn.";
/// What a name may begin with.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// Largest value (Linux `XATTR_SIZE_MAX`).
const MAX_VALUE: usize = 65_536;
/// Longest name (Linux `XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;

impl Vfs {
    /// An extended attribute; the virtual ones answer only by name.
    ///
    /// # Errors
    /// `NoAttribute` (ENODATA).
    pub fn get_xattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<Vec<u8>, VfsError> {
        if name.starts_with(PREFIX) {
            return self.finish(self.get_xattr_steps(ino, name));
        }
        if !self.record(ino)?.has_xattrs {
            return Err(Errno::NODATA.into());
        }
        Ok(self.namespace.get_xattr(ino, name)?)
    }

    /// The steps of a virtual attribute: for some, what is dirty is committed first.
    pub fn get_xattr_steps(
        self: &Arc<Self>,
        ino: Ino,
        name: &[u8],
    ) -> impl FnMut() -> Result<Step<Vec<u8>, VfsError>, VfsError> + Send + use<> {
        let (vfs, mut link) = (Arc::clone(self), self.link_steps(ino));
        let name = name.strip_prefix(PREFIX).unwrap_or_default().to_vec();
        move || {
            let content = match name.as_slice() {
                b"cid" => true,
                // A directory has no copies of its own.
                b"copies" => vfs.record(ino)?.kind != FileKind::Directory,
                _ => false,
            };
            if !content {
                return vfs.virtual_xattr(ino, &name).map(Step::Done);
            }
            match link()? {
                Step::Wait(wait) => Ok(Step::Wait(wait)),
                Step::Done(link) if name == b"cid" => {
                    Ok(Step::Done(link.cid.to_string().into_bytes()))
                }
                Step::Done(_) => vfs.virtual_xattr(ino, &name).map(Step::Done),
            }
        }
    }

    fn virtual_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, VfsError> {
        match name {
            b"policy" => Ok(self.policy_of(ino)?.to_string().into_bytes()),
            b"copies" => {
                let content = match &self.record(ino)?.content {
                    Some(root) => self.namespace.content(root)?,
                    None => None,
                };
                let copies = content.map(|content| content.copies).unwrap_or_default();
                serde_json::to_vec(&copies).map_err(|_| Errno::IO.into())
            }
            b"state" => self.state_text(ino).map(String::into_bytes),
            b"volume" if ino == Ino::ROOT => Ok(self.options.volume_dir.clone()),
            _ => Err(Errno::NODATA.into()),
        }
    }

    /// `clean`, `dirty`, `staged` or `error`, and where the pin stands.
    fn state_text(&self, ino: Ino) -> Result<String, VfsError> {
        let local = self.nodes.get(ino).map_or("clean", |node| {
            let state = node.state.read();
            match () {
                () if node.failures.lock().is_untold() => "error",
                () if state.recorded => "staged",
                () if state.dirty => "dirty",
                () => "clean",
            }
        });
        let record = self.record(ino)?;
        let content = match &record.content {
            Some(root) => self.namespace.content(root)?,
            None => None,
        };
        let pin = content.map(|content| match content.pin {
            PinState::BelowMin => "below_min",
            PinState::BelowTarget => "below_target",
            PinState::AtTarget => "at_target",
            PinState::OverMax => "over_max",
        });
        Ok(pin.map_or_else(|| local.to_owned(), |pin| format!("{local} {pin}")))
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// EPERM for a virtual one that is read-only, EINVAL for a bad policy,
    /// E2BIG, ERANGE; `Exists`, `NoAttribute` by the flags.
    pub fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        (create, replace): (bool, bool),
    ) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        if value.len() > MAX_VALUE {
            return Err(Errno::TOOBIG.into());
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Errno::RANGE.into());
        }
        if name == acl::ACCESS || name == acl::DEFAULT {
            let list = Acl::parse(value).ok_or(Errno::INVAL)?;
            return self.set_acl(ino, name, &list, false);
        }
        // What else begins with `system.` is the kernel's, or nobody's.
        if !NAMESPACES.iter().any(|space| name.starts_with(space)) {
            return Err(Errno::OPNOTSUPP.into());
        }
        if name == b"user.cairn.policy" {
            return self.set_policy_text(ino, value);
        }
        if name.starts_with(PREFIX) {
            return Err(Errno::PERM.into());
        }
        self.refuse_busy(ino)?;
        self.namespace.set_xattr(ino, name, value, (create, replace), self.now())?;
        self.reload(&[ino])
    }

    fn set_policy_text(&self, ino: Ino, value: &[u8]) -> Result<(), VfsError> {
        let text = std::str::from_utf8(value).map_err(|_| Errno::INVAL)?.trim();
        let set = self.set_policy_at(ino, text);
        if let Err(error @ VfsError::InvalidPolicy(_)) = &set {
            tracing::info!(%error, %ino, "a policy was refused");
        }
        set
    }

    /// Names of the stored attributes; the virtual ones are not listed, so that
    /// copying tools do not carry them along.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>, VfsError> {
        if !self.record(ino)?.has_xattrs {
            return Ok(Vec::new());
        }
        Ok(self.namespace.list_xattrs(ino)?)
    }

    /// Removes an attribute; of the policy, the override.
    ///
    /// # Errors
    /// `NoAttribute`, EPERM.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        if name == b"user.cairn.policy" {
            return self.set_policy_text(ino, b"");
        }
        if name.starts_with(PREFIX) {
            return Err(Errno::PERM.into());
        }
        self.refuse_busy(ino)?;
        self.namespace.remove_xattr(ino, name, self.now())?;
        self.reload(&[ino])
    }

    /// Sets an ACL, `name` being [`acl::ACCESS`] or [`acl::DEFAULT`]; an empty
    /// one removes it. `drop_setgid`: the caller may not keep the setgid bit.
    ///
    /// # Errors
    /// EACCES for a default list of what is no directory; EOPNOTSUPP for one of a
    /// symlink.
    pub fn set_acl(
        &self,
        ino: Ino,
        name: &[u8],
        list: &Acl,
        drop_setgid: bool,
    ) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        match self.record(ino)?.kind {
            FileKind::Symlink => return Err(Errno::OPNOTSUPP.into()),
            FileKind::Directory => {}
            _ if name == acl::DEFAULT && !list.is_empty() => return Err(Errno::ACCESS.into()),
            _ => {}
        }
        self.refuse_busy(ino)?;
        self.namespace.set_acl(ino, name, list, drop_setgid, self.now())?;
        self.reload(&[ino])
    }
}
