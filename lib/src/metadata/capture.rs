//! Reads the metadata of one file, directory or node.

use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::inode::{Inode, flags};
use super::{Metadata, Names};
use crate::error::{Context, Error, Kind, Result};
use crate::safepath::{self, Dir, FileKind, Stat, Time};

/// Reads the metadata of an open regular file or directory, whose `stat` the caller has already.
///
/// Without attributes that is one `flistxattr` and one `ioctl`. Hard links and [`holes`] are the caller's to add: the
/// first need the whole tree, the second only small files need.
pub fn of_file(fd: impl AsFd, stat: &Stat, names: &Names) -> Result<Metadata> {
    let mut metadata = from_stat(stat, names);
    metadata.xattrs = Inode::open(fd.as_fd()).xattrs().context(|| "cannot read extended attributes")?;
    metadata.flags = flags(fd).context(|| "cannot read inode flags")?;
    Ok(metadata)
}

/// Reads the metadata of the entry `name` of `dir` itself: a symlink or a node, which has no inode flags.
///
/// If `name` stands for another file by now, the error is of the kind [`Kind::Conflict`]: attributes of one never come with the owner of another.
pub fn of_entry(dir: &Dir, name: &[u8], stat: &Stat, names: &Names) -> Result<Metadata> {
    let handle = dir.open_handle(name)?;
    let now = safepath::stat_fd(&handle)?;
    if (now.dev, now.ino) != (stat.dev, stat.ino) {
        return Err(Error::new(Kind::Conflict, "changed while it was looked at"));
    }
    let mut metadata = from_stat(&now, names);
    metadata.xattrs = Inode::handle(handle.as_fd()).xattrs().context(|| "cannot read extended attributes")?;
    Ok(metadata)
}

/// Returns the holes (offset, length) in the first `size` bytes of an open file; moves its position.
///
/// A filesystem that does not tell has none.
pub fn holes(fd: impl AsFd, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut holes = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(&fd, SeekFrom::Hole(at))?.filter(|&start| start < size) {
        let end = seek(&fd, SeekFrom::Data(start))?.unwrap_or(size).min(size);
        if end > start {
            holes.push((start, end - start));
        }
        at = end.max(start + 1);
    }
    Ok(holes)
}

/// Returns where the next hole or data begins, or `None` if there is none up to the end.
fn seek(fd: impl AsFd, to: SeekFrom) -> Result<Option<u64>> {
    match rustix::fs::seek(fd, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno).context(|| "cannot look for holes"),
    }
}

fn from_stat(stat: &Stat, names: &Names) -> Metadata {
    let is_device = matches!(stat.kind, FileKind::Char | FileKind::Block);
    Metadata {
        mode: if stat.kind == FileKind::Symlink { 0o777 } else { stat.mode },
        uid: stat.uid,
        user: names.user_name(stat.uid).map(<[u8]>::to_vec),
        gid: stat.gid,
        group: names.group_name(stat.gid).map(<[u8]>::to_vec),
        // Some network filesystems hand through what a broken server says.
        mtime: Some(Time { nanos: stat.mtime.nanos.min(999_999_999), ..stat.mtime }),
        rdev: is_device.then_some(stat.rdev),
        ..Metadata::new(stat.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_found_where_they_are() {
        let temp = tempfile::tempdir().unwrap();
        let check = |writes: &[u64], size: u64, expected: &[(u64, u64)]| {
            let path = temp.path().join("sparse");
            let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
            file.set_len(size).unwrap();
            for &offset in writes {
                file.write_all_at(&[1; 4096], offset).unwrap();
            }
            file.sync_all().unwrap();
            assert_eq!(holes(&file, size).unwrap(), expected, "{writes:?} {size}");
        };
        const MIB: u64 = 1 << 20;
        check(&[], 0, &[]);
        check(&[0], 4096, &[]);
        check(&[], MIB, &[(0, MIB)]);
        check(&[], 1, &[(0, 1)]);
        check(&[MIB], MIB + 4096, &[(0, MIB)]);
        check(&[0, MIB], 3 * MIB, &[(4096, MIB - 4096), (MIB + 4096, 2 * MIB - 4096)]);
    }
}
