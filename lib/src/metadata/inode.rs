//! The system calls on one open inode, the same for an open file and for a handle of a symlink or a node.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Gid, IFlags, Mode, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use super::{Flags, MAX_XATTR_VALUE};
use crate::safepath::{self, Time};

/// Attribute names that are a view of something else, or of the server: not recorded, not removed.
///
/// All of `system.` but the two POSIX ACLs: NFSv4 and CIFS show the server's own lists there, translated from the
/// mode or to it. `ceph.`, `lustre.` and `afs.` show layout and quota.
const FOREIGN: [&[u8]; 4] = [b"system.", b"ceph.", b"lustre.", b"afs."];
const POSIX_ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// One open inode.
#[derive(Clone, Copy)]
pub struct Inode<'a> {
    fd: BorrowedFd<'a>,
    is_handle: bool,
}

impl<'a> Inode<'a> {
    /// Takes a file or directory that is open for reading or writing.
    pub fn open(fd: BorrowedFd<'a>) -> Self {
        Self { fd, is_handle: false }
    }

    /// Takes a handle from [`safepath::Dir::open_handle`].
    pub fn handle(fd: BorrowedFd<'a>) -> Self {
        Self { fd, is_handle: true }
    }

    pub fn stat(&self) -> crate::error::Result<safepath::Stat> {
        safepath::stat_fd(self.fd)
    }

    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        if uid == u32::MAX || gid == u32::MAX {
            // To the kernel this number means "leave it", which nobody asked for.
            return Err(Errno::INVAL);
        }
        safepath::chown_handle(self.fd, Uid::from_raw(uid), Gid::from_raw(gid))
    }

    pub fn set_mode(&self, mode: u16) -> Result<()> {
        let mode = Mode::from_raw_mode(mode.into());
        if self.is_handle { safepath::chmod_handle(self.fd, mode) } else { rustix::fs::fchmod(self.fd, mode) }
    }

    pub fn set_mtime(&self, mtime: Time) -> Result<()> {
        safepath::set_mtime_handle(self.fd, mtime)
    }

    /// Returns the attributes that are recorded, sorted by name; none where the filesystem has no such thing.
    pub fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let list = match read_all(|buffer| self.list_xattrs(buffer)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            other => other?,
        };
        let mut xattrs = Vec::new();
        for name in list.split(|&b| b == 0).filter(|name| !name.is_empty() && !is_foreign(name)) {
            let attribute = c_name(name)?;
            match read_all(|buffer| self.get_xattr(&attribute, buffer)) {
                // Gone since it was listed, or listed for a namespace that is closed to us.
                Err(Errno::NODATA) => (),
                Err(errno) => return Err(errno),
                Ok(value) if is_keyed_hash(name, &value) => (),
                Ok(value) => xattrs.push((name.to_vec(), value)),
            }
        }
        xattrs.sort_unstable();
        Ok(xattrs)
    }

    fn list_xattrs(&self, list: &mut [u8]) -> Result<usize> {
        if self.is_handle { safepath::list_xattrs_handle(self.fd, list) } else { rustix::fs::flistxattr(self.fd, list) }
    }

    fn get_xattr(&self, name: &CStr, value: &mut [u8]) -> Result<usize> {
        match self.is_handle {
            true => safepath::get_xattr_handle(self.fd, name, value),
            false => rustix::fs::fgetxattr(self.fd, name, value),
        }
    }

    pub fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<()> {
        match self.is_handle {
            true => safepath::set_xattr_handle(self.fd, &c_name(name)?, value),
            false => rustix::fs::fsetxattr(self.fd, &*c_name(name)?, value, XattrFlags::empty()),
        }
    }

    /// Removes an attribute; one that is not there is no error.
    pub fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let removed = match self.is_handle {
            true => safepath::remove_xattr_handle(self.fd, &c_name(name)?),
            false => rustix::fs::fremovexattr(self.fd, &*c_name(name)?),
        };
        removed.or_else(|errno| if errno == Errno::NODATA { Ok(()) } else { Err(errno) })
    }
}

/// Returns all inode flags of an open file or directory, or `None` where the filesystem has none.
pub fn raw_flags(fd: impl AsFd) -> Result<Option<u32>> {
    match rustix::fs::ioctl_getflags(fd) {
        Err(errno) if is_unsupported(errno) => Ok(None),
        other => Ok(Some(other?.bits())),
    }
}

/// Returns the inode flags that a person can set; none where the filesystem has none.
pub fn flags(fd: impl AsFd) -> Result<Flags> {
    Ok(Flags::from_bits(raw_flags(fd)?.unwrap_or_default()))
}

/// Sets the flags of an open file or directory to `wanted`, and keeps those that only the kernel sets.
pub fn set_flags(fd: impl AsFd, wanted: Flags) -> Result<()> {
    let Some(before) = raw_flags(&fd)? else {
        return if wanted.is_empty() { Ok(()) } else { Err(Errno::OPNOTSUPP) };
    };
    let set = |flags: Flags| {
        let bits = before & !Flags::all().bits() | flags.bits();
        rustix::fs::ioctl_setflags(&fd, IFlags::from_bits_retain(bits))
    };
    let had = Flags::from_bits(before);
    if had == wanted {
        return Ok(());
    }
    if !had.and(Flags::LOCKING).is_empty() {
        set(had.without(Flags::LOCKING))?; // an immutable file takes no other flag either
    }
    set(wanted)
}

/// Says whether the filesystem has no such thing at all.
pub fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS)
}

/// Says whether an attribute is a view of something else.
pub fn is_foreign(name: &[u8]) -> bool {
    FOREIGN.iter().any(|prefix| name.starts_with(prefix)) && !POSIX_ACLS.contains(&name)
}

/// Says whether this is the hash that EVM keys to one machine: elsewhere it is wrong, and the kernel takes it from nobody.
fn is_keyed_hash(name: &[u8], value: &[u8]) -> bool {
    const EVM_XATTR_HMAC: u8 = 2;
    name == b"security.evm" && value.first() == Some(&EVM_XATTR_HMAC)
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

/// Reads a list or a value of any length that the kernel knows; none that grows meanwhile can escape the larger buffer.
fn read_all(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0; 512];
    match read(&mut small) {
        Err(Errno::RANGE) => {
            let mut large = vec![0; MAX_XATTR_VALUE];
            let len = read(&mut large)?;
            Ok(large[..len].to_vec())
        }
        len => Ok(small[..len?].to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_any_length_is_read_whole() {
        for len in [0, 1, 511, 512, 513, 3000, MAX_XATTR_VALUE] {
            let read = |buffer: &mut [u8]| if buffer.len() < len { Err(Errno::RANGE) } else { Ok(len) };
            assert_eq!(read_all(read).unwrap().len(), len);
        }
        assert_eq!(read_all(|_| Err(Errno::RANGE)).unwrap_err(), Errno::RANGE);
    }

    #[test]
    fn a_view_of_something_else_is_not_recorded() {
        for name in ["system.nfs4_acl", "system.cifs_acl", "ceph.dir.layout", "lustre.lov"] {
            assert!(is_foreign(name.as_bytes()), "{name}");
        }
        for name in
            ["system.posix_acl_access", "system.posix_acl_default", "user.a", "trusted.overlay.opaque", "btrfs.compression"]
        {
            assert!(!is_foreign(name.as_bytes()), "{name}");
        }
        assert!(is_keyed_hash(b"security.evm", &[2, 0]));
        assert!(!is_keyed_hash(b"security.evm", &[5, 0])); // a signature holds everywhere
    }
}
